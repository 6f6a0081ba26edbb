"""The README's five minutes on a cluster: each of its commands, in its order, as it stands there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_cluster import KUBECTL, LABEL, LEVEL, ROOT, Cluster
from e2e_pod import SIDECAR, Pod
from e2e_release import values_of
from readme_blocks import Block, of

_HELM = ROOT / "tests" / "readme" / "helm_line.py"


class Reader:
    """Somebody with a shell, kubectl and helm, for whom other names stand for the README's namespaces and image."""

    def __init__(self, cluster: Cluster, folder: Path, run: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.space, self.system = f"{run}-readme", f"{run}-readme-system"
        (folder / "bin").mkdir()
        (folder / "bin" / "kubectl").symlink_to(KUBECTL)
        (folder / "bin" / "helm").write_text(f'#!/bin/sh\nexec {sys.executable} {_HELM} "$@"\n')
        (folder / "bin" / "helm").chmod(0o755)
        (folder / "charts").symlink_to(ROOT / "charts")
        (folder / "examples").mkdir()
        for example in (ROOT / "examples").iterdir():
            (folder / "examples" / example.name).write_text(self.theirs(example.read_text()))
        config = folder / "kubeconfig"
        config.write_text(cluster.kubectl("config", "view", "--raw", "--flatten", "--minify").stdout)
        config.chmod(0o600)
        cluster.kubectl("--kubeconfig", str(config), "config", "set-context", "--current", f"--namespace={self.space}")
        # Only for this test's own namespace; the rest is the README's.
        values = values_of(self.space, cluster.image.values(), [self.space], cluster.version())
        more = {"image": values["image"], "webhook": values["webhook"], "test": values["test"]}
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "KUBECONFIG": str(config),
            "MORE_VALUES": json.dumps(more),
        }

    def theirs(self, text: str) -> str:
        text = text.replace("rankguard-system", self.system).replace("{default}", f"{{{self.space}}}")
        return text.replace("image: rankguard:0.1.0", f"image: {self.cluster.image.name}")

    def types(self, block: Block) -> str:
        """What its commands say."""
        said = ""
        for command in block.commands:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", self.theirs(command)], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            said += done.stdout
        return said


@pytest.fixture
def reader(cluster: Cluster, run: str, tmp_path: Path) -> Reader:
    return Reader(cluster, tmp_path, run)


def test_from_nothing_to_the_first_incident(cluster: Cluster, reader: Reader) -> None:
    """Installed, tested, labelled, killed, looked at; the fleet switch turned and turned back; upgraded, rolled back
    and taken away again.
    """
    try:
        cluster.make_namespace(reader.space, {LABEL: reader.space, LEVEL: "privileged"})
        *before, last = of("cluster", but=("later", "end"))
        (kill,) = of("cluster", "kill")
        for block in before:
            reader.types(block)
            if block == kill:
                pod = Pod.found(cluster, reader.space, "app=stand-in")
                pod.wait_restart()
                pod.sealed()
                pod.wait_event("EngineKilled")
        said = reader.types(last)
        assert "Rankguard: TP1 was killed by signal 9" in said
        assert "RankDied" in said
        assert "Timeline" in said
        for block in of("cluster", "later"):
            reader.types(block)
        assert pod.restarts(SIDECAR) == 0
        for block in of("cluster", "end"):
            reader.types(block)
        pod.wait_gone()
    finally:
        subprocess.run(
            [sys.executable, _HELM, "uninstall", "rankguard", "--namespace", reader.system], env=reader.environment,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=400, check=False,
        )  # fmt: skip
        cluster.remove_namespaces(reader.space, reader.system)
