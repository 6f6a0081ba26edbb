"""What the chart makes of `monitoring`: which objects when, found by whom, and that values reach where they should."""

from __future__ import annotations

import json
import re
from typing import Any

import helm_python
import pytest
import yaml
from helm_chart import CHART, NAMESPACE, of_kind, render, the

OPERATOR = (
    "monitoring.coreos.com/v1",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
)
PAGE = CHART.parents[1] / "docs" / "monitoring.md"
RULES = yaml.safe_load((CHART / "files" / "monitoring" / "rules.yaml").read_text())
OBJECTS = ("PodMonitor", "PrometheusRule")
VIEWER = {"viewer": {"enabled": True}, "dumps": {"claim": "dumps", "namespace": "ml"}}
SWITCHES = ("podMonitor", "prometheusRule", "dashboard")


def monitoring(values: dict[str, Any] | None = None, *, operator: bool = True, **others: Any) -> list[dict[str, Any]]:
    """What is rendered of this section: nothing else of the chart has these kinds, or the label."""
    found = render({**others, "monitoring": values or {}}, api_versions=OPERATOR if operator else ())
    return [
        each for each in found if each["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "monitoring"
    ]


def rules(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The alerts of the PrometheusRule, by name."""
    spec = the(monitoring({"prometheusRule": values}), "PrometheusRule")["spec"]
    return {rule["alert"]: rule for group in spec["groups"] for rule in group["rules"]}


def endpoints(values: dict[str, Any], ending: str = "-sidecars") -> list[dict[str, Any]]:
    monitor = the(monitoring({"podMonitor": values}), "PodMonitor", ending)
    found = monitor["spec"]["podMetricsEndpoints"]
    assert isinstance(found, list)
    return found


def test_a_cluster_without_the_operator_gets_nothing() -> None:
    assert monitoring(operator=False) == []


def test_a_cluster_with_the_operator_gets_all_of_it() -> None:
    kinds = sorted(each["kind"] for each in monitoring())
    assert kinds == ["ConfigMap", "PodMonitor", "PodMonitor", "PrometheusRule"]


def test_who_only_uses_the_templates_gets_what_he_asks_for() -> None:
    """`auto` is no wish of somebody who has this chart as a dependency; `true` is, and so is the viewer."""
    assert monitoring(injection="none") == []
    on = {name: {"enabled": True} for name in SWITCHES}
    kinds = sorted(each["kind"] for each in monitoring(on, injection="none", operator=False))
    assert kinds == ["ConfigMap", "PodMonitor", "PrometheusRule"]
    assert len(of_kind(monitoring(on, injection="none", **VIEWER), "PodMonitor")) == 2


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_can_be_switched_off(switch: str) -> None:
    left = {each["kind"] for each in monitoring({switch: {"enabled": False}})}
    gone = {"podMonitor": "PodMonitor", "prometheusRule": "PrometheusRule", "dashboard": "ConfigMap"}[switch]
    assert left == {"ConfigMap", *OBJECTS} - {gone}


def test_labels_by_which_a_prometheus_finds_its_objects() -> None:
    """Those of the section are on all, those of an object on it, and beat them."""
    found = monitoring(
        {"labels": {"release": "kps"}, "prometheusRule": {"labels": {"release": "rules", "role": "alert"}}}
    )
    assert {each["metadata"]["labels"]["release"] for each in found if each["kind"] != "PrometheusRule"} == {"kps"}
    assert the(found, "PrometheusRule")["metadata"]["labels"]["release"] == "rules"
    assert the(found, "PrometheusRule")["metadata"]["labels"]["role"] == "alert"
    labelled = monitoring({"podMonitor": {"labels": {"team": "ml"}}})
    assert {each["metadata"]["labels"].get("team") for each in of_kind(labelled, "PodMonitor")} == {"ml"}


def test_what_the_podmonitor_selects() -> None:
    """Labelled pods of all namespaces by default, else what is told; the second endpoint is for hostNetwork."""
    spec = the(monitoring(), "PodMonitor", "-sidecars")["spec"]
    assert spec["selector"] == {"matchLabels": {"rankguard.dev/inject": "true"}}
    assert spec["namespaceSelector"] == {"any": True}
    own = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    spec = the(monitoring({"podMonitor": {"namespaces": ["prod"], "selector": own, "podTargetLabels": ["app"]}}),
               "PodMonitor", "-sidecars")["spec"]  # fmt: skip
    assert (spec["selector"], spec["namespaceSelector"], spec["podTargetLabels"]) == (
        own,
        {"matchNames": ["prod"]},
        ["app"],
    )


def test_how_the_podmonitor_scrapes() -> None:
    named, host = endpoints({})
    assert (named["port"], named["path"], named["interval"], named["filterRunning"]) == (
        "rankguard",
        "/metrics",
        "15s",
        True,
    )
    assert "scrapeTimeout" not in named
    assert "port" not in host
    drop = {"action": "drop", "sourceLabels": ["__name__"], "regex": "x"}
    extra = {"sourceLabels": ["__meta_kubernetes_pod_label_app"], "targetLabel": "app"}
    changed = {"interval": "30s", "scrapeTimeout": "9s", "filterRunning": False}
    for endpoint in endpoints({**changed, "relabelings": [extra], "metricRelabelings": [drop]}):
        assert {name: endpoint[name] for name in changed} == changed
        assert endpoint["relabelings"][-1] == extra
        assert {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"} in endpoint["relabelings"]
        assert endpoint["metricRelabelings"] == [drop]


@pytest.mark.parametrize(
    ("ip", "address"), [("10.0.0.7", "10.0.0.7:21411"), ("fd00::7", "[fd00::7]:21411")], ids=["IPv4", "IPv6"]
)
def test_a_pod_on_the_hosts_network_is_scraped_at_the_port_of_its_annotation(ip: str, address: str) -> None:
    """Its target as Prometheus discovers it, container without a port, through the relabelings; others are left out."""
    relabelings = endpoints({})[1]["relabelings"]
    target = {
        "__address__": ip,
        "__meta_kubernetes_pod_ip": ip,
        "__meta_kubernetes_pod_container_name": "rankguard",
        "__meta_kubernetes_pod_annotation_rankguard_dev_port": "21411",
        "__meta_kubernetes_pod_node_name": "gpu-1",
    }
    relabelled = relabel(target, relabelings)
    assert relabelled is not None
    assert (relabelled["__address__"], relabelled["node"]) == (address, "gpu-1")
    assert relabel({**target, "__meta_kubernetes_pod_container_name": "engine"}, relabelings) is None
    assert relabel({**target, "__meta_kubernetes_pod_container_port_number": "21411"}, relabelings) is None
    assert relabel({**target, "__meta_kubernetes_pod_annotation_rankguard_dev_port": ""}, relabelings) is None


def test_the_releases_own_pods_are_scraped() -> None:
    """By the labels and the port name that the Deployments of webhook and viewer have, in their namespaces."""
    found = render(VIEWER, api_versions=OPERATOR)
    monitor = the(found, "PodMonitor", "-own")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True
    deployments = of_kind(found, "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        assert deployment["metadata"]["namespace"] in monitor["namespaceSelector"]["matchNames"]
        template = deployment["spec"]["template"]
        assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = [port["name"] for each in template["spec"]["containers"] for port in each["ports"]]
        assert ports.count(endpoint["port"]) == 1


def test_the_alert_watches_the_webhook_by_the_name_that_it_has() -> None:
    """The API server tells its metrics by the name in the webhook's configuration."""
    names = [hook["name"] for each in of_kind(render(), "MutatingWebhookConfiguration") for hook in each["webhooks"]]
    (pattern,) = re.findall(r'fail_open_count\{name=~"([^"]+)"', rules({})["RankguardWebhookFailing"]["expr"])
    assert names
    assert all(re.fullmatch(pattern, name) for name in names)


def test_the_rules_are_those_of_the_file() -> None:
    """Unchanged, templates of annotations included; only the runbooks' address can be another."""
    shipped = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
    assert rules({}) == shipped
    moved = rules({"runbookBaseUrl": "https://git.example.org/rankguard/docs/runbooks/"})
    for name, rule in moved.items():
        assert rule["annotations"]["runbook_url"] == f"https://git.example.org/rankguard/docs/runbooks/{name}.md"
        assert rule["expr"] == shipped[name]["expr"]


def test_alerts_can_be_changed_and_left_out() -> None:
    name = "RankguardVolumeFilling"
    own = {"expr": "vector(1)", "for": "1h", "labels": {"severity": "critical"}, "annotations": {"summary": "Full."}}
    found = rules({"disabled": ["RankguardRankDied"], "overrides": {name: own}, "alertLabels": {"team": "ml"}})
    assert "RankguardRankDied" not in found
    assert (found[name]["expr"], found[name]["for"]) == ("vector(1)", "1h")
    assert found[name]["labels"] == {"severity": "critical", "team": "ml"}
    assert found[name]["annotations"]["summary"] == "Full."
    assert found[name]["annotations"]["description"]
    assert {rule["labels"]["team"] for rule in found.values()} == {"ml"}


def test_a_group_whose_alerts_are_all_left_out_is_gone() -> None:
    names = [
        rule["alert"] for group in RULES["groups"] if group["name"] == "rankguard-webhook" for rule in group["rules"]
    ]
    spec = the(monitoring({"prometheusRule": {"disabled": names}}), "PrometheusRule")["spec"]
    assert "rankguard-webhook" not in [group["name"] for group in spec["groups"]]


@pytest.mark.parametrize("values", [{"disabled": ["NoSuch"]}, {"overrides": {"NoSuch": {"for": "1m"}}}])
def test_an_alert_that_there_is_not_is_said_in_one_line(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError, match=r"there is no alert NoSuch; there are RankguardCaptureFailing, "):
        rules(values)


def test_the_dashboard_is_the_file_where_grafana_looks() -> None:
    board = the(
        monitoring({"dashboard": {"namespace": "grafana", "annotations": {"grafana_folder": "GPU"}}}), "ConfigMap"
    )
    assert board["metadata"]["namespace"] == "grafana"
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["metadata"]["annotations"] == {"grafana_folder": "GPU"}
    assert json.loads(board["data"]["rankguard.json"]) == json.loads(
        (CHART / "files/monitoring/dashboard.json").read_text()
    )
    assert the(monitoring(), "ConfigMap")["metadata"]["namespace"] == NAMESPACE
    labelled = monitoring({"dashboard": {"labels": {"dashboards": "yes"}}})
    assert the(labelled, "ConfigMap")["metadata"]["labels"]["dashboards"] == "yes"


def test_the_values_in_the_docs_do_what_they_say() -> None:
    (text,) = re.findall(r"^```yaml\n(monitoring:\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    values = yaml.safe_load(text)["monitoring"]
    found = monitoring(values)
    assert {each["metadata"]["labels"]["release"] for each in found} == {"kube-prometheus-stack"}
    alerts = {
        rule["alert"]: rule for group in the(found, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]
    }
    assert "RankguardEvidenceLimited" not in alerts
    assert alerts["RankguardRankDied"]["labels"]["severity"] == "critical"
    assert alerts["RankguardVolumeFilling"]["expr"].endswith("< 5e9")


# Another value for each of the section.
OTHER_VALUES: dict[str, Any] = {
    "labels": {"release": "kps"},
    "podMonitor.enabled": False,
    "podMonitor.labels": {"team": "ml"},
    "podMonitor.namespaces": ["prod"],
    "podMonitor.selector": {"matchLabels": {"app": "vllm"}},
    "podMonitor.interval": "30s",
    "podMonitor.scrapeTimeout": "5s",
    "podMonitor.filterRunning": False,
    "podMonitor.podTargetLabels": ["app"],
    "podMonitor.relabelings": [{"action": "labeldrop", "regex": "x"}],
    "podMonitor.metricRelabelings": [{"action": "labeldrop", "regex": "x"}],
    "prometheusRule.enabled": False,
    "prometheusRule.labels": {"team": "ml"},
    "prometheusRule.runbookBaseUrl": "https://git.example.org",
    "prometheusRule.alertLabels": {"team": "ml"},
    "prometheusRule.disabled": ["RankguardRankDied"],
    "prometheusRule.overrides": {"RankguardRankDied": {"for": "1m"}},
    "dashboard.enabled": False,
    "dashboard.namespace": "grafana",
    "dashboard.labels": {"board": "yes"},
    "dashboard.annotations": {"grafana_folder": "GPU"},
}


def test_each_value_does_something() -> None:
    """Every value of the section in values.yaml, set to another, renders something else."""
    section = yaml.safe_load((CHART / "values.yaml").read_text())["monitoring"]
    objects = {"podMonitor", "prometheusRule", "dashboard"}
    there = {f"{name}.{key}" for name in objects for key in section[name]} | set(section) - objects
    assert set(OTHER_VALUES) == there
    default = monitoring()
    for path, value in OTHER_VALUES.items():
        name, _, key = path.partition(".")
        assert monitoring({name: {key: value} if key else value}) != default, path


@pytest.mark.parametrize(
    "values",
    [
        {"podMonitor": {"enabled": "yes"}},
        {"podMonitor": {"interval": "15"}},
        {"podMonitor": {"selector": {"app": "x"}}},
        {"podMonitor": {"namespaces": "prod"}},
        {"prometheusRule": {"overrides": {"RankguardRankDied": {"severity": "critical"}}}},
        {"prometheusRule": {"disabled": "RankguardRankDied"}},
        {"dashboard": {"labels": {"grafana_dashboard": 1}}},
        {"labels": ["release"]},
        {"serviceMonitor": {}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        monitoring(values)


def relabel(target: dict[str, str], relabelings: list[dict[str, Any]]) -> dict[str, str] | None:
    """`keep` and `replace` as Prometheus does them: an expression is matched to the whole, absent labels are empty."""
    labels = dict(target)
    for rule in relabelings:
        joined = ";".join(labels.get(name, "") for name in rule["sourceLabels"])
        found = re.fullmatch(rule.get("regex", "(.*)"), joined)
        if rule.get("action", "replace") == "keep":
            if found is None:
                return None
        elif found is not None:
            labels[rule["targetLabel"]] = found.expand(re.sub(r"\$(\d)", r"\\\1", rule.get("replacement", "$1")))
    return labels
