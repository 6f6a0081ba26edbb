"""Which command lines are servers, and how many ranks follow from them. A wrong number would kill a healthy engine."""

from __future__ import annotations

import engine_forms as forms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engines.profile import Expected
from sidecar.engines.sglang import Sglang
from sidecar.engines.table import profiles
from sidecar.engines.vllm import Vllm
from sidecar.model import Role

SGLANG, VLLM = Sglang(), Vllm()
(GENERIC,) = profiles("generic", None)
EVERY = (SGLANG, VLLM, GENERIC)
LAUNCH = "python -m sglang.launch_server --model-path m "
SERVE = "/usr/bin/python3 /usr/local/bin/vllm serve m "


@pytest.mark.parametrize(
    ("profile", "line"),
    [
        *((SGLANG, line) for line in forms.SGLANG_SERVERS),
        *((VLLM, line) for line in forms.VLLM_SERVERS),
        *((GENERIC, line) for line in forms.TORCHRUN),
    ],
)
def test_servers(profile, line):
    assert [other for other in EVERY if other.is_server(line.split())] == [profile]


@pytest.mark.parametrize("line", [*(tuple(x.split()) for x in forms.STRANGERS), *forms.STRANGERS_IN_ARGUMENTS])
def test_strangers_are_no_servers(line):
    assert [profile.is_server(line) for profile in EVERY] == [False] * 3
    assert [profile.expected(line, {}) for profile in EVERY] == [None] * 3


@pytest.mark.parametrize(
    "line", ["uv run torchrun serve.py", "grep torchrun", "python my/torchrun.py", "./mytorchrun x.py", "torchrun -h"]
)
def test_what_only_mentions_torchrun(line):
    assert not GENERIC.is_server(line.split())


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ("", 1),
        ("--tp 8", 8),
        ("--tp-size 8", 8),
        ("--tp-size=8", 8),
        ("--tensor-parallel-size 8", 8),
        ("--tensor-parallel-size=8", 8),
        ("--tensor-par 8", 8),
        ("--tp 2 --tp-size 4", 4),  # the last one counts
        ("--tp 4 --pp 2", 8),
        ("--tp 4 --pp-size 2 --dp 1", 8),
        ("--pipeline-parallel-size 3", 3),
        ("--tp 2 --dp 2", 4),
        ("--dp-size 4 --pp 2 --tp 2", 16),
        ("--data-parallel-size=2", 2),
        ("--tp 8 --dp 8 --enable-dp-attention", 8),
        ("--enable-dp-attention --tp 8 --dp 2 --pp 2", 16),
        ("--tp 8 --ep 8 --moe-dp-size 2 --attn-cp-size 2", 8),  # inside the tensor ranks
        ("--tp 16 --nnodes 2 --node-rank 0", 8),
        ("--tp 16 --nnodes 2 --node-rank 1 --dist-init-addr a:5000", 8),
        ("--tp 8 --pp 2 --nnodes 2 --node-rank 1", 8),
        ("--tp 8 --pp 2 --nnodes 4 --node-rank 1", 4),
        ("--tp 4 --pp 4 --nnodes 2", 8),
        ("--tp 32 --dp 32 --enable-dp-attention --nnodes 4", 8),
        ("--tp 4 --served-model-name x --json '{\"--tp\": 9}'", 4),
        ("--tp 4 -- --tp 8", 4),
    ],
)
def test_sglangs_schedulers(options, count):
    found = SGLANG.expected((LAUNCH + options).split(), {})
    assert found is not None
    assert (found.count, found.roles) == (count, (Role.SCHEDULER,))


