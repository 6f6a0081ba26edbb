"""The named templates in a chart of somebody's own: they give the containers that manifests/ has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_chart import CHART, NEWEST, OLDEST, render

MANIFESTS = CHART.parents[1] / "manifests"

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: engine}
spec:
  selector: {matchLabels: {app: engine}}
  template:
    metadata: {labels: {app: engine}}
    spec:
      shareProcessNamespace: true
      terminationGracePeriodSeconds: 120
      WHERE:
        {{- include "rankguard.container" (dict "image" "rankguard:0.1.0" MORE) | nindent 8 }}
      containers:
        - name: engine
          image: engine:1
          env:
            {{- include "rankguard.engineEnvironment" (dict "engine" "ENGINE") | nindent 12 }}
          {{- include "rankguard.lifecycle" (dict HOOK) | nindent 10 }}
          volumeMounts:
            - {name: dshm, mountPath: /dev/shm}
            {{- include "rankguard.engineMount" (dict) | nindent 12 }}
      volumes:
        - {name: dshm, emptyDir: {medium: Memory}}
        {{- include "rankguard.volume" (dict VOLUME) | nindent 8 }}
"""


def consumer(folder: Path, engine: str = "sglang", more: str = "", hook: str = "", volume: str = "") -> Path:
    """A chart with ours among its dependencies."""
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text(
        "apiVersion: v2\nname: own\nversion: 1.0.0\ndependencies: [{name: rankguard, version: 0.x.x, repository: ''}]\n"
    )
    (folder / "values.yaml").write_text("rankguard: {webhook: {enabled: false}}\nbytes: 20000000000\n")
    where = "initContainers" if '"native" true' in more else "sidecars"
    text = DEPLOYMENT
    for old, new in (("WHERE", where), ("MORE", more), ("ENGINE", engine), ("HOOK", hook), ("VOLUME", volume)):
        text = text.replace(old, new)
    if where == "sidecars":  # among the containers, by hand
        text = text.replace("      sidecars:\n", "      containers:\n").replace(
            "      containers:\n        - name: engine", "        - name: engine"
        )
    (folder / "templates" / "deployment.yaml").write_text(text)
    shutil.copytree(CHART, folder / "charts" / "rankguard")
    return folder


def pod(chart: Path) -> dict[str, Any]:
    (deployment,) = render(chart=chart)
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(deployment, version, strict=True)
    return deployment["spec"]["template"]["spec"]


def named(spec: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in (*spec.get("initContainers", []), *spec["containers"]) if each["name"] == name)
    return found


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("form", ["native", "ordinary"])
def test_they_give_what_the_manifests_have(tmp_path, engine, form):
    """What is mended in the one and forgotten in the other would be found on somebody's cluster."""
    native = '"native" true' if form == "native" else ""
    ours = pod(consumer(tmp_path, engine, f'"gracePeriod" 120 "shm" "dshm" {native}'))
    theirs = yaml.safe_load((MANIFESTS / f"{engine}-{form}.yaml").read_text())["spec"]["template"]["spec"]
    assert named(ours, "rankguard") == named(theirs, "rankguard")
    assert ours["volumes"][-1] == theirs["volumes"][-1]
    engines = named(ours, "engine"), named(theirs, "engine")
    assert engines[0]["lifecycle"] == engines[1]["lifecycle"]
    assert engines[0]["volumeMounts"][-1] == engines[1]["volumeMounts"][-1]
    given, expected = ({each["name"]: each for each in engine["env"]} for engine in engines)
    assert given == {name: value for name, value in expected.items() if name in given}
    assert set(expected) - set(given) <= {"HF_HOME", "HOME", "VLLM_NO_USAGE_STATS"}


def test_what_is_set_arrives(tmp_path):
    """Whole numbers as such: Helm reads numbers as floats, and 120 is not 1.2e+02."""
    more = '"settings" (dict "death-deadline" 5 "on-rank-death" "observe" "dump-volume-limit" "1Gi") "nvml" true'
    # Out of values, as a chart would have it.
    more = more.replace('"settings" (dict', '"settings" (dict "dump-max-bytes" .Values.bytes')
    more += ' "pullPolicy" "Never" "hookToken" "hook" "gracePeriod" 1000000 "native" true'
    more += ' "resources" (dict "limits" (dict "memory" "1Gi"))'
    spec = pod(consumer(tmp_path, more=more, hook='"token" "secret"', volume='"claim" "shared"'))
    sidecar = named(spec, "rankguard")
    values = {each["name"]: each.get("value", each.get("valueFrom")) for each in sidecar["env"]}
    assert values["RANKGUARD_DEATH_DEADLINE"] == "5"
    assert values["RANKGUARD_DUMP_MAX_BYTES"] == "20000000000"
    assert values["RANKGUARD_ON_RANK_DEATH"] == "observe"
    assert values["RANKGUARD_DUMP_VOLUME_LIMIT"] == "1Gi"
    assert values["RANKGUARD_TERMINATION_GRACE_PERIOD"] == "1000000"
    assert values["RANKGUARD_HOOK_TOKEN"] == {"secretKeyRef": {"name": "hook", "key": "token"}}
    assert values["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    assert len(values) == len(sidecar["env"])
    assert sidecar["imagePullPolicy"] == "Never"
    assert sidecar["resources"] == {"limits": {"memory": "1Gi"}}
    assert spec["volumes"][-1] == {"name": "rankguard-dumps", "persistentVolumeClaim": {"claimName": "shared"}}
    headers = named(spec, "engine")["lifecycle"]["preStop"]["httpGet"]["httpHeaders"]
    assert headers == [{"name": "X-Rankguard-Token", "value": "secret"}]


def test_a_forgotten_image_is_told(tmp_path):
    chart = consumer(tmp_path)
    template = chart / "templates" / "deployment.yaml"
    template.write_text(template.read_text().replace('"image" "rankguard:0.1.0"', ""))
    with pytest.raises(helm_python.HelmRenderError, match="say which image"):
        render(chart=chart)
