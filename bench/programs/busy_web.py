"""Rankguard's web process with a thread beside it that parses a 50 MB JSON over and over.

What a page, a hook or a library might do to the interpreter lock, on purpose. The web itself is the real one.
"""

from __future__ import annotations

import json
import sys
import threading

MEGABYTES = 50


def parse_for_ever() -> None:
    entry = '{"rank":"TP3","frames":["forward","all_reduce","wait"],"line":1234,"values":[1.5,2.5,3.5]}'
    text = "[" + ",".join([entry] * (MEGABYTES * 10**6 // (len(entry) + 1))) + "]"
    while True:
        json.loads(text)


def main(control_fd: int, launch_fd: int) -> None:
    from sidecar.web.__main__ import main as web

    threading.Thread(target=parse_for_ever, name="json", daemon=True).start()
    web(control_fd, launch_fd)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
