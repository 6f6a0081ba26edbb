"""SGLang from outside: titles, the server's command line, the number of schedulers.

From its source: titles in `managers/scheduler.py`, `managers/detokenizer_manager.py`,
`managers/data_parallel_controller.py`, `managers/multi_tokenizer_mixin.py`, `multimodal_gen` (the diffusion engine);
options in `srt/server_args.py`, read by Python's argparse; which ranks a node starts in `entrypoints/engine.py`
(`_calculate_rank_ranges`) and the data parallel controller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.engines.command_line import (
    MODULE,
    SCRIPT,
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

_SCHEDULER = re.compile(rf"(?:sglang|sgl_diffusion)::scheduler({SUFFIXES}*)")
_DETOKENIZER = re.compile(r"sglang::detokenizer((?:_(?:router|[0-9]{1,6}))?)")
_SERVER = re.compile(r"sglang::http_server(?:/[a-z_]{1,40})?")

_MODULES = ("sglang.launch_server", "sglang.srt.server")
# They start ranks, but their options mean something else, or start several servers: no number is read from them.
_OTHER_MODULES = ("sglang.srt.entrypoints.grpc_server", "sglang_router.launch_server", "dynamo.sglang")
_COMMAND_MODULES = ("sglang", "sglang.cli.main")
_SCRIPTS = ("sglang/launch_server.py", "sglang/srt/server.py")

_OPTIONS = {
    "--tp": "tp", "--tp-size": "tp", "--tensor-parallel-size": "tp",
    "--pp": "pp", "--pp-size": "pp", "--pipeline-parallel-size": "pp",
    "--dp": "dp", "--dp-size": "dp", "--data-parallel-size": "dp",
    "--nnodes": "nnodes", "--enable-dp-attention": "attention",
}  # fmt: skip
# Never abbreviated: `--model` is itself an option, and `sglang serve` looks for `--model-type` word for word.
_EXACT = {
    "--config": "file", "--use-ray": "ray", "--encoder-only": "encoder", "--ep-join-mode": "elastic",
    "--num-gpus": "diffusion", "--model-type": "backend",
}  # fmt: skip
_UNCOUNTED = ("file", "ray", "encoder", "elastic", "diffusion")
# With these the server itself turns attention by data parallelism on.
_IMPLIES_ATTENTION = re.compile(r"--(?:.*context-parallel|.*-cp-|dwdp)")

_LISTENING = {
    "--host": "host", "--port": "port", "--ssl-keyfile": "key", "--ssl-certfile": "certificate",
    "--enable-metrics": "metrics", "--node-rank": "node_rank", "--grpc-mode": "grpc", "--smg-grpc-mode": "grpc",
}  # fmt: skip
_NOT_LISTENING = ("grpc", "encoder", "diffusion")  # another server, with other paths
_CRASHES = {"--crash-dump-folder": "folder"}


@dataclass(frozen=True, slots=True)
class Sglang:
    """SGLang's profile. The tokenizer workers, which its web server starts again by itself, are no ranks."""

    name: str = "sglang"
    shm_names: tuple[str, ...] = (*SHARED_MEMORY, "multi_tokenizer_args_[0-9]*")
    environment: tuple[str, ...] = ()
    server_environment: tuple[str, ...] = ()

    def title(self, argv: Sequence[str], environ: Mapping[str, str]) -> Title | None:
        """A scheduler, a detokenizer, the data parallel controller, or a server that has named itself."""
        if not argv or len(argv[0]) > LONGEST_TITLE or not argv[0].startswith("sgl"):
            return None
        text = argv[0]
        if (found := _SCHEDULER.fullmatch(text)) is not None:
            return Title(Role.SCHEDULER, rank_label(found[1], Role.SCHEDULER.value))
        if (found := _DETOKENIZER.fullmatch(text)) is not None:
            return Title(Role.DETOKENIZER, f"{Role.DETOKENIZER.value}{found[1]}")
        if text == "sglang::data_parallel_controller":
            return Title(Role.CONTROLLER, Role.CONTROLLER.value)
        if _SERVER.fullmatch(text):
            return Title(Role.SERVER, Role.SERVER.value)
        return None

    def is_server(self, argv: Sequence[str]) -> bool:
        """`python -m sglang.launch_server`, `sglang serve` and the like; not what only mentions or wraps them."""
        if argv and _SERVER.fullmatch(argv[0][:LONGEST_TITLE]):
            return True
        running = program(argv)
        if running is None or asks_for_help(running.args):
            return False
        return _launches(running) or _serves(running) or (running.kind == MODULE and running.name in _OTHER_MODULES)

    def expected(self, argv: Sequence[str], environ: Mapping[str, str]) -> Expected | None:
        """The schedulers of this node: pipeline x tensor, and x data where attention is not what is data parallel.

        None with a config file, Ray, an encoder or a diffusion model, and for data parallelism over several nodes.
        """
        running = program(argv)
        if running is None or asks_for_help(running.args) or not (_launches(running) or _serves(running)):
            return None
        options = read_options(running.args, _OPTIONS, _EXACT)
        if options.doubtful or any(name in options for name in _UNCOUNTED):
            return None
        backend = options.values.get("backend", "auto")
        tp, pp, dp = options.number("tp", 1), options.number("pp", 1), options.number("dp", 1)
        nodes = options.number("nnodes", 1)
        if backend not in ("auto", "llm") or tp is None or pp is None or dp is None or nodes is None:
            return None
        per_node = _per_node(tp, pp, nodes)
        if per_node is None:
            return None
        why = f"--tp-size {tp}" + (f" x --pp-size {pp}" if pp > 1 else "")
        if dp > 1 and "attention" not in options:
            if nodes > 1 or any(_IMPLIES_ATTENTION.match(arg) for arg in running.args):
                return None
            per_node *= dp
            why += f" x --dp-size {dp}"
        if nodes > 1:
            why += f" over --nnodes {nodes}"
        if _serves(running) and per_node == 1 and backend == "auto":
            return None  # it may turn out to be a diffusion model, or another project's backend
        count = natural(str(per_node))
        return Expected(count, (Role.SCHEDULER,), why) if count is not None else None

    def endpoint(self, argv: Sequence[str], environ: Mapping[str, str]) -> Endpoint | None:
        """Its HTTP server (`entrypoints/http_server.py`); None for the further nodes of an engine.

        Those answer 200 always, whatever their schedulers do. /health_generate asks the scheduler for a token in every
        version; /health did not in older ones, and can be told not to. Its 503 says as well that it starts, drains or
        is slow. Without --enable-metrics there are none.
        """
        running = program(argv)
        if running is None or asks_for_help(running.args) or not (_launches(running) or _serves(running)):
            return None
        options = read_options(running.args, _LISTENING, _EXACT)
        at = listens_at(options, "127.0.0.1", 30000)
        if at is None or not is_first_node(options) or any(name in options for name in _NOT_LISTENING):
            return None
        if options.values.get("backend", "auto") not in ("auto", "llm"):
            return None
        tls = bool(options.values.get("key") and options.values.get("certificate"))
        return Endpoint(*at, tls, health="/health_generate", metrics="/metrics" if "metrics" in options else "")


def crash_folder(argv: Sequence[str]) -> str | None:
    """Where a server of this command line writes its crash dumps (`--crash-dump-folder`), or None for nowhere.

    As it is written there: a path that the server's own process sees, relative to where that runs if it is relative.
    """
    running = program(argv)
    if running is None or not (_launches(running) or _serves(running)):
        return None
    return read_options(running.args, _CRASHES, {}).values.get("folder") or None


def _launches(running: Program) -> bool:
    if running.kind == MODULE:
        return running.name in _MODULES
    return running.kind == SCRIPT and f"/{running.name}".endswith(tuple(f"/{script}" for script in _SCRIPTS))


def _serves(running: Program) -> bool:
    if running.args[:1] != ("serve",):
        return False
    if running.kind == MODULE:
        return running.name in _COMMAND_MODULES
    return running.kind == SCRIPT and running.name.rpartition("/")[2] == "sglang"


def _per_node(tp: int, pp: int, nodes: int) -> int | None:
    """Each node has whole pipeline stages, or a part of one stage's tensor ranks; None for what divides unevenly."""
    if pp >= nodes:
        return pp // nodes * tp if pp % nodes == 0 else None
    if nodes % pp or tp % (nodes // pp):
        return None
    return tp // (nodes // pp)
