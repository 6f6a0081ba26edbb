"""Scrapes /metrics so many times a second: `scrape PORT TIMES`. At the end of stdin prints `scraped N failed M`."""

from __future__ import annotations

import http.client
import select
import sys
import time


def main() -> None:
    port, every = int(sys.argv[1]), 1 / float(sys.argv[2])
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    good = failed = 0
    due = time.monotonic()
    while not poll.poll(max(0.0, due - time.monotonic()) * 1000):
        due = max(due + every, time.monotonic())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            answer.read()
            good += answer.status == 200
            failed += answer.status != 200
        except OSError:
            failed += 1
        finally:
            connection.close()
    sys.stdout.write(f"scraped {good} failed {failed}\n")


if __name__ == "__main__":
    main()
