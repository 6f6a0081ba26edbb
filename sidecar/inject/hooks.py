"""The engine's hook and probes: who calls Rankguard before the engine is stopped, and how long that may take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.settings import Settings

HOOK, LIVEZ = "/hooks/prestop", "/livez"
TOKEN_HEADER = "X-Rankguard-Token"  # noqa: S105
# Seconds beyond --liveness-deadline: for the hook's own 10 s, and some until the kubelet acts.
BEYOND_DEADLINE = 15
_PROBES = ("livenessProbe", "startupProbe")
_DEFAULT_GRACE = 30  # Kubernetes' own, of a pod
# What `run` takes: with a setting that it refuses it would only observe.
_MOST_GRACE, _MOST_WINDOW = (
    int(Settings.__dataclass_fields__[name].metadata["maximum"])
    for name in ("termination_grace_period", "target_probe_window")
)
_LIVENESS = {"periodSeconds": 10, "timeoutSeconds": 2, "failureThreshold": 6}  # covers a sidecar's restart


def kept(target: Mapping[str, Any]) -> bool:
    """Whether it has a preStop hook of its own that is not ours."""
    action = ((target.get("lifecycle") or {}).get("preStop")) or {}
    return bool(action) and (action.get("httpGet") or {}).get("path") != HOOK


def token_sent(targets: Iterable[Mapping[str, Any]]) -> str | None:
    """What hooks that call us already send as their token, "" for none; None where there is no such hook."""
    for target in targets:
        call = (((target.get("lifecycle") or {}).get("preStop")) or {}).get("httpGet") or {}
        if call.get("path") == HOOK:
            headers = call.get("httpHeaders") or ()
            sent = (each.get("value") for each in headers if (each.get("name") or "").lower() == TOKEN_HEADER.lower())
            return next(sent, "") or ""
    return None


def add_hook(target: dict[str, Any], port: int, token: str) -> None:
    """The kubelet calls by number: it would look a name up in this container, which has no port of that name."""
    call: dict[str, Any] = {"path": HOOK, "port": port}
    if token:
        call["httpHeaders"] = [{"name": TOKEN_HEADER, "value": token}]
    if not (target.get("lifecycle") or {}).get("preStop"):
        target["lifecycle"] = {**(target.get("lifecycle") or {}), "preStop": {"httpGet": call}}


def add_liveness(target: dict[str, Any], port: int) -> None:
    target["livenessProbe"] = {"httpGet": {"path": LIVEZ, "port": port}, **_LIVENESS}


def needed_grace(settings: Settings) -> int:
    return math.ceil(settings.liveness_deadline) + BEYOND_DEADLINE


def add_grace(target: dict[str, Any], settings: Settings) -> list[str]:
    """Give each probe whose failure stops the container the time of a hook. The probes that have less, in words."""
    needed, warnings = needed_grace(settings), []
    for name in _PROBES:
        if not (probe := target.get(name)):
            continue
        if probe.get("terminationGracePeriodSeconds") is None:
            probe["terminationGracePeriodSeconds"] = needed
        elif probe["terminationGracePeriodSeconds"] < needed:
            warnings.append(
                f"the {name} of {target['name']} has terminationGracePeriodSeconds:"
                f" {probe['terminationGracePeriodSeconds']}, less than the {needed} s of a hook: evidence may be cut"
            )
    return warnings


def grace(targets: Iterable[Mapping[str, Any]], spec: Mapping[str, Any]) -> int | None:
    """What bounds a hook when the kubelet gives the engine up: the shortest of its probes' own, or the pod's. None
    where there is no such probe: then the kubelet calls only at a deletion, which is answered at once.
    """
    usual = spec.get("terminationGracePeriodSeconds")
    usual = _DEFAULT_GRACE if usual is None else usual
    times = [
        usual if probe.get("terminationGracePeriodSeconds") is None else probe["terminationGracePeriodSeconds"]
        for target in targets
        for name in _PROBES
        if (probe := target.get(name))
    ]
    return min((*times, _MOST_GRACE)) if times else None


def probe_window(targets: Iterable[Mapping[str, Any]]) -> int | None:
    """Seconds from a hang to the kubelet's own verdict, at the earliest: it may begin just before a probe. None where
    no probe would find one: a port that is open says nothing, and /livez says what Rankguard has found. None, too,
    where that is days away, or never.
    """
    windows = []
    for target in targets:
        probe = target.get("livenessProbe") or {}
        if probe and not probe.get("tcpSocket") and (probe.get("httpGet") or {}).get("path") != LIVEZ:
            period, failures = probe.get("periodSeconds") or 10, probe.get("failureThreshold") or 3
            windows.append(max(1, (failures - 1) * period + (probe.get("timeoutSeconds") or 1)))
    return min((each for each in windows if each <= _MOST_WINDOW), default=None)
