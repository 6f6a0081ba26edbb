"""The two ports against strangers: methods, hosts, origins, tokens, and clients that take their time."""

import os
import socket
import time
from contextlib import suppress

import pytest
from web_harness import WebProcess, rank, wait_for, web_process

from sidecar.commands.capture import capture
from sidecar.errors import SettingError


def test_machine_port(shared):
    guard = shared.guard("")  # without one for long, /healthz says so
    guard.state([rank("TP0")])
    for path in ("/metrics", "/healthz"):
        answer = shared.request("HEAD", path)
        assert answer.status_code == 200
        assert answer.content == b""
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = shared.request(method, path)
            assert answer.status_code == 405, method
            assert "GET" in answer.headers["allow"]
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/metrics/", "/api/v1/status", "/../etc/passwd", "/%00"):
        answer = shared.get(path)
        assert answer.status_code == 404, path
    headers = shared.get("/metrics").headers
    assert "server" not in headers
    assert "date" not in headers


def test_status(web):
    guard = web.guard()
    guard.state([rank("TP0"), rank("TP1", up=False)], expected=2, incident="20261120T235959.123Z-rankdied-tp1")
    guard.event("incident", reason="RankDied", wall=1.0)
    guard.wait_acked(1)
    status = web.api("status").json()
    assert (status["state"], status["engine"], status["ranks_expected"], status["ranks_up"]) == (
        "serving",
        "sglang",
        2,
        1,
    )
    assert (status["healthy"], status["ready"]) == (True, False)
    assert status["ready_detail"] == "1 of 2 ranks up: missing TP1"
    assert status["incident"] == "20261120T235959.123Z-rankdied-tp1"
    assert status["incidents_total"]["RankDied"] == 1


def test_secrets_in_a_command_line_are_masked(shared):
    """A rank without a title is shown by its command line; what looks like a key is not shown."""
    line = "python -m serve --api-key sk-123 --hf-token=hf_456 --tokenizer t5 --url http://me:pw789@h/ --max-tokens 5"
    guard = shared.guard("")
    guard.state([rank("TP0", title=line)])
    title = wait_for(lambda: shared.api("ranks").json()["ranks"], "the rank")[0]["title"]
    assert title == "python -m serve --api-key *** --hf-token=*** --tokenizer t5 --url http://***@h/ --max-tokens 5"


def test_capture_reaches_the_guard(web):
    assert web.api("captures", "POST").status_code == 503
    guard = web.guard()
    wait_for(lambda: web.api("captures", "POST").status_code == 202, "the guard")
    wait_for(lambda: {"type": "manual"} in guard.read(), "the request at the guard")
    assert web.api("captures").status_code == 405


def test_errors_are_json(shared):
    for path, method, status in (("nothing", "GET", 404), ("status", "DELETE", 405)):
        answer = shared.api(path, method)
        assert answer.status_code == status
        assert isinstance(answer.json()["error"], str)


def test_security_headers_on_every_answer(shared):
    for answer in (shared.api("status"), shared.api("nothing"), shared.api("status", headers={"host": "evil.example"})):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:21401", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:21401", 403),
        ("localhost:80:80", 403),
        ("127.0.0.2", 403),
        ("evil.example#localhost", 403),
        ("", 400),
    ],
)
def test_host(shared, host, status):
    """A name that was rebound to 127.0.0.1 is still in the Host header."""
    assert shared.api("status", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 202),
        ("http://127.0.0.1:{port}", 202),
        ("https://evil.example", 403),
        ("http://127.0.0.1:1", 403),
        ("http://localhost:{port}", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("http://127.0.0.1:{port}.evil.example", 403),
    ],
)
def test_origin(shared, origin, status):
    """Any page in the same browser can POST to a forwarded port; it must say where it is from."""
    shared.guard("").settled()
    headers = {} if origin is None else {"origin": origin.format(port=shared.port("api_listen"))}
    assert shared.api("captures", "POST", headers=headers).status_code == status


