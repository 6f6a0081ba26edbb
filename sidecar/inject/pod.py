"""One pure function, pod -> pod: the sidecar, and what the pod needs for it. Used by the webhook and by
`rankguard inject`, and mirrored by the admission policy; docs/injection.md has its rules.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sidecar.inject import annotations as wishes
from sidecar.inject import environment, hooks, mesh, refusals, rights, shape, target, volumes
from sidecar.inject.advice import advice
from sidecar.inject.engine import hand_over, prepare, shared_memory
from sidecar.inject.options import Form, Options
from sidecar.inject.ports import ports as find_ports
from sidecar.inject.refusals import every_container
from sidecar.inject.resources import sidecar_resources
from sidecar.inject.volumes import wanted_claim
from sidecar.inject.words import INJECTED, SIDECAR, SKIPPED, WARNINGS, ClaimState, Injection, Place, Skip
from sidecar.version import VERSION

_MOST, _MOST_OF_ALL = 2048, 256 * 1024  # characters of an annotation of ours; bytes of all of a pod's, with their names

__all__ = ["ClaimState", "Injection", "Place", "inject", "wanted_claim"]


def inject(pod: Any, options: Options, place: Place) -> Injection:
    """The pod with the sidecar, or why it has none. `pod` itself is never changed, and nothing is raised."""
    if trouble := shape.trouble(pod):
        return Injection(copy.deepcopy(pod) if isinstance(pod, dict) else {}, False, "NotAPod", trouble)
    after = copy.deepcopy(pod)
    annotations = dict((pod.get("metadata") or {}).get("annotations") or {})
    try:
        refusals.refuse(pod, place)
        warnings = _injected(after, annotations, options, place)
    except Skip as skip:
        # A pod that has our sidecar already keeps the annotation that says so.
        if INJECTED in annotations and skip.reason == "AlreadyInjected":
            return Injection(after, False, skip.reason, skip.message)
        skipped = copy.deepcopy(pod)
        _annotate(skipped, {**annotations, SKIPPED: _cut(f"{skip.reason}: {skip.message}")})
        return Injection(skipped, False, skip.reason, skip.message)
    return Injection(after, True, "Injected", f"the sidecar of version {VERSION} was added", warnings)


def _annotate(pod: dict[str, Any], annotations: Mapping[str, Any]) -> None:
    """Where there is room: one byte more than the API server takes, and it would refuse the pod."""
    if sum(len(f"{name}{value}".encode(errors="replace")) for name, value in annotations.items()) <= _MOST_OF_ALL:
        pod["metadata"] = {**(pod.get("metadata") or {}), "annotations": dict(annotations)}


def _cut(text: str) -> str:
    """What users wrote is in it, of any length."""
    return text if len(text) <= _MOST else text[: _MOST - 1] + "…"


def _injected(pod: dict[str, Any], annotations: dict[str, Any], options: Options, place: Place) -> tuple[str, ...]:
    """Change `pod`. The warnings. Raises `Skip`, and then `pod` may be half done."""
    metadata, spec = pod.get("metadata") or {}, pod["spec"]
    wished = wishes.read(annotations, tuple(each["name"] for each in spec["containers"]), options)
    options = wished.options
    targets = target.targets(spec["containers"], wished.containers)
    ports = find_ports(spec, wished)
    enforced = rights.level(place.enforce)
    tier = rights.tier(options.rights, enforced, targets[0], spec.get("securityContext") or {})
    dumps = volumes.dumps(options, place, enforced, tier.user, spec)
    warnings = [*advice(options, metadata, place, bool(dumps.limit)), *tier.warnings, *dumps.warnings]
    # Of the pod as it was.
    resources = sidecar_resources(options.resources, every_container(spec), spec.get("resources"), dumps.limit)

    sent = hooks.token_sent(targets)
    token = wished.settings.hook_token or (place.token if sent is None else sent)
    told = hand_over(spec, targets, wished, ports, token, warnings)
    if dumps.limit:
        told = {"dump_volume_limit": dumps.limit, **told}
    if options.fleet_switch:
        told["fleet_switch"] = options.fleet_switch
    if token:
        told["hook_token"] = token
    told |= wished.given
    group = [] if "pod_group" in told else environment.group(metadata, place)

    folder = wished.settings.dump_dir
    mounts: list[dict[str, Any]] = [
        {"name": dumps.name, "mountPath": folder, "subPathExpr": "$(POD_NAMESPACE)/$(POD_NAME)"},
        *shared_memory(targets, warnings),
    ]
    added = [dumps.volume]
    if options.api_token:
        added.append(volumes.token_volume(spec))
        mounts.append({"name": added[-1]["name"], "mountPath": volumes.SERVICE_ACCOUNT, "readOnly": True})
    if options.engine_environment:
        for container in targets:
            prepare(container, dumps.name, warnings)
    native = options.form is Form.NATIVE
    if not native and _ends(spec, place):
        native = True
        warnings.append("form: native in place of ordinary, which would keep the pod from ending")
    sidecar = {
        "name": SIDECAR,
        "image": options.image,
        "imagePullPolicy": options.image_pull_policy,
        "args": ["run"],
        **({"restartPolicy": "Always"} if native else {}),
        "env": environment.sidecar(told, group, options.nvml),
        **({"ports": [{"name": SIDECAR, "containerPort": ports.hook}]} if ports.declared else {}),
        "securityContext": tier.security,
        "resources": resources,
        "volumeMounts": mounts,
    }
    spec["shareProcessNamespace"] = True
    if native:
        # First, so that it is there before the engine, and sees all of its life.
        spec["initContainers"] = [sidecar, *(spec.get("initContainers") or [])]
    else:
        spec["containers"] = [*spec["containers"], sidecar]
    spec["volumes"] = [*(spec.get("volumes") or []), *added]

    rest = {name: value for name, value in annotations.items() if name not in (SKIPPED, WARNINGS)}
    if ports.declared:
        rest |= mesh.exclusions(annotations, ports.hook)
    _annotate(pod, {**rest, INJECTED: VERSION, **({WARNINGS: _cut("; ".join(warnings))} if warnings else {})})
    return tuple(warnings)


def _ends(spec: Mapping[str, Any], place: Place) -> bool:
    """Whether it is to end by itself, as the pods of a Job are."""
    return place.owner_kind in ("Job", "JobSet", "CronJob") or spec.get("restartPolicy") in ("Never", "OnFailure")
