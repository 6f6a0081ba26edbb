"""Where the sidecar listens, with nobody in its way and it in nobody's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar import listening
from sidecar.inject import refusals
from sidecar.inject.annotations import Wishes
from sidecar.inject.words import PREFIX, Skip
from sidecar.settings import Settings

_PORT, _API_PORT = (listening.parse(text or "").port for text in (Settings().listen, Settings().api_listen))


@dataclass(frozen=True, slots=True)
class Ports:
    """`hook` is 0 where the kubelet cannot reach the sidecar. `declared`: it is among the container's ports. `settings`
    are what `run` has to be told of it.
    """

    hook: int
    declared: bool
    settings: Mapping[str, str]


def ports(spec: Mapping[str, Any], wished: Wishes) -> Ports:
    """Raises `Skip` where there is no port for it."""
    host = bool(spec.get("hostNetwork"))
    if host and not wished.port:
        raise Skip(
            "HostNetworkWithoutPort",
            f"with hostNetwork two pods of a node would have one port: say which with the annotation {PREFIX}port",
        )
    port = wished.port or _PORT
    taken = {
        declared["containerPort"]
        for container in refusals.every_container(spec)
        for declared in container.get("ports") or ()
        if declared.get("containerPort")
    }
    if port in taken:
        raise Skip("PortTaken", f"a container of the pod has port {port}: say another with the annotation {PREFIX}port")
    settings = {}
    if wished.port and "listen" not in wished.given:
        settings["listen"] = f":{port}"
    # On the node's own network the port for people would be the same for all, too.
    first = port + 1 if host else _API_PORT
    candidates = itertools.chain(range(first, 65536), range(1024, first))
    api = next(each for each in candidates if each != port and each not in taken)
    if api != _API_PORT and "api_listen" not in wished.given:
        settings["api_listen"] = f"127.0.0.1:{api}"
    listen = wished.settings.listen
    reachable = listen is not None and not listening.parse(listen).loopback
    # With hostNetwork a declared port is the node's, and a second pod with it would stay Pending.
    return Ports(port if reachable else 0, reachable and not host, settings)
