"""The health check against real servers: what each answer means, and that none of them can hold it up."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from engine_http import answers, hangs_up, pours, resets, served, silent

from sidecar.engines.profile import Endpoint
from sidecar.policy.sightings import Answer, ProbeResult
from sidecar.web.liveness.fetch import connect, url_of
from sidecar.web.liveness.probe import Prober

PATIENT, SHORT = 30.0, 0.3
OK = "HTTP/1.1 200 OK\nContent-Length: 0"


def probe(handler, timeout: float = PATIENT, path: str = "/health", **details) -> ProbeResult:
    """One health check of a server with this handler."""

    async def run() -> ProbeResult:
        async with served(handler, **details) as url:
            return await Prober().probe(url + path, timeout)

    return asyncio.run(run())


def probe_url(url: str, timeout: float = PATIENT) -> ProbeResult:
    return asyncio.run(Prober().probe(url, timeout))


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (OK, Answer.OK),
        ("HTTP/1.1 204 No Content", Answer.OK),
        ("HTTP/1.0 200 OK", Answer.OK),
        ("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 0", Answer.OK),
        ("HTTP/1.1 503 Service Unavailable\nContent-Length: 0", Answer.UNHEALTHY),
        ("HTTP/1.1 500 Oh\nContent-Length: 0", Answer.UNHEALTHY),
        ("HTTP/1.1 404 Not Found\nContent-Length: 0", Answer.UNHEALTHY),
        ("HTTP/1.1 302 Found\nLocation: http://127.0.0.1:1/\nContent-Length: 0", Answer.UNHEALTHY),
        ("SSH-2.0-OpenSSH_9.6", Answer.UNHEALTHY),
        ("HTTP/1.1 200 OK\n" + "X: y\n" * 40_000, Answer.UNHEALTHY),
        ("HTTP/9.9 two hundred", Answer.UNHEALTHY),
        ("\0\1\2\3", Answer.UNHEALTHY),
    ],
)
def test_the_status_decides(head, answer):
    assert probe(answers(head)).answer is answer


def test_the_detail_is_the_status_and_the_request_is_a_plain_one():
    seen: list[str] = []
    assert probe(answers("HTTP/1.1 503 No\nContent-Length: 0", seen=seen), path="/health?x=1").detail == "503"
    assert seen[0].startswith("GET /health?x=1 HTTP/1.1\r\n")
    assert "User-Agent: rankguard\r\n" in seen[0]
    assert "\r\nHost: 127.0.0.1:" in seen[0]


def test_a_503_is_the_end_only_of_an_engine_that_says_it_for_nothing_else():
    async def run() -> list[Answer]:
        found = []
        for status in (503, 500, 200):
            async with served(answers(f"HTTP/1.1 {status} X\nContent-Length: 0")) as url:
                found.append((await Prober().probe(url, PATIENT, unhealthy_is_dead=True)).answer)
        return found

    assert asyncio.run(run()) == [Answer.OVER, Answer.UNHEALTHY, Answer.OK]


@pytest.mark.parametrize("path", ["", "/a b/c?d", "/\u00e4", "/%2F"])
def test_any_path_can_be_asked_for(path):
    assert probe(answers(OK), path=path).answer is Answer.OK


@pytest.mark.parametrize(
    "handler",
    [silent, pours("", b"H", 0.005), pours("HTTP/1.1 200 OK\n", b"X-Y: z\r\n", 0.005)],
    ids=["silent", "a trickling status line", "trickling headers"],
)
def test_the_whole_check_has_one_time_limit(handler):
    """Were it a limit for each piece, a server that trickles would hold the check for ever."""
    found = probe(handler, SHORT)
    assert (found.answer, found.detail) == (Answer.TIMEOUT, "no answer in 0.3 s")


@pytest.mark.parametrize(
    "handler",
    [
        pours("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"1\r\nx\r\n", 0.005),
        pours("HTTP/1.1 200 OK\n\n", b"x" * 65536),
    ],
    ids=["trickling", "endless"],
)
def test_the_body_of_a_healthy_answer_is_not_waited_for(handler):
    assert probe(handler).answer is Answer.OK


@pytest.mark.parametrize(
    "handler",
    [hangs_up, resets, pours("", b"x" * 65536), pours("", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)],
    ids=["hung up", "reset", "endless line", "endless hints"],
)
def test_what_is_no_answer_is_unhealthy(handler):
    assert probe(handler).answer is Answer.UNHEALTHY


def test_a_port_that_nobody_listens_on_refuses():
    with socket.socket() as taken:  # bound and not listening: nobody else can take the port meanwhile
        taken.bind(("127.0.0.1", 0))
        found = probe_url(f"http://127.0.0.1:{taken.getsockname()[1]}/health")
    assert (found.answer, found.detail) == (Answer.REFUSED, os.strerror(111))


def test_a_stopped_engine_that_the_kernel_still_accepts_for_times_out():
    """SIGSTOP leaves the listening socket open: a connection is made and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = probe_url(f"http://127.0.0.1:{listening.getsockname()[1]}/health", SHORT)
    assert found.answer is Answer.TIMEOUT


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "no URL"),
        ("ftp://127.0.0.1/", "not a URL"),
        ("http://", "not a URL"),
        ("http://127.0.0.1:port/", "not a URL"),
        ("http://127.0.0.1:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://u:p@127.0.0.1/", "not supported"),
        (f"http://{'a' * 70}.example/", "looked up"),
        ("http://a\0b/", "not a URL"),
    ],
)
def test_a_url_of_no_use_says_nothing_of_the_engine(url, words):
    found = probe_url(url, 5.0)
    assert words in found.detail
    assert found.answer is Answer.UNKNOWN


