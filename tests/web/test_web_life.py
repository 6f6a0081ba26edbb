"""The process itself: its start, its end, its guard and its supervisor, and that it sleeps when nobody asks."""

import os
import select
import signal
import socket
import time

import httpx
import pytest
from web_harness import WebProcess, rank, switches, wait_for, web_process


def ended(web: WebProcess, seconds: float = 5.0) -> int:
    assert web.process is not None
    return web.process.wait(seconds)


def test_sigterm_ends_it(web):
    """Quickly and with 0, also while a connection is held open and events are being written."""
    guard = web.guard()
    with socket.create_connection(("127.0.0.1", web.port())) as idle:
        idle.sendall(b"GET /metrics HTTP/1.1\r\n")
        web.wait_metric("rankguard_reap_timeouts_total", 0)
        guard.event("reap_timeout")
        web.wait_metric("rankguard_reap_timeouts_total", 1)
        began = time.monotonic()
        os.kill(web.pid, signal.SIGTERM)
        assert ended(web) == 0
        assert time.monotonic() - began < 4
    web.start()
    web.guard()
    assert web.metrics()["rankguard_reap_timeouts_total"] == 1


def test_supervisor_gone(web):
    web.guard()
    web.metrics()
    web.control.close()
    assert ended(web) == 0
    assert "the supervisor is gone" in web.log()


def test_supervisor_gone_before_it_was_up(web):
    web.control.close()
    assert ended(web, 15) == 0
    assert web.log().count("the supervisor is gone") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP])
def test_the_terminals_signals_do_not_end_it(shared, number):
    """Ctrl-C reaches the whole process group, but the supervisor alone says when the telling is over."""
    shared.metrics()
    os.kill(shared.pid, number)
    assert shared.get("/metrics").status_code == 200


def test_health_follows_the_guard(web):
    """Fine at first (it may be starting), 503 once no guard was there for 2 s, fine again with the next."""
    assert web.get("/healthz").text == "ok\n"
    guard = web.guard()
    guard.settled()
    assert web.get("/readyz").status_code == 503  # nothing is known of the ranks yet
    guard.state([rank("TP0")], expected=1)
    web.wait_metric('rankguard_rank_up{rank="TP0",role="scheduler"}', 1)
    guard.channel.close()
    began = time.monotonic()
    wait_for(lambda: web.get("/healthz").status_code == 503, "an unhealthy answer")
    assert time.monotonic() - began > 1.5  # a guard that is being restarted is no failure
    assert "guard" in web.get("/healthz").text
    assert "guard" in web.get("/readyz").text
    assert web.get("/readyz").status_code == 503
    # Nobody watches the ranks: nothing may be claimed of them.
    assert not [name for name in web.metrics() if name.startswith(("rankguard_rank_up", "rankguard_engine_state"))]
    assert web.api("captures", "POST").status_code == 503
    web.guard("e2").state([rank("TP0")], expected=1)
    web.wait_metric('rankguard_rank_up{rank="TP0",role="scheduler"}', 1)
    assert web.get("/healthz").status_code == 200


def test_guard_restarted_in_time_is_never_noticed(web):
    for epoch in ("e1", "e2", "e3"):
        guard = web.guard(epoch)
        guard.state([rank("TP0")], expected=1)
        web.wait_metric('rankguard_rank_up{rank="TP0",role="scheduler"}', 1)
        guard.channel.close()
        wait_for(lambda e=epoch: web.log().count("the guard is gone") == int(e[1]), "the end of the guard")
        assert web.get("/healthz").status_code == 200
        assert web.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("ranks", "fields", "status", "line"),
    [
        ([], {}, 200, "0 ranks up"),
        ([rank("TP0", up=False)], {}, 200, "0 ranks up"),
        ([rank("TP0"), rank("TP1")], {"expected": 2}, 200, "2 of 2 ranks up"),
        ([rank(f"TP{i}", up=i != 3) for i in range(8)], {"expected": 8}, 503, "7 of 8 ranks up: missing TP3"),
        ([rank("TP0")], {"expected": 2}, 503, "1 of 2 ranks up"),
        ([rank("DP0", role="engine_core"), rank("server", role="server")], {"expected": 2}, 503, "1 of 2 ranks up"),
        ([rank("DP0", role="engine_core"), rank("TP0", role="worker")], {"expected": 1}, 200, "1 of 1 ranks up"),
        ([rank("TP0"), rank("detokenizer", role="detokenizer", up=False)], {"expected": 1}, 200, "1 of 1 ranks up"),
        ([rank("TP0")], {"expected": 9, "ready": True, "ready_detail": "as I say"}, 200, "as I say"),
        ([rank("TP0")], {"expected": 1, "ready": False, "ready_detail": "draining"}, 503, "draining\n"),
        (
            [rank("TP0"), rank("TP1", up=False)],
            {"expected": 2, "ready": False, "ready_detail": "1 of 2 ranks up"},
            503,
            "1 of 2 ranks up: missing TP1\n",
        ),
    ],
)
def test_readiness(shared, ranks, fields, status, line):
    guard = shared.guard("")
    guard.state(ranks, **fields)
    guard.settled()
    answer = shared.get("/readyz")
    assert answer.status_code == status
    assert answer.text.startswith(line)


