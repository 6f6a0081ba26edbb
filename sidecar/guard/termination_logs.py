"""The termination logs of the engine's containers, held open from discovery on.

When a container's entrypoint dies, or the kernel kills the whole container for memory, no process is left to find its
log through; a descriptor still writes to the file that the kubelet is about to read. The guard itself writes nothing:
the recorder does, with what it is lent.
"""

from __future__ import annotations

import os
from collections.abc import Container

from sidecar.errors import OutOfDescriptors, ProcessGone
from sidecar.log import Log
from sidecar.model import Identity, RankProcess
from sidecar.system.inside import Unusable
from sidecar.system.proc import Proc
from sidecar.system.termination_log import open_to_append, same_file


class TerminationLogs:
    """`path` as the engine's processes see it, None to hold none. `wraps`: the engine may be in our own container."""

    def __init__(self, proc: Proc, path: str | None, wraps: bool, log: Log) -> None:
        self._proc = proc
        self._path = path
        self._wraps = wraps
        self._log = log
        self._held: dict[str, int] = {}  # by container; -1 where there is none to be had
        self._ranks: dict[Identity, str] = {}
        self._told: set[str] = set()

    def attach(self, rank: RankProcess) -> None:
        """Open the log of this rank's container while the rank lives, unless it is open already."""
        if self._path is None:
            return
        identity = rank.identity
        container = self._ranks.get(identity)
        if container is None:
            # Where containers have no id to be seen, their mounts still tell them apart.
            container = rank.container or self._proc.link(f"{identity.pid}/ns/mnt") or ""
            self._ranks[identity] = container
        if container not in self._held:
            self._open(identity, container, self._path, bool(rank.container))

    def lend(self, engine: Container[Identity]) -> tuple[int, ...]:
        """Descriptors of the logs of containers in which ranks among these run or ran; the caller's to close."""
        wanted = {container for identity, container in self._ranks.items() if identity in engine}
        lent: list[int] = []
        for container in sorted(wanted):
            fd = self._held.get(container, -1)
            if fd < 0:
                continue
            try:
                lent.append(os.dup(fd))
            except OSError:  # no descriptor left: a line less, and nothing else
                break
        return tuple(lent)

    def detach(self) -> None:
        """The engine is gone. A container's next run has a file of its own."""
        for fd in self._held.values():
            if fd >= 0:
                os.close(fd)
        self._held.clear()
        self._ranks.clear()
        self._told.clear()

    def _open(self, identity: Identity, container: str, path: str, in_container: bool) -> None:
        try:
            fd = open_to_append(self._proc, identity, path)
        except (ProcessGone, OutOfDescriptors):
            return  # another rank of it may still tell
        except PermissionError:
            self._say(container, "may not be opened: that takes the engine's user, or SYS_PTRACE")
            return  # another rank may be one that we have the right to
        except FileNotFoundError:
            self._held[container] = -1
            if in_container:
                self._say(container, "is not there: does the container set a terminationMessagePath of its own?")
            return
        except Unusable as error:
            self._held[container] = -1
            self._say(container, str(error))
            return
        except OSError as error:
            self._held[container] = -1
            self._say(container, f"cannot be opened: {error.strerror}")
            return
        if not self._wraps and same_file(fd, path):
            os.close(fd)
            fd = -1
            self._say(container, "is Rankguard's own")
        self._held[container] = fd

    def _say(self, container: str, why: str) -> None:
        """Once for each container."""
        if container not in self._told:
            self._told.add(container)
            self._log("no termination log", path=self._path, because=why, container=container[:12] or None)
