"""What the engine's own containers get, and what the sidecar is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sidecar import config
from sidecar.inject import environment, hooks, volumes
from sidecar.inject.annotations import Wishes
from sidecar.inject.ports import Ports
from sidecar.settings import Settings

_USUAL_TERMINATION_LOG = Settings().termination_log or ""


def hand_over(
    spec: Mapping[str, Any],
    targets: Sequence[dict[str, Any]],
    wished: Wishes,
    ports: Ports,
    token: str,
    warnings: list[str],
) -> dict[str, str]:
    """Give the targets their hook and probes. What the sidecar is told of them, as settings of `run`."""
    told = {"target_container": ",".join(each["name"] for each in targets), **ports.settings}
    # Where we are not called, we have to be done before the kubelet acts.
    if (window := hooks.probe_window(each for each in targets if hooks.kept(each) or not ports.hook)) is not None:
        told["target_probe_window"] = str(window)
    hooked = []
    for each in targets:
        name = each["name"]
        if wished.options.liveness and each.get("livenessProbe"):
            warnings.append(f"liveness: {name} keeps its own livenessProbe")
        elif wished.options.liveness and ports.hook:
            hooks.add_liveness(each, ports.hook)
        if hooks.kept(each):
            warnings.append(f"{name} keeps its own preStop hook: Rankguard is not called before the kubelet stops it")
        elif not ports.hook:
            warnings.append(f"listen: nobody outside reaches it, so {name} has no preStop hook")
        else:
            hooks.add_hook(each, ports.hook, token)
            warnings += hooks.add_grace(each, wished.settings)
            hooked.append(each)
    if (grace := hooks.grace(hooked, spec)) is not None:
        told["termination_grace_period"] = str(grace)
    logs = list(dict.fromkeys(each.get("terminationMessagePath") or _USUAL_TERMINATION_LOG for each in targets))
    if logs[0] != _USUAL_TERMINATION_LOG:
        _, errors = config.read({"termination_log": logs[0]}, lambda _: "terminationMessagePath")
        told |= {} if errors else {"termination_log": logs[0]}
        warnings += [f"{error}: no line is written there" for error in errors]
    if len(logs) > 1:
        warnings.append("the engine's containers have several terminationMessagePaths: the first is written to")
    return told


def prepare(container: dict[str, Any], dumps: str, warnings: list[str]) -> None:
    """What its CUDA and PyTorch need to be asked for evidence: variables, and one folder of the volume."""
    if container.get("envFrom"):
        warnings.append(f"what {container['name']} has by envFrom is not known here, and our defaults beat it")
    added = environment.engine_defaults(container)
    uses_folder = any(volumes.ENGINE_FOLDER in str(entry.get("value")) for entry in added)
    mounted = volumes.mount_at(volumes.ENGINE_FOLDER, container) is not None
    if uses_folder and not mounted:
        added += environment.engine_pod_names(container)
        path = "/".join(f"$({name})" for name in environment.ENGINE_NAMES)
        mount = {"name": dumps, "mountPath": volumes.ENGINE_FOLDER, "subPathExpr": f"{path}/engine"}
        container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    if added:
        container["env"] = [*(container.get("env") or []), *added]


def shared_memory(targets: Iterable[Mapping[str, Any]], warnings: list[str]) -> list[dict[str, Any]]:
    """The containers share /dev/shm only as long as none of them mounts a volume there."""
    found = [mount for each in targets if (mount := volumes.mount_at(volumes.SHM, each)) is not None]
    if len({mount["name"] for mount in found}) > 1:
        warnings.append("the engine's containers have several volumes at /dev/shm: Rankguard sees the first")
    if found and found[0].get("subPathExpr"):
        warnings.append("the volume at /dev/shm is mounted by subPathExpr: Rankguard does not see it")
        return []
    if not found:
        return []
    mount = {**found[0], "mountPath": volumes.SHM}
    if mount.get("mountPropagation") == "Bidirectional":
        mount["mountPropagation"] = "HostToContainer"  # the other is for privileged containers, or the pod is refused
    return [mount]
