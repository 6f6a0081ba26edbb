"""What concerns the pod: its PID namespace, the API server, and whether the deadlines fit into its grace period.

The API server is asked by the standard library alone: this runs without third-party packages, beside an engine, and
needs one GET and a few questions.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sidecar.checkup import SERVICE_ACCOUNT, Remedy, Status
from sidecar.doctor.remedies import POD, SIDECAR
from sidecar.doctor.scene import Found, Scene, Step
from sidecar.settings import Settings

HOOK_PATIENCE = 10.0  # seconds that a hook may take beyond --liveness-deadline
_WAY_DOWN = 50  # seconds for the engine's own way down, as README's example has it
_MOST_BYTES = 8 << 20
_SHARE = 0.8  # of the check's time
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_NAMES = Remedy(
    SIDECAR,
    "env:\n"
    "  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}\n"
    "  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}",
)
_PROBES = "the engine's liveness and startup probes"
_SHARED = Remedy(POD, "shareProcessNamespace: true")


def namespace(scene: Scene, _: Step) -> tuple[Found, ...]:
    """Whether there is anything to be seen at all."""
    if scene.wraps:
        return (Found("process_namespace", Status.NOT_APPLICABLE, "the engine is a child of Rankguard's"),)
    if scene.shared:
        return (Found("process_namespace", Status.OK, "processes beside Rankguard's own can be seen"),)
    if scene.shared is None:
        why = scene.blind or "no process of another container, and none of an engine, is there yet"
        return (Found("process_namespace", Status.UNKNOWN, why),)
    seen = "there is nobody but Rankguard, not even the pod's PID 1: the PID namespace is not shared"
    return (Found("process_namespace", Status.MISSING, seen, (_SHARED,)),)


def api(scene: Scene, step: Step) -> tuple[Found, ...]:
    access, pod = _access(scene, step)
    return access, _grace(scene, pod)


@dataclass(frozen=True, slots=True)
class _Right:
    """What a setting asks of the API server. `name` where it is one object's."""

    verb: str
    resource: str
    namespace: str
    name: str = ""


def wanted(settings: Settings) -> tuple[_Right, ...]:
    """Beyond reading our own pod. An Event's count is raised where `patch` is allowed, and is no right to be missed."""
    own = settings.pod_namespace
    found = [_Right("create", "events", own)] if settings.kubernetes_events else []
    if settings.kubernetes_annotation:
        found.append(_Right("patch", "pods", own, settings.pod_name))
    if settings.after_kill == "delete-pod":
        found.append(_Right("delete", "pods", own, settings.pod_name))
    if settings.fleet_switch:
        namespace, _, name = settings.fleet_switch.partition("/")
        found.append(_Right("get", "configmaps", namespace, name))
    return tuple(found)


def rights(scene: Scene, step: Step) -> tuple[Found, ...]:
    """Whether what the settings want done may be done. The API server is asked for its opinion (a
    SelfSubjectAccessReview), so nothing is made; a policy that refuses more is not in it.
    """
    return (_rights(scene, step),)


def _rights(scene: Scene, step: Step) -> Found:
    told = _where(scene)
    if told is None:
        return Found("api_rights", Status.NOT_APPLICABLE, "no service account's token here")
    asked = wanted(scene.settings)
    if not asked or not scene.settings.pod_namespace:
        return Found("api_rights", Status.NOT_APPLICABLE, "nothing is to be told or asked")
    import http.client

    host, port, token = told
    refused = []
    for right in asked:
        what = f"{right.verb} {right.resource} in {right.namespace}"
        step(f"ask {host}:{port} whether {what} is allowed")
        spec = {"verb": right.verb, "resource": right.resource, "namespace": right.namespace, "name": right.name}
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in spec.items() if value}},
        }  # fmt: skip
        try:
            status, body = _ask(scene, host, port, token, _REVIEWS, review)
            answer = json.loads(body) if status == 201 else {}
            allowed = answer["status"]["allowed"] if status == 201 else None
        except TimeoutError:
            return Found("api_rights", Status.HUNG, f"the API server at {host}:{port} does not answer")
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
            return Found("api_rights", Status.UNKNOWN, f"the API server at {host}:{port} cannot be asked: {error}")
        if allowed is None:
            return Found("api_rights", Status.UNKNOWN, f"status {status}: it does not say whether {what} is allowed")
        if allowed is not True:
            refused.append(right)
    words = ", ".join(f"{right.verb} {right.resource}" for right in refused or asked)
    if not refused:
        return Found("api_rights", Status.OK, f"allowed: {words}")
    by_namespace: dict[str, list[_Right]] = {}
    for right in refused:
        by_namespace.setdefault(right.namespace, []).append(right)
    ways = tuple(_role(scene, token, namespace, found) for namespace, found in by_namespace.items())
    return Found("api_rights", Status.MISSING, f"refused: {words}", ways[:1] if len(ways) == 1 else (_both(ways),))


