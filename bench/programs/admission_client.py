"""An API server's side of admission: connections kept open, a review on each at the same moment, again and again.

`python -m bench.programs.admission_client PORT CA-FILE REVIEW-FILE CONNECTIONS ROUNDS`: prints one JSON line with the
seconds of each answer, by round. A round begins when all answers of the one before are there, so nothing but what is
asked for is under way.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

PAUSE = 0.02  # seconds between two rounds


async def main(port: int, ca: str, review: bytes, connections: int, rounds: int) -> list[list[float]]:
    context = ssl.create_default_context(cafile=ca)
    request = (
        f"POST /mutate?timeout=5s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(review)}\r\n\r\n"
    ).encode() + review
    opened = [
        await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        for _ in range(connections)
    ]

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        took = time.perf_counter() - began
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b" 200 " not in head.split(b"\r\n")[0] or b'"Injected"' not in body:
            raise SystemExit(f"no sidecar: {head[:100]!r} {body[:300]!r}")
        return took

    seconds = []
    for _ in range(rounds):
        seconds.append(await asyncio.gather(*(ask(*pair) for pair in opened)))
        await asyncio.sleep(PAUSE)
    for _, writer in opened:
        writer.transport.abort()
    return seconds


if __name__ == "__main__":
    port, ca, review, connections, rounds = sys.argv[1:]
    found = asyncio.run(main(int(port), ca, Path(review).read_bytes(), int(connections), int(rounds)))
    print(json.dumps(found), flush=True)
