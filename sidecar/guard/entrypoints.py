"""The process that each container of the engine began with, which is often no rank: a shell, a launcher.

When it ends, the container runtime kills whatever is left of the container (0.07 to 0.17 s later, seen). So where it
was asked to stop and did, the SIGKILL of a rank right after is the stop's end and not a failure.
"""

from __future__ import annotations

from sidecar.guard.census import Census
from sidecar.guard.exits import Exits
from sidecar.model import Identity, Observation, RankProcess
from sidecar.policy.deaths import Exit, ends_with_its_container


class Entrypoints:
    """Watched beside the ranks from the first rank of a container on."""

    def __init__(self, census: Census, exits: Exits) -> None:
        self._census = census
        self._exits = exits
        self._of: dict[str, Identity] = {}
        self._ended: dict[Identity, Observation] = {}

    def watch(self, rank: RankProcess, now: float) -> list[Observation]:
        """Watch the entrypoint of this rank's container. Returns what is to be said at once, as `Exits.watch` does."""
        container = rank.container
        if not container or container == self._census.own_container or container in self._of:
            return []
        # Its parent is outside the PID namespace. So is the parent of what `kubectl exec` starts, which comes later.
        first = min(
            (
                known.identity
                for known in self._census.table.values()
                if known.container == container and not known.ppid
            ),
            key=lambda identity: (identity.start, identity.pid),
            default=None,
        )
        if first is None:
            return []
        self._of[container] = first
        return self._exits.watch(first, now)

    def take(self, observation: Observation) -> None:
        """Remember how an entrypoint ended; anything else is passed over."""
        if observation.identity in self._of.values():
            known = self._ended.get(observation.identity)
            if known is None or not known.status.known:
                self._ended[observation.identity] = observation

    def explains(self, exit_: Exit, container: str) -> bool:
        """Whether this exit is the runtime's work, after the container's entrypoint has stopped as it was told."""
        entrypoint = self._of.get(container)
        ended = self._ended.get(entrypoint) if entrypoint is not None else None
        return (
            ended is not None
            and entrypoint != exit_.identity
            and ends_with_its_container(exit_, ended.at, ended.status)
        )

    def new_generation(self) -> None:
        """The engine is gone."""
        for identity in self._of.values():
            self._exits.forget(identity)
        self._of.clear()
        self._ended.clear()
