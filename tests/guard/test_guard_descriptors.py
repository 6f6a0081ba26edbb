"""Few descriptors make deaths seen later, never not at all."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest
from sidecar_process import PROC, eventually, identity_of

from sidecar.guard.exits import Exits
from sidecar.system.features import probe

THREADED = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(600,)).start()\n"


@pytest.mark.parametrize("most", [0, 1, 3, 5])
def test_every_death_is_seen_with_few_descriptors(most: int) -> None:
    """With room for none, for a stat, for a pidfd as well, for a thread's: three deaths are three observations."""
    argv = [sys.executable, "-c", THREADED + "print(flush=True)"]
    engine = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for process in engine:
            assert process.stdout is not None
            process.stdout.readline()
        epoll = select.epoll()
        exits = Exits(PROC, probe(), epoll, most=most)
        before = len(os.listdir("/proc/self/fd"))
        identities = [identity_of(process.pid) for process in engine]
        for identity in identities:
            assert exits.watch(identity, 0.0) == []
        assert len(os.listdir("/proc/self/fd")) - before == most, "all that there is room for, and no more"
        assert exits.out_of_descriptors
        for process in engine:
            process.send_signal(signal.SIGKILL)
        seen = {}

        def look() -> bool:
            observations = [o for fd, mask in epoll.poll(0) for o in exits.on_event(fd, mask, 1.0)]
            for observation in observations + exits.poll(identities):
                seen.setdefault(observation.identity, observation.status)
            return len(seen) == 3

        eventually(look, "three deaths")
        assert {status.signal for status in seen.values()} == {signal.SIGKILL}
        for identity in identities:
            exits.forget(identity)
        assert len(os.listdir("/proc/self/fd")) == before, "nothing is left open"
        epoll.close()
    finally:
        for process in engine:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