@pytest.mark.parametrize(
    "options",
    [
        "--tp",
        "--tp x",
        "--tp 0",
        "--tp -1",
        "--tp 8.0",
        "--tp ٨",
        "--tp 8_0",
        "--tp=",
        "--tp 99999999999",
        "--tp 65537",
        "--tp 60000 --pp 60000",
        "--tp 8 --nnodes 0",
        "--tp 8 --nnodes 3",
        "--tp 8 --pp 3 --nnodes 2",
        "--tp 8 --config f.yaml",
        "--config=f.yaml",
        "--tp 8 --use-ray",
        "--tp 2 --encoder-only",
        "--tp 8 --ep-join-mode scale",
        "--tp 2 --dp 2 --nnodes 2",  # which node has which, without attention: not certain
        "--tp 8 --dp 2 --enable-prefill-context-parallel",
        "--tp 8 --dp 2 --dwdp-size 8",
        "--tp 8 --help",
    ],
)
def test_where_sglangs_number_is_not_certain(options):
    assert SGLANG.expected((LAUNCH + options).split(), {}) is None


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("sglang serve m", None),  # may turn out to be a diffusion model, which has one more kind of scheduler
        ("sglang serve m --model-type llm", 1),
        ("sglang serve m --tp 8", 8),
        ("sglang serve m --model-type diffusion --tp 2", None),
        ("sglang serve m --num-gpus 4 --tp-size 2", None),
        ("python -m sglang_router.launch_server --tp 8", None),
        ("python -m dynamo.sglang --tp 8", None),
        ("sglang::http_server/tokenizer_manager", None),
        ("python -m sglang.launch_server --model llm --tp 2", 2),  # --model is no --model-type
    ],
)
def test_sglangs_other_ways_to_start(line, count):
    found = SGLANG.expected(line.split(), {})
    assert (found.count if found else None) == count


W, E = (Role.WORKER,), (Role.ENGINE_CORE,)


@pytest.mark.parametrize(
    ("options", "count", "roles"),
    [
        ("", 1, E),
        ("--tensor-parallel-size 1", 1, E),
        ("--tensor-parallel-size 8", 8, W),
        ("--tensor-parallel-size=4", 4, W),
        ("--tensor_parallel_size 4", 4, W),
        ("--tensor_parallel_size=4", 4, W),
        ("--tensor 4", 4, W),
        ("-tp 4", 4, W),
        ("-tp=4", 4, W),
        ("-tp 2 -pp 2", 4, W),
        ("--pipeline-parallel-size 2", 2, W),
        ("-tp 2 --prefill-context-parallel-size 2", 4, W),
        ("-tp 4 --decode-context-parallel-size 2", 4, W),  # inside the tensor ranks
        ("-dp 2", 2, E),  # a worker beside each core or none, by version: the cores are certain
        ("--data-parallel-size 4 --api-server-count 8", 4, E),
        ("-dp 2 -tp 2", 4, W),
        ("-dp 8 -dpl 2 -tp 4", 8, W),
        ("--data-parallel-size 16 --data-parallel-size-local 8", 8, E),
        ("-dp 4 --data-parallel-rank 3", 1, E),
        ("-dp 4 -dpn 3 -tp 8", 8, W),
        ("-dp 4 -dpl 2 --headless --data-parallel-start-rank 2", 2, E),
        ("-tp 16 --distributed-executor-backend mp", 16, W),
        ("-tp 8 -pp 2 --nnodes 2 --node-rank 0", 8, W),
        ("-tp 8 -pp 2 --nnodes 2 --node-rank 1 --headless", 8, W),
        ("-tp 2 -n 2", 1, W),
        ('--compilation-config {"--tensor-parallel-size":8} -tp 2', 2, W),
        ("-tp 2 --config-format hf", 2, W),
    ],
)
def test_vllms_workers_or_engine_cores(options, count, roles):
    found = VLLM.expected((SERVE + options).split(), {})
    assert found is not None
    assert (found.count, found.roles) == (count, roles)


@pytest.mark.parametrize(
    "options",
    [
        "-tp",
        "-tp x",
        "-tp 0",
        "--tensor-parallel-size -2",
        "-tp 1e1",
        "--config f.yaml",
        "--config=f.yaml -tp 8",
        "-tp 8 --distributed-executor-backend ray",
        "-tp 8 --distributed_executor_backend=ray",
        "-tp 8 --distributed-executor-backend external_launcher",
        "-tp 8 --distributed-executor ray",
        "-tp 16",  # more than a machine has: older versions take Ray, over several machines
        "-dp 8 --data-parallel-backend ray",
        "-dp 8 -dpb ray",
        "-dp 8 --data-parallel-size-local 0",
        "-dp 8 --headless",
        "-dp 8 --data-parallel-hybrid-lb",
        "-dp 8 --data-parallel-external-lb",
        "-dp 8 --data-parallel-multi-port-external-lb",
        "-dp 8 --data-parallel-s 4",  # the size, the local size or the first rank
        "-dp 2 -tp 8 --nnodes 2",
        "-tp 8 --nnodes 3",
        "-dp 2 --enable-elastic-ep",
        "--omni",
        "-tp 8 --device tpu",
        "-tp 8 --worker-use-ray",
        "--help",
    ],
)
def test_where_vllms_number_is_not_certain(options):
    assert VLLM.expected((SERVE + options).split(), {}) is None


