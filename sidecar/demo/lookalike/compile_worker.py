"""A child that left the engine's group, as compile workers do: `compile_worker.py session|daemon REPORTS [HOLD]`."""

import json
import os
import sys
import threading

from sidecar.demo.seat import die_with, start_time


def main(mode: str, reports: int, hold: int | None) -> None:
    if mode == "daemon" and os.fork():
        os._exit(0)
    if hold is not None:
        die_with(hold)
    report = {
        "what": "up", "pid": os.getpid(), "start": start_time("self"), "ppid": os.getppid(),
        "role": "escaped", "label": "escaped",
    }  # fmt: skip
    os.write(reports, (json.dumps(report) + "\n").encode())
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else None)