def _both(ways: tuple[Remedy, ...]) -> Remedy:
    """All of them are needed: remedies are alternatives."""
    return Remedy(" and ".join(way.place for way in ways), "\n---\n".join(way.yaml for way in ways))


def _access(scene: Scene, step: Step) -> tuple[Found, dict[str, Any] | None]:
    """Whether our own pod may be read, and the pod."""
    settings = scene.settings

    def found(status: Status, seen: str, *ways: Remedy) -> tuple[Found, None]:
        return Found("api_access", status, seen, ways), None

    told = _where(scene)
    if told is None:
        return found(Status.NOT_APPLICABLE, "no service account's token here; everything works without one")
    host, port, token = told
    if not settings.pod_namespace or not settings.pod_name:
        return found(Status.MISSING, "a token is there, but --pod-namespace or --pod-name is not set", _NAMES)
    name = f"{settings.pod_namespace}/{settings.pod_name}"
    step(f"get the pod {name} from {host}:{port}")
    import http.client  # only where there is a token, like ssl below

    try:
        namespace, pod_name = quote(settings.pod_namespace, safe=""), quote(settings.pod_name, safe="")
        status, body = _ask(scene, host, port, token, f"/api/v1/namespaces/{namespace}/pods/{pod_name}")
    except TimeoutError:
        return found(Status.HUNG, f"the API server at {host}:{port} does not answer")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return found(Status.MISSING, f"the API server at {host}:{port} cannot be asked: {error}")
    if status in (401, 403):
        return found(
            Status.MISSING,
            f"status {status}: get of the pod {name} is refused",
            _role(scene, token, settings.pod_namespace, [_Right("get", "pods", "")]),
        )
    try:
        pod = json.loads(body) if status == 200 else None
    except (ValueError, RecursionError):
        pod = None
    if not isinstance(pod, dict) or pod.get("kind") != "Pod":
        return found(Status.MISSING, f"status {status} for the pod {name}, and no pod in the answer")
    return Found("api_access", Status.OK, f"got the pod {name}"), pod


def _account_folder(scene: Scene) -> str:
    """The service account's, as the settings have it unless we were told otherwise."""
    default = scene.order.account == SERVICE_ACCOUNT
    return scene.settings.service_account_dir if default else scene.order.account


def _where(scene: Scene) -> tuple[str, str, str] | None:
    """Host, port and token, None where there is no API server or no token."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        with open(os.path.join(_account_folder(scene), "token"), encoding="ascii") as file:
            token = file.read(65536).strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    return (host, port, token) if host and token else None


def _ask(
    scene: Scene, host: str, port: str, token: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, bytes]:
    """A GET, or a POST of `body`. Raises `OSError` (`TimeoutError`), `HTTPException` or `ValueError`."""
    import http.client
    import ssl

    context = ssl.create_default_context(cafile=os.path.join(_account_folder(scene), "ca.crt"))
    connection = http.client.HTTPSConnection(
        host, int(port), timeout=scene.order.seconds * _SHARE, context=context
    )  # no proxy: the environment's is for what the engine downloads
    try:
        headers = {"authorization": f"Bearer {token}", "accept": "application/json", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST_BYTES)
    finally:
        connection.close()


def _role(scene: Scene, token: str, namespace: str, missing: Sequence[_Right]) -> Remedy:
    account, home = _account(token), scene.settings.pod_namespace
    # A role of its own beside what reads the pod: the two may be missing apart from each other.
    name = "rankguard" if missing[0].verb == "get" and missing[0].resource == "pods" else "rankguard-rights"
    rules = []
    for right in missing:
        only = f", resourceNames: [{right.name}]" if right.resource == "configmaps" else ""
        rules.append(f'  - {{apiGroups: [""], resources: [{right.resource}], verbs: [{right.verb}]{only}}}')
    return Remedy(
        f"the namespace {namespace}",
        "apiVersion: rbac.authorization.k8s.io/v1\n"
        "kind: Role\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\n"
        "rules:\n" + "\n".join(rules) + "\n---\n"
        "apiVersion: rbac.authorization.k8s.io/v1\n"
        "kind: RoleBinding\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\n"
        f"roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}\n"
        f"subjects:\n  - {{kind: ServiceAccount, name: {account}, namespace: {home}}}",
    )


def _account(token: str) -> str:
    """The service account's name, which is in its token (RFC 7519: `sub` is system:serviceaccount:NAMESPACE:NAME)."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        name = str(claims["sub"]).split(":")[3]
    except (ValueError, LookupError, TypeError):
        return "default"
    return name if name.replace("-", "").replace(".", "").isalnum() else "default"


