"""The recorder process: started warm by the supervisor, it stands by for one incident and ends with it."""

from __future__ import annotations

import gc
import os
import resource
import signal

from sidecar.keeping import keeping_of
from sidecar.log import Log
from sidecar.messages import Channel
from sidecar.recorder.capture.base import Scene
from sidecar.recorder.loop import Recorder
from sidecar.recorder.store import Store
from sidecar.settings import launch_from_fd
from sidecar.system.limits import limit_data
from sidecar.system.memory import OwnMemory
from sidecar.system.proc import Proc
from sidecar.system.programs import find_pyspy

_DATA_LIMIT = 512 << 20  # our own, and at most half of what the container may have; at rest we need 20 MiB
_LEAST_LIMIT = 64 << 20
_IGNORED = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


def main(guard_fd: int, launch_fd: int, history_fd: int = -1) -> None:
    """Serve the guard at `guard_fd` with the settings in `launch_fd`. Never returns.

    `history_fd` is the shared memory with the engine's last metrics (`sidecar.history`), -1 where nobody keeps them.

    Our life is tied to the channel alone: a stop signal to the whole container, or Ctrl-C in a terminal, must not take
    the record of what it ends.
    """
    for sig in _IGNORED:
        signal.signal(sig, signal.SIG_IGN)
    for fd in (guard_fd, launch_fd, history_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    launch = launch_from_fd(launch_fd)
    os.close(launch_fd)
    settings = launch.settings
    log = Log("recorder", settings.log_format)
    os.umask(0o077)
    proc = Proc()
    memory = OwnMemory(proc)
    _limit(memory)
    pyspy = find_pyspy(launch.python, os.environ.get("PATH", ""))
    if not pyspy:
        log("py-spy not found", beside=launch.python)
    keeping = keeping_of(settings)
    store = Store(
        settings.dump_dir,
        keeping.max_count,
        keeping.max_bytes,
        max_age=keeping.max_age,
        volume_limit=keeping.volume_limit,
        free_floor=keeping.free_floor,
        headroom=keeping.headroom,
        full_per_hour=settings.full_incidents_per_hour,
        pod=settings.pod,
    )
    scene = Scene(
        proc,
        frozen=False,
        pyspy=pyspy,
        python=launch.python,
        package_root=launch.package_root,
        coredump_max_bytes=settings.coredump_max_bytes,
        history_fd=history_fd,
    )
    recorder = Recorder(Channel.from_fd(guard_fd), store, log, scene, settings.dump_dir, memory)
    # Forked collectors share these pages as long as the collector of garbage does not write to them.
    gc.collect()
    gc.freeze()
    status = 70
    try:
        status = recorder.run()
    except Exception as error:  # noqa: BLE001 - the outermost loop: say it and end, the guard starts another
        log("the recorder failed", error=f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)  # not sys.exit: a thread in D state is never joined


def _limit(memory: OwnMemory) -> None:
    """What a huge or hostile engine makes us read ends in a MemoryError here, and not the container. Collectors get
    less (`sidecar.recorder.allowance`).
    """
    room = memory.room()
    limit_data(0, _DATA_LIMIT if room is None else max(_LEAST_LIMIT, min(_DATA_LIMIT, room.limit // 2)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
