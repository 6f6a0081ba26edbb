"""What was captured, from memory to the volume: bounded, the small first, nothing lost without a word."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sidecar.model import Artifact, ArtifactStatus
from sidecar.recorder.capture import kind_of
from sidecar.recorder.captures import Taken
from sidecar.recorder.store import FULL, Found, Written

MEMORY_LIMIT = 64 << 20
_BATCH = 16
_UNREADABLE = "what the collector wrote cannot be read"
# The file itself is lost; after any other error the folder is opened again, and then the file is tried again.
_FINAL = (*FULL, errno.EIO, errno.EINVAL, errno.ENAMETOOLONG)


@dataclass(slots=True)
class Item:
    """One artifact; with `data`, one that is yet to be written to `file`. `label` is the target's."""

    artifact: Artifact
    label: str
    file: str = ""
    data: bytes | None = None
    render: Callable[[bytes], bytes] | None = None

    @property
    def weight(self) -> int:
        """Bytes to write, by guess where they are yet to be rendered: a text is about a tenth of its JSON."""
        size = len(self.data or b"")
        return size // 10 if self.render else size


class Evidence:
    """All artifacts of the incident. Waiting for the volume they take at most `memory_limit` bytes."""

    def __init__(self, memory_limit: int = MEMORY_LIMIT) -> None:
        self._memory_limit = memory_limit
        self._items: list[Item] = []
        self._waiting = 0

    def bound(self, memory_limit: int) -> None:
        """From now on this much may wait for the volume."""
        self._memory_limit = memory_limit

    def add(self, taken: Taken) -> list[Artifact]:
        """Keep what was taken, and give the artifacts as they are before they are written."""
        added = []
        for piece in taken.pieces:
            rank = taken.target.rank or taken.target.label
            item = Item(
                Artifact(piece.kind, rank, piece.status, seconds=round(taken.seconds, 6), detail=piece.detail),
                taken.target.label,
            )
            if piece.file and piece.written is not None:  # by its child: it never was in our memory
                size, checksum = piece.written
                item.file = piece.file
                item.artifact = replace(item.artifact, path=piece.file, bytes=size, sha256=checksum)
            elif piece.file:
                item.file, item.data, item.render = piece.file, piece.data, piece.render
                self._bound(item)
            self._items.append(item)
            added.append(item.artifact)
        return added

    def adopt(self, found: Found) -> None:
        """Take over what an earlier life has written. What is on the volume stays; what it lacked may be replaced."""
        earlier: list[Item] = []
        paths = set()
        for data in found.record.get("artifacts", ()):
            try:
                artifact = Artifact(**{**data, "status": ArtifactStatus(data["status"])})
            except (TypeError, KeyError, ValueError):
                continue  # a record of another version: its file is still there, and found below
            earlier.append(Item(artifact, _label(artifact.path)))
            paths.add(artifact.path)
        for path, size, digest in found.unlisted:
            kind = kind_of(path)
            if kind and path not in paths:
                detail = "written by a recorder that died before it could say so; may be cut off"
                artifact = Artifact(kind, _label(path), ArtifactStatus.PARTIAL, path, size, digest, detail=detail)
                earlier.append(Item(artifact, _label(path)))
                paths.add(path)
        paths.discard("")
        for item in self._items:
            if item.file in paths:
                self._done(item)
        self._items = [item for item in self._items if item.file not in paths]
        again = {(item.artifact.kind, item.artifact.rank) for item in self._items}
        kept = [item for item in earlier if item.artifact.path or (item.artifact.kind, item.artifact.rank) not in again]
        self._items = kept + self._items

    def have(self) -> set[tuple[str, str]]:
        """(collector, label) of what is on the volume already."""
        return {(item.artifact.path.partition("/")[0], item.label) for item in self._items if item.artifact.path}

    def artifacts(self) -> list[Artifact]:
        return [item.artifact for item in self._items]

    def paths(self) -> list[str]:
        return [item.artifact.path for item in self._items if item.artifact.path]

    def batch(self, rendering: bool) -> list[Item]:
        """What to write next: a few, the smallest first. `rendering`: also what is yet to be rendered."""
        ready = [item for item in self._items if item.data is not None and (rendering or not item.render)]
        return sorted(ready, key=lambda item: item.weight)[:_BATCH]

    def stored(self, results: Iterable[tuple[Item, Any]]) -> tuple[list[Artifact], OSError | None]:
        """Note how writing went. Gives the artifacts that were lost, and an error that asks to open the folder anew."""
        lost = []
        broken: OSError | None = None
        for item, result in results:
            if isinstance(result, Written):
                item.artifact = replace(item.artifact, path=item.file, bytes=result.bytes, sha256=result.sha256)
                self._done(item)
            elif isinstance(result, OSError) and result.errno not in _FINAL:
                broken = result
            else:
                name = (
                    errno.errorcode.get(result.errno or 0, str(result)) if isinstance(result, OSError) else str(result)
                )
                self._fail(item, name)
                lost.append(item.artifact)
        return lost, broken

    def vanished(self, path: str, detail: str) -> None:
        """A file that was written is not on the volume any more."""
        for item in self._items:
            if item.artifact.path == path:
                gone = replace(item.artifact, status=ArtifactStatus.FAILED, path="", bytes=0, sha256="", detail=detail)
                item.artifact = gone

    def give_up(self, detail: str) -> list[Artifact]:
        """Nothing more can be written: what was not is lost. Gives those."""
        waiting = [item for item in self._items if item.data is not None]
        for item in waiting:
            self._fail(item, detail)
        return [item.artifact for item in waiting]

    def _bound(self, item: Item) -> None:
        """Keep within the memory limit: a text is rendered at once and so made small, anything else is dropped."""
        data = item.data or b""
        if item.render and self._waiting + len(data) > self._memory_limit:
            try:
                data = item.data = item.render(data)
            except (ValueError, LookupError, TypeError, AttributeError, MemoryError):
                data = item.data = b""
                item.artifact = replace(item.artifact, status=ArtifactStatus.FAILED, detail=_UNREADABLE)
            item.render = None
        if self._waiting + len(data) > self._memory_limit:
            item.data = None
            item.artifact = replace(item.artifact, status=ArtifactStatus.FAILED, detail="memory limit")
            return
        self._waiting += len(data)

    def _fail(self, item: Item, detail: str) -> None:
        item.artifact = replace(item.artifact, status=ArtifactStatus.FAILED, detail=detail)
        self._done(item)

    def _done(self, item: Item) -> None:
        self._waiting -= len(item.data or b"")
        item.data = item.render = None


def write_items(items: list[Item], write: Callable[[str, bytes], Written]) -> list[tuple[Item, Any]]:
    """Runs on the writer's thread: each item with what became of it, `Written` or an exception."""
    results: list[tuple[Item, Any]] = []
    for item in items:
        data = item.data or b""
        try:
            if item.render is not None:
                data = item.render(data)
            results.append((item, write(item.file, data)))
        except OSError as error:
            results.append((item, error))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            MemoryError,
        ):  # not what the collector is known to write
            results.append((item, ValueError(_UNREADABLE)))
    return results


def _label(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
