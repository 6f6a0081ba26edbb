"""What an incident's stacks have in common with those of another one, read back from the files on the volume."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from sidecar.model import Artifact

_MOST_BYTES = 8 << 20
_MOST_RANKS = 64  # as many as say what the others say too; the first by name, so that they are always the same
_FOLDER, _ENDING = "pyspy/", ".json"  # the first snapshot


def fingerprint_of(artifacts: Iterable[Artifact], engine: str, read: Callable[[str, int], bytes]) -> str:
    """The fingerprint of the places where the ranks' main threads stood; "" where no stack can be read.

    `read` gives a file's bytes by path and the most that are wanted; what it refuses counts as not there.
    """
    # Late: it imports hashlib, and with it OpenSSL, which a process that stands by can do without.
    from sidecar.policy import stacks

    paths = {
        artifact.rank: artifact.path
        for artifact in artifacts
        if artifact.path.startswith(_FOLDER) and artifact.path.endswith(_ENDING)
    }
    spots = {}
    for rank in sorted(paths)[:_MOST_RANKS]:
        try:
            threads = json.loads(read(paths[rank], _MOST_BYTES))
        except (OSError, ValueError, RecursionError, MemoryError):
            continue
        pid = threads[0].get("pid") if isinstance(threads, list) and threads and isinstance(threads[0], dict) else None
        spot = stacks.spot_of(threads, pid, engine) if isinstance(pid, int) else None
        if spot is not None:
            spots[rank] = spot
    return stacks.fingerprint(spots) if spots else ""
