"""The cluster of KUBECONFIG with the chart in it; without one these tests are skipped."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import helm_python
import pytest
from e2e_cluster import LABEL, LEVEL, Cluster
from e2e_pod import Pod
from e2e_release import Release, values_of
from e2e_specs import engine_pod

_HERE = Path(__file__).parent
sys.path.append(str(_HERE.parent / "readme"))  # what reads the README is there
_SECONDS = 900  # a test, with the installation that the first one waits for


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "level(name): the Pod Security level of the test's own namespace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents and "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_SECONDS))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a cluster: set KUBECONFIG, and see tests/e2e/README.md")
    with Cluster.from_environment() as found:
        if found.version() < (1, 29):
            pytest.skip("needs Kubernetes 1.29 or newer, for native sidecars")
        yield found


@pytest.fixture(scope="session")
def run() -> str:
    """The name of this run, which everything that it makes carries."""
    return f"rge2e-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def namespaces(cluster: Cluster, run: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A namespace for each test that asks for one, by the test's id. All are made before the chart is installed, since
    it gives rights in the namespaces that it is told.
    """
    mine = {"": f"{run}-probe"}  # for dry runs
    try:
        cluster.make_namespace(mine[""], {LABEL: run, LEVEL: "privileged"})
        for item in request.session.items:
            if "namespace" in getattr(item, "fixturenames", ()) and _HERE in item.path.parents:
                level = item.get_closest_marker("level")
                labels = {LABEL: run, LEVEL: level.args[0] if level else "privileged"}
                name = mine[item.nodeid] = f"{run}-{len(mine)}"
                cluster.make_namespace(name, labels)
        yield mine
    finally:
        cluster.remove_namespaces(*mine.values())


@pytest.fixture(scope="session")
def release(cluster: Cluster, run: str, namespaces: dict[str, str]) -> Iterator[Release]:
    """The chart, installed for the namespaces of this run."""
    system = f"{run}-system"
    listed = list(namespaces.values())
    values = values_of(run, cluster.image.values(), listed, cluster.version())
    made = Release(cluster, run, system, values, namespaces[""])
    try:
        cluster.make_namespace(system, {LABEL: run})
        made.install()
        yield made
    finally:
        with suppress(helm_python.HelmError):
            made.uninstall()
        made.close()
        cluster.remove_namespaces(system)


@pytest.fixture
def namespace(cluster: Cluster, namespaces: dict[str, str], request: pytest.FixtureRequest) -> Iterator[str]:
    """The test's own namespace, whose pods are removed at its end."""
    mine = namespaces[request.node.nodeid]
    yield mine
    cluster.clear(mine)


@pytest.fixture
def play(cluster: Cluster, release: Release, namespace: str) -> Callable[..., Pod]:
    """Make a pod of the stand-in engine: `play("name", "--engine", "vllm", settings={…})`, as `engine_pod` takes it."""

    def made(name: str, *flags: str, **more: Any) -> Pod:
        image = cluster.image
        return Pod.made(cluster, namespace, engine_pod(name, image.name, *flags, pull_policy=image.pull_policy, **more))

    return made