@pytest.mark.parametrize(
    ("options", "environ", "count"),
    [
        ("-tp 8", {"RAY_ADDRESS": "head:6379"}, None),
        ("-tp 8", {"KUBERAY_GEN_RAY_START_CMD": "ray start"}, None),
        ("-tp 8", {"LWS_GROUP_SIZE": "2"}, None),
        ("-tp 8", {"LWS_GROUP_SIZE": "1"}, 8),
        ("-tp 8", {"TPU_WORKER_ID": "0"}, None),
        ("-tp 8 --distributed-executor-backend mp", {"RAY_ADDRESS": "head:6379"}, 8),
        ("-tp 8 -pp 2 --nnodes 2", {"LWS_GROUP_SIZE": "2"}, 8),
        ("", {"RAY_ADDRESS": "head:6379"}, 1),  # one rank is always here
        ("", {"VLLM_USE_V1": "0"}, None),  # the older engine, without titles
        ("-tp 2", {"VLLM_USE_V1": "1"}, 2),
        ("", {"VLLM_DP_SIZE": "4"}, None),
        ("-tp 2", {"VLLM_DP_SIZE": "x"}, None),
    ],
)
def test_what_the_servers_environment_says(options, environ, count):
    found = VLLM.expected((SERVE + options).split(), environ)
    assert (found.count if found else None) == count
    assert set(environ) <= set(VLLM.server_environment)


def test_it_says_what_a_number_was_read_from():
    assert SGLANG.expected((LAUNCH + "--tp 4 --pp 2").split(), {}) == Expected(
        8, (Role.SCHEDULER,), "--tp-size 4 x --pp-size 2"
    )
    found = VLLM.expected((SERVE + "-dp 2 -tp 2 -pp 2").split(), {})
    assert found is not None
    assert found.why == "--tensor-parallel-size 2 x --pipeline-parallel-size 2 x 2 data parallel engines"


@pytest.mark.parametrize(("local", "count"), [("4", 4), ("0", None), ("x", None), ("", None), (None, None)])
def test_a_launched_rank_knows_how_many_there_are(local, count):
    environ = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"} | (
        {"LOCAL_WORLD_SIZE": local} if local is not None else {}
    )
    found = GENERIC.expected(("python", "serve.py"), environ)
    assert (found.count if found else None) == count
    assert GENERIC.expected(("torchrun", "serve.py"), environ) is None


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 16))
def test_the_nodes_shares_are_the_whole(tp, pp, nodes):
    """Where a number is given, the nodes' numbers add up to every rank there is."""
    found = SGLANG.expected((LAUNCH + f"--tp {tp} --pp {pp} --nnodes {nodes}").split(), {})
    if found is not None:
        assert found.count * nodes == tp * pp


WORDS = st.sampled_from(
    ["-m", "-c", "python3", "python", "sglang.launch_server", "vllm", "serve", "sglang", "--tp", "-tp", "8", "--config",
     "--nnodes", "--", "-", "", "-um", "-X", "--tensor-parallel-size=2", "vllm.entrypoints.openai.api_server", "-h",
     "torchrun", "VLLM::Worker_TP0", "sglang::scheduler_DP0", "/", "=", "--=", "-=", "--tensor_parallel_size"]
)  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.text(max_size=12)), max_size=9), st.dictionaries(WORDS, st.text(max_size=5)))
def test_no_command_line_raises_and_numbers_are_sane(argv, environ):
    environ |= {"RANK": environ.get("8", "1"), "WORLD_SIZE": environ.get("=", "2"), "LOCAL_RANK": "0"}
    for profile in profiles("auto", None) + profiles("generic", r"(?P<N>.*)"):
        title = profile.title(argv, environ)
        assert title is None or 0 < len(title.rank) <= 256
        expected = profile.expected(argv, environ)
        assert expected is None or 1 <= expected.count <= 65536
        if expected is not None and profile.name != "generic":
            assert profile.is_server(argv)
