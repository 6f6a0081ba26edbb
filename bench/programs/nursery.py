"""The parent of the watched processes: forks them on demand, with a title, threads and touched memory.

On stdin: `spawn KEY TITLE…` and `reap PID`. On stdout, from each child once it is what it was to be:
`born KEY PID START`. A dead child stays a zombie until it is told to be reaped, so that every observer has the same
chance to see it. When stdin is hung up this process ends, and when it ends the kernel kills every child.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
from typing import NoReturn

from setproctitle import setproctitle

from sidecar.demo.seat import die_with, start_time, touched


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=0)
    options = parser.parse_args()
    threading.stack_size(128 * 1024)
    setproctitle("bench nursery")
    hold, ours = os.pipe()  # nothing is ever written: it is hung up when this process ends
    gc.collect()
    gc.freeze()
    gc.disable()
    for line in sys.stdin:  # line by line: the other end writes whole lines
        order, _, rest = line.strip().partition(" ")
        if order == "reap":
            os.waitpid(int(rest), 0)
            continue
        key, _, title = rest.partition(" ")
        if os.fork() == 0:
            try:
                os.close(ours)
                die_with(hold)
                be(key, title, options.threads, options.memory_mib)
            finally:
                os._exit(1)


def be(key: str, title: str, threads: int, memory_mib: int) -> NoReturn:
    """Be the watched process: it never wakes up by itself."""
    setproctitle(title)
    _kept = touched(memory_mib * 2**20) if memory_mib else None
    for _ in range(threads):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    os.write(1, f"born {key} {os.getpid()} {start_time('self')}\n".encode())
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
