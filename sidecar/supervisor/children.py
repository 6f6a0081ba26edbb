"""Starting Rankguard's own processes, and starting them again with a growing pause."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sidecar.settings import Launch
from sidecar.system.limits import go_before_us

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_LIVED_WELL = 10.0  # a process that lived this long starts with no pause again, in seconds

# What the interpreter runs: -I keeps the user's environment and folder out, -S also third-party packages (web needs
# those), which saves memory and start-up time.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from sidecar.{kind}.__main__ import main; main(*map(int, sys.argv[2:]))"
)
# Whom the kernel ends first when memory is short (collectors before all of these): who the kill needs least. The
# supervisor has the dead man's switch, so it stays to the last.
_GO_BEFORE_US = {"guard": 0.1, "recorder": 0.8, "web": 0.5}
_FLAGS = {"guard": ("-I", "-S"), "recorder": ("-I", "-S"), "web": ("-I",)}


def argv_for(kind: str, launch: Launch, fds: tuple[int, ...]) -> list[str]:
    """The command line of a worker. `fds` are handed to its `main` in order."""
    return [launch.python, *_FLAGS[kind], "-c", _BOOT.format(kind=kind), launch.package_root, *map(str, fds)]


def start(kind: str, launch: Launch, fds: tuple[int, ...], also_inherited: tuple[int, ...] = ()) -> int:
    """Start a worker that inherits exactly these descriptors. Returns its pid. Raises `OSError`."""
    inherited = (*fds, *also_inherited)
    for fd in inherited:
        os.set_inheritable(fd, True)
    try:
        pid = os.posix_spawn(launch.python, argv_for(kind, launch, fds), dict(os.environ))
        go_before_us(pid, _GO_BEFORE_US[kind])
        return pid
    finally:
        for fd in inherited:
            os.set_inheritable(fd, False)


@dataclass(slots=True)
class Pause:
    """How long to wait before the next start of one kind of process. Times in monotonic seconds."""

    started: float = 0.0
    length: float = 0.0

    def start_at(self, now: float) -> float:
        """When to start it again, given that it has just ended."""
        if now - self.started >= _LIVED_WELL:
            self.length = 0.0
        at = now + self.length
        self.length = min(max(_FIRST_PAUSE, self.length * 2), _LONGEST_PAUSE)
        return at
