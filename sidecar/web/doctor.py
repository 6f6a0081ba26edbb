"""The doctor's rounds: once at the start, and again when the ranks of an engine's generation are there.

The checks are a child process by its command line, since they need the recorder's code and touch what may hang. It is
of the lowest priority, never runs while an incident is open, and is ended when one opens: then the round is made later.
What a volume that hangs has left of earlier rounds is not added to without end. Whatever becomes of a round, the web
goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sidecar import checkup
from sidecar.checkup import Checkup, Order, Status
from sidecar.errors import ProtocolError
from sidecar.log import Log
from sidecar.model import State
from sidecar.settings import Launch, launch_to_fd
from sidecar.system import clock
from sidecar.system.spawning import start_piped
from sidecar.web.state import EngineState

PATIENCE = 20.0  # seconds for each check; of the lowest priority beside a busy engine, a second can be long
START = 20.0  # seconds for the rest of the child's life
AGAIN = 60.0  # seconds after which a round is made again that came to nothing
AFTERWARDS = 1.0  # seconds after SIGKILL in which its end is awaited
MOST_LEFT = 2  # rounds of which something is still there, held by the kernel: no further one is made beside them
_CHUNK = 1 << 16


class Doctor:
    """`told` is called when there are new findings. Made on the event loop; `run` is its life, ended by cancelling it.

    `found` is None until the first round is over.
    """

    def __init__(self, launch: Launch, log: Log, told: Callable[[Mapping[str, bool]], None]) -> None:
        self.found: Checkup | None = None
        self.at = 0.0
        self._launch = launch
        self._log = log
        self._told = told
        self._state: EngineState | None = None
        self._moved = asyncio.Event()
        self._due = True
        self._served = False
        self._put_off = False  # the round at work was ended for an incident
        self._child: _Child | None = None
        self._ended: list[_Child] = []  # those of which something may be left
        self._told_of_left = False
        self._logged: dict[str, Status] = {}

    def on_state(self, state: EngineState | None) -> None:
        """Take over the guard's word. Without a guard nobody knows whether an incident is open: nothing is begun."""
        self._state = state
        if state is None:
            return
        serving = state.state == State.SERVING and any(rank.up for rank in state.ranks)
        if serving and not self._served:
            self._due = True
        if serving or state.state in (State.WAITING, State.RESTARTING):
            self._served = serving
        if state.incident and self._child is not None:
            self._put_off = True
            self._child.kill()
        self._moved.set()

    async def run(self) -> None:
        """Make the rounds that are due, for ever."""
        try:
            while True:
                self._moved.clear()
                if not self._due or self._state is None or self._state.incident:
                    await self._moved.wait()
                    continue
                self._due = self._put_off = False
                if not await self._round(self._state):
                    self._due = True
                    if not self._put_off:
                        await asyncio.sleep(AGAIN)
        finally:
            if self._child is not None:
                self._child.kill()

    def status(self) -> dict[str, Any] | None:
        """What the API shows, None before the first round."""
        if self.found is None:
            return None
        return {"at": clock.stamp(self.at), **checkup.document(self.found)}

    async def _round(self, state: EngineState) -> bool:
        """False where it came to nothing."""
        known = tuple((rank.pid, rank.start, rank.role, rank.rank) for rank in state.ranks if rank.up and rank.start)
        if not self._may_begin():
            return False
        try:
            self._child = _Child(self._launch, Order(known=known, seconds=PATIENCE, quiet=True))
            found = checkup.decoded(await self._child.answer(2 * PATIENCE + START))
        except (OSError, ProtocolError) as error:
            if not self._put_off:
                self._log("the checks of our rights were not made", because=error)
            return False
        finally:
            if self._child is not None:
                self._ended.append(self._child)
            self._child = None
        self.found, self.at = found, clock.wall()
        self._say(found)
        self._told({r.capability: there for r in found.results if (there := r.status.available) is not None})
        return True

    def _may_begin(self) -> bool:
        self._ended = [child for child in self._ended if child.is_there()]
        if len(self._ended) < MOST_LEFT:
            self._told_of_left = False
            return True
        if not self._told_of_left:
            self._told_of_left = True
            self._log("the checks of our rights were not made", because="those of earlier rounds hang, and cannot end")
        return False

    def _say(self, found: Checkup) -> None:
        """A line for each that is missing, and for one that is there again; nothing while that has not changed."""
        for result in found.results:
            before = self._logged.get(result.capability)
            if result.status.available is None or result.status is before:
                continue
            self._logged[result.capability] = result.status
            if result.status is not Status.OK:
                self._log(
                    f"a capability is {result.status.value}", capability=result.capability, seen=result.seen,
                    lost=result.lost, remedy="rankguard doctor" if result.remedies else None,
                )  # fmt: skip
            elif before is not None:
                self._log("a capability is there again", capability=result.capability, seen=result.seen)


class _Child:
    """One doctor at work. Not reaped, its pid is nobody else's. Raises `OSError` where it cannot be started."""

    def __init__(self, launch: Launch, order: Order) -> None:
        self._ended = False
        python = launch.python or sys.executable
        root = launch.package_root or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        settings = launch_to_fd(launch)
        try:
            # A group to end it by, and no session of its own: what hangs and outlives the web comes to the supervisor,
            # and the guard tells by the session that it is ours and not a wrapped engine's.
            self._pid, self._out = start_piped(
                checkup.argv(python, root, 3, order), dict(os.environ), {3: settings}, setpgroup=0
            )
        finally:
            os.close(settings)

    async def answer(self, seconds: float) -> bytes:
        """What it wrote until its end, or until `seconds` have passed. It is ended in any case, also if we are."""
        heard = bytearray()
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._out, ready.set)
        try:
            async with asyncio.timeout(seconds):
                while len(heard) <= checkup.MOST_BYTES:
                    await ready.wait()
                    ready.clear()
                    try:
                        chunk = os.read(self._out, _CHUNK)
                    except BlockingIOError:
                        continue
                    if not chunk:
                        break
                    heard += chunk
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self._out)
            os.close(self._out)
            self.kill()
        for _ in range(int(AFTERWARDS / 0.01)):
            if self._reaped():
                break
            await asyncio.sleep(0.01)
        return bytes(heard)

    def kill(self) -> None:
        """End it and its checks, unless it has ended. One that the kernel holds ends when it is let go."""
        if not self._reaped():
            try:
                os.killpg(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def is_there(self) -> bool:
        """Whether anything of it is left. Its number is nobody else's while its group has a member."""
        self._reaped()
        try:
            os.killpg(self._pid, 0)
        except (ProcessLookupError, PermissionError):  # refused: it is somebody else's by now
            return False
        return True

    def _reaped(self) -> bool:
        if not self._ended:
            self._ended = os.waitpid(self._pid, os.WNOHANG)[0] != 0
        return self._ended
