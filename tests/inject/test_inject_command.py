"""`rankguard inject`: what it touches, what it leaves, and how it refuses."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import cli
from sidecar.commands.yaml_stream import pieces
from sidecar.version import VERSION

ENGINE = """\
      containers:
      - name: engine
        image: vllm/vllm-openai:v0.32.0
"""
DEPLOYMENT = f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: vllm, namespace: llm}}
spec:
  selector: {{matchLabels: {{app: vllm}}}}
  template:
    metadata: {{labels: {{app: vllm}}}}
    spec:
{ENGINE}"""
OTHERS = """\
# A file of somebody's,   with everything.
%YAML 1.1
---
apiVersion: v1
kind: ConfigMap
data:   {a:   'yes',
   b: 0644}   # odd
--- # a stranger of the same kind
apiVersion: batch.volcano.sh/v1alpha1
kind: Job
spec: {tasks: [{template: {spec: {containers: [{name: x, image: x/vllm:1}]}}}]}
---
x: !weird &a [*a, "\\u00e9", ü]
x: twice
...
# between
---

---
kind: Service
"""


def run(text: str | bytes, *args: str) -> tuple[int, str, list[str]]:
    """Exit status, what came out, the lines on standard error."""
    data = text if isinstance(text, bytes) else text.encode()
    out, err, before = io.TextIOWrapper(io.BytesIO()), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(data))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli._run(["inject", "-f", "-", *args])
    finally:
        sys.stdin = before
    return status, out.buffer.getvalue().decode(), err.getvalue().splitlines()


def pods(document: Any) -> list[dict[str, Any]]:
    """Everything in it that has containers."""
    if isinstance(document, list):
        return [pod for item in document for pod in pods(item)]
    if not isinstance(document, dict):
        return []
    return ([document] if "containers" in document else []) + [
        pod for key, value in document.items() if key != "containers" for pod in pods(value)
    ]


def has_sidecar(pod: dict[str, Any]) -> bool:
    return [each["name"] for each in pod.get("initContainers", [])] == ["rankguard"]


def test_what_is_not_touched_comes_out_byte_for_byte():
    """Comments, spaces, quotes, tags, aliases, doubled keys, documents that are none: nothing of it is ours."""
    for text in (OTHERS, OTHERS.replace("\n", "\r\n"), "\ufeff" + OTHERS, "", "# only a comment", "just text"):
        assert run(text.encode()) == (0, text, [])
    status, out, lines = run(f"{OTHERS}---\n{DEPLOYMENT}--- # end\n{OTHERS[OTHERS.index('apiVersion') :]}")
    assert (status, lines) == (0, [])
    assert out.startswith(OTHERS + "---\napiVersion: apps/v1\n")
    assert out.endswith("--- # end\n" + OTHERS[OTHERS.index("apiVersion") :])
    assert out.count(f'rankguard.dev/injected: "{VERSION}"') == 1


def test_what_is_touched_keeps_its_comments_and_its_manner():
    """Lines are added, and none is changed."""
    text = """\
# first
apiVersion: apps/v1
kind: StatefulSet
metadata:
    name: vllm     # its name
spec:
    # how many
    replicas: 2
    template:
        spec:
            terminationGracePeriodSeconds: 0600   # octal for some
            containers:
                # the engine
                - name: engine
                  image: "vllm/vllm-openai:v0.32.0"
                  args: ["--model", 'm', --port, "8000"]   # flow
                  env:
                      - name: A
                        value: "1"
                  # probes
                  livenessProbe:
                      httpGet: {path: /health, port: 8000}   # inline
                      periodSeconds: 5
                  volumeMounts:
                      - name: shm
                        mountPath: /dev/shm
            # the volumes
            volumes:
                - name: shm
                  emptyDir: {medium: Memory}
# last
"""
    status, out, lines = run(text)
    assert (status, lines) == (0, [])
    rest = iter(out.splitlines())
    assert all(line in rest for line in text.splitlines())  # in their order
    (pod,) = pods(yaml.safe_load(out))
    assert has_sidecar(pod)
    assert pod["containers"][0]["livenessProbe"]["terminationGracePeriodSeconds"] == 75
    assert run(out) == (0, out, ["rankguard: StatefulSet vllm: left as it is: AlreadyInjected: the pod has a container"
                                 " named rankguard"])  # fmt: skip


POD = "spec: {containers: [{name: engine, image: 'x/vllm:1'}]}"
TEMPLATE = f"template: {{{POD}}}"
JOB = f"{{template: {{spec: {{{TEMPLATE}}}}}}}"


