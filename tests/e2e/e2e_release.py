"""The chart in the cluster: installed, changed and removed with Helm's own engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import helm_python
from e2e_cluster import LABEL, ROOT, Cluster, Json, apps, core, until
from e2e_specs import engine_pod

CHART = ROOT / "charts" / "rankguard"
INJECTED = "rankguard.dev/injected"


def values_of(run: str, image: Mapping[str, Any], namespaces: Sequence[str], version: tuple[int, int]) -> Json:
    """What these tests install with: small, and only for the namespaces of this run."""
    return {
        "image": dict(image),
        "webhook": {
            "namespaceSelector": {"matchLabels": {LABEL: run}},
            "resources": {"requests": {"cpu": "20m", "memory": "96Mi"}},
        },
        "sidecar": {
            "namespaces": list(namespaces),
            # Rights beyond Events come only with a ValidatingAdmissionPolicy, which there is from 1.30.
            "annotatePod": version >= (1, 30),
            "volumeSizeLimit": "1Gi",
            "settings": {"kubernetes-annotation": version >= (1, 30)},
            "resources": {
                "requests": {"cpu": "20m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
                "limits": {"memory": "192Mi"},
            },
        },
        "test": {"namespace": namespaces[0]},
    }


class Release:
    """`namespace` is there already. `probing` is a namespace in which a pod is asked for, in a dry run, to see whether
    it would be injected.
    """

    def __init__(self, cluster: Cluster, name: str, namespace: str, values: Json, probing: str) -> None:
        self.cluster = cluster
        self.name = name
        self.namespace = namespace
        self.values = values
        self.probing = probing
        self._helm = helm_python.Config(namespace=namespace)  # of KUBECONFIG, as kubectl reads it

    def close(self) -> None:
        self._helm.close()

    def install(self) -> None:
        self._helm.install(str(CHART), self.name, self.values, namespace=self.namespace, timeout=120)
        self.wait()

    def upgrade(self, **changes: Any) -> None:
        self.values = merged(self.values, changes)
        self._helm.upgrade(str(CHART), self.name, self.values, namespace=self.namespace, reset_values=True, timeout=120)
        self.wait()

    def rollback(self, revision: int | None = None) -> None:
        self._helm.rollback(self.name, version=revision, timeout=120)

    def uninstall(self) -> None:
        self._helm.uninstall(self.name, ignore_not_found=True, timeout=120)

    def test(self) -> Json:
        """`helm test`. Raises `HelmReleaseError` where it fails."""
        return dict(self._helm.test(self.name, timeout=120))

    def revisions(self) -> list[Json]:
        return list(self._helm.history(self.name))

    @contextmanager
    def changed(self, **changes: Any) -> Iterator[Release]:
        """With these values for a while."""
        before = self.values
        try:
            self.upgrade(**changes)
            yield self
        finally:
            self.values = before
            self.upgrade()

    @property
    def mode(self) -> str:
        if self.values.get("webhook", {}).get("enabled", True) is False:
            return "none"
        return str(self.values.get("injection", "webhook"))

    def wait(self) -> None:
        """Until its pods are up, and a pod that has the label would be injected."""
        for deployment in self.deployments():
            name = deployment["metadata"]["name"]
            until(lambda name=name: rolled_out(self._deployment(name)), f"{name} is rolled out", 300)
        if self.mode != "none":
            until(steadily(self.injects), "pods are injected", 180)

    def deployments(self) -> list[Json]:
        return list(self.cluster.get(apps(self.namespace), labelSelector=self.selector)["items"])

    def _deployment(self, name: str) -> Json:
        return self.cluster.get(apps(self.namespace, name))

    @property
    def fullname(self) -> str:
        """What the chart's objects are called, as its own template makes it of the release's name."""
        return self.name if "rankguard" in self.name else f"{self.name}-rankguard"

    @property
    def selector(self) -> str:
        return f"app.kubernetes.io/instance={self.name}"

    def asked_for(self) -> Json:
        """The pod that a labelled one would be now: a dry run."""
        spec = engine_pod("dry", self.cluster.image.name, pull_policy=self.cluster.image.pull_policy)
        return self.cluster.post(core(self.probing, "pods"), spec, dryRun="All")

    def injects(self) -> bool:
        return INJECTED in self.asked_for()["metadata"].get("annotations", {})

    def left(self) -> list[str]:
        """Every object in the cluster that carries this release's label, of whatever kind, and Helm's own."""
        return leftovers(self.cluster, self.selector) + leftovers(self.cluster, f"owner=helm,name={self.name}")


def leftovers(cluster: Cluster, selector: str) -> list[str]:
    # Fails where one of the cluster's own extensions is away, which is not ours.
    told = cluster.kubectl("api-resources", "--verbs=list", "-o", "name", check=False).stdout.split()
    # Pods' metrics are no objects, and Events outlive what they are about.
    kinds = [kind for kind in told if not kind.endswith(".metrics.k8s.io") and not kind.startswith("events")]
    found = cluster.kubectl("get", ",".join(kinds), "-A", "-l", selector, "-o", "json", "--ignore-not-found")
    items = json.loads(found.stdout)["items"] if found.stdout.strip() else []
    # On its way out is out: Endpoints and the like follow their owner a little later.
    return sorted(
        f"{each['kind']} {each['metadata'].get('namespace', '')}/{each['metadata']['name']}"
        for each in items
        if "deletionTimestamp" not in each["metadata"]
    )


def steadily(condition: Callable[[], bool], times: int = 12) -> Callable[[], bool]:
    """Holds once `condition` has held so many times in a row: an API server that runs more than once, or still knows
    what was there before, says now this and now that.
    """
    held = 0

    def holds() -> bool:
        nonlocal held
        held = held + 1 if condition() else 0
        return held >= times

    return holds


def rolled_out(deployment: Json) -> bool:
    """Whether all replicas are of this generation and available."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
        and status.get("replicas", 0) == wanted
    )


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """`values` with `changes` in them, as Helm merges values."""
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        there = result.get(key)
        result[key] = (
            merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else copy.deepcopy(value)
        )
    return result
