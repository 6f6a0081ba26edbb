"""Where the pods are in a document of Kubernetes: the path of each pod template, by the document's kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

# (group, kind): the templates' paths; "*" is each element of a list.
_TEMPLATES: Mapping[tuple[str, str], tuple[Path, ...]] = {
    ("", "Pod"): ((),),
    ("", "PodTemplate"): (("template",),),
    ("", "ReplicationController"): (("spec", "template"),),
    ("apps", "Deployment"): (("spec", "template"),),
    ("apps", "StatefulSet"): (("spec", "template"),),
    ("apps", "ReplicaSet"): (("spec", "template"),),
    ("apps", "DaemonSet"): (("spec", "template"),),
    ("batch", "Job"): (("spec", "template"),),
    ("batch", "CronJob"): (("spec", "jobTemplate", "spec", "template"),),
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): (
        ("spec", "leaderWorkerTemplate", "leaderTemplate"),
        ("spec", "leaderWorkerTemplate", "workerTemplate"),
    ),
    ("jobset.x-k8s.io", "JobSet"): (("spec", "replicatedJobs", "*", "template", "spec", "template"),),
}
_KINDS = frozenset(kind for _, kind in _TEMPLATES)
_LIST = "List"


@dataclass(frozen=True, slots=True)
class Template:
    """A pod template at `path`. `title` says what it belongs to, `kind` that object's kind."""

    path: Path
    kind: str
    title: str
    namespace: str
    group_size: int


def may_hold_pods(kind: str) -> bool:
    """Whether a document of this kind is worth reading."""
    return kind in _KINDS or kind == _LIST or (kind.endswith(_LIST) and kind.removesuffix(_LIST) in _KINDS)


def templates(document: Any, path: Path = (), implied: tuple[str, str] = ("", "")) -> Iterator[Template]:
    """Every pod template in it. `implied` are the apiVersion and kind of what has none: an element of a typed list."""
    if not isinstance(document, dict):
        return
    version, kind = document.get("apiVersion") or implied[0], document.get("kind") or implied[1]
    if not isinstance(version, str) or not isinstance(kind, str):
        return
    if kind.endswith(_LIST) and not path:
        items = document.get("items")
        inner = (version, kind.removesuffix(_LIST))
        for at, item in enumerate(items if isinstance(items, list) else ()):
            yield from templates(item, ("items", at), inner)
        return
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    namespace = str(metadata.get("namespace") or "")
    title = (
        f"{kind} {namespace + '/' if namespace else ''}{metadata.get('name') or metadata.get('generateName') or '?'}"
    )
    group = version.rpartition("/")[0]
    for pattern in _TEMPLATES.get((group, kind), ()):
        found = list(_existing(document, pattern))
        for inside in found:
            several = len(found) > 1 or len(_TEMPLATES[group, kind]) > 1
            part = f" ({'.'.join(str(step) for step in inside[1:])})" if several else ""
            yield Template((*path, *inside), kind, title + part, namespace, _group_size(document, kind))


def at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def _existing(document: Any, pattern: Path, path: Path = ()) -> Iterator[Path]:
    if not pattern:
        if isinstance(document, dict):
            yield path
    elif pattern[0] == "*":
        for index, item in enumerate(document if isinstance(document, list) else ()):
            yield from _existing(item, pattern[1:], (*path, index))
    elif isinstance(document, dict) and document.get(str(pattern[0])) is not None:
        yield from _existing(document[str(pattern[0])], pattern[1:], (*path, pattern[0]))


def _group_size(document: Mapping[str, Any], kind: str) -> int:
    if kind != "LeaderWorkerSet":
        return 0
    size = document["spec"]["leaderWorkerTemplate"].get("size")
    return size if isinstance(size, int) and not isinstance(size, bool) else 1
