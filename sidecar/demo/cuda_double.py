"""A stand-in for the CUDA driver's user-triggered coredump, for tests and demos on machines without a GPU.

    CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1 python -m sidecar.demo.cuda_double --size 1000000

It behaves as NVIDIA documents it (CUDA-GDB manual, "GPU core dump support"; cudacoredump.h), not as a collector would
like it: the pipe and the file are named by `CUDA_COREDUMP_PIPE` and `CUDA_COREDUMP_FILE`, the file is an ELF core whose
header and section table are written last, and unless `skip_abort` is among `CUDA_COREDUMP_GENERATION_FLAGS` the process
aborts after a dump (whether the real driver does so after a user's trigger is open; see docs/coredumps.md). Prints
`ready` once the pipe is read, `triggered N`, and `dumped PATH`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BEHAVIOURS = ("ok", "no-file", "truncated", "half-then-die", "slow", "needs-1mib", "not-reading", "never-ends")
_CHUNK = 1 << 20
_LOUSER = 0x80000000
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True, slots=True)
class Section:
    """`kind` counts from SHT_LOUSER as in cudacoredump.h where `ours`. `link` and `info` make the tree."""

    name: str
    kind: int
    data: bytes
    link: int = 0
    info: int = 0
    entry: int = 0
    ours: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1 << 16, help="bytes of the dump, about")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds from the trigger to the file")
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="ok")
    parser.add_argument("--title", help="what to call the process, as setproctitle does")
    options = parser.parse_args()
    if os.environ.get("CUDA_ENABLE_USER_TRIGGERED_COREDUMP") == "1":
        pipe = name_of(os.environ, "CUDA_COREDUMP_PIPE", "corepipe.cuda.%h.%p")
        os.mkfifo(pipe, 0o600)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        # Its own writing end keeps the reading end from seeing an end of file between two triggers.
        os.open(pipe, os.O_WRONLY)
        os.set_blocking(reader, True)
        threading.Thread(target=_serve, args=(reader, options), daemon=True).start()
    if options.title:
        import setproctitle

        setproctitle.setproctitle(options.title)
    _say("ready")
    while True:
        signal.pause()


def name_of(environ: Mapping[str, str], variable: str, default: str) -> str:
    """The driver's name for its pipe or file, now."""
    name = environ.get(variable) or default
    values = {"%h": socket.gethostname(), "%p": str(os.getpid()), "%t": str(int(time.time()))}
    for placeholder, value in values.items():
        name = name.replace(placeholder, value)
    return name


def _serve(reader: int, options: argparse.Namespace) -> None:
    if options.behaviour == "not-reading":
        return
    needed = _CHUNK if options.behaviour == "needs-1mib" else 1
    while True:
        got = 0
        while got < needed:
            got += len(os.read(reader, 1 << 16))
        _say(f"triggered {got}")
        if options.behaviour == "no-file":
            continue
        time.sleep(options.delay)
        path = name_of(os.environ, "CUDA_COREDUMP_FILE", "core.cuda.%h.%p")
        dump(path, options.size, options.behaviour)
        _say(f"dumped {path}")
        if "skip_abort" not in os.environ.get("CUDA_COREDUMP_GENERATION_FLAGS", "").split(","):
            os.abort()


def dump(path: str, size: int, behaviour: str = "ok") -> None:
    """Write a dump of about `size` bytes: the memory first, gradually, then all tables, and the ELF header last."""
    sections, memory = layout(size)
    with open(path, "wb", buffering=0) as file:
        file.seek(_ELF_HEADER.size)
        written = 0
        for chunk in _memory(memory):
            file.write(chunk)
            written += len(chunk)
            if behaviour in ("half-then-die", "truncated", "never-ends") and written >= memory // 2:
                break
            if behaviour == "slow":
                time.sleep(0.1)
        if behaviour == "half-then-die":
            os.kill(os.getpid(), signal.SIGKILL)
        while behaviour == "never-ends":
            file.write(b"\0" * 4096)
            time.sleep(0.02)
        if behaviour == "truncated":  # what a full disk leaves: the tables are promised and are not there
            file.seek(0)
            file.write(_header(_ELF_HEADER.size + memory + (1 << 20), len(sections) + 2))
            return
        _finish(file.fileno(), sections, memory)


