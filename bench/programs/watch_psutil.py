"""The peer that most sidecars have: look at every process each so often, with psutil.

Takes the pause between two looks, in seconds. On stdin: `watch PID`. On stdout: `watching PID`, and `dead PID AT` with
the monotonic time at which the look found it dead.
"""

from __future__ import annotations

import os
import select
import sys
import time

import psutil


def main() -> None:
    pause = float(sys.argv[1])
    watched: dict[int, psutil.Process] = {}
    rest = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    due = time.monotonic()
    while True:
        while poll.poll(max(0.0, due - time.monotonic()) * 1000):  # the pause; who is new is taken in at once
            data = os.read(0, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = int(line.split()[1])
                watched[pid] = psutil.Process(pid)
                os.write(1, f"watching {pid}\n".encode())
        for pid, process in list(watched.items()):
            if not is_alive(process):
                os.write(1, f"dead {pid} {time.monotonic()!r}\n".encode())
                del watched[pid]
        due = time.monotonic() + pause


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
