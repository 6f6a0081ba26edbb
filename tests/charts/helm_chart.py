"""The chart as Helm's own engine renders it, with no cluster: `render(values)` gives what would be applied."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from helm_python import _native

CHART = Path(__file__).resolve().parents[2] / "charts" / "rankguard"
RELEASE, NAMESPACE = "guard", "rankguard-system"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()

Document = dict[str, Any]


def render_files(
    values: Mapping[str, Any] | None = None,
    *,
    chart: Path = CHART,
    name: str = RELEASE,
    namespace: str = NAMESPACE,
    kube_version: str = NEWEST,
    api_versions: Sequence[str] = (),
    anew: bool = False,
) -> dict[str, str]:
    """The rendered text of each template that is not empty, by its path in the chart. Raises `HelmError`.

    `api_versions`: what the cluster has beside Kubernetes' own, such as `monitoring.coreos.com/v1/PodMonitor`. The
    library takes it and the version, its Python face does not offer them; hence the private module.
    `anew`: not what was rendered of the same before.
    """
    options = {
        "name": name,
        "namespace": namespace,
        "is_install": True,
        "kube_version": f"v{kube_version}" + ".0" * (2 - kube_version.count(".")),
        "api_versions": list(api_versions),
    }
    rendered = _ours if chart == CHART and not anew else _rendered
    return dict(rendered(chart, json.dumps(values or {}), json.dumps(options)))


def _rendered(chart: Path, values: str, options: str) -> dict[str, str]:
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(json.loads(values))
        text = _native.call_string("helm_render", loaded._raw(), values, options)
    rendered: dict[str, str] = json.loads(text)
    return {path: body for path, body in sorted(rendered.items()) if body.strip()}


_ours = functools.cache(_rendered)  # half of the tests' time


def render(values: Mapping[str, Any] | None = None, **options: Any) -> list[Document]:
    """The objects of a release, without NOTES.txt; `options` as in `render_files`."""
    bodies = (body for path, body in render_files(values, **options).items() if not path.endswith("NOTES.txt"))
    return [document for body in bodies for document in yaml.load_all(body, LOADER) if document]


def of_kind(documents: Sequence[Document], kind: str, ending: str = "") -> list[Document]:
    return [each for each in documents if each["kind"] == kind and each["metadata"]["name"].endswith(ending)]


def the(documents: Sequence[Document], kind: str, ending: str = "") -> Document:
    """The one object of that kind whose name ends so."""
    (found,) = of_kind(documents, kind, ending)
    return found