def test_each_address_of_a_name_is_tried():
    """localhost is ::1 first on many machines, and an engine on 127.0.0.1 is found there all the same."""

    async def run() -> tuple[str, int]:
        async with served(silent) as url:
            port = int(url.rpartition(":")[2])
            _, writer = await connect(["127.0.0.3", "127.0.0.2", "127.0.0.1"], port, "localhost", tls=False)
            writer.transport.abort()
            with pytest.raises(ConnectionRefusedError):
                await connect(["127.0.0.3", "127.0.0.2"], port, "localhost", tls=False)
            return writer.get_extra_info("peername")

    assert asyncio.run(run())[0] == "127.0.0.1"


def test_a_name_is_looked_up_also_by_several_at_once():
    seen: list[str] = []

    async def run() -> list[ProbeResult]:
        async with served(answers(OK, seen=seen)) as url:
            prober = Prober()
            url = url.replace("127.0.0.1", "localhost")
            return await asyncio.gather(*(prober.probe(url, PATIENT) for _ in range(3)))

    assert [found.answer for found in asyncio.run(run())] == [Answer.OK] * 3
    assert all("\r\nHost: localhost:" in request for request in seen)


def test_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    assert probe(answers(OK), host="::1").answer is Answer.OK


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """What an engine has with --ssl-keyfile and --ssl-certfile: a certificate that nobody vouches for."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
               "-days", "2", "-subj", "/CN=somebody.else", "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_an_engine_with_a_certificate_of_its_own_is_asked_all_the_same(tls):
    assert probe(answers(OK), tls=tls).answer is Answer.OK
    assert probe(silent, SHORT, tls=tls).answer is Answer.TIMEOUT


def test_tls_where_there_is_none_is_no_answer():
    async def run(handler, timeout: float) -> Answer:
        async with served(handler) as url:
            return (await Prober().probe(url.replace("http:", "https:"), timeout)).answer

    async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    assert asyncio.run(run(talks, PATIENT)) is Answer.UNHEALTHY
    assert asyncio.run(run(silent, SHORT)) is Answer.TIMEOUT  # the handshake counts


def test_the_environments_proxy_is_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert probe(answers(OK)).answer is Answer.OK


def test_no_descriptor_stays_open():
    """Whatever became of a check, nothing of it is left."""

    async def run() -> tuple[int, int]:
        prober = Prober()
        async with served(answers(OK)) as good, served(silent) as mute, served(resets) as broken:
            await prober.probe(good, PATIENT)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                for url in (good, mute, broken, "http://127.0.0.1:1/"):
                    await prober.probe(url, 0.02)
            for _ in range(1000):  # the servers' own ends close when they have seen ours go
                await asyncio.sleep(0.005)
                if len(os.listdir("/proc/self/fd")) <= before + 5:  # `silent` never looks: its five stay open
                    break
            return before, len(os.listdir("/proc/self/fd"))

    before, after = asyncio.run(run())
    assert after <= before + 5


def test_the_urls_of_an_endpoint():
    assert url_of(Endpoint("127.0.0.1", 8000, health="/health"), "/health") == "http://127.0.0.1:8000/health"
    assert url_of(Endpoint("::1", 8000, tls=True), "/metrics") == "https://[::1]:8000/metrics"
    assert url_of(Endpoint("::1", 8000), "") == ""
