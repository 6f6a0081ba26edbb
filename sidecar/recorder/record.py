"""`incident.json`: the outer contract's keys, made of what the guard knows and what was captured. Pure.

Some keys serve Rankguard itself: `guard` is the guard's Incident in full, so that a later life can take an open
incident up again, and `recorder` says who wrote the record. `signature`, `throttled` and `collapsed` are the store's:
it reads only the head of a record, so they and `pod` come before the first list that may be long.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from typing import Any

from sidecar.model import (
    SCHEMA,
    Artifact,
    ArtifactStatus,
    Failure,
    Incident,
    Member,
    Termination,
    TimelineEntry,
    Verdict,
    plain,
)
from sidecar.policy.throttle import Throttled
from sidecar.recorder.summary import in_order, summary
from sidecar.system.clock import stamp
from sidecar.version import VERSION

Record = dict[str, Any]


def build(
    incident: Incident,
    artifacts: Iterable[Artifact],
    own: Iterable[TimelineEntry] = (),
    earlier: Iterable[Record] = (),
    notes: Iterable[str] = (),
    sealed: bool = False,
    signature: str = "",
    throttled: Throttled | None = None,
    finding: Record | None = None,
) -> Record:
    """The whole record. `own` are the recorder's own steps, `earlier` is the timeline that a former life wrote.

    `signature` is "" until it is known, at the sealing, and so is `finding`, what the analysis says.
    """
    failures = in_order(incident)
    entries = [*incident.timeline, *own]
    zero = failures[0].at if failures else min((entry.at for entry in entries), default=0.0)
    return {
        "schema": SCHEMA,
        "id": incident.id,
        "reason": incident.reason.value,
        "signature": signature or None,
        "throttled": _throttled(throttled) if throttled else None,
        "collapsed": False,
        "summary": summary(incident, sealed),
        "pod": plain(incident.pod),
        "group": incident.group or None,
        "engine": incident.engine,
        "failures": [_failure(failure, first=index == 0) for index, failure in enumerate(failures)],
        "decision": plain(incident.decision),
        "timeline": _timeline(entries, earlier, zero),
        "artifacts": [plain(artifact) for artifact in artifacts],
        "termination": _termination(incident.termination) if incident.termination else None,
        "verdict": _verdict(incident.verdict, finding),
        "sealed": sealed,
        "notes": [*incident.notes, *notes],
        "recorder": {"version": VERSION},
        "guard": plain(incident),
    }


def collapsed(record: Record, first: str) -> Record:
    """The record of an incident whose files are to be removed, since it repeats the incident `first`."""
    gone = {
        "status": ArtifactStatus.SKIPPED.value,
        "path": "",
        "bytes": 0,
        "sha256": "",
        "detail": f"removed: a repeat of {first}",
    }
    artifacts = [
        {**artifact, **gone} if isinstance(artifact, dict) and artifact.get("path") else artifact
        for artifact in record.get("artifacts", ())
    ]
    return {**record, "collapsed": True, "artifacts": artifacts}


def encode(record: Record) -> bytes:
    """The record as JSON, valid UTF-8 whatever the strings hold; an entry a line, for people and for grep."""
    try:
        return _lines(record).encode()
    except UnicodeEncodeError:  # half a surrogate pair, out of some process's name
        return _lines(_speakable(record)).encode()


def _lines(record: Record) -> str:
    rows = []
    for key, value in record.items():
        if isinstance(value, list) and value:
            inner = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value)
            rows.append(f"{json.dumps(key)}: [\n  {inner}\n ]")
        else:
            rows.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(rows) + "\n}\n"


def _speakable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_speakable(item) for item in value]
    if isinstance(value, dict):
        return {_speakable(key): _speakable(item) for key, item in value.items()}
    return value


def _failure(failure: Failure, first: bool) -> Record:
    status = failure.status
    return {
        "role": failure.role.value,
        "rank": failure.rank,
        "pid": failure.pid,
        "container": failure.container or None,
        "exit_code": status.code,
        "signal": status.signal,
        "signal_name": _signal_name(status.signal),
        "core_dumped": status.core_dumped,
        "why_unknown": status.why_unknown,
        "cause": failure.cause.value,
        "observed_at": stamp(failure.wall),
        "first": first,
        "seen_by": failure.seen_by,
        "detail": failure.detail,
    }


def _signal_name(number: int | None) -> str | None:
    try:
        return signal.Signals(number).name if number is not None else None
    except ValueError:  # a real-time signal
        return None


def _timeline(entries: list[TimelineEntry], earlier: Iterable[Record], zero: float) -> list[Record]:
    """All steps by wall time, each once. `ms` counts from the first failure."""
    found = {(row["at"], row["event"], row["detail"]): row for row in earlier}
    for entry in entries:
        row = {"at": stamp(entry.wall), "event": entry.event, "detail": entry.detail}
        row["ms"] = round((entry.at - zero) * 1000, 3)  # type: ignore[assignment]
        found[row["at"], row["event"], row["detail"]] = row
    return sorted(found.values(), key=lambda row: str(row["at"]))


def _throttled(throttled: Throttled) -> Record:
    return {"limit": throttled.limit, "count": throttled.count, "since": stamp(throttled.since)}


def _verdict(verdict: Verdict | None, finding: Record | None) -> Record | None:
    """What the engine's own numbers said, if it was a hang, and what the analysis of the evidence says."""
    said: Record = {}
    if verdict is not None:
        said |= {
            "liveness": verdict.liveness.value,
            "because": list(verdict.because),
            "odd": list(verdict.odd),
            "since_seconds": verdict.since,
        }
    return said | (finding or {}) or None


def _termination(termination: Termination) -> Record:
    return {
        "outcome": termination.outcome.value,
        "killed": [_member(member) for member in termination.killed],
        "survivors": [plain(survivor) for survivor in termination.survivors],
        "seconds": termination.seconds,
        "detail": termination.detail,
    }


def _member(member: Member) -> Record:
    return {"pid": member.identity.pid, "role": member.role, "rank": member.rank, "comm": member.comm}
