"""The supervisor process. The command line has turned into it by exec, so that what it imported is gone."""

from __future__ import annotations

import os
import traceback

from sidecar.log import Log
from sidecar.settings import launch_from_fd
from sidecar.supervisor.loop import Supervisor
from sidecar.system.proc import Proc


def main(launch_fd: int) -> None:
    """Supervise until it is over, and exit with the status that follows."""
    os.set_inheritable(launch_fd, False)
    launch = launch_from_fd(launch_fd)
    for fds in launch.listen_fds.values():
        for fd in fds:
            os.set_inheritable(fd, False)
    log = Log("supervisor", launch.settings.log_format)
    try:
        status = Supervisor(launch, launch_fd, Proc(), log).run()
    except Exception:  # the process's outermost frame  # noqa: BLE001
        log("supervisor failed", error=traceback.format_exc().strip().replace("\n", " | "))
        status = 70  # EX_SOFTWARE
    os._exit(status)  # nothing is left to flush, and no hung thread of a library may hold us
