"""Whether a file is a whole CUDA coredump, told from its ELF header and section table.

By hand, and not by an ELF library, since the question is asked every 50 ms of a file that is being written by a process
that may be hostile, and comes down to a dozen numbers: is it what the driver writes (`e_machine` 0xBE, `ET_CORE`, as in
NVIDIA's cudacoredump.h), and do the section table and all that it points to lie within the file?
"""

from __future__ import annotations

import os
import struct

EM_CUDA = 0xBE
ET_CORE = 4
OSABI_CUDA = 0x33
SHT_NULL = 0
SHT_NOBITS = 8
CUDBG_FIRST = 0x80000000
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_MOST_SECTIONS = 1 << 20  # a real dump has one section a warp and lane at most: some hundred thousand
_TABLE_CHUNK = 1 << 20


def shortfall(fd: int) -> str:
    """What is missing for a whole CUDA coredump, in words; "" where nothing is. Raises `OSError`."""
    size = os.fstat(fd).st_size
    raw = os.pread(fd, _HEADER.size, 0)
    if len(raw) < _HEADER.size:
        return "no ELF header yet"
    ident, kind, machine, _, _, _, table, _, _, _, _, entry, count, _ = _HEADER.unpack(raw)
    if ident[:4] != b"\x7fELF" or ident[4] != 2 or ident[5] != 1:
        return "no ELF header"
    if machine != EM_CUDA or kind != ET_CORE:
        return "an ELF file, but no CUDA coredump"
    if not table:
        return "no section table yet"
    if entry < _SECTION.size:
        return "a damaged ELF header"
    if not count:  # more than fit into the header: the number stands in the first section
        first = os.pread(fd, _SECTION.size, table)
        if len(first) < _SECTION.size:
            return "the section table is not in the file yet"
        count = _SECTION.unpack(first)[5]
    if not 0 < count <= _MOST_SECTIONS:
        return "a damaged section table"
    if table + count * entry > size:
        return "the section table is not in the file yet"
    return _sections(fd, size, table, entry, count)


def _sections(fd: int, size: int, table: int, entry: int, count: int) -> str:
    ours = 0
    per_chunk = max(1, _TABLE_CHUNK // entry)
    for first in range(0, count, per_chunk):
        number = min(per_chunk, count - first)
        rows = os.pread(fd, number * entry, table + first * entry)
        if len(rows) < number * entry:
            return "the section table is not in the file yet"
        for index in range(number):
            _, kind, _, _, offset, length, *_ = _SECTION.unpack_from(rows, index * entry)
            if kind not in (SHT_NULL, SHT_NOBITS) and offset + length > size:
                return f"section {first + index} is not in the file yet"
            ours += kind > CUDBG_FIRST
    return "" if ours else "no CUDA section in it"
