"""One sentence about an incident, as a person would say it. Pure."""

from __future__ import annotations

import re
from signal import Signals

from sidecar.model import Action, Cause, Failure, Incident, Liveness, Outcome, Reason, Role, Termination, Verdict

_ROLE_NAMES = {
    Role.SCHEDULER: "The scheduler",
    Role.WORKER: "A worker",
    Role.ENGINE_CORE: "The engine core",
    Role.DETOKENIZER: "The detokenizer",
    Role.CONTROLLER: "The data parallel controller",
    Role.SERVER: "The server process",
}
_WITHOUT_FAILURE = {
    Reason.RANK_DIED: "A rank died",
    Reason.RANK_MISSING: "Not all ranks came up in time",
    Reason.LIVENESS_FAILED: "The engine failed its liveness check",
    Reason.ENGINE_STALLED: "The engine made no progress",
    Reason.ENGINE_EXITED: "The engine exited",
    Reason.PRE_STOP: "The kubelet called the preStop hook",
    Reason.PEER_FAILED: "Another pod of the group failed",
    Reason.MANUAL: "Somebody asked for a capture",
}
_DEATHS = (Reason.RANK_DIED, Reason.ENGINE_EXITED)
_STATE_NOTE = "state: "  # a note of the guard's: where the engine stood when the first failure was seen


def summary(incident: Incident, sealed: bool) -> str:
    """What happened and what became of the engine. `sealed`: nothing more will be known."""
    failures = in_order(incident)
    if failures and incident.reason in _DEATHS:
        first = failures[0]
        said = f"{who(first)} {how(first)}{_phase(incident)}"
        if incident.reason is Reason.ENGINE_EXITED:
            said += _left_behind(incident)
        said += _followers(failures)
    elif incident.reason is Reason.RANK_MISSING:
        said = _missing(incident)
    elif incident.verdict is not None and incident.reason in (Reason.ENGINE_STALLED, Reason.LIVENESS_FAILED):
        said = _found(incident.verdict) + _died_meanwhile(failures)
    else:
        said = _WITHOUT_FAILURE[incident.reason]
        if incident.decision.because and incident.reason is not Reason.MANUAL:
            said += f" ({'; '.join(incident.decision.because)})"
    return f"{said}{_aftermath(incident, sealed)}."


def in_order(incident: Incident) -> list[Failure]:
    """The failures by time: the first is the root cause."""
    return sorted(incident.failures, key=lambda failure: failure.at)


def who(failure: Failure) -> str:
    """`TP3`, or the role in words for a process that has no rank label."""
    if failure.rank and failure.rank != failure.role.value:
        return failure.rank
    return _ROLE_NAMES[failure.role]


def how(failure: Failure) -> str:
    """`was killed by signal 9 (SIGKILL)`, `exited with status 1`, ..."""
    status = failure.status
    if failure.cause is Cause.OOM_KILLED:
        return f"was killed by the kernel for memory{f' ({failure.detail})' if failure.detail else ''}"
    if status.signal is not None:
        dumped = ", and dumped core" if status.core_dumped else ""
        return f"was killed by signal {status.signal}{_signal_name(status.signal)}{dumped}"
    if status.code is not None:
        return f"exited with status {status.code}"
    return f"died, of what is not known{f' ({status.why_unknown})' if status.why_unknown else ''}"


def _signal_name(number: int) -> str:
    try:
        return f" ({Signals(number).name})"
    except ValueError:  # a real-time signal
        return ""


def _phase(incident: Incident) -> str:
    states = [note.removeprefix(_STATE_NOTE) for note in incident.notes if note.startswith(_STATE_NOTE)]
    return f" while {states[0]}" if states else ""


def _left_behind(incident: Incident) -> str:
    failed = {(failure.pid, failure.start) for failure in incident.failures}
    left = [
        member
        for member in incident.members
        if member.role and member.role != Role.SERVER and (member.identity.pid, member.identity.start) not in failed
    ]
    if not left:
        return ""
    return f" and left {len(left)} rank{'s' if len(left) > 1 else ''} behind"


