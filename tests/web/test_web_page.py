"""The page as it is served: what may be had, with which headers, and what is said to who has no token."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from web_harness import wait_for, web_process

import sidecar.web
from sidecar.version import VERSION

FOLDER = Path(sidecar.web.__file__).parent / "page"
STYLE = "/page/" + next(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.css"))
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
POLICY = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
    "trusted-types 'none'",
}  # fmt: skip


def test_the_page(shared):
    """HTML, under a policy by which nothing from elsewhere and nothing inline runs; checked again at each visit."""
    page = shared.get("/", "api_listen")
    assert (page.status_code, page.content) == (200, (FOLDER / "index.html").read_bytes())
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert set(page.headers["content-security-policy"].split("; ")) == POLICY
    assert page.headers["cache-control"] == "no-cache"
    assert (page.headers["x-frame-options"], page.headers["x-content-type-options"]) == ("DENY", "nosniff")
    for known in (page.headers["etag"], f'"other", W/{page.headers["etag"]}', "*"):
        again = shared.get("/", "api_listen", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert shared.get("/", "api_listen", headers={"if-none-match": '"other"'}).status_code == 200
    head = shared.request("HEAD", "/", "api_listen")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", page.headers["etag"])


def test_every_file_of_the_page(shared):
    """As it lies there, as what it is: a browser takes no script that is not called one."""
    files = [path for path in FOLDER.rglob("*") if path.suffix in KINDS]
    assert {path.suffix for path in files} >= {".js", ".css"}
    for path in files:
        answer = shared.get(f"/page/{path.relative_to(FOLDER)}", "api_listen")
        assert (answer.status_code, answer.content) == (200, path.read_bytes()), path
        assert answer.headers["content-type"] == KINDS[path.suffix]
        assert answer.headers["cache-control"] == "no-cache"
        tag = {"if-none-match": answer.headers["etag"]}
        assert shared.get(f"/page/{path.relative_to(FOLDER)}", "api_listen", headers=tag).status_code == 304


def test_what_the_list_needs_is_asked_for_at_once():
    """Every module that it imports, however deep, and no other: nothing waits for a chain of imports."""
    waiting, needed = ["js/main.js", "js/views/list.js"], set()
    while waiting:
        file = waiting.pop()
        if file not in needed:
            needed.add(file)
            imports = re.findall(r'^import [^;]*?"([^"]+)";', (FOLDER / file).read_text(), re.MULTILINE)
            waiting += [os.path.normpath(f"{file}/../{name}") for name in imports]
    said = re.findall(r'(?:href|src)="page/(js/[^"]+)"', (FOLDER / "index.html").read_text())
    assert sorted(said) == sorted(needed)


@pytest.mark.parametrize(
    "path",
    [
        "", "index.html", "js", "js/", "js/../js/main.js", "../gate.py", "..%2fgate.py", "%2e%2e/gate.py",
        "/etc/passwd", "%2Fetc%2Fpasswd", "js/main.js%00", "js/main.js/", "js/Main.js", "../page/js/main.js",
    ],
)  # fmt: skip
def test_nothing_but_the_page_s_own_files(shared, path):
    with socket.create_connection(("127.0.0.1", shared.port("api_listen")), timeout=15) as raw:  # with no client's help
        raw.sendall(f"GET /page/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ")[1] == b"404"
    assert b"import" not in answer


def test_what_runs_here(shared):
    hello = shared.get("/api/v1", "api_listen")
    assert hello.headers["content-type"].startswith("text/plain")
    assert "POST /api/v1/captures" in hello.text
    about = shared.api("about").json()
    pod = {"namespace": shared.settings.pod_namespace, "name": shared.settings.pod_name}
    assert about == {
        "kind": "sidecar", "version": VERSION, "write": False, "dump_dir": str(shared.folder),
        "pod": pod if pod["name"] else None,
    }  # fmt: skip


def test_the_page_asks_for_the_token(tmp_path):
    """Without it the page comes as 401 and its files come, for it to ask the person; everything else is refused."""
    file = tmp_path / "token"
    file.write_text("right")
    with web_process(tmp_path, api_token_file=str(file), pod_name="llm-0", pod_namespace="prod") as web:
        html = (FOLDER / "index.html").read_bytes()
        for given in ({}, {"authorization": "Bearer wrong"}, {"if-none-match": "*"}):
            page = web.get("/", "api_listen", headers=given)
            assert (page.status_code, page.content) == (401, html)
            assert page.headers["www-authenticate"] == 'Bearer realm="rankguard"'
            assert set(page.headers["content-security-policy"].split("; ")) == POLICY
            assert page.headers["cache-control"] == "no-store"
        assert web.request("HEAD", "/", "api_listen").status_code == 401
        assert web.get(STYLE, "api_listen").status_code == 200
        assert web.get("/page/nothing.css", "api_listen").status_code == 404
        refused = [("POST", "/"), ("POST", STYLE), ("GET", "/page"), ("GET", f"/{STYLE}")]
        refused += [("GET", f"/api/v1{more}") for more in ("", "/about", "/events", "/status", "/incidents")]
        for method, path in refused:
            answer = web.request(method, path, "api_listen")
            assert answer.status_code == 401, path
            assert answer.headers["content-type"] == "application/json"
        right = {"authorization": "Bearer right"}
        assert web.get("/", "api_listen", headers=right).status_code == 200
        assert web.api("about", headers=right).json()["pod"] == {"namespace": "prod", "name": "llm-0"}
        file.unlink()
        wait_for(lambda: web.get("/", "api_listen", headers=right).status_code == 503, "nobody to get in")
        assert web.get("/", "api_listen", headers=right).content == html
