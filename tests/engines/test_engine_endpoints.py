"""Where an engine's own HTTP server answers, by its command line, and what that may be taken for."""

from __future__ import annotations

import re

import pytest
from engine_forms import SGLANG_SERVERS, VLLM_SERVERS

from sidecar.engines.generic import ByEnvironment, ByPattern
from sidecar.engines.profile import Endpoint
from sidecar.engines.sglang import Sglang, crash_folder
from sidecar.engines.vllm import Vllm

SGLANG = "python3 -m sglang.launch_server --model-path m"
VLLM = "/usr/bin/python3 /usr/local/bin/vllm serve m"


def sglang(line: str) -> Endpoint | None:
    return Sglang().endpoint(line.split(" "), {})


def vllm(line: str) -> Endpoint | None:
    return Vllm().endpoint(line.split(" "), {})


def test_defaults_are_the_engines_own():
    """SGLang serves on loopback and has metrics only when asked; vLLM serves everywhere and has them."""
    assert sglang(SGLANG) == Endpoint("127.0.0.1", 30000, health="/health_generate")
    assert vllm(VLLM) == Endpoint("127.0.0.1", 8000, health="/health", metrics="/metrics", unhealthy_is_dead=True)


@pytest.mark.parametrize("read", [sglang, vllm])
@pytest.mark.parametrize(
    ("options", "host", "port"),
    [
        ("--port 8004", "127.0.0.1", 8004),
        ("--port=8004 --port 8005", "127.0.0.1", 8005),  # the last one counts
        ("--host 0.0.0.0 --port 1", "127.0.0.1", 1),
        ("--host 0 --port 1", "127.0.0.1", 1),
        ("--host= --port 1", "127.0.0.1", 1),
        ("--host :: --port 65535", "::1", 65535),
        ("--host 0:0:0:0:0:0:0:0 --port 2", "::1", 2),
        ("--host [::] --port 2", "::1", 2),
        ("--host ::1 --port 2", "::1", 2),
        ("--host fd00::10 --port 2", "fd00::10", 2),
        ("--host 10.2.3.4 --port 2", "10.2.3.4", 2),
        ("--host 10.0.0.0 --port 2", "10.0.0.0", 2),
        ("--host engine-0.engine.svc --port 2", "engine-0.engine.svc", 2),
        ("--hos localhost --por 2", "localhost", 2),  # argparse takes a beginning for the whole
        ("--config c.yaml --host localhost --port 2", "localhost", 2),
    ],
)
def test_host_and_port_are_read_and_a_wildcard_is_loopback(read, options, host, port):
    line = SGLANG if read is sglang else VLLM
    found = read(f"{line} {options}")
    assert found is not None
    assert (found.host, found.port) == (host, port)


@pytest.mark.parametrize("read", [sglang, vllm])
@pytest.mark.parametrize(
    "options",
    [
        "--port 0",  # the system's choice
        "--port 65536",
        "--port -1",
        "--port",
        "--port x",
        "--host a/b --port 2",
        "--host user@evil --port 2",
        "--host a\rb --port 2",
        "--config c.yaml",  # may say anything
        "--config c.yaml --port 8000",
        "--config c.yaml --host 0.0.0.0",
        "--node-rank 1",
        "--nnodes 2 --node-rank=3",
        "--node-rank",
        "--node-rank x",
        "--help",
    ],
)
def test_in_doubt_there_is_none(read, options):
    """A wrong endpoint is asked for ever, and a further node's answer of 200 says nothing of its ranks."""
    line = SGLANG if read is sglang else VLLM
    assert read(f"{line} {options}") is None
    assert read(f"{line} --nnodes 2 --node-rank 0") is not None


def test_sglang_serves_tls_with_both_files_and_metrics_where_they_are_enabled():
    found = sglang(f"{SGLANG} --ssl-keyfile k --ssl-certfile c --enable-metrics")
    assert found == Endpoint("127.0.0.1", 30000, tls=True, health="/health_generate", metrics="/metrics")
    assert sglang(f"{SGLANG} --enable-metrics-for-all-schedulers").metrics == ""
    assert sglang(f"{SGLANG} --ssl-keyfile k").tls is False


@pytest.mark.parametrize(
    "options", ["--grpc-mode", "--smg-grpc-mode", "--encoder-only", "--num-gpus 2", "--model-type diffusion"]
)
def test_another_server_of_sglang_has_none(options):
    assert sglang(f"{SGLANG} {options}") is None


def test_vllm_serves_tls_with_a_certificate_and_no_metrics_without_stats():
    assert vllm(f"{VLLM} --ssl_certfile c").tls is True  # the key may stand in the same file
    assert vllm(f"{VLLM} --disable-log-stats").metrics == ""
    assert vllm(f"{VLLM} --root-path /v --api-server-count 4") == vllm(VLLM)


def test_a_503_of_another_project_is_no_last_word():
    found = vllm("/usr/bin/python3 /usr/local/bin/vllm --omni serve m")
    assert found is not None
    assert not found.unhealthy_is_dead


@pytest.mark.parametrize(
    "options",
    [
        "--uds /tmp/s",
        "--headless",
        "--api-server-count 0",
        "-asc 0",
        "--data-parallel-multi-port-external-lb",
        "--grpc",
        "-r 1",
        "--node_rank 1",
    ],
)
def test_a_vllm_without_http_of_its_own_has_none(options):
    assert vllm(f"{VLLM} {options}") is None


@pytest.mark.parametrize("line", [*SGLANG_SERVERS, *VLLM_SERVERS, "", "bash -c vllm serve m", "vllm bench serve"])
def test_every_command_line_of_a_server_gives_an_endpoint_or_none(line):
    """Routers, gRPC servers and titles are servers too, and of them nothing is known."""
    argv = line.split(" ")
    for profile in (Sglang(), Vllm()):
        found = profile.endpoint(argv, {})
        assert found is None or (profile.is_server(argv) and found.port in (30000, 8000, 8004))
    assert sglang("python3 -m dynamo.sglang --port 1") is None
    assert vllm("python3 -m vllm.entrypoints.api_server --port 1") is None


def test_other_engines_have_none():
    """Where they answer, a person says."""
    argv = ["torchrun", "--port", "8000"]
    assert ByPattern(re.compile("torchrun")).endpoint(argv, {}) is None
    assert ByEnvironment().endpoint(argv, {"RANK": "0", "WORLD_SIZE": "2"}) is None


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        (f"{SGLANG} --crash-dump-folder /dumps", "/dumps"),
        (f"{SGLANG} --crash-dump-f=crashes", "crashes"),
        ("sglang serve m --crash-dump-folder /d", "/d"),
        (SGLANG, None),
        (f"{SGLANG} --crash-dump-folder", None),
        (f"{SGLANG} --crash-dump-folder=", None),
        ("python3 other.py --crash-dump-folder /dumps", None),
        (f"{VLLM} --crash-dump-folder /dumps", None),
        ("", None),
    ],
)
def test_the_crash_folder_is_what_sglang_was_told(line, folder):
    assert crash_folder(line.split(" ")) == folder


def test_an_elastic_engine_that_scales_says_503_and_is_not_over():
    found = vllm(f"{VLLM} --enable-elastic-ep")
    assert found is not None
    assert not found.unhealthy_is_dead
