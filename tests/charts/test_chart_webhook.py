"""What the webhook's objects promise."""

from __future__ import annotations

import pytest
import yaml
from chart_cases import CASES
from helm_chart import NAMESPACE, of_kind, render, the

from sidecar.inject.options import load_options

CERTIFICATES = ("default", "cert-manager", "cert-manager with an issuer", "provided certificate")


def configuration(case: str):
    (hook,) = the(render(CASES[case]), "MutatingWebhookConfiguration")["webhooks"]
    return hook


def test_it_can_never_keep_a_pod_from_starting():
    """And is asked again after others, quickly given up, and never where it would be asked about itself."""
    hook = configuration("default")
    assert hook["failurePolicy"] == "Ignore"
    assert hook["reinvocationPolicy"] == "IfNeeded"
    assert hook["sideEffects"] == "NoneOnDryRun"
    assert hook["timeoutSeconds"] <= 5
    assert hook["rules"] == [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    (names,) = hook["namespaceSelector"]["matchExpressions"]
    assert names == {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", NAMESPACE]}


def test_only_pods_with_the_label_are_sent():
    """Whatever its value, so that a misspelled one is answered."""
    assert configuration("default")["objectSelector"] == {
        "matchExpressions": [{"key": "rankguard.dev/inject", "operator": "Exists"}]
    }


def test_namespaces_can_be_left_out_and_chosen():
    selector = configuration("webhook")["namespaceSelector"]
    assert selector["matchExpressions"][0]["values"][2:] == ["monitoring", "gpu-operator"]
    assert selector["matchExpressions"][1]["key"] == "env"
    assert selector["matchLabels"] == {"team": "inference"}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_the_caBundle_is_written_by_one_alone(case):
    """Whatever a chart renders there would be put back at each upgrade and each sync, over what was renewed since."""
    bundle = configuration(case)["clientConfig"].get("caBundle")
    assert bundle == ("LS0tLS1CRUdJTg==" if case == "provided certificate" else None)


@pytest.mark.parametrize("case", CASES)
def test_rendering_twice_is_the_same(case):
    """Nothing random: a sync would change a certificate or a token, and injection would stop."""
    assert render(CASES[case], anew=True) == render(CASES[case], anew=True)


@pytest.mark.parametrize("case", CERTIFICATES)
def test_the_server_is_found_under_the_names_that_everybody_uses(case):
    """Service, ports, Secret, configuration: what one object names, another one is."""
    objects = render(CASES[case])
    hook = configuration(case)["clientConfig"]["service"]
    service = the(objects, "Service", "-webhook")
    assert (hook["name"], hook["namespace"]) == (service["metadata"]["name"], service["metadata"]["namespace"])
    pod = the(objects, "Deployment", "-webhook")["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    https = next(port for port in service["spec"]["ports"] if port["port"] == hook["port"])
    flags = dict(argument.lstrip("-").split("=", 1) for argument in container["args"][1:])
    assert flags["listen"] == f":{ports[https['targetPort']]}"
    assert flags["metrics-listen"] == f":{ports['metrics']}"
    assert flags["namespace"] == NAMESPACE
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert (
        volumes[mounts["/etc/rankguard"]]["configMap"]["name"]
        == the(objects, "ConfigMap", "-webhook")["metadata"]["name"]
    )
    if case == "default":
        assert flags["certificate"] == "self"
        assert flags["secret"] == the(objects, "Secret")["metadata"]["name"]
        assert flags["service"] == hook["name"]
        assert flags["webhook-configuration"] == the(objects, "MutatingWebhookConfiguration")["metadata"]["name"]
    else:
        assert "certificate" not in flags
        secret = volumes[mounts["/etc/rankguard-certificate"]]["secret"]["secretName"]
        made = [each["spec"]["secretName"] for each in of_kind(objects, "Certificate", "-webhook")]
        assert [secret] == (made or ["own-tls"])
        assert flags["cert-file"].startswith("/etc/rankguard-certificate/")


def test_cert_managers_ca_outlives_the_certificates():
    """A caBundle that changed with each renewal would not fit for the minute that a Secret takes to arrive."""
    objects = render(CASES["cert-manager"])
    server, authority = the(objects, "Certificate", "-webhook"), the(objects, "Certificate", "-ca")
    issuers = {issuer["metadata"]["name"]: issuer["spec"] for issuer in of_kind(objects, "Issuer")}
    assert issuers[server["spec"]["issuerRef"]["name"]]["ca"]["secretName"] == authority["spec"]["secretName"]
    assert issuers[authority["spec"]["issuerRef"]["name"]] == {"selfSigned": {}}
    configuration = the(objects, "MutatingWebhookConfiguration")
    assert configuration["metadata"]["annotations"] == {
        "cert-manager.io/inject-ca-from": f"{NAMESPACE}/{server['metadata']['name']}"
    }
    service = the(objects, "Service")["metadata"]["name"]
    assert f"{service}.{NAMESPACE}.svc" in server["spec"]["dnsNames"]


def test_an_issuer_of_ones_own_is_used():
    objects = render(CASES["cert-manager with an issuer"])
    assert of_kind(objects, "Issuer") == []
    assert the(objects, "Certificate")["spec"]["issuerRef"] == {"kind": "Issuer", "name": "corporate"}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_it_may_do_what_it_needs_and_no_more(case):
    """Its own Secret and configuration by name, and only where it makes the certificate itself."""
    objects = render(CASES[case])
    rules = the(objects, "ClusterRole")["rules"]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    expected = {("namespaces", verb) for verb in ("get", "list", "watch")}
    expected |= {("persistentvolumeclaims", "get"), ("events", "create")}
    if case == "default":
        expected |= {("mutatingwebhookconfigurations", verb) for verb in ("get", "watch", "patch")}
        (named,) = (rule for rule in rules if "resourceNames" in rule)
        assert named["resourceNames"] == [the(objects, "MutatingWebhookConfiguration")["metadata"]["name"]]
        (secrets,) = the(objects, "Role", "-webhook")["rules"]
        assert secrets["resourceNames"] == [the(objects, "Secret")["metadata"]["name"]]
        assert "create" not in secrets["verbs"]
        assert "data" not in the(objects, "Secret")
    else:
        assert of_kind(objects, "Secret") == of_kind(objects, "Role", "-webhook") == []
    assert granted == expected


@pytest.mark.parametrize("case", ["default", "webhook"])
def test_one_of_them_answers_whatever_happens(case):
    """Through a drain, a roll-out, the end of a node."""
    objects = render(CASES[case])
    spec = the(objects, "Deployment", "-webhook")["spec"]
    assert spec["replicas"] >= 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    labels = spec["selector"]["matchLabels"]
    budget = the(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == labels
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"]["matchLabels"] == labels


def test_its_pods_are_restricted():
    """As Pod Security's `restricted` asks for, so that its namespace can enforce that."""
    objects = render(CASES["default"])
    hooks = of_kind(objects, "Pod")
    for pod in (the(objects, "Deployment", "-webhook")["spec"]["template"]["spec"], *(hook["spec"] for hook in hooks)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} == set(container["resources"])


def test_its_probes_are_on_the_port_without_tls():
    """The kubelet would take any certificate, but a handshake is work, and one's end must not look like the other's."""
    (container,) = the(render(), "Deployment", "-webhook")["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}


def test_the_options_are_what_the_values_say():
    text = the(render(CASES["sidecar"]), "ConfigMap", "-webhook")["data"]["options.yaml"]
    options = yaml.safe_load(text)
    values = CASES["sidecar"]["sidecar"]
    assert options == {
        "image": values["image"],
        "image-pull-policy": "IfNotPresent",
        "form": "ordinary",
        "rights": "signals",
        "volume": "empty-dir",
        "volume-size-limit": "50Gi",
        "liveness": True,
        "nvml": True,
        "engine-environment": False,
        "api-token": True,
        "resources": {
            "requests": {**values["resources"]["requests"], "ephemeral-storage": "5Gi"},
            "limits": {"cpu": 2, "memory": "2Gi"},
        },
        "settings": {"death-deadline": 5, "on-rank-death": "observe", "dump-max-bytes": 20_000_000_000},
    }
    assert yaml.safe_load(the(render(CASES["claims"]), "ConfigMap")["data"]["options.yaml"])["volume-claim"] == "dumps"
    more = yaml.safe_load(the(render(CASES["rights"]), "ConfigMap", "-webhook")["data"]["options.yaml"])
    assert more["settings"] == {"kubernetes-annotation": True}
    assert (
        more["fleet-switch"] == f"{NAMESPACE}/{the(render(CASES['rights']), 'ConfigMap', '-fleet')['metadata']['name']}"
    )


@pytest.mark.parametrize("case", [case for case in CASES if "injection" not in CASES[case]])
def test_the_webhook_takes_the_options(case):
    """One that it does not know would keep it from starting."""
    for document in of_kind(render(CASES[case]), "ConfigMap", "-webhook"):
        load_options(yaml.safe_load(document["data"]["options.yaml"]))


def test_the_network_policies_select_our_own_pods_alone():
    """One that selects an inference pod cuts it off from its clients and its neighbours."""
    objects = [*render(CASES["viewer for the cluster"]), *render(CASES["viewer"])]
    policies = of_kind(objects, "NetworkPolicy")
    assert len(policies) == 4
    for policy in policies:
        selected = policy["spec"]["podSelector"]["matchLabels"]
        assert selected["app.kubernetes.io/component"] in ("webhook", "viewer")
        assert selected["app.kubernetes.io/instance"] == "guard"
    webhook = the(render(), "NetworkPolicy")["spec"]
    assert webhook["policyTypes"] == ["Ingress"]
    assert {"ports": [{"port": 8443, "protocol": "TCP"}]} in webhook["ingress"]
    assert of_kind(render(CASES["no network policy"]), "NetworkPolicy") == []