def free_port() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def test_busy_port_is_retried(tmp_path):
    """In a pod a port may be taken at first: told once, tried again, served once it is free."""
    with free_port() as machines, free_port() as people:
        machines.listen()
        people.listen()
        addresses = {
            name: f"127.0.0.1:{s.getsockname()[1]}" for name, s in {"listen": machines, "api_listen": people}.items()
        }
        with web_process(tmp_path, bind=False, **addresses) as web:
            wait_for(lambda: web.log().count("cannot listen") == 2, "the line about the busy ports")
            web.guard()  # and meanwhile it does the rest of its work
            wait_for(lambda: "connected to the guard" in web.log(), "the guard")
            people.close()
            wait_for(lambda: "setting=api_listen" in web.log().partition(" listening ")[2], "the people's port")
            url = f"http://{addresses['api_listen']}/api/v1/status"
            assert httpx.get(url, trust_env=False, verify=False).status_code == 200
            machines.close()
            wait_for(lambda: web.log().count(" listening ") == 2, "the machines' port")
            assert httpx.get(f"http://{addresses['listen']}/healthz", trust_env=False, verify=False).status_code == 200
            assert web.log().count("cannot listen") == 2


def test_busy_port_does_not_hold_up_the_end(tmp_path):
    with free_port() as busy:
        busy.listen()
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        with web_process(tmp_path, bind=False, listen=address, api_listen=None) as web:
            wait_for(lambda: "cannot listen" in web.log(), "the line about the busy port")
            os.kill(web.pid, signal.SIGTERM)
            assert ended(web) == 0


def test_every_interface(tmp_path):
    """An empty host listens on IPv4 and, where the machine has it, IPv6."""
    with free_port() as chosen:
        port = chosen.getsockname()[1]
    with web_process(tmp_path, bind=False, listen=f":{port}", api_listen=None) as web:
        wait_for(lambda: " listening " in web.log(), "the port")
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, verify=False).status_code == 200
        if socket.has_ipv6:
            try:
                socket.create_connection(("::1", port), timeout=5).close()
            except OSError as error:
                assert error.errno in (97, 99), error  # this machine has no IPv6  # noqa: PT017


def test_no_ports_at_all(tmp_path):
    with web_process(tmp_path, bind=False, listen=None, api_listen=None) as web:
        guard = web.guard()
        guard.event("reap_timeout")
        guard.wait_acked(1)


def test_beyond_loopback_without_a_token(tmp_path):
    """The settings refuse it; a socket that comes all the same is not served."""
    with web_process(tmp_path, api_host="0.0.0.0") as web:
        wait_for(lambda: "not listening beyond loopback" in web.log(), "the refusal")
        assert web.get("/healthz").status_code == 200
        os.kill(web.pid, signal.SIGTERM)
        assert ended(web) == 0


def test_it_sleeps_while_nobody_asks(web):
    """uvicorn as shipped looks at a flag ten times a second; here 3 s at rest are (almost) no wakeup at all."""
    guard = web.guard()
    guard.state([rank("TP0")], expected=1)
    web.wait_metric('rankguard_rank_up{rank="TP0",role="scheduler"}', 1)
    pidfd = os.pidfd_open(web.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        before = switches(web.pid)
        assert poll.poll(3000) == [], "the process ended"
        assert switches(web.pid) - before <= 6
    finally:
        os.close(pidfd)


def test_stray_messages_of_the_supervisor(web):
    """What it does not know is named and dropped, descriptors and all."""
    read, write = os.pipe()
    before = len(os.listdir(f"/proc/{web.pid}/fd")) if web.metrics() else 0
    web.control.send({"type": "nonsense"}, (read,))
    web.control.send({"type": "guard"})
    wait_for(lambda: web.log().count("a message of the supervisor's was ignored") == 2, "the lines")
    os.close(read)
    os.close(write)
    assert web.get("/healthz").status_code == 200
    assert len(os.listdir(f"/proc/{web.pid}/fd")) <= before + 2
