"""A PID namespace of the bench's own, where that is allowed: nobody else's processes in it, none of ours left of it.

What the guard costs depends on the processes that come and go in its namespace, so those of other people on the machine
would be measured too. And when the namespace's first process ends, the kernel kills whatever is left in it. As in a
pod, that first process does nothing but reap orphans.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

INSIDE = "RANKGUARD_BENCH_INSIDE"
_UNSHARE = ("--pid", "--fork", "--mount-proc", "--kill-child")


def enter(arguments: Sequence[str]) -> str:
    """Run `python -m bench ARGUMENTS` again in a namespace of its own and do not return; or say why that cannot be."""
    if os.environ.get(INSIDE):
        return ""
    unshare = shutil.which("unshare")
    if unshare is None:
        return "there is no unshare(1)"
    tried = subprocess.run([unshare, *_UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return tried.stderr.strip().split("\n")[-1] or "unshare(1) fails"
    os.environ[INSIDE] = "1"
    os.execv(unshare, [unshare, *_UNSHARE, sys.executable, "-m", "bench.quarters", *arguments])
    raise AssertionError("execv returned")


def main() -> int:
    """Be the namespace's first process: start the bench, reap what is orphaned, end as the bench ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C reaches the bench by itself
    bench = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], dict(os.environ),
        setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    )  # fmt: skip
    while True:
        pid, status = os.wait()
        if pid == bench:
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main())
