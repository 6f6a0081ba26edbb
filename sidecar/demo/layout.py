"""Which processes an engine of given sizes has: who starts whom, and under which titles. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.demo.options import Options

RANK_ROLES = ("scheduler", "worker")


@dataclass(frozen=True, slots=True)
class Place:
    """One process that the engine starts. `titles` in the order in which it takes them; `parent` is an index or None.

    A dimension of size 1 has no part in a title or a label; where nothing is left, the label is the role.
    """

    role: str
    label: str
    titles: tuple[str, ...]
    parent: int | None = None
    index: int = 0


def layout(options: Options) -> list[Place]:
    """Every place, parents before their children."""
    return {"sglang": _sglang, "vllm": _vllm, "generic": _generic}[options.engine](options)


def _label(options: Options, dp: int, pp: int | None = None, tp: int | None = None) -> str:
    parts = [("DP", dp, options.dp), ("PP", pp, options.pp), ("TP", tp, options.tp)]
    return "_".join(f"{name}{at}" for name, at, size in parts if size > 1 and at is not None)


def _ranks(options: Options) -> list[tuple[int, str]]:
    """Each rank's data parallel index and label."""
    return [
        (dp, _label(options, dp, pp, tp))
        for dp in range(options.dp)
        for pp in range(options.pp)
        for tp in range(options.tp)
    ]


def _title(base: str, label: str) -> str:
    return f"{base}_{label}" if label else base


def _sglang(options: Options) -> list[Place]:
    places = []
    parent = None
    if options.dp > 1 and not options.light:
        places.append(Place("controller", "controller", ("sglang::data_parallel_controller",)))
        parent = 0
    for index, (_, label) in enumerate(_ranks(options)):
        places.append(Place("scheduler", label or "scheduler", (_title("sglang::scheduler", label),), parent, index))
    if options.detokenizer:
        places.append(Place("detokenizer", "detokenizer", ("sglang::detokenizer",)))
    return places


def _vllm(options: Options) -> list[Place]:
    places = []
    for dp in range(options.dp):
        label = _label(options, dp)
        places.append(Place("engine_core", label or "engine_core", (_title("VLLM::EngineCore", label),)))
    if options.dp > 1:
        places.append(Place("controller", "controller", ("VLLM::DPCoordinator",)))
    for index, (dp, label) in enumerate(_ranks(options)):
        # First the bare name, then, once its groups are there, the one with its ranks.
        titles = tuple(dict.fromkeys(("VLLM::Worker", _title("VLLM::Worker", label))))
        places.append(Place("worker", label or "worker", titles, dp, index))
    return places


def _generic(options: Options) -> list[Place]:
    return [Place("worker", f"RANK{rank}", (), None, rank) for rank in range(options.serves)]