@pytest.mark.parametrize(
    ("version", "kind", "rest", "count"),
    [
        ("v1", "Pod", POD, 1),
        ("apps/v1", "ReplicaSet", f"spec: {{{TEMPLATE}}}", 1),
        ("apps/v1", "DaemonSet", f"spec: {{{TEMPLATE}}}", 1),
        ("batch/v1", "Job", f"spec: {{{TEMPLATE}}}", 1),
        ("batch/v1", "CronJob", f"spec: {{jobTemplate: {{spec: {{{TEMPLATE}}}}}}}", 1),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet",
         f"spec: {{leaderWorkerTemplate: {{size: 2, leaderTemplate: {{{POD}}}, workerTemplate: {{{POD}}}}}}}", 2),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet",
         f"spec: {{leaderWorkerTemplate: {{size: 1, workerTemplate: {{{POD}}}}}}}", 1),
        ("jobset.x-k8s.io/v1alpha2", "JobSet",
         f"spec: {{replicatedJobs: [{JOB}, {JOB}]}}", 2),
        ("v1", "List", f"items: [{{apiVersion: apps/v1, kind: Deployment, spec: {{{TEMPLATE}}}}}, {{kind: X}}]", 1),
        ("apps/v1", "DeploymentList", f"items: [{{spec: {{{TEMPLATE}}}}}]", 1),
        ("v1", "Deployment", f"spec: {{{TEMPLATE}}}", 0),
        ("example.com/v1", "Pod", POD, 0),
    ],
)  # fmt: skip
def test_the_kinds(version, kind, rest, count):
    """Only of their own groups: a stranger's Job is something else."""
    text = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: n}}\n{rest}\n"
    status, out, lines = run(text)
    assert status == 0
    assert len([pod for pod in pods(yaml.safe_load(out)) if has_sidecar(pod)]) == count
    assert (out == text) == (count == 0)
    assert bool(lines) == (kind == "LeaderWorkerSet")  # which is warned of its emptyDir
    assert ("POD_GROUP_INDEX" in out) == ("size: 2" in rest)
    assert ("jobset-name" in out) == (kind == "JobSet")


def test_labels_and_options():
    """Asked for by a command, a template needs no label; "false" is still a no."""
    assert "name: rankguard" in run(DEPLOYMENT)[1]
    no = DEPLOYMENT.replace("labels: {app: vllm}", 'labels: {app: vllm, rankguard.dev/inject: "false"}')
    assert run(no)[:2] == (0, no)
    status, out, (line,) = run(DEPLOYMENT, "--only-labelled")
    assert (status, out) == (0, DEPLOYMENT)
    assert line.startswith("rankguard: Deployment llm/vllm: left as it is: NoLabel:")
    _, out, _ = run(DEPLOYMENT, "--image", "r.example/rankguard:2", "--set", "death-deadline=7", "--form", "ordinary",
                    "--no-api-token", "--enforce", "baseline")  # fmt: skip
    (pod,) = pods(yaml.safe_load(out))
    sidecar = pod["containers"][-1]
    assert (sidecar["name"], sidecar["image"]) == ("rankguard", "r.example/rankguard:2")
    assert {"name": "RANKGUARD_DEATH_DEADLINE", "value": "7"} in sidecar["env"]
    assert sidecar["securityContext"]["capabilities"]["add"] == ["KILL"]
    assert "rankguard-token" not in out


def test_a_file_of_options(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("image: a/b:1\nsettings: {death-deadline: 7, log-format: json}\n")
    _, out, _ = run(DEPLOYMENT, "--config", str(file), "--image", "c/d:2", "--set", "death-deadline=8")
    for words in ('image: "c/d:2"', 'value: "8"', "value: json"):
        assert words in out
    file.write_text("imag: a/b:1\nform: odd\n")
    status, out, lines = run(DEPLOYMENT, "--config", str(file))
    assert (status, out) == (2, "")
    assert lines == ["rankguard: imag is no option; did you mean image?",
                     "rankguard: form: 'odd' cannot be used: it takes one of native, ordinary"]  # fmt: skip


def test_aliases_are_written_out_where_they_would_change_somebody_else():
    """The other container's list is the same node, and stays what it was."""
    text = (
        DEPLOYMENT
        + "        env: &env [{name: A, value: b}]\n      - name: other\n        image: y\n        env: *env\n"
    )
    (pod,) = pods(yaml.safe_load(run(text)[1]))
    engine, other = pod["containers"]
    assert other["env"] == [{"name": "A", "value": "b"}]
    assert engine["env"][0] == {"name": "A", "value": "b"}
    assert len(engine["env"]) > 5


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\n---\nb: 2\n", "standard input: it is not valid YAML (line 2, column 1)"),
        (b"a: \xff", "standard input: it is not UTF-8 text (byte 3)"),
        (LAUGHS + DEPLOYMENT, "with its aliases written out it has more than"),
        ("kind: Pod\nx: &a [*a]\n", "the Pod in line 1: it holds itself, by an alias"),
        (f"kind: Pod\nx: {'[' * 150}{']' * 150}\n", "the Pod in line 1: it is nested deeper than 100 levels"),
        (f"x: {'[' * 100_000}", "standard input: it is not"),
        (f"a: 1\n---\n{DEPLOYMENT}        image: again/vllm:2\n", "(line 14, column 9): found duplicate key"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_nothing_comes_out(text, line):
    status, out, lines = run(text)
    assert (status, out) == (2, "")
    assert len(lines) == 1
    assert line in lines[0]


def test_the_same_of_a_document_that_nobody_touches_is_nobodys_business():
    for text in (LAUGHS, "kind: Foo\nx: &a [*a]\n", f"x: {'[' * 150}{']' * 150}\n"):
        assert run(text) == (0, text, [])


def test_a_file_that_is_not_there():
    done = subprocess.run([sys.executable, "-m", "sidecar", "inject", "-f", "/nonexistent"], capture_output=True,
                          timeout=100, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == b"rankguard: /nonexistent: it cannot be read: No such file or directory\n"


LINES = st.sampled_from(
    ("---", "--- # x", "...", "# é", "", "a: 1", "kind: Pod", "  b: ü", "- x", "%YAML 1.1", "'\u2028'", "x: |", "\r")
)


@settings(max_examples=150)
@given(st.lists(LINES, max_size=12).map("\n".join))
def test_the_pieces_of_a_stream_are_the_stream(text):
    try:
        found = list(pieces(text))
    except yaml.YAMLError:
        return
    assert "".join(piece.text for piece in found) == text
    assert len(found) == max(1, len(list(yaml.compose_all(text))))
