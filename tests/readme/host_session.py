"""A reader's two terminals, in a network and a PID namespace of their own: ports and process titles are nobody else's.

    unshare --net --pid --fork --mount-proc --kill-child python host_session.py STAYS BLOCK…

Runs the shell text STAYS until the other texts are done, one after the other; stops it, and prints as JSON what each of
them said and its status, that of STAYS last.
"""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

SHELL = ("bash", "-euo", "pipefail", "-c")
_UP, _GET, _SET = 1, 0x8913, 0x8914  # IFF_UP, SIOCGIFFLAGS, SIOCSIFFLAGS


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = fcntl.ioctl(control, _GET, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", asked)[1] | _UP
        fcntl.ioctl(control, _SET, struct.pack("16sH14x", b"lo", flags))


def wait_serving(seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:21401/api/v1/status", timeout=5) as answer:
                if json.load(answer)["state"] == "serving":
                    return
        except OSError:
            pass
        if time.monotonic() > end:
            sys.exit("the engine is not serving")
        pause.wait(0.1)


def main() -> None:
    loopback_up()
    stays = subprocess.Popen([*SHELL, "exec " + sys.argv[1]], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    results: list[dict[str, Any]] = []
    try:
        wait_serving()
        for text in sys.argv[2:]:
            done = subprocess.run([*SHELL, text], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            results.append({"text": text, "status": done.returncode, "out": done.stdout, "err": done.stderr})
    finally:
        stays.send_signal(signal.SIGTERM)
        status = stays.wait(60)
    print(json.dumps([*results, {"text": sys.argv[1], "status": status, "out": "", "err": ""}]))


if __name__ == "__main__":
    main()
