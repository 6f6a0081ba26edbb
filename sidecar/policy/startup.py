"""When a start-up has failed: fewer ranks than expected once the time for it is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.model import Role


@dataclass(frozen=True, slots=True)
class Expectation:
    """How many processes of these roles there should be; `roles` is () for a number that a person told."""

    count: int
    roles: tuple[Role, ...]
    why: str


RANK_ROLES = (Role.SCHEDULER, Role.WORKER, Role.ENGINE_CORE)


def counted(roles_present: Iterable[Role], expectation: Expectation | None) -> int:
    """How many of the present ranks count towards the expectation.

    A number that a person told means schedulers or workers, and engine cores only in an engine that has no workers.
    """
    present = Counter(roles_present)
    if expectation is not None and expectation.roles:
        return sum(present[role] for role in expectation.roles)
    return present[Role.SCHEDULER] + present[Role.WORKER] or present[Role.ENGINE_CORE]


def complete(roles_present: Iterable[Role], expectation: Expectation | None, untitled: int = 0) -> bool:
    """Whether the engine has all its ranks; with no expectation, whether it has any.

    `untitled` counts the children that have no title and may never get one (an engine without setproctitle): they
    are taken into account where it is asked whether a rank is missing, since a wrong yes kills a healthy engine.
    """
    count = counted(roles_present, expectation) + untitled
    return count >= expectation.count if expectation is not None else count > 0


def overdue(first_seen: float, now: float, startup_timeout: float) -> bool:
    """Whether the time from the engine's first process is over. All in monotonic seconds."""
    return now - first_seen >= startup_timeout
