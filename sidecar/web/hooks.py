"""The kubelet's preStop hook: who calls is told apart, the guard decides, the call is answered when the guard is done.

Every answer to a caller with the right token is 200: the kubelet sends SIGTERM after any answer, and one of another
status would only add an event about a failed hook. Nothing here kills anything.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.errors import ProtocolError
from sidecar.log import Log
from sidecar.messages import Message
from sidecar.settings import Settings
from sidecar.web.kubernetes.pod import PodStatus

MARGIN = 10.0  # seconds beyond the captures' own deadline: for the API server, the freeze and the sealing
MOST_WAITING = 16  # calls that wait at once; anybody may call where there is no token
SEND_AGAIN = 0.1  # seconds; the guard may be about to start, or its channel full
MOST_GUARDS = 2  # a guard that is lost over a call, and the one after it
LATE = 2.0  # seconds; a call that waited longer for us was found when we stood still no more: its engine may be gone
MOST_DETAIL = 500  # characters of an answer


@dataclass(slots=True)
class _Call:
    message: Message
    answer: asyncio.Future[str]
    asked: int = 0  # guards that have taken the message
    again: asyncio.TimerHandle | None = None


class Hooks:
    """All calls of one web process. `send` gives a message to the guard, False where it does not take it.

    Whoever owns the link to the guard says `on_guard` when there is a (new) guard, and `on_away` when one is missed.
    """

    def __init__(self, settings: Settings, pod: PodStatus, send: Callable[[Message], bool], log: Log) -> None:
        self._token = None if settings.hook_token is None else settings.hook_token.encode()
        self._limit = settings.liveness_deadline + MARGIN
        self._pod = pod
        self._send = send
        self._log = log
        self._missed = False
        self._waiting: dict[int, _Call] = {}
        # Not from 1: what the guard still answers to the web before us must not be taken for an answer to ours.
        self._last = secrets.randbits(40)

    async def call(self, token: bytes, failing: bool, running: bool, waited: float) -> tuple[int, str]:
        """Status and one line, within the captures' deadline and `MARGIN`. `token` b"" where none was sent.

        `failing`: the engine's health check fails, or it was found stuck or dead. `running`: requests run or wait.
        `waited`: the seconds since it was sent; the kubelet never takes a call back.
        """
        if self._token is not None and not hmac.compare_digest(token, self._token):
            return 403, "the header X-Rankguard-Token with the right token is needed"
        if self._missed:
            return self._not_captured("the guard is not running")
        if len(self._waiting) >= MOST_WAITING:
            return self._not_captured(f"{MOST_WAITING} calls of the hook wait already")
        began = time.monotonic()
        self._last += 1
        number = self._last
        call = _Call({"type": "hook", "hook": number}, asyncio.get_running_loop().create_future())
        self._waiting[number] = call
        try:
            told = await self._pod.look()
            # Where nobody tells, a healthy engine is stopped because its pod goes.
            deletion = told.deleting if told is not None else not failing
            call.message |= {
                "deletion": deletion,
                "certain": told is not None,
                "failing": failing,
                "running": running,
                "group": (told.group if told is not None else "") or self._pod.group,
            }
            if waited > LATE:
                call.message["called_at"] = began - waited
            self._log("preStop hook", by="engine's health" if told is None else "API server", **_shown(call.message))
            self._ask(number)
            await asyncio.wait({call.answer}, timeout=max(0.0, began + self._limit - time.monotonic()))
            if not call.answer.done():
                return self._not_captured(f"the guard was not done within {self._limit:g} s")
            answer = call.answer.result()
        finally:
            del self._waiting[number]
            if call.again is not None:
                call.again.cancel()
        self._log("preStop hook answered", hook=number, answer=answer, seconds=round(time.monotonic() - began, 3))
        return 200, answer

    # What becomes of the guard.

    def on_done(self, message: Message) -> None:
        """A `hook_done`. One that nobody waits for any more is nothing. Raises `ProtocolError` on a broken one."""
        number, detail = message.get("hook"), message.get("detail")
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(detail, str):
            raise ProtocolError("a hook_done without a number and a detail")
        self._settle(number, "".join(c if c.isprintable() else " " for c in detail[:MOST_DETAIL]) or "done")

    def on_guard(self) -> None:
        """There is a guard, or a new one: it is asked what the one before has left unanswered."""
        self._missed = False
        for number, call in list(self._waiting.items()):
            if call.asked >= MOST_GUARDS:
                self._settle(number, "not captured: the guard was lost over it twice")
            elif call.asked:
                self._ask(number)

    def on_away(self) -> None:
        """No guard has come for a while: nobody need wait for one."""
        self._missed = True
        for number in list(self._waiting):
            self._settle(number, "not captured: the guard is not running")

    def _ask(self, number: int) -> None:
        """Tell the guard, again and again until one takes it."""
        call = self._waiting.get(number)
        if call is None or call.answer.done():
            return
        if call.again is not None:
            call.again.cancel()
            call.again = None
        if self._send(call.message):
            call.asked += 1
        else:
            call.again = asyncio.get_running_loop().call_later(SEND_AGAIN, self._ask, number)

    def _settle(self, number: int, answer: str) -> None:
        call = self._waiting.get(number)
        if call is not None and not call.answer.done():
            call.answer.set_result(answer)

    def _not_captured(self, because: str) -> tuple[int, str]:
        self._log("preStop hook not captured", because=because)
        return 200, f"not captured: {because}"


def _shown(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "type"}
