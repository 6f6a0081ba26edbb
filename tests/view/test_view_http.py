"""The viewer's API over a whole volume, asked over HTTP: pages, incidents, files, bundles, and what hostile folders
make of it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from dump_folders import STACK, everything, incident, put, rewrite
from view_rig import Viewer

from sidecar.model import Reason

SECRET = "root:x:0:0"


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """Two pods in two namespaces, one incident in the folder itself, one hostile pod; and a secret outside."""
    base = tmp_path_factory.mktemp("view")
    (base / "secret").write_text(SECRET)
    folder = base / "volume"
    for hours in (1, 2, 3):
        put(folder / "prod" / "llm-0", incident(hours, f"TP{hours}", pod="prod/llm-0"))
    put(folder / "test" / "llm-1", incident(4, "TP1", Reason.ENGINE_STALLED, pod="test/llm-1"), sealed=False)
    put(folder, incident(5))
    evil = put(folder / "evil" / "pod", incident(6, "TP6", pod="prod/llm-0"))
    rewrite(evil, summary="<script>alert(1)</script>\x1b[31m", path="../../secret", bytes="many", files=7)
    (evil / "link").symlink_to(base / "secret")
    (evil / "up").symlink_to(base)
    (evil / '<img src=x onerror="alert(1)">\n\x1b[2J').write_text("markup")
    os.mkfifo(evil / "fifo")
    (folder / "evil" / "linked").symlink_to(base)
    (folder / "evil" / "pod" / incident(7).id).symlink_to(evil)
    huge = put(folder / "evil" / "pod", incident(8))
    os.truncate(huge / "incident.json", 1 << 30)
    many = put(folder / "evil" / "pod", incident(9))
    (many / "incident.json").write_text("[" + "[]," * 5_000_000 + "[]]")
    half = folder / "evil" / "pod" / incident(10).id
    half.mkdir()
    return folder


@pytest.fixture(scope="module")
def viewer(volume):
    with Viewer(volume) as viewer:
        yield viewer


def test_the_list_is_newest_first_and_goes_on_by_page(viewer):
    """Pages follow each other by `next` with no gap and no repetition, however small they are."""
    whole = viewer.rows()
    assert len(whole) == viewer.incidents(limit="1").json()["total"] == 10
    times = [row["time"] for row in whole]
    assert times == sorted(times, reverse=True)
    assert whole[0]["path"].startswith("prod/llm-0/")
    assert viewer.rows(limit=3) == whole


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"reason": "enginestalled"}, ["TP1"]),
        ({"namespace": "prod"}, ["TP1", "TP2", "TP3"]),
        ({"namespace": "prod", "pod": "llm-0", "rank": "tp2"}, ["TP2"]),
        ({"sealed": "false", "unreadable": "false"}, ["TP1"]),
        ({"q": "SIGKILL tp6"}, ["TP6"]),
        ({"namespace": "evil", "cause": "sigkill"}, ["TP6"]),  # it says that it is prod's, and lies in another's folder
        ({"q": "nowhere"}, []),
        ({"since": "2100-01-01T00:00:00Z"}, []),
    ],
)
def test_filters(viewer, query, found):
    assert [row["rank"] for row in viewer.rows(**query)] == found


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"limit": "0"}, "limit"), ({"limit": "501"}, "limit"), ({"before": "../x"}, "before"),
        ({"since": "x"}, "since"), ({"sealed": "maybe"}, "sealed"), ({"colour": "red"}, "colour"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_gets_one_line(viewer, query, word):
    answer = viewer.incidents(**query)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(word)


def test_an_incident_is_its_record_and_its_files(viewer, volume):
    row = viewer.rows(namespace="prod", rank="TP1")[0]
    answer = viewer.incidents(f"/{row['path']}").json()
    record = json.loads((volume / row["path"] / "incident.json").read_bytes())
    assert {key: answer[key] for key in record} == record
    assert answer["files"] == [
        {"path": "incident.json", "bytes": (volume / row["path"] / "incident.json").stat().st_size},
        {"path": "pyspy/TP0.json", "bytes": len(STACK)},
    ]
    assert viewer.incidents(f"/{row['path'].replace('/', '%2F')}").json() == answer


def test_hostile_incidents_are_shown_as_such(viewer):
    """A link, a gigabyte of JSON, millions of values and half an incident are rows that say so; the rest goes on."""
    rows = viewer.rows(unreadable="true")
    whys = [row["unreadable"] for row in rows]
    assert [why.partition(":")[0] for why in whys] == [
        "a symbolic link", "incident.json has 1073741824 bytes, more than 16777216",
        "incident.json has more than 500000 values", "half-written",
    ]  # fmt: skip
    for row in rows:
        one = viewer.incidents(f"/{row['path']}")
        assert (one.status_code, one.json()["unreadable"]) == (200, row["unreadable"])


def test_a_record_of_any_depth_can_be_asked_for(tmp_path):
    """It is shown, or called unreadable: what could just be read is not too deep to be sent."""
    homes = {}
    for depth in (60, *range(100, 1000, 20)):
        homes[depth] = put(tmp_path, incident(depth))
        record = (homes[depth] / "incident.json").read_text().rstrip()
        nested = "[" * depth + "]" * depth
        (homes[depth] / "incident.json").write_text(f'{record.removesuffix("}")}, "notes": {nested}}}')
    with Viewer(tmp_path) as viewer:
        answers = {depth: viewer.incidents(f"/{home.name}") for depth, home in homes.items()}
    assert {answer.status_code for answer in answers.values()} == {200}
    assert [depth for depth, answer in answers.items() if answer.json()["unreadable"] is None] == [60]


def test_hostile_words_are_only_words(viewer):
    """Markup and escapes travel as JSON in ASCII; what the folder says is not what the record claims."""
    answer = viewer.incidents(before=viewer.rows(namespace="test")[0]["path"])
    assert b"alert(1)" in answer.content
    assert answer.content.isascii()
    assert b"\x1b" not in answer.content
    (row,) = viewer.rows(namespace="evil", rank="TP6")
    one = viewer.incidents(f"/{row['path']}").json()
    assert one["path"] == row["path"]
    assert isinstance(one["bytes"], int)
    assert '<img src=x onerror="alert(1)">\n\x1b[2J' in [file["path"] for file in one["files"]]
    assert one["files_left_out"] == 3  # two links and a FIFO
    file = viewer.incidents(f"/{row['path']}/artifacts/%3Cimg%20src=x%20onerror=%22alert(1)%22%3E%0A%1B%5B2J")
    assert file.content == b"markup"
    assert file.headers["content-type"] == "application/octet-stream"
    assert file.headers["content-disposition"].startswith('attachment; filename="_img_src_x_onerror__alert_1____')
    assert "sandbox" in file.headers["content-security-policy"]
    assert file.headers["x-content-type-options"] == "nosniff"
    assert file.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "link", "up/secret", "..%2F..%2F..%2F..%2Fsecret", "%2e%2e/%2e%2e/secret", "/etc/passwd", "%2Fetc%2Fpasswd",
        "fifo", "pyspy", "pyspy/", "pyspy//TP0.json", "./incident.json", "%00", "a" * 300, "a/" * 40 + "b", "%ff", "",
    ],
)  # fmt: skip
def test_nothing_but_the_incident_s_own_files(viewer, path):
    """No `..`, no link, no FIFO, no folder: 404, and nothing of what lies outside."""
    (row,) = viewer.rows(namespace="evil", rank="TP6")
    with socket.create_connection(("127.0.0.1", viewer.api_port), timeout=60) as raw:  # as it is, with no client's help
        line = f"GET /api/v1/incidents/{row['path']}/artifacts/{path} HTTP/1.1\r\n"
        raw.sendall((line + "Host: localhost\r\nConnection: close\r\n\r\n").encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ")[1] == b"404"
    assert SECRET.encode() not in answer


@pytest.mark.parametrize("path", ["x", "evil/linked/volume", "..%2Fsecret", "20261399T000000.000Z-x", "a/b/c/d", "%00"])
def test_what_is_no_incident_is_not_found(viewer, path):
    for more in ("", "/bundle", "/artifacts/incident.json"):
        assert viewer.incidents(f"/{path}{more}").status_code == 404


SIZE = len(STACK)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10), ("bytes=100-", 100, SIZE), ("bytes=-7", SIZE - 7, SIZE), ("bytes=5-99999999", 5, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE), ("bytes=-99999999", 0, SIZE), ("bytes=0-1,5-6", 0, SIZE),
        ("lines=1-2", 0, SIZE), ("bytes=9-3", 0, SIZE),
    ],
)  # fmt: skip
def test_a_file_can_be_had_in_part(viewer, asked, start, stop):
    path = viewer.rows(namespace="prod")[0]["path"]
    answer = viewer.incidents(f"/{path}/artifacts/pyspy/TP0.json")
    assert (answer.status_code, answer.content, answer.headers["accept-ranges"]) == (200, STACK, "bytes")
    part = viewer.ask(f"/api/v1/incidents/{path}/artifacts/pyspy/TP0.json", headers={"range": asked})
    assert part.content == STACK[start:stop]
    if stop - start < SIZE:
        assert (part.status_code, part.headers["content-range"]) == (206, f"bytes {start}-{stop - 1}/{SIZE}")
    else:
        assert part.status_code == 200


def test_ranges_that_are_not_there_and_files_that_have_changed(viewer):
    path = viewer.rows(namespace="prod")[0]["path"]
    file = f"/api/v1/incidents/{path}/artifacts/pyspy/TP0.json"
    for asked in (f"bytes={SIZE}-", "bytes=-0"):
        answer = viewer.ask(file, headers={"range": asked})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")
    head = viewer.ask(file, "HEAD", headers={"range": "bytes=0-9"})
    assert (head.status_code, head.headers["content-length"], head.content) == (206, "10", b"")
    same = viewer.ask(file, headers={"range": "bytes=0-9", "if-range": head.headers["etag"]})
    other = viewer.ask(file, headers={"range": "bytes=0-9", "if-range": '"another"'})
    assert (same.status_code, other.status_code) == (206, 200)


def test_a_bundle_holds_everything_and_an_index(viewer, volume):
    """What tar unpacks is what lies in the folder; links are left out and counted."""
    (row,) = viewer.rows(namespace="evil", rank="TP6")
    answer = viewer.incidents(f"/{row['path']}/bundle")
    assert answer.headers["content-type"] == "application/gzip"
    assert f"evil_pod_{row['id']}.tar.gz" in answer.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive if member.isreg()}
        assert len(found) == len(archive.getmembers())
    index = json.loads(found.pop(f"{row['id']}/index.json"))
    readme = found.pop(f"{row['id']}/README.txt").decode().splitlines()
    home = volume / row["path"]
    there = {
        f"{row['id']}/{p.relative_to(home)}": p.read_bytes()
        for p in home.rglob("*")
        if p.is_file() and not p.is_symlink()
    }
    assert found == there
    assert {file["path"]: file["bytes"] for file in index["files"]} == {
        name.removeprefix(f"{row['id']}/"): len(data) for name, data in there.items()
    }
    assert all(line.isprintable() for line in readme)
    for file in index["files"]:  # one name in it has a line's end and escapes
        (line,) = [line for line in readme if file["sha256"] in line]
        assert line.split(maxsplit=2) == [str(file["bytes"]), file["sha256"], ascii(file["path"])[1:-1]]
    assert index["more_left_out"] == 3
    assert readme[-1].startswith("left out: 3 more")
    (link,) = [row for row in viewer.rows(unreadable="true") if "link" in row["unreadable"]]
    assert viewer.incidents(f"/{link['path']}/bundle").status_code == 404


def test_it_changes_nothing(viewer, volume):
    before = everything(volume)
    path = viewer.rows(namespace="prod")[0]["path"]
    for method, more in (("DELETE", ""), ("PUT", "/pin"), ("DELETE", "/pin")):
        answer = viewer.ask(f"/api/v1/incidents/{path}{more}", method)
        assert answer.status_code == 403
        assert "--write" in answer.json()["error"]
    assert viewer.ask(f"/api/v1/incidents/{path}", "POST").status_code == 405
    assert everything(volume) == before


def test_strangers_get_nothing(viewer):
    """A page of another host behind the same port-forward, and a name that was bound to 127.0.0.1."""
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert viewer.ask("/api/v1/incidents", headers=headers).status_code == 403
    hello = viewer.ask("/api/v1")
    assert hello.headers["content-type"].startswith("text/plain")
    assert "/api/v1/incidents/{id}/bundle" in hello.text
    for path in ("/metrics", "/api/v1/status", "/docs", "/openapi.json"):
        assert viewer.ask(path).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--dump-dir", "/nowhere"], "--dump-dir: '/nowhere' cannot be used: it cannot be read: No such file"),
        (["--api-listen", "0.0.0.0:0"], "--api-listen: '0.0.0.0:0' cannot be used: beyond loopback it needs --api-to"),
        (["--api-listen", "here"], "--api-listen: 'here' cannot be used: it takes HOST:PORT"),
        (["--write"], "--write needs --api-token-file: only who has the token may remove and pin"),
        (["--api-token-file", "/nowhere"], "--api-token-file: '/nowhere' cannot be used: there is no such file"),
        (["--scan-period", "soon"], "--scan-period: 'soon' cannot be used: it takes a number with s, m, h, d or w"),
    ],
)  # fmt: skip
def test_a_wrong_option_gets_one_line(tmp_path, arguments, line):
    argv = [sys.executable, "-m", "sidecar", "view", "--dump-dir", str(tmp_path), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"rankguard: {line}")
