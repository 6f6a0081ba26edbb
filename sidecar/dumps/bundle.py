"""One incident as one `.tar.gz`, made piece by piece while it is sent; memory stays at one piece.

What is in it is what was there when it was read: an index, written last, has each file's size and checksum as they
went in, and what was left out, with the reason. A file that shrinks while it is read is filled up with zeros, and the
index says so. `README.txt` is the same for people, with the incident's sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from typing import Any

from sidecar.dumps.files import Reading, files_of, open_file
from sidecar.dumps.folder import entry_at
from sidecar.dumps.values import part, text
from sidecar.version import VERSION

INDEX = "index.json"
README = "README.txt"
SCHEMA = "rankguard.dev/bundle/v1"
PIECE = 256 << 10  # bytes read at a time
_BLOCK = 512  # tar's
_LARGEST = 64 << 30  # bytes of one file; what claims to have more is a hole, and would take hours to send
_LEVEL = 3  # of gzip: text shrinks to a tenth as well, and a coredump does not hold up the rest


def bundle(root: int, path: str) -> Iterator[bytes]:
    """The archive of the incident at `path`, in pieces. `root` is the open dump folder, the caller's to close.

    Raises `OSError` or `ValueError` at the first piece where there is no such incident.
    """
    files = files_of(root, path)
    packed = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    home = path.rsplit("/", 1)[-1]
    record = entry_at(root, path).record
    index: dict[str, Any] = {
        "schema": SCHEMA,
        "incident": path,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "made_by": f"rankguard {VERSION}",
        "sentence": text(part(record, "verdict"), "sentence"),
        "summary": text(record, "summary"),
        "files": [],
        "left_out": [],
        "more_left_out": files.left_out,
    }
    for file in files.named:
        try:
            reading = open_file(root, path, file.path)
        except (OSError, ValueError) as error:
            index["left_out"].append({"path": file.path, "why": getattr(error, "strerror", None) or str(error)})
            continue
        try:
            if reading.size > _LARGEST:
                index["left_out"].append({"path": file.path, "why": f"it has {reading.size} bytes"})
                continue
            yield packed.compress(_header(f"{home}/{file.path}", reading.size))
            row: dict[str, Any] = {"path": file.path, "bytes": reading.size}
            for piece in _pieces(reading, row):
                yield packed.compress(piece)
            index["files"].append(row)
        finally:
            reading.close()
    for name, data in ((INDEX, json.dumps(index, indent=1).encode() + b"\n"), (README, _readme(index).encode())):
        yield packed.compress(_header(f"{home}/{name}", len(data)) + data + _padding(len(data)))
    yield packed.compress(bytes(2 * _BLOCK))
    yield packed.flush()


def _readme(index: dict[str, Any]) -> str:
    said = [f"Incident {index['incident']}", ""]
    said += [words for words in (index["sentence"], index["summary"]) if words]
    said += ["", "Begin with analysis/stacks.txt: where each rank stood. incident.json is the record.", ""]
    said += [f"{index['made_by']}, {index['made_at']}. Bytes, SHA-256 and path of each file:", ""]
    said += [f"{row['bytes']:>12}  {row['sha256']}  {row['path']}{_trouble(row)}" for row in index["files"]]
    said += ["", *(f"left out: {row['path']}: {row['why']}" for row in index["left_out"])]
    if index["more_left_out"]:
        said.append(f"left out: {index['more_left_out']} more, which are no files, too deep or too many")
    # Names and sentences come from outside: no line of theirs may look like one of ours, and no escape goes through.
    return "".join(f"{line if line.isprintable() else ascii(line)[1:-1]}\n" for line in said)


def _trouble(row: dict[str, Any]) -> str:
    return f"  ({row['trouble']})" if "trouble" in row else ""


def _pieces(reading: Reading, row: dict[str, Any]) -> Iterator[bytes]:
    """The content and its padding; fills in `row`."""
    hasher = hashlib.sha256()
    done = 0
    while done < reading.size:
        try:
            piece = reading.read(done, min(PIECE, reading.size - done))
        except OSError as error:
            piece, row["trouble"] = b"", f"it could be read up to byte {done} only: {error.strerror}"
        if not piece:
            row.setdefault("trouble", f"it shrank to {done} bytes; the rest are zeros")
            piece = bytes(min(PIECE, reading.size - done))
        hasher.update(piece)
        done += len(piece)
        yield piece
    row["sha256"] = hasher.hexdigest()
    yield _padding(reading.size)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(os.fsencode(name).decode("utf-8", "surrogateescape"))
    info.size, info.mode, info.mtime = size, 0o644, int(time.time())
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
