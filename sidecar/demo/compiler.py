"""A compiler that an engine's rank starts and waits for: a process with a real one's name that burns a core."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from sidecar.demo.seat import Seat, opening, own, start_time

NAME = "ptxas"
_NICE = 5


def start_compiler(seat: Seat) -> subprocess.Popen[bytes]:
    """Start it, in the folder of the engine's control FIFO; it ends when it is killed.

    A shell under another name, by a link: the kernel takes `comm` from the last part of the path that is executed.
    """
    folder = os.path.dirname(seat.options.control)
    program, source = os.path.join(folder, NAME), os.path.join(folder, "kernel.ptx")
    with suppress(FileExistsError):
        os.symlink(os.path.realpath("/bin/sh"), program)
    with open(source, "w", encoding="ascii") as script:
        script.write("while :; do :; done\n")
    hold = opening(seat.hold.fd) if seat.hold else None
    process = subprocess.Popen(
        [program, source, "--gpu-name=sm_90a", "-o", os.path.join(folder, "kernel.cubin")],
        pass_fds=() if hold is None else (hold,),
    )
    os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    if hold is not None:
        own(hold, process.pid)
        os.close(hold)
    # In this order: whoever hears that the rank has begun knows the compiler.
    seat.report("up", pid=process.pid, start=start_time(process.pid), ppid=os.getpid(), role="compiler", label=NAME)
    seat.report("at")
    return process