def raw(web: WebProcess, data: bytes, port: str = "listen") -> bytes:
    with socket.create_connection(("127.0.0.1", web.port(port)), timeout=15) as sock:
        answer = b""
        with suppress(ConnectionError):
            sock.sendall(data)
        with suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                answer += chunk
        return answer


def test_doubled_headers_are_refused(shared):
    request = b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n"
    assert b" 200 " in raw(shared, request % b"", "api_listen").splitlines()[0]
    for doubled in (b"Host: evil.example\r\n", b"Origin: http://a\r\nOrigin: http://localhost\r\n"):
        assert b" 400 " in raw(shared, request % doubled, "api_listen").splitlines()[0]
    no_host = b"GET /api/v1/status HTTP/1.0\r\n\r\n"
    assert b" 400 " in raw(shared, no_host, "api_listen").splitlines()[0]


def test_token(tmp_path):
    """With a token every request needs it, from any host; a new one is taken over, no file locks all out."""
    file = tmp_path / "token"
    file.write_text("first-token\n")
    with web_process(tmp_path, api_token_file=str(file), api_host="0.0.0.0") as web:

        def status(authorization: str | None, path: str = "status", **headers: str) -> int:
            given = {} if authorization is None else {"authorization": authorization}
            return web.api(path, headers={**given, **headers}).status_code

        assert status("Bearer first-token") == 200
        assert status("bearer first-token", host="pod.example:21401") == 200
        for wrong in (None, "", "Bearer", "Bearer first-toke", "Bearer first-token2", "Basic first-token"):
            assert status(wrong) == 401, wrong
            assert status(wrong, "nothing") == 401, wrong
        assert status("Bearer first-token", origin="https://evil.example") == 403
        assert web.api("status").headers["www-authenticate"].startswith("Bearer")
        assert web.get("/metrics").status_code == 200  # machines have no token
        fresh = tmp_path / "fresh"
        fresh.write_text("second-token")
        fresh.rename(file)
        wait_for(lambda: status("Bearer second-token") == 200, "the new token")
        assert status("Bearer first-token") == 401
        file.write_text("")
        wait_for(lambda: status("Bearer second-token") == 503, "an empty file to lock everybody out")
        assert status("Bearer") == 503
        file.unlink()
        wait_for(lambda: status("Bearer second-token") == 503, "the missing file to lock everybody out")
        file.write_text("third-token")
        wait_for(lambda: status("Bearer third-token") == 200, "the third token")
        assert "first-token" not in web.log()


def test_token_file_missing_from_the_start(tmp_path):
    with web_process(tmp_path, api_token_file=str(tmp_path / "absent")) as web:
        assert web.api("status", headers={"authorization": "Bearer x"}).status_code == 503
        assert web.log().count("nobody gets in") == 1


def test_token_file_that_hangs(tmp_path):
    """A FIFO in its place neither lets anybody in nor holds up the metrics."""
    os.mkfifo(tmp_path / "token")
    with web_process(tmp_path, api_token_file=str(tmp_path / "token")) as web:
        assert web.api("status", headers={"authorization": "Bearer x"}).status_code == 503
        assert web.get("/metrics").status_code == 200


