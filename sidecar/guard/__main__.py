"""The guard process. Started by the supervisor, with the standard library alone."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import traceback

from sidecar.engines.table import profiles
from sidecar.guard.loop import Guard
from sidecar.log import Log
from sidecar.messages import Channel
from sidecar.settings import launch_from_fd
from sidecar.system.features import probe
from sidecar.system.limits import raise_descriptor_limit
from sidecar.system.proc import Proc


def main(control_fd: int, launch_fd: int, heartbeat_fd: int) -> None:
    """Run until the supervisor ends. An error of ours ends the process: the supervisor finishes what is open with the
    dead man's switch and starts a new guard, which is safer than going on in an unknown state.
    """
    ignore_signals()
    raise_descriptor_limit()
    features = probe(launch_from_fd(launch_fd).settings.mask_features)
    launch = launch_from_fd(launch_fd)
    log = Log("guard", launch.settings.log_format)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # a busy node must not delay a kill; most pods do not allow it
    except PermissionError:
        pass
    try:
        heartbeat = mmap.mmap(heartbeat_fd, mmap.PAGESIZE)
        kinds = profiles(launch.settings.engine, launch.settings.rank_pattern)
        Guard(launch, Channel.from_fd(control_fd), heartbeat, Proc(), features, kinds, log).run()
    except Exception:  # the process's outermost frame  # noqa: BLE001
        log("guard failed", error=traceback.format_exc().strip().replace("\n", " | "))
        sys.stderr.flush()
        os._exit(1)


def ignore_signals() -> None:
    """A stop is the supervisor's to hear; it tells us. Ctrl-C reaches the whole foreground group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
