"""Every file against the API's own schemas, with nothing that they do not know."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
from manifest_files import EXAMPLES, PLAIN, VERSIONS, built_example, container, plain, pods, templates, with_all_options


def check(document: dict[str, Any], version: str) -> None:
    """Raise `ValidationError` for what the API server would refuse. A LeaderWorkerSet is no part of the API: of it only
    the pod templates are checked.
    """
    if document["kind"] == "LeaderWorkerSet":
        for template in templates(document):
            wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            kubernetes_validate.validate(wrapped, version, strict=True)
    else:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_is_valid(name, version):
    """In the first version with native sidecars and in the newest, as shipped and with every option switched on."""
    check(plain(name), version)
    check(with_all_options(name), version)


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_kustomize_builds_is_valid(example):
    for document in built_example(example):
        for version in VERSIONS:
            check(document, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_field_is_refused(version):
    """Else the tests above could not fail: a misspelled key, a wrong type, in a workload and in a group's template."""
    deployment = plain(PLAIN[0])
    (group,) = built_example("leaderworkerset")
    for document in (deployment, group):
        for key, value in (("imagePullPolice", "Always"), ("stdin", "yes")):
            broken = copy.deepcopy(document)
            container(pods(broken)[-1], "rankguard")[key] = value
            with pytest.raises(kubernetes_validate.ValidationError):
                check(broken, version)
