"""The peer of the guard: the least that sees a death by pidfd. One epoll, nothing else.

On stdin: `watch PID`. On stdout: `watching PID`, and `dead PID AT` with the monotonic time at which epoll returned.
"""

from __future__ import annotations

import gc
import os
import select
import time


def main() -> None:
    epoll = select.epoll()
    epoll.register(0, select.EPOLLIN)
    pid_of: dict[int, int] = {}
    gc.disable()
    rest = b""
    while True:
        events = epoll.poll()
        at = time.monotonic()
        for fd, _ in events:
            if fd != 0:
                os.write(1, f"dead {pid_of.pop(fd)} {at!r}\n".encode())
                epoll.unregister(fd)
                os.close(fd)
                continue
            data = os.read(0, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = int(line.split()[1])
                pidfd = os.pidfd_open(pid)
                pid_of[pidfd] = pid
                epoll.register(pidfd, select.EPOLLIN)
                os.write(1, f"watching {pid}\n".encode())


if __name__ == "__main__":
    main()
