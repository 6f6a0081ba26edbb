"""vLLM from outside: titles, the server's command line, the number of workers or engine cores.

From its source: titles are `PREFIX::NAME_SUFFIX`, and VLLM_PROCESS_NAME_PREFIX stands there in place of `VLLM`, not
before it (`utils/system_utils.py`); options in `engine/arg_utils.py` and `entrypoints/openai/cli_args.py`, read by an
argparse that takes underscores for dashes (`utils/argparse_utils.py`); which processes there are in
`config/parallel.py`, `v1/engine/utils.py` and `v1/executor/`. Titles exist only where the package setproctitle is
installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.engines.command_line import (
    MODULE,
    SCRIPT,
    Options,
    Program,
    asks_for_help,
    is_first_node,
    listens_at,
    natural,
    program,
    read_options,
)
from sidecar.engines.labels import LONGEST_TITLE, SUFFIXES, rank_label
from sidecar.engines.profile import SHARED_MEMORY, Endpoint, Expected, Title
from sidecar.model import Role

_TITLE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,63})::([A-Za-z0-9_]{1,191})")
_WORKER = re.compile(rf"Worker({SUFFIXES}*)")
_ENGINE_CORE = re.compile(rf"EngineCore({SUFFIXES}*)")
_OLD_ENGINE_CORE = re.compile(rf"DPEngineCore_([0-9]{{1,6}})({SUFFIXES}*)")
_API_SERVER = re.compile(r"APIServer((?:_[0-9]{1,6})?)")
# An engine core has no such dimension: in older versions a forked worker appends its own to its parent's title.
_OF_A_WORKER = re.compile(r"_(?:TP|PP|PCP)[0-9]")

_MODULES = ("vllm.entrypoints.openai.api_server",)
_OTHER_MODULES = ("vllm.entrypoints.api_server", "vllm.entrypoints.grpc_server", "dynamo.vllm")
_COMMAND_MODULES = ("vllm", "vllm.entrypoints.cli.main")
_SCRIPTS = ("vllm/entrypoints/openai/api_server.py",)

_OPTIONS = {
    "--tensor-parallel-size": "tp", "--pipeline-parallel-size": "pp", "--prefill-context-parallel-size": "pcp",
    "--data-parallel-size": "dp", "--data-parallel-size-local": "local", "--data-parallel-rank": "dp_rank",
    "--data-parallel-start-rank": "start_rank", "--data-parallel-backend": "dp_backend",
    "--data-parallel-hybrid-lb": "hybrid", "--data-parallel-external-lb": "external",
    "--data-parallel-multi-port-external-lb": "many", "--distributed-executor-backend": "executor",
    "--nnodes": "nnodes", "--headless": "headless", "--enable-elastic-ep": "elastic",
}  # fmt: skip
_EXACT = {
    "-tp": "tp", "-pp": "pp", "-pcp": "pcp", "-dp": "dp", "-dpl": "local", "-dpn": "dp_rank", "-dpr": "start_rank",
    "-dpb": "dp_backend", "-dph": "hybrid", "-dpe": "external", "-dpm": "many", "-n": "nnodes",
    "--config": "file", "--omni": "omni", "--worker-use-ray": "ray", "--device": "device",
}  # fmt: skip
_UNCOUNTED = ("file", "omni", "ray", "elastic", "many")
_LISTENING = {
    "--host": "host", "--port": "port", "--uds": "uds", "--ssl-keyfile": "key", "--ssl-certfile": "certificate",
    "--disable-log-stats": "no_stats", "--headless": "headless", "--node-rank": "node_rank",
    "--api-server-count": "servers", "--data-parallel-multi-port-external-lb": "many",
    "--enable-elastic-ep": "elastic",
}  # fmt: skip
_LISTENING_EXACT = {"--config": "file", "--omni": "omni", "--grpc": "grpc", "-r": "node_rank", "-asc": "servers",
                    "-dpm": "many"}  # fmt: skip
_NOT_LISTENING = ("uds", "headless", "many", "grpc")  # no HTTP server, or one for each rank on a port of its own
_DEVICES = ("auto", "cuda", "cpu", "xpu", "hpu")  # with one process for each rank
_LARGEST_MACHINE = 8  # more ranks than that, with no word on how: older versions take Ray, over several machines
# Signs that the ranks are not processes of this machine: Ray's and KubeRay's, LeaderWorkerSet's, a TPU's, a Neuron's.
_ELSEWHERE = (
    "RAY_ADDRESS", "KUBERAY_GEN_RAY_START_CMD", "TPU_WORKER_ID", "PJRT_DEVICE", "NEURON_RT_NUM_CORES",
    "NEURON_RT_VISIBLE_CORES",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's profile."""

    name: str = "vllm"
    shm_names: tuple[str, ...] = (*SHARED_MEMORY, "VLLM_OBJECT_STORAGE_SHM_BUFFER*")
    environment: tuple[str, ...] = ()
    server_environment: tuple[str, ...] = (*_ELSEWHERE, "LWS_GROUP_SIZE", "VLLM_USE_V1", "VLLM_DP_SIZE")

    def title(self, argv: Sequence[str], environ: Mapping[str, str]) -> Title | None:
        """A worker, an engine core, an API server or the data parallel coordinator, with any prefix.

        Under another prefix than VLLM a bare `Worker` is none: a Ray actor of that name would look the same.
        """
        if not argv or len(argv[0]) > LONGEST_TITLE or (split := _TITLE.fullmatch(argv[0])) is None:
            return None
        prefix, text = split.groups()
        if prefix in ("sglang", "sgl_diffusion", "ray"):
            return None
        if (found := _WORKER.fullmatch(text)) is not None:
            bare = not found[1]
            if bare and prefix != "VLLM":
                return None
            return Title(Role.WORKER, rank_label(found[1], Role.WORKER.value), provisional=bare)
        if (found := _ENGINE_CORE.fullmatch(text)) is not None:
            return _core(found[1])
        if (found := _OLD_ENGINE_CORE.fullmatch(text)) is not None:
            return _core(f"_DP{found[1]}{found[2]}")
        if (found := _API_SERVER.fullmatch(text)) is not None:
            return Title(Role.SERVER, f"{Role.SERVER.value}{found[1]}")
        if text == "DPCoordinator":
            return Title(Role.CONTROLLER, Role.CONTROLLER.value)
        return None

    def is_server(self, argv: Sequence[str]) -> bool:
        """`vllm serve` and `python -m vllm.entrypoints.openai.api_server`; not what only mentions or wraps them."""
        running = program(argv)
        if running is None or asks_for_help(running.args):
            return False
        return _serves(running) or (running.kind == MODULE and running.name in _OTHER_MODULES)

    def expected(self, argv: Sequence[str], environ: Mapping[str, str]) -> Expected | None:
        """This machine's workers; its engine cores where each has one worker, which may be a process or not.

        None with a config file, Ray, an external launcher, elastic expert parallelism, a balancer that leaves this
        machine's share open, ranks that may be on other machines, and where the environment says what the options do
        not.
        """
        running = program(argv)
        if running is None or asks_for_help(running.args) or not _serves(running):
            return None
        options = read_options(running.args, _OPTIONS, _EXACT, underscores=True)
        if options.doubtful or any(name in options for name in _UNCOUNTED):
            return None
        if options.values.get("device", "auto") not in _DEVICES or options.values.get("dp_backend", "mp") != "mp":
            return None
        if environ.get("VLLM_USE_V1", "1") == "0" or environ.get("VLLM_DP_SIZE", "1") != "1":
            return None
        tp, pp, pcp = options.number("tp", 1), options.number("pp", 1), options.number("pcp", 1)
        nodes, engines = options.number("nnodes", 1), _engines(options)
        if tp is None or pp is None or pcp is None or nodes is None or engines is None:
            return None
        world = tp * pp * pcp
        if world > 1 and not _is_here(options, world, environ):
            return None
        sizes = (("tensor", tp), ("pipeline", pp), ("prefill-context", pcp))
        why = " x ".join(f"--{name}-parallel-size {size}" for name, size in sizes if size > 1)
        if nodes > 1:
            if "dp" in options or world % nodes:
                return None
            return _expected(world // nodes, Role.WORKER, f"{why} over --nnodes {nodes}")
        data = f"{engines} data parallel engines" if engines > 1 else "one engine"
        if world == 1:
            return _expected(engines, Role.ENGINE_CORE, data)
        return _expected(world * engines, Role.WORKER, why + (f" x {data}" if engines > 1 else ""))

    def endpoint(self, argv: Sequence[str], environ: Mapping[str, str]) -> Endpoint | None:
        """Its HTTP server (`entrypoints/openai/`); None for a node without one.

        /health is 503 only for an EngineDeadError, of which no engine comes back. Both paths are there with a
        --root-path and without. With --disable-log-stats the metrics have no numbers.
        """
        running = program(argv)
        if running is None or asks_for_help(running.args) or not _serves(running):
            return None
        options = read_options(running.args, _LISTENING, _LISTENING_EXACT, underscores=True)
        at = listens_at(options, "", 8000)
        if at is None or not is_first_node(options) or any(name in options for name in _NOT_LISTENING):
            return None
        if options.values.get("servers") == "0":
            return None
        metrics = "" if "no_stats" in options else "/metrics"
        # Omni is another project, with stages of its own; while an elastic engine scales, every path says 503.
        ours = "omni" not in options and "elastic" not in options
        tls = bool(options.values.get("certificate"))  # its key may stand in the same file
        return Endpoint(*at, tls, health="/health", metrics=metrics, unhealthy_is_dead=ours)


def _core(suffixes: str) -> Title:
    if _OF_A_WORKER.search(suffixes):
        return Title(Role.WORKER, rank_label(suffixes, Role.WORKER.value))
    return Title(Role.ENGINE_CORE, rank_label(suffixes, Role.ENGINE_CORE.value))


def _serves(running: Program) -> bool:
    command = next((arg for arg in running.args if not arg.startswith("-")), "")  # vLLM's own rule
    if running.kind == MODULE:
        return running.name in _MODULES or (running.name in _COMMAND_MODULES and command == "serve")
    if running.kind != SCRIPT:
        return False
    if f"/{running.name}".endswith(tuple(f"/{script}" for script in _SCRIPTS)):
        return True
    return running.name.rpartition("/")[2] == "vllm" and command == "serve"


def _engines(options: Options) -> int | None:
    """How many of the data parallel engines are on this machine."""
    total = options.number("dp", 1)
    if "local" in options:
        return options.number("local", 1)
    if "dp_rank" in options:
        return 1  # one engine for each server, with a balancer outside
    if any(name in options for name in ("external", "hybrid", "start_rank")) or (total != 1 and "headless" in options):
        return None
    return total


def _is_here(options: Options, world: int, environ: Mapping[str, str]) -> bool:
    """Whether an engine's workers are this machine's processes, as far as can be told."""
    if "executor" in options:
        return options.values["executor"] == "mp"
    if any(name in environ for name in _ELSEWHERE):
        return False
    return "nnodes" in options or (world <= _LARGEST_MACHINE and environ.get("LWS_GROUP_SIZE", "1") == "1")


def _expected(number: int, role: Role, why: str) -> Expected | None:
    count = natural(str(number))
    return Expected(count, (role,), why) if count is not None else None
