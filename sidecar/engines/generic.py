"""Any other engine: ranks known by a regular expression, or by the environment that torchrun gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.engines.command_line import MODULE, SCRIPT, asks_for_help, natural, program
from sidecar.engines.profile import SHARED_MEMORY, Endpoint, Expected, Profile, Title
from sidecar.engines.python_processes import is_resource_tracker, is_spawned_child
from sidecar.model import Role

_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")
_COMPILE_WORKER = "torch/_inductor/compile_worker/__main__.py"  # a rank starts them and they have its environment
_RANK = re.compile(r"[0-9]{1,6}")
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")  # a label ends up in metrics and in the names of folders
_LONGEST_LINE = 4096  # characters that a person's expression has to search
_LONGEST_LABEL = 64


@dataclass(frozen=True, slots=True)
class ByPattern:
    """Ranks are the processes in whose arguments, joined by spaces, `pattern` is found.

    Named groups give the label, in the pattern's order: `(?P<DP>\\d)…(?P<TP>\\d)` gives `DP0_TP3`; with numbered groups
    it is their texts; with none it is the role.
    """

    pattern: re.Pattern[str]
    name: str = "generic"
    shm_names: tuple[str, ...] = SHARED_MEMORY
    environment: tuple[str, ...] = ()
    server_environment: tuple[str, ...] = ()

    def title(self, argv: Sequence[str], environ: Mapping[str, str]) -> Title | None:
        found = self.pattern.search(" ".join(argv)[:_LONGEST_LINE])
        if found is None:
            return None
        names = sorted(self.pattern.groupindex, key=self.pattern.groupindex.__getitem__)
        parts = [f"{name}{found[name]}" for name in names if found[name]] if names else found.groups()
        label = _UNFIT.sub("_", "_".join(part for part in parts if part))[:_LONGEST_LABEL]
        return Title(Role.WORKER, label or Role.WORKER.value)

    def is_server(self, argv: Sequence[str]) -> bool:
        return False

    def expected(self, argv: Sequence[str], environ: Mapping[str, str]) -> Expected | None:
        return None

    def endpoint(self, argv: Sequence[str], environ: Mapping[str, str]) -> Endpoint | None:
        """None: where it answers, if at all, only a person can say (--health-url, --metrics-url)."""
        return None


@dataclass(frozen=True, slots=True)
class ByEnvironment:
    """Ranks are the processes with RANK and WORLD_SIZE in their environment; torchrun's agent is the server.

    A rank's own helpers inherit its environment. Those that can be told by their command line are left out here; for
    the rest a caller has to know that the parent is the rank.

    `servers` are profiles whose servers are never ranks, though a pod's environment makes them look so. `launched`: a
    LOCAL_RANK is asked for too, as launchers set it. A training operator gives RANK and WORLD_SIZE to every process of
    a pod, a person's shell as well, and LOCAL_RANK to none: where nobody said that the engine is generic, those are no
    ranks.
    """

    servers: tuple[Profile, ...] = ()
    launched: bool = False
    name: str = "generic"
    shm_names: tuple[str, ...] = SHARED_MEMORY
    environment: tuple[str, ...] = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    server_environment: tuple[str, ...] = ()

    def title(self, argv: Sequence[str], environ: Mapping[str, str]) -> Title | None:
        rank = self._rank(environ)
        if rank is None or not argv or self._is_no_rank(argv):
            return None
        return Title(Role.WORKER, f"RANK{rank}")

    def is_server(self, argv: Sequence[str]) -> bool:
        """torchrun's agent: `torchrun`, `python -m torch.distributed.run`."""
        running = program(argv)
        if running is None or asks_for_help(running.args[:1]):
            return False
        if running.kind == MODULE:
            return running.name in _LAUNCHERS
        return running.kind == SCRIPT and f"/{running.name}".endswith(("/torchrun", "/torch/distributed/run.py"))

    def expected(self, argv: Sequence[str], environ: Mapping[str, str]) -> Expected | None:
        """What a rank's environment says of its machine (LOCAL_WORLD_SIZE)."""
        count = natural(environ.get("LOCAL_WORLD_SIZE", ""))
        if count is None or self.title(argv, environ) is None:
            return None
        return Expected(count, (Role.WORKER,), f"LOCAL_WORLD_SIZE={count}")

    def endpoint(self, argv: Sequence[str], environ: Mapping[str, str]) -> Endpoint | None:
        """None, as for `ByPattern`."""
        return None

    def _rank(self, environ: Mapping[str, str]) -> int | None:
        world, rank = natural(environ.get("WORLD_SIZE", "")), environ.get("RANK", "")
        if world is None or not _RANK.fullmatch(rank) or int(rank) >= world:
            return None
        if self.launched and not _RANK.fullmatch(environ.get("LOCAL_RANK", "")):
            return None
        return int(rank)

    def _is_no_rank(self, argv: Sequence[str]) -> bool:
        return (
            self.is_server(argv)
            or is_spawned_child(argv)
            or is_resource_tracker(argv)
            or any(arg.endswith(_COMPILE_WORKER) for arg in argv[:4])
            or any(profile.is_server(argv) for profile in self.servers)
        )
