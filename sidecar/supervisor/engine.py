"""Wrap mode: the engine as a child, in a session of its own, with us as the one to whom its orphans come."""

from __future__ import annotations

import os
import signal

from sidecar.model import Identity
from sidecar.settings import ENGINE_VARIABLE, Launch
from sidecar.system.proc import Proc

# A stop of a terminal is for everything in it; SIGTERM, as a container runtime sends it, is for the root alone.
_TO_THE_GROUP = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Engine:
    """The wrapped command. `wait_status` is set once its root was reaped."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.wait_status: int | None = None

    @classmethod
    def start(cls, launch: Launch, proc: Proc) -> Engine:
        """Start the command. Raises `OSError` if it cannot be started."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
        environment[ENGINE_VARIABLE] = launch.engine_marker
        pid = os.posix_spawnp(
            launch.command[0], list(launch.command), environment, setsid=True, setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
                       signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM),
        )  # fmt: skip
        # Unreaped, so its pid is its own, whether it lives or not.
        stat = proc.stat(pid)
        return cls(Identity(pid, stat.start if stat is not None else 0))

    def forward(self, number: int) -> None:
        """Pass a stop on. Our unreaped child cannot have lost its pid to somebody else."""
        if self.wait_status is not None:
            return
        try:
            if number in _TO_THE_GROUP:
                os.killpg(self.identity.pid, number)
            else:
                os.kill(self.identity.pid, number)
        except (ProcessLookupError, PermissionError):
            pass
