"""Service meshes: the kubelet calls the hook from the node and with no certificate, so the port is left out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ISTIO, LINKERD = "traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports"


def exclusions(annotations: Mapping[str, Any], port: int) -> dict[str, str]:
    """Both meshes' annotations with our port beside those that are there. Without a mesh they mean nothing; whether
    there is one is decided elsewhere, by the namespace's labels or later.
    """
    return {name: _with(annotations.get(name), port) for name in (ISTIO, LINKERD)}


def _with(value: Any, port: int) -> str:
    entries = [entry.strip() for entry in value.split(",") if entry.strip()] if isinstance(value, str) else []
    if any(_covers(entry, port) for entry in entries):
        return str(value)
    return ",".join([*entries, str(port)])


def _covers(entry: str, port: int) -> bool:
    """Linkerd takes ranges."""
    first, _, last = entry.partition("-")
    bounds = (first.strip(), (last or first).strip())
    return all(b.isascii() and b.isdecimal() for b in bounds) and int(bounds[0]) <= port <= int(bounds[1])
