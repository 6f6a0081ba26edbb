"""The image: what is in it, what is not, and as whom it runs."""

from __future__ import annotations

import json

import pytest
from podman import BASE, Podman, image_name

pytestmark = pytest.mark.root
_IMPORT_ALL = """
import importlib, pkgutil, sidecar
for module in pkgutil.walk_packages(sidecar.__path__, 'sidecar.'):
    if not module.name.endswith('__main__') and '.demo.' not in module.name:
        importlib.import_module(module.name)
print('all')
"""
LIMIT = 120_000_000  # bytes on top of the base


def in_image(podman: Podman, *command: str, options: tuple[str, ...] = ()) -> str:
    """What a command says in a container of the image, with a read-only root file system."""
    done = podman.run(
        "run", "--rm", "--read-only", "--read-only-tmpfs=false", "--network=none", *options, image_name(), *command
    )
    return done.stdout


def shell(podman: Podman, script: str, *options: str) -> str:
    return in_image(podman, "-c", script, options=("--entrypoint=/bin/sh", *options))


def test_its_size(podman: Podman) -> None:
    """Less than 120 MB on top of the base."""
    size = {name: json.loads(podman.run("image", "inspect", name).stdout)[0]["Size"] for name in (BASE, image_name())}
    assert 0 < size[image_name()] - size[BASE] < LIMIT


def test_its_description(podman: Podman) -> None:
    """Labels, entrypoint, command, environment and port are what charts and people rely on; nothing says a host."""
    (image,) = json.loads(podman.run("image", "inspect", image_name()).stdout)
    config = image["Config"]
    assert config["Entrypoint"] == ["rankguard"]
    assert config["Cmd"] == ["run"]
    assert "RANKGUARD_IN_POD=1" in config["Env"]
    assert "RANKGUARD_DUMP_DIR=/var/lib/rankguard" in config["Env"]
    assert list(config["ExposedPorts"]) == ["21400/tcp"]
    labels = {
        name.rpartition(".")[2]: value
        for name, value in config["Labels"].items()
        if name.startswith("org.opencontainers.image.")
    }
    assert labels.keys() >= {"title", "description", "version", "revision", "licenses", "source"} - {"source"}
    assert labels["version"] == in_image(podman, "--version").split()[1]


def test_nothing_is_left_of_its_making(podman: Podman) -> None:
    """No pip, no compiler and no sources in what is ours, and no cache anywhere."""
    script = (
        "ls -A /root /src /wheels 2>/dev/null; find / -xdev -path '*/.cache*' -type f;"
        " find /opt/rankguard -name pip -o -name 'pip-*' -o -name '*.c'"
    )
    left = [line for line in shell(podman, script).splitlines() if not line.endswith(":")]
    assert [line for line in left if line not in (".bashrc", ".profile", "")] == []
    assert shell(podman, "command -v gcc cc clang make; true") == ""


@pytest.mark.parametrize("user", ["0", "1000:1000"])
def test_it_runs_as_anybody_on_a_read_only_root(podman: Podman, user: str) -> None:
    """As root and as a uid that no file of the image knows: every file can be read, byte code is there, nothing is
    written, and nothing that is ours can be written by others.
    """
    options = (f"--user={user}", "--cap-drop=ALL")
    assert "Usage" in in_image(podman, "run", "--help", options=options)
    assert shell(podman, f'/opt/rankguard/bin/python3 -c "{_IMPORT_ALL}"', *options).strip() == "all"
    cached = "import sidecar.guard.loop as m; print(m.__cached__)"
    path = shell(podman, f'/opt/rankguard/bin/python3 -c "{cached}"', *options).strip()
    assert shell(podman, f"ls {path}", *options).strip() == path
    assert shell(podman, "find /opt/rankguard ! -user 0 -o -perm -o+w ! -type l", *options) == ""