def closed_by_peer(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_idle_connections_cannot_shut_others_out(web):
    """Three hundred connections that ask for nothing: a scraper still gets its answer at once."""
    held: list[socket.socket] = []
    try:
        for _ in range(300):
            held.append(socket.create_connection(("127.0.0.1", web.port()), timeout=60))
        for sock in held[::2]:
            try:
                sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            except ConnectionError:
                continue
        for _ in range(20):
            assert web.get("/metrics").status_code == 200
        wait_for(lambda: sum(map(closed_by_peer, held)) >= 230, "the oldest to be cut")
        fds = len(os.listdir(f"/proc/{web.pid}/fd"))
        assert fds < 120
    finally:
        for sock in held:
            sock.close()


def test_clients_that_take_their_time_are_cut_off(web):
    """Ten seconds, not for ever: for a client that sends a byte now and then, for one that does so after a first whole
    request, and for one that reads nothing, so that its answers never leave our buffer."""
    guard = web.guard()
    guard.state([rank(f"TP{i}" + "x" * 100) for i in range(512)])
    wait_for(lambda: len(web.get("/metrics").content) > 100_000, "a big answer")
    where = ("127.0.0.1", web.port())
    with (
        socket.create_connection(where, timeout=20) as slow,
        socket.create_connection(where, timeout=20) as again,
        socket.socket() as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(where)
        began = time.monotonic()
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert again.recv(65536).startswith(b"HTTP/1.1 ")
        wait_for(lambda: held(web, deaf), "the connection of the one that reads nothing")

        def dripped(sock: socket.socket) -> bool:
            try:
                sock.sendall(b"X")
            except ConnectionError:
                return True
            return closed_by_peer(sock)

        wait_for(lambda: dripped(slow), "the slow one to be cut", 20)
        assert time.monotonic() - began > 8
        wait_for(lambda: closed_by_peer(again), "the second request to be cut")
        wait_for(lambda: not held(web, deaf), "the one that reads nothing to be cut")
        assert web.get("/metrics").status_code == 200


def held(web: WebProcess, client: socket.socket) -> bool:
    """By the kernel's table the other end of `client` belongs to a process, not only to the kernel (inode 0)."""
    ends = (f":{web.port():04X}", f":{client.getsockname()[1]:04X}")
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    return any(row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] != "0" for row in rows)


def test_a_huge_header_is_refused(shared):
    answer = raw(shared, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * 1_000_000 + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert shared.get("/metrics").status_code == 200


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 10])
def test_garbage(shared, data):
    before = shared.log()
    with socket.create_connection(("127.0.0.1", shared.port()), timeout=15) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(65536)
    assert shared.get("/metrics").status_code == 200
    assert shared.log() == before  # strangers do not write our log


def test_capture_command(web, tmp_path, capsys):
    api = f"127.0.0.1:{web.port('api_listen')}"
    wait_for(lambda: capture(api, None) == 1, "a refusal while there is no guard")
    assert "the guard is not running" in capsys.readouterr().err
    guard = web.guard()
    wait_for(lambda: capture(api, None) == 0, "the guard")
    assert "accepted" in capsys.readouterr().out
    assert capture(f"http://{api}/", None) == 0
    assert capture(f":{web.port('api_listen')}", None) == 0
    wait_for(lambda: len([m for m in guard.read() if m["type"] == "manual"]) == 3, "three requests")
    for bad in ("nonsense", "127.0.0.1:port", "ftp://127.0.0.1:1", "127.0.0.1:99999", "http://u:p@127.0.0.1:1"):
        with pytest.raises(SettingError):
            capture(bad, None)
    with pytest.raises(SettingError):
        capture(api, str(tmp_path / "absent"))


def test_capture_command_finds_nobody(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert capture(f"127.0.0.1:{unused.getsockname()[1]}", None) == 1
    assert "no sidecar answers" in capsys.readouterr().err


def test_capture_command_with_a_token(tmp_path, capsys):
    right, wrong = tmp_path / "token", tmp_path / "wrong"
    right.write_text("secret\n")
    wrong.write_text("guess\n")
    with web_process(tmp_path, api_token_file=str(right)) as web:
        web.guard()
        wait_for(lambda: "connected to the guard" in web.log(), "the guard")
        api = f"127.0.0.1:{web.port('api_listen')}"
        assert capture(api, str(right)) == 0
        assert capture(api, str(wrong)) == 1
        assert capture(api, None) == 1
        assert "a bearer token is needed" in capsys.readouterr().err