def layout(size: int) -> tuple[list[Section], int]:
    """(the small sections, bytes of global memory): one device, one SM, one block, one warp of 32 lanes.

    The indexes in `link` count the null section and the memory before them.
    """
    device = 2  # 0 is the null section, 1 the memory
    lanes = [struct.pack("<QQIIIIIi", 0x7F00_0000_0000 + lane, 0, lane, 0, 0, 0, 0, 0) for lane in range(32)]
    sections = [
        Section(
            ".cudbg.devtbl",
            9,
            struct.pack("<QQQ14I", 1, 1, 1, 0, 7, 0, 1, 64, 32, 255, 8, 9, 0, 16, 0, 63, 7),
            entry=80,
        ),
        Section(".cudbg.ctxtbl.dev0", 10, struct.pack("<QQQQII", 1, 0, 0, 0, 0, os.getpid()), device, 0, 40),
        Section(".cudbg.gridtbl.dev0", 12, bytes(128), device, 0, 128),
        Section(".cudbg.smtbl.dev0", 11, bytes(16), device, 0, 16),
        Section(".cudbg.ctatbl.dev0.sm0", 13, bytes(64), device + 3, 0, 64),
        Section(".cudbg.wptbl.dev0.sm0.cta0", 14, bytes(96), device + 4, 0, 96),
        Section(".cudbg.lntbl.dev0.sm0.cta0.wp0", 15, b"".join(lanes), device + 5, 0, len(lanes[0])),
        *(Section(f".cudbg.regs.dev0.sm0.cta0.wp0.ln{n}", 5, bytes(1020), device + 6, n, 4) for n in range(32)),
        Section(".strtab", 3, b"\0stand-in GPU\0", ours=False),
    ]
    return sections, max(0, size - sum(len(section.data) for section in sections))


def _memory(size: int) -> Iterator[bytes]:
    """Bytes that are not all the same, so that a copy that mixes them up is seen."""
    block = bytearray(os.urandom(4096) * (_CHUNK // 4096))
    number = 0
    while size > 0:
        block[:8] = struct.pack("<Q", number)
        yield bytes(block[: min(size, _CHUNK)])
        size -= _CHUNK
        number += 1


def _finish(fd: int, sections: list[Section], memory: int) -> None:
    names = b"\0"
    rows = [_SECTION.pack(*[0] * 10)]
    offset = _ELF_HEADER.size
    at = offset + memory
    body = b""
    everything = [Section(".cudbg.global.0", 2, b""), *sections]
    for number, section in enumerate(everything):
        length = memory if number == 0 else len(section.data)
        start = offset if number == 0 else at + len(body)
        kind = _LOUSER + section.kind if section.ours else section.kind
        rows.append(_SECTION.pack(len(names), kind, 0, 0, start, length, section.link, section.info, 1, section.entry))
        names += section.name.encode() + b"\0"
        body += section.data
    name_table = ".shstrtab"
    rows.append(_SECTION.pack(len(names), 3, 0, 0, at + len(body), len(names) + len(name_table) + 1, 0, 0, 1, 0))
    names += name_table.encode() + b"\0"
    body += names
    body += bytes(-(at + len(body)) % 8)
    os.pwrite(fd, body + b"".join(rows), at)
    os.pwrite(fd, _header(at + len(body), len(rows)), 0)


def _header(table: int, sections: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01\x33\x07".ljust(16, b"\0")  # OSABI 0x33
    core, cuda = 4, 0xBE
    return _ELF_HEADER.pack(
        ident, core, cuda, 1, 0, 0, table, 0, _ELF_HEADER.size, 0, 0, _SECTION.size, sections, sections - 1
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
