"""What is told of an incident in Kubernetes' words: Events, and the pod's annotation. Pure.

One Event a reason and pod: its name is made of both, so that a second incident raises the count of the first one's
instead of filling the pod's page, and whoever comes after a restart finds it again.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.masking import mask_text
from sidecar.model import Action, Outcome, Reason

ANNOTATION = "rankguard.dev/last-incident"
BAD_SETTING = "BadSetting"
_COMPONENT = "rankguard"
_MOST_MESSAGE = 1000  # characters; the API takes 1024 bytes of a message's text in its newer form
_MOST_NAME = 200  # characters of the pod's name in an Event's
_DEATHS = (Reason.RANK_DIED, Reason.ENGINE_EXITED)
_LIVENESS = (Reason.LIVENESS_FAILED, Reason.ENGINE_STALLED)
_DONE = {
    Action.KILL: "its evidence is taken, then the engine is killed",
    Action.CAPTURE: "its evidence is taken, and the engine runs on",
    Action.OBSERVE: "it is only recorded",
}


@dataclass(frozen=True, slots=True)
class Report:
    """One thing to tell. `incident` is "" for what belongs to none, `container` where it is not known which."""

    reason: str
    message: str
    wall: float
    warning: bool = True
    incident: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """Our pod. `uid` is "" where nobody has said it; then kubectl describe does not find the Event."""

    namespace: str
    name: str
    uid: str
    node: str = ""


def report_of(event: Mapping[str, Any], targets: Sequence[str] = ()) -> Report | None:
    """What one of the guard's events is told as; None where it is not told.

    `targets` are the engine's containers, by the settings: where there is one, it is meant. Raises `KeyError`,
    `ValueError` or `TypeError` on an event that makes no sense.
    """
    name = event["name"]
    if name not in ("incident", "reap_timeout", "terminated", "closed"):
        return None
    incident, reason = str(event["incident"]), Reason(event["reason"])
    container = str(event["container"]) or (targets[0] if len(targets) == 1 else "")
    who = _who(event, container)
    end = f" Incident {incident}."

    def told(said: str, text: str, warning: bool = True) -> Report:
        line = " ".join(mask_text(text).split())
        line = "".join(c if c.isprintable() else "?" for c in line)
        room = _MOST_MESSAGE - len(end)
        line = line if len(line) <= room else line[: room - 1] + "…"
        return Report(said, line + end, float(event["wall"]), warning, incident, container)

    if name == "incident":
        done = _DONE[Action(event["action"])]
        if reason in _DEATHS:
            others = f"; {event['deaths'] - 1} more followed" if event["deaths"] > 1 else ""
            return told("RankDied", f"{who} died of {event['cause']} ({event['ended']}){others}; {done}.")
        if reason is Reason.RANK_MISSING:
            return told("RankMissing", f"Not all ranks came up: {event['because']}; {done}.")
        if reason in _LIVENESS:
            return told("LivenessFailed", f"The engine was found stuck or dead: {event['because']}; {done}.")
        if reason is Reason.PRE_STOP:
            return told("LivenessFailed", f"{event['because']}; its evidence is taken before that.")
        return None
    if name == "reap_timeout":
        return told("ReapTimeout", f"After the kill over {who}: still there: {event['detail']}.")
    if name == "terminated":
        if event["outcome"] not in (Outcome.REAPED, Outcome.EXITED_UNREAPED):
            return None
        seconds, killed = float(event["seconds"]), int(event["killed"])
        over = f"{who} died of {event['cause']}" if reason in _DEATHS else str(event["because"]) or reason.value
        return told(
            "EngineKilled", f"{killed} processes killed and gone within {seconds:.1f} s, since {over}.", warning=False
        )
    if not event["sealed"]:
        return None
    saved = int(event["saved"])
    return told(
        "EvidenceSaved", f"{saved} file{'' if saved == 1 else 's'} of evidence saved. {event['summary']}", warning=False
    )


def annotation_of(event: Mapping[str, Any]) -> str:
    """`<id> <summary>` of a closed incident."""
    summary = " ".join(mask_text(str(event["summary"] or event["because"])).split())
    return f"{event['incident']} {summary}"[:_MOST_MESSAGE].strip()


def bad_settings(lines: Sequence[str], wall: float) -> Report:
    more = f" And {len(lines) - 1} more." if len(lines) > 1 else ""
    text = f"A setting was refused and its default is used; nothing will be killed: {mask_text(lines[0])}"
    return Report(BAD_SETTING, text[:_MOST_MESSAGE] + more, wall)


def event_name(about: About, reason: str, incident: str = "") -> str:
    """A name that is always the same for a pod and a reason, and with an `incident` for that one."""
    digest = hashlib.sha256("\0".join((about.uid or about.name, reason, incident)).encode()).hexdigest()[:16]
    return f"{re.sub(r'[^a-z0-9]+$', '', about.name[:_MOST_NAME])}.{digest}"


def event_body(report: Report, about: About, name: str) -> dict[str, Any]:
    """A new Event. Of core/v1: that is what kubectl describe reads, and what takes a count by a patch."""
    at = stamp(report.wall)
    involved = {"apiVersion": "v1", "kind": "Pod", "namespace": about.namespace, "name": about.name}
    if about.uid:
        involved["uid"] = about.uid
    if report.container:
        involved["fieldPath"] = f"spec.containers{{{report.container}}}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.namespace},
        "involvedObject": involved,
        "reason": report.reason,
        "message": report.message,
        "type": "Warning" if report.warning else "Normal",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "source": {"component": _COMPONENT, "host": about.node},
        "reportingComponent": _COMPONENT,
        "reportingInstance": about.name,
    }


def event_again(report: Report, count: int | None) -> dict[str, Any]:
    """The patch for one more of the same; without a `count` it only says when, and the answer tells the rest."""
    patch: dict[str, Any] = {"lastTimestamp": stamp(report.wall)}
    return patch if count is None else {**patch, "message": report.message, "count": count}


def stamp(wall: float) -> str:
    """RFC 3339 in whole seconds, as metav1.Time is."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


def _who(event: Mapping[str, Any], container: str) -> str:
    rank, role = str(event["rank"]), str(event["role"])
    who = rank if rank and rank != role else f"the {role or 'engine'}".replace("_", " ")
    return f"{who} in container {container}" if container else who