def _grace(scene: Scene, pod: dict[str, Any] | None) -> Found:
    settings = scene.settings
    grace, source = settings.termination_grace_period, "--termination-grace-period says"
    spec = pod.get("spec") if pod is not None else None
    if (told := _number(spec, "terminationGracePeriodSeconds")) is not None:
        grace, source = told, "the pod has"
    probes = _probes(spec)
    if probes == []:
        seen = "the engine has no liveness and no startup probe: the kubelet calls only at a deletion, answered at once"
        return Found("grace_period", Status.NOT_APPLICABLE, seen)
    # The probe's own value governs what its failure leads to.
    own = [_number(probe, "terminationGracePeriodSeconds") for probe in probes or ()]
    times = [grace if time is None else time for time in own]
    shortest = min((time for time in times if time is not None), default=None)
    if shortest is not None and shortest in own:
        grace, source = shortest, "a probe of the engine has"
    if grace is None:
        if not settings.in_pod and pod is None:
            return Found("grace_period", Status.NOT_APPLICABLE, "not in a pod")
        return Found(
            "grace_period", Status.UNKNOWN, "the pod's grace period is not known: say --termination-grace-period"
        )
    hook = settings.liveness_deadline + HOOK_PATIENCE
    seen = (
        f"{source} {grace:g} s; a preStop hook takes {hook:g} s at most"
        f" (--liveness-deadline {settings.liveness_deadline:g} and {HOOK_PATIENCE:g})"
    )
    if grace > hook:
        return Found(
            "grace_period", Status.OK, f"{seen}, which leaves {grace - hook:g} s for the engine's own way down"
        )
    place = _PROBES if source.startswith("a probe") else POD
    ways = [Remedy(place, f"terminationGracePeriodSeconds: {math.ceil(hook) + _WAY_DOWN}")]
    if (shorter := math.floor((grace - HOOK_PATIENCE) / 2)) >= 1:
        ways.append(Remedy(SIDECAR, f'env:\n  - {{name: RANKGUARD_LIVENESS_DEADLINE, value: "{shorter}"}}'))
    return Found("grace_period", Status.MISSING, seen, tuple(ways))


def _probes(spec: Any) -> list[Any] | None:
    """The probes whose failure has the kubelet call our hook; None where no container has one."""
    containers = spec.get("containers") if isinstance(spec, dict) else None
    hooked = [each for each in containers if _calls_us(each)] if isinstance(containers, list) else []
    if not hooked:
        return None
    probes = (each.get(name) for each in hooked for name in ("livenessProbe", "startupProbe"))
    return [probe for probe in probes if isinstance(probe, dict)]


def _calls_us(container: Any) -> bool:
    """Whether its preStop hook is ours."""
    for key in ("lifecycle", "preStop", "httpGet"):
        container = container.get(key) if isinstance(container, dict) else None
    return isinstance(container, dict) and container.get("path") == "/hooks/prestop"


def _number(data: Any, key: str) -> float | None:
    value = data.get(key) if isinstance(data, dict) else None
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else None
