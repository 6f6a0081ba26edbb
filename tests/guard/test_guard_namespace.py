"""What only shows where the sidecar watches everything there is: strangers, a process that cannot be killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard_namespace import in_namespace


@pytest.mark.root
def test_strangers_in_the_same_namespace(tmp_path: Path) -> None:
    """With no root told: the person's shell that started the engine, another job of that shell, and a process by
    itself are neither stopped nor killed nor given any signal.
    """
    with in_namespace("strangers", tmp_path) as seen:
        assert seen["failures"] == ["TP1"]
        assert seen["killed"] == seen["engine"]
        assert not seen["engine_runs"]
        assert seen["sessions"] == 1, "the shell and its other job are in one session, with the engine"
        assert set(seen["states"].values()) <= {"S", "R"}
        assert seen["caught"] == [["elsewhere-caught", "SIGUSR1"], ["same-session-caught", "SIGUSR1"]]


class FrozenFolder:
    """A file system on a loop device, frozen: whoever writes to it waits in state D until `thaw`."""

    def __init__(self, image: Path, folder: Path) -> None:
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(8 * 2**20)
        self.path = folder
        self._frozen = False
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
        try:
            subprocess.run(["fsfreeze", "--freeze", str(folder)], check=True)
            self._frozen = True
        finally:
            if not self._frozen:
                self.remove()

    def thaw(self) -> None:
        if self._frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.path)], check=True)
            self._frozen = False

    def remove(self) -> None:
        try:
            self.thaw()
        finally:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)  # the loop device goes with it


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[FrozenFolder]:
    folder = FrozenFolder(tmp_path / "image", tmp_path / "mount")
    try:
        yield folder
    finally:
        folder.remove()


@pytest.mark.root
def test_a_process_that_cannot_be_killed(frozen: FrozenFolder, tmp_path: Path) -> None:
    """A process in state D is a reap timeout, with its state and where the kernel holds it; the rest is gone, the
    sidecar goes on, and the next engine is watched as the first one was.
    """
    with in_namespace("stuck", tmp_path, str(frozen.path)) as seen:
        try:
            termination = seen["record"]["termination"]
            assert termination["outcome"] == "still_alive"
            survivors = [(s["pid"], s["state"], s["comm"], s["wchan"]) for s in termination["survivors"]]
            assert seen["state"] == "D"
            assert survivors == [(seen["who"], "D", "stuck", seen["wchan"])]
            assert seen["wchan"]
            assert "the node needs a drain" in termination["detail"]
            assert "reap timeout" in seen["log"]
            assert seen["others"] == []
            second = seen["second"]
            assert (second["failures"], seen["engine_left"]) == (["TP0"], [])
            assert seen["who"] not in second["killed"], "given up: it is no part of the next engine"
            assert second["termination"] in ("reaped", "exited_unreaped")
        finally:
            frozen.thaw()  # its namespace can end only now
