"""Each value is documented, does something, and is checked by the schema."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml
from chart_cases import CASES, Path, documented, leaves, without, written
from helm_chart import CHART, render, render_files

README = CHART / "README.md"
BEGIN, END = "<!-- values -->", "<!-- end of the values -->"
DOCUMENTED = documented()
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
ALL = list(leaves(DEFAULTS, set(DOCUMENTED)))
OURS = [path for path in ALL if path[0] != "monitoring"]
WRITTEN = [(case, path) for case, values in CASES.items() for path in written(values, set(DOCUMENTED))]


def test_every_value_is_documented():
    assert [".".join(path) for path in ALL if path not in DOCUMENTED] == []


def test_the_readme_has_every_value_with_its_default():
    """`make renew-chart` writes the table anew."""
    rows = ["| value | default | what it does |", "|---|---|---|"]
    rows += [f"| `{'.'.join(path)}` | {_shown(default)} | {words} |" for path, (default, words) in DOCUMENTED.items()]
    table = "\n".join(rows)
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if os.environ.get("RENEW"):
        README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
        return
    assert old.strip() == table, "`make renew-chart` writes it anew"


def _shown(default: Any) -> str:
    return f"`{json.dumps(default)}`" if default != "" else ""


def test_every_value_is_in_a_case():
    assert [".".join(path) for path in OURS if path not in {path for _, path in WRITTEN}] == []


@pytest.mark.parametrize(
    ("case", "path"), WRITTEN, ids=lambda given: given if isinstance(given, str) else ".".join(given)
)
def test_each_value_of_a_case_does_something(case: str, path: Path):
    """Without it the chart renders something else, or says that it is needed. A value with a slip of the pen in its
    template would do nothing.
    """
    values = CASES[case]
    rendered = render_files(values)
    try:
        other = render_files(without(values, path))
    except helm_python.HelmError as error:
        other = {"refused": str(error)}
    assert other != rendered
    assert path[-1] in other.get("refused", path[-1])


def wrong() -> Iterator[tuple[Path, Any]]:
    """For each value one of another type, where the schema can know; and misspelled keys."""
    for path in OURS:
        default = DOCUMENTED[path][0]
        yield path, ["x"] if isinstance(default, str | bool | int | dict) else "x"
    for path in sorted({path[:-1] for path in OURS}):
        yield (*path, "namespacse"), "x"


@pytest.mark.parametrize(
    ("path", "value"), list(wrong()), ids=lambda given: ".".join(given) if isinstance(given, tuple) else ""
)
def test_a_wrong_type_or_key_is_refused(path: Path, value: Any):
    values: Any = value
    for key in reversed(path):
        values = {key: values}
    with pytest.raises(helm_python.HelmValuesError) as refused:
        render(values)
    assert path[-1] in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"injection": "Policy"},
        {"image": {"digest": "sha256:short"}},
        {"image": {"repository": ""}},
        {"webhook": {"replicas": 0}},
        {"webhook": {"timeoutSeconds": 31}},
        {"sidecar": {"rights": "root"}},
        {"sidecar": {"volumeHostPath": "relative"}},
        {"sidecar": {"resources": {"requests": {"cpu": "50 m"}}}},
        {"sidecar": {"settings": {"death_deadline": 5}}},
        {"sidecar": {"settings": {"death-deadline": [5]}}},
        {"sidecar": {"namespaces": ["Inference"]}},
        {"sidecar": {"exempt": ["operator"]}},
        {"fleetSwitch": {"mode": "Observe"}},
        {"prune": {"podsGoneFor": "a week"}},
        {"test": {"namespace": ""}},
    ],
    ids=json.dumps,
)
def test_what_is_not_among_the_allowed_is_refused(values):
    with pytest.raises(helm_python.HelmValuesError):
        render(values)


CONTRADICTIONS = {
    "sidecar.volumeClaim": {"sidecar": {"volume": "claim"}},
    "sidecar.volumeHostPath": {"sidecar": {"volume": "host-path"}},
    "sidecar.deletePod=true": {"sidecar": {"settings": {"after-kill": "delete-pod"}}},
    "sidecar.namespaces": {"sidecar": {"annotatePod": True}},
    "caBundle": {"webhook": {"certificate": {"mode": "provided", "secretName": "x"}}},
    "dumps.claim": {"viewer": {"enabled": True}},
    "viewer.token.secretName": {"viewer": {"enabled": True, "write": True}, "dumps": {"claim": "x"}},
}


@pytest.mark.parametrize("remedy", CONTRADICTIONS)
def test_a_contradiction_is_told_with_its_remedy(remedy):
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(CONTRADICTIONS[remedy])
    assert remedy in str(refused.value)


def test_a_cluster_that_is_too_old_is_told():
    """The bound tokens are a promise: without them more rights are not given."""
    rights = copy.deepcopy(CASES["rights"])
    with pytest.raises(helm_python.HelmRenderError, match=r"Kubernetes 1\.30 or newer, this is v1\.29\.0"):
        render(rights, kube_version="1.29")
    assert render(rights, kube_version="1.30")
    with pytest.raises(
        helm_python.HelmRenderError, match=r"Kubernetes 1\.36 or newer, this is v1\.35\.0.*injection=webhook"
    ):
        render({"injection": "policy"}, kube_version="1.35")