def _followers(failures: list[Failure]) -> str:
    """The cascade. A server that leaves with 0 after a rank's death is named: its 0 is not to be taken for success."""
    said = ""
    for failure in failures[1:]:
        if failure.role is Role.SERVER and failure.status.code == 0:
            said += ", and the server process then exited with status 0"
            break
    others = [failure for failure in failures[1:] if failure.role is not Role.SERVER]
    if len(others) == 1:
        said += f"; {_lower(who(others[0]))} followed"
    elif others:
        said += f"; {len(others)} more ranks followed"
    return said


def _found(verdict: Verdict) -> str:
    """`The engine is stuck, without progress for 31 s: TP1 is stopped; 2 requests wait`."""
    what = "is dead" if verdict.liveness is Liveness.DEAD else "is stuck"
    since = f", without progress for {verdict.since:.0f} s" if verdict.since >= 1 else ""
    return f"The engine {what}{since}" + (f": {'; '.join(verdict.because)}" if verdict.because else "")


def _died_meanwhile(failures: list[Failure]) -> str:
    if not failures:
        return ""
    more = f", as did {len(failures) - 1} more" if len(failures) > 1 else ""
    return f"; while its evidence was taken {_lower(who(failures[0]))} {how(failures[0])}{more}"


def _missing(incident: Incident) -> str:
    for reason in incident.decision.because:
        counted = re.search(r"(\d+) of (\d+)\b", reason)
        within = re.search(r"([\d.]+) s\b", reason)
        if counted:
            late = f" within {within[1]} s" if within else " in time"
            return f"Only {counted[1]} of {counted[2]} ranks came up{late}"
    return _WITHOUT_FAILURE[Reason.RANK_MISSING]


def _aftermath(incident: Incident, sealed: bool) -> str:
    if incident.termination is not None:
        return _terminated(incident, incident.termination)
    if incident.decision.action is Action.KILL:
        return "; how the killing of the engine ended is not known" if sealed else "; the engine is being killed"
    if incident.decision.action is Action.CAPTURE:
        stops = incident.reason in (Reason.PRE_STOP, Reason.PEER_FAILED)
        return "; it was captured before the stop" if stops else "; the engine was captured and left running"
    return "; it was only recorded"


def _terminated(incident: Incident, termination: Termination) -> str:
    match termination.outcome:
        case Outcome.ALREADY_GONE:
            return "; the engine had gone by itself"
        case Outcome.DENIED:
            return f"; killing the engine was denied, {_still_there(termination)}"
        case Outcome.STILL_ALIVE:
            return f"; the engine was killed{_delay(incident)}, but {_still_there(termination)}"
        case Outcome.EXITED_UNREAPED:
            return f"; the engine was killed{_delay(incident)} and is dead, though its parent has not collected it"
        case _:
            return f"; the engine was killed{_delay(incident)} and is gone"


def _delay(incident: Incident) -> str:
    """From the first failure to the first SIGKILL."""
    killed = [entry.at for entry in incident.timeline if entry.event == "killed"]
    failures = in_order(incident)
    seen = [entry.at for entry in incident.timeline if entry.event == "detected"]
    begin = failures[0].at if failures and incident.reason in _DEATHS else min(seen, default=None)
    if not killed or begin is None or killed[0] < begin:
        return ""
    seconds = killed[0] - begin
    return f" {seconds * 1000:.0f} ms later" if seconds < 10 else f" {seconds:.1f} s later"


def _still_there(termination: Termination) -> str:
    survivors = termination.survivors
    if not survivors:
        return f"processes of it are still there after {termination.seconds:.0f} s"
    named = [
        f"{survivor.rank or survivor.comm or 'a process'} (pid {survivor.pid}, state {survivor.state}"
        f"{f' in {survivor.wchan}' if survivor.wchan else ''})"
        for survivor in survivors[:3]
    ]
    more = f" and {len(survivors) - 3} more" if len(survivors) > 3 else ""
    verb = "is" if len(survivors) == 1 else "are"
    drain = ": the node needs a drain" if any(survivor.state == "D" for survivor in survivors) else ""
    return f"{', '.join(named)}{more} {verb} still there after {termination.seconds:.0f} s{drain}"


def _lower(name: str) -> str:
    return name[0].lower() + name[1:] if name in _ROLE_NAMES.values() else name
