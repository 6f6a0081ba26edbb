"""What an exit means.

Some exits are failures on the face of them (SIGKILL, a crash, a non-zero status). An exit with 0 or by a stop signal
is one only if the rest of the engine does not follow: everything leaving so is a clean stop, while one rank that left
with 0 blocks the others in their next collective for ever. So such an exit is held back for a grace period, and then
judged. An exit of the server with 0 after a rank was killed (vLLM does that) is part of the rank's failure.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sidecar.model import Cause, ExitStatus, Identity, Reason, Role

_BY_SIGNAL: dict[int, Cause] = {
    signal.SIGKILL: Cause.SIGKILL,
    signal.SIGSEGV: Cause.SIGSEGV,
    signal.SIGABRT: Cause.SIGABRT,
    signal.SIGBUS: Cause.SIGBUS,
    signal.SIGTERM: Cause.SIGTERM,
}
# What a process leaves with when it was asked to stop: by the signal itself, or by a handler that exits with 128 + N.
# SIGQUIT is not among them: it is how an SGLang scheduler tells its server that it crashed.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOP_CODES = (0, *(128 + s for s in _STOP_SIGNALS))
_RUNTIME_KILLS = 5.0  # seconds within which a runtime ends what an entrypoint left; 0.07 to 0.17 seen


def cause_of(status: ExitStatus, oom: bool) -> Cause:
    """The cause in the contract's words. `oom`: the cgroup's oom_kill counter rose for this death."""
    if status.signal is not None:
        if status.signal == signal.SIGKILL and oom:
            return Cause.OOM_KILLED
        return _BY_SIGNAL.get(status.signal, Cause.OTHER_SIGNAL)
    if status.code:
        # A shell or a handler that dies for another's signal says 128 + N.
        return Cause.EXIT_NONZERO
    return Cause.UNKNOWN


def may_be_clean(status: ExitStatus) -> bool:
    """Whether this exit can be part of a clean stop. An unknown status cannot: a missed failure costs more."""
    return status.code in _STOP_CODES or status.signal in _STOP_SIGNALS


class Meaning(StrEnum):
    FAILURE = "failure"
    HELD = "held"  # clean if the rest follows
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit of a watched process. `at` in monotonic seconds; `seen_by` is the way in which it was seen."""

    identity: Identity
    role: Role
    rank: str
    titled: bool
    status: ExitStatus
    at: float
    seen_by: str = ""


def meaning(exit_: Exit) -> Meaning:
    """What this exit means by itself, outside a drain and with nothing failed before."""
    helper = not exit_.titled and exit_.role is not Role.SERVER
    if not may_be_clean(exit_.status) and (exit_.status.known or not helper):
        return Meaning.FAILURE
    if helper:
        # A helper that the server spawned: it did its work, or its pool was terminated. Were it a rank to be, the
        # expected count would tell.
        return Meaning.NOTHING
    return Meaning.HELD


def ends_with_its_container(exit_: Exit, entrypoint_at: float, entrypoint: ExitStatus) -> bool:
    """Whether a SIGKILL came from the runtime, since the container's entrypoint had left as one does that was told to.

    It ended at `entrypoint_at` (monotonic) with the status `entrypoint`. What crashes in that moment is a failure.
    """
    since = exit_.at - entrypoint_at
    return exit_.status.signal == signal.SIGKILL and may_be_clean(entrypoint) and 0.0 <= since <= _RUNTIME_KILLS


class Judgement(StrEnum):
    WAIT = "wait"
    CLEAN = "clean"
    FAILURE = "failure"


def judge_held(held: Sequence[Exit], alive: int, now: float, grace: float) -> Judgement:
    """Judge exits that may be clean. `alive` is how many watched processes of the engine still run."""
    if not held:
        return Judgement.WAIT
    if alive == 0:
        return Judgement.CLEAN
    return Judgement.FAILURE if now >= held[0].at + grace else Judgement.WAIT


def reason_for(first: Exit) -> Reason:
    """The incident's reason, from its first failure."""
    return Reason.ENGINE_EXITED if first.role is Role.SERVER else Reason.RANK_DIED


def shell_status(status: ExitStatus) -> int | None:
    """What a shell would report: the code, or 128 + N for signal N; None where it is unknown."""
    if status.signal is not None:
        return 128 + status.signal
    return status.code


def wrap_exit_status(command: ExitStatus, drained: bool, first_failure: ExitStatus | None, killed_by_us: bool) -> int:
    """The status for `rankguard run -- CMD` to exit with.

    A stop that was asked for passes CMD's own status on, whatever it is. After a failure that we ended, or that CMD
    hid behind an exit of 0, it is the first failed rank's, and never 0.
    """
    own = shell_status(command)
    if drained or first_failure is None:
        return 1 if own is None else own
    if killed_by_us or not own:
        return shell_status(first_failure) or 1
    return own
