"""`rankguard incidents prune --pods-gone-for`: the folders of pods that are gone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from sidecar.commands.terminal import Refused, printable
from sidecar.dumps.opening import top
from sidecar.dumps.pods import Gone, gone_pods, remove_pod
from sidecar.system.clock import stamp

_LOCK = ".prune.lock"


@dataclass(slots=True)
class Pruned:
    removed: list[Gone] = field(default_factory=list)
    kept: list[Gone] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "removed": [asdict(gone) | {"written": stamp(gone.written)} for gone in self.removed],
            "kept": [asdict(gone) | {"written": stamp(gone.written)} for gone in self.kept],
            "failed": self.failed,
        }


def prune_pods(dump_dir: str, seconds: float, dry_run: bool, say: Callable[[str], None]) -> Pruned:
    """Remove the folders in which nothing was written for `seconds`; one line for each. Raises `OSError` where the
    volume cannot be read, and `Refused` where another prune is at work."""
    pruned = Pruned()
    before = time.time() - seconds
    with top(dump_dir) as root, _alone(root, dry_run):
        for gone in list(gone_pods(root, before)):
            count = f"{gone.incidents} incident{'' if gone.incidents == 1 else 's'}"
            about = f"{printable(gone.path)} ({count}, last written {stamp(gone.written)[:19]}Z)"
            if gone.kept:
                pruned.kept.append(gone)
                say(f"kept {about}: {printable(gone.kept)}")
                continue
            try:
                if not dry_run and not remove_pod(root, gone, before):
                    say(f"kept {about}: it was written to just now")
                    continue
            except (OSError, ValueError) as error:
                pruned.failed[gone.path] = getattr(error, "strerror", None) or str(error)
                continue
            pruned.removed.append(gone)
            say(f"{'would remove' if dry_run else 'removed'} {about}")
    return pruned


@contextmanager
def _alone(root: int, dry_run: bool) -> Iterator[None]:
    """Hold the volume's lock for removals, so that no counts are added twice."""
    if dry_run:
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_LOCK, flags, 0o600, dir_fd=root)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another prune of this volume is at work", 1) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(fd)
