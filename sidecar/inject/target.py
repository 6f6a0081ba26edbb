"""Which containers hold the engine: what the annotation says, else who asks for a GPU, else the command or image."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sidecar.engines.command_line import MODULE, SCRIPT, program
from sidecar.engines.sglang import Sglang
from sidecar.engines.vllm import Vllm
from sidecar.inject.refusals import LONGEST, split
from sidecar.inject.words import Skip

_GPU = re.compile(
    r"(?:nvidia\.com/(?:gpu|mig-).*|amd\.com/gpu.*|gpu\.intel\.com/.+|habana\.ai/gaudi|aws\.amazon\.com/neuron.*"
    r"|google\.com/tpu|huawei\.com/Ascend.+)"
)
_IMAGE = re.compile(r"(?:^|[/_.-])(?:sglang|vllm)(?:$|[/:@_.-])")
_SERVERS = (Sglang(), Vllm())
_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
_SEPARATORS = re.compile(r"&&|\|\||[;&|\n(){}]")


def targets(containers: Sequence[dict[str, Any]], named: Iterable[str]) -> list[dict[str, Any]]:
    """The engine's containers, those of `named` where there are any. Raises `Skip` where none is one."""
    wanted = tuple(named)
    if wanted:
        # The names were checked with the annotations.
        return [container for container in containers if container["name"] in wanted]
    asking = [container for container in containers if _asks_for_a_gpu(container)]
    for candidates in (asking, containers):
        known = [each for each in candidates if _runs_an_engine(each)] or [
            each for each in candidates if _IMAGE.search(each.get("image") or "")
        ]
        if known:
            return known
        if candidates is asking and asking:
            return asking
    raise Skip(
        "NoTarget",
        "no container asks for a GPU or is known by its command or image as an engine: say which with the annotation"
        " rankguard.dev/container",
    )


def _asks_for_a_gpu(container: Mapping[str, Any]) -> bool:
    resources = container.get("resources") or {}
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return any(_GPU.fullmatch(name) and str(amount) != "0" for name, amount in amounts.items())


def _runs_an_engine(container: Mapping[str, Any]) -> bool:
    """By its command and arguments, and by what a shell's script among them runs."""
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    lines = [words, *(split(part) for word in words if " " in word for part in _SEPARATORS.split(word[:LONGEST]))]
    return any(_is_engine(_without_exec(line)) for line in lines)


def _without_exec(line: list[str]) -> list[str]:
    return list(itertools.dropwhile(_stands_before, line))


def _stands_before(word: str) -> bool:
    return word in ("exec", "nohup", "setsid", "env") or re.match(r"[A-Za-z_]\w*=", word) is not None


def _is_engine(argv: Sequence[str]) -> bool:
    if any(server.is_server(argv) for server in _SERVERS):
        return True
    running = program(argv)
    if running is None or running.kind not in (MODULE, SCRIPT):
        return False
    return running.name.rpartition("/")[2] in _LAUNCHERS
