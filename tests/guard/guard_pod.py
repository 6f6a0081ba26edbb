"""A pod with the test as its runtime: what runs in a container was started from outside of the PID namespace.

A container is a cgroup that is named like one here, which is all that a sidecar sees of it. Needs root.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from guard_troupe import PRELUDE
from sidecar_process import PROC, descendants, eventually, identity_of, kill_identity, running

from sidecar.model import Identity

_CGROUPS = Path("/sys/fs/cgroup/pids")
_PAUSE = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print(flush=True); signal.pause()"
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class Container:
    """`prefix` makes a command the first process of it, or one that was brought in later (`kubectl exec`)."""

    def __init__(self, init: int) -> None:
        root = _CGROUPS if _CGROUPS.is_dir() else _CGROUPS.parent
        self._folder = root / (uuid.uuid4().hex + uuid.uuid4().hex)
        try:
            self._folder.mkdir()
        except OSError as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        self.prefix = ["nsenter", "--target", str(init), "--pid", "--mount", "--"]
        self.prefix += ["sh", "-c", _ENTER, str(self._folder)]
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in it, with pipes of its own. What is returned is its parent, outside."""
        started = subprocess.Popen([*self.prefix, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._started.append(started)
        return started

    def processes(self) -> list[Identity]:
        pids = [int(word) for word in (self._folder / "cgroup.procs").read_text().split()]
        return [stat.identity for pid in pids if (stat := PROC.stat(pid)) is not None]

    def titled(self, title: str) -> Identity:
        """The one with this title, once it has it."""

        def found() -> Identity | None:
            named = (i for i in self.processes() if PROC.cmdline(i.pid).rstrip(b"\0") == title.encode())
            return next(named, None)

        identity = eventually(found, title)
        assert isinstance(identity, Identity)
        return identity

    def end(self) -> None:
        """As a runtime does when the first process has ended: SIGKILL to whoever is left."""

        def ended() -> bool:
            left = [identity for identity in self.processes() if running(identity)]
            for identity in left:
                kill_identity(identity)
            return not left

        eventually(ended, "the container ended")

    def remove(self) -> None:
        self.end()
        for started in self._started:
            started.kill()  # nsenter, which stops itself when a freeze stops its child
            started.wait(20)
            for stream in (started.stdin, started.stdout):
                assert stream is not None
                stream.close()
        eventually(lambda: not (self._folder / "cgroup.procs").read_text(), "the cgroup empty")
        self._folder.rmdir()


class Pod:
    def __init__(self, init: int, folder: Path) -> None:
        self._init = init
        self._folder = folder
        self.containers: list[Container] = []

    def container(self) -> Container:
        made = Container(self._init)
        self.containers.append(made)
        return made

    def engine(self, code: str, then: str) -> tuple[Container, subprocess.Popen[bytes]]:
        """A container whose first process is a shell that runs `code` (see `guard_troupe`) and `then`."""
        file = self._folder / f"engine-{len(self.containers)}.py"
        file.write_text(f"{PRELUDE}\n{code}")
        made = self.container()
        return made, made.start("sh", "-c", f"{sys.executable} {file}; {then}")


@contextmanager
def pod(folder: Path) -> Iterator[Pod]:
    """A PID namespace with a PID 1 that reaps, all gone afterwards."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", _PAUSE]
    pause = subprocess.Popen(unshare, stdout=subprocess.PIPE)
    assert pause.stdout is not None
    identity = identity_of(pause.pid)
    try:
        if pause.stdout.readline() != b"\n":
            pytest.skip("no PID namespace can be made here")
        (init,) = descendants(pause.pid)
        made = Pod(init.pid, folder)
        with ExitStack() as stack:
            stack.callback(lambda: [stack.callback(container.remove) for container in made.containers])
            yield made
    finally:
        kill_identity(identity)
        pause.wait(20)
        pause.stdout.close()
