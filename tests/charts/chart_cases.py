"""Values for the chart: cases that together set each one of them to something else than its default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from helm_chart import CHART

Values = dict[str, Any]
Path = tuple[str, ...]

PLACE: Values = {
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "infra", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
}
RESOURCES: Values = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "2Gi"}}
FROM: list[Values] = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}]

CASES: dict[str, Values] = {
    "default": {},
    "names": {"nameOverride": "guardian", "commonLabels": {"team": "inference"}},
    "another name": {"fullnameOverride": "ranks"},
    "image": {
        "image": {
            "repository": "registry.example/rankguard",
            "tag": "0.1.1",
            "pullPolicy": "Never",
            "pullSecrets": ["pull"],
        }
    },
    "image by digest": {"image": {"digest": "sha256:" + "a" * 64}},
    "nothing injects": {"injection": "none", "sidecar": {"namespaces": ["inference"]}},
    "webhook off": {"webhook": {"enabled": False}},
    "webhook": {
        "webhook": {
            "replicas": 3,
            "timeoutSeconds": 2,
            "excludeNamespaces": ["monitoring", "gpu-operator"],
            "namespaceSelector": {
                "matchLabels": {"team": "inference"},
                "matchExpressions": [{"key": "env", "operator": "In", "values": ["prod"]}],
            },
            **PLACE,
            "podLabels": {"mesh": "off"},
            "podAnnotations": {"sidecar.istio.io/inject": "false"},
            "resources": RESOURCES,
        }
    },
    "cert-manager": {"webhook": {"certificate": {"mode": "cert-manager"}}},
    "cert-manager with an issuer": {
        "webhook": {
            "certificate": {
                "mode": "cert-manager",
                "certManager": {
                    "issuerRef": {"name": "corporate", "kind": "Issuer"},
                    "duration": "24h",
                    "renewBefore": "8h",
                },
            }
        }
    },
    "provided certificate": {
        "webhook": {"certificate": {"mode": "provided", "secretName": "own-tls", "caBundle": "LS0tLS1CRUdJTg=="}}
    },
    "sidecar": {
        "sidecar": {
            "image": "mirror.example/rankguard:0.1.0",
            "form": "ordinary",
            "rights": "signals",
            "volumeSizeLimit": "50Gi",
            "liveness": True,
            "nvml": True,
            "engineEnvironment": False,
            "resources": RESOURCES,
            "settings": {"death-deadline": 5, "on-rank-death": "observe", "dump-max-bytes": 20_000_000_000},
        }
    },
    "claims": {"sidecar": {"volume": "claim", "volumeClaim": "dumps"}},
    "folders of the nodes": {"sidecar": {"volume": "host-path", "volumeHostPath": "/var/lib/rankguard"}},
    "rights": {
        "sidecar": {
            "namespaces": ["inference", "research"],
            "aggregateEvents": True,
            "annotatePod": True,
            "deletePod": True,
            "exempt": ["inference/operator", "research/autoscaler"],
        },
        "fleetSwitch": {"mode": "observe"},
    },
    "bound tokens": {"sidecar": {"namespaces": ["inference"], "bindTokens": True}, "fleetSwitch": {"enabled": False}},
    "no tokens": {"sidecar": {"namespaces": ["inference"], "apiToken": False}},
    "viewer": {
        "viewer": {"enabled": True, **PLACE, "resources": RESOURCES},
        "dumps": {"claim": "dumps", "namespace": "inference"},
    },
    "viewer for the cluster": {
        "viewer": {
            "enabled": True,
            "write": True,
            "service": {"enabled": True},
            "token": {"secretName": "viewer-token", "key": "secret"},
        },
        "dumps": {"claim": "dumps"},
        "networkPolicy": {"metricsFrom": FROM, "viewerFrom": FROM},
    },
    "prune": {
        "prune": {
            "enabled": True,
            "schedule": "0 5 * * 0",
            "podsGoneFor": "30d",
            "dryRun": True,
            **PLACE,
            "resources": RESOURCES,
        },
        "dumps": {"claim": "dumps"},
    },
    "no network policy": {"networkPolicy": {"enabled": False}},
    "policy": {"injection": "policy"},
    "test": {"test": {"namespace": "inference"}},
}


def written(values: Mapping[str, Any], known: set[Path], at: Path = ()) -> Iterator[Path]:
    """The chart's values that a case sets, by path; `known` are the chart's, below which all belongs to the value."""
    for key, value in values.items():
        path = (*at, key)
        if path in known or not isinstance(value, Mapping):
            yield path
        else:
            yield from written(value, known, path)


def without(values: Mapping[str, Any], path: Path) -> Values:
    head, *rest = path
    kept = {key: value for key, value in values.items() if key != head}
    return {**kept, head: without(values[head], tuple(rest))} if rest else kept


def documented() -> dict[Path, tuple[Any, str]]:
    """Every value that has a `# --` line above it in values.yaml: its default and what the line says."""
    found: dict[Path, tuple[Any, str]] = {}
    at: list[tuple[int, str]] = []
    words: list[str] = []
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            words.append(stripped.removeprefix("# -- "))
        elif stripped and not stripped.startswith(("#", "- ")):
            indent = len(line) - len(line.lstrip())
            at = [*(each for each in at if each[0] < indent), (indent, stripped.partition(":")[0])]
            if words:
                path = tuple(key for _, key in at)
                found[path] = (_default(defaults, path), " ".join(words))
                words = []
    return found


def _default(values: Any, path: Path) -> Any:
    return values if not path else _default(values[path[0]], path[1:])


def leaves(values: Mapping[str, Any], known: set[Path], at: Path = ()) -> Iterator[Path]:
    """All values of values.yaml; what is documented as a whole is one."""
    for key, value in values.items():
        path = (*at, key)
        if path in known or not isinstance(value, Mapping):
            yield path
        else:
            yield from leaves(value, known, path)
