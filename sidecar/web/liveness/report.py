"""What the guard is told of a judgement, and when: a bad verdict as long as it holds, and once that it holds no more.

The guard ignores what it has been told before, so a repeat costs nothing, and one that got lost is made good by the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sidecar.log import Log
from sidecar.messages import Message
from sidecar.model import Identity, Liveness, Verdict, plain
from sidecar.policy.progress import Judgement

_REPEAT = 1.0  # seconds between two messages that say the same


class Report:
    """`tell` gives a message to the guard, False where it does not take it. `patience` is the stall timeout.

    `bad` is the verdict that the guard has, None where it has none.
    """

    def __init__(self, tell: Callable[[Message], bool], log: Log, patience: float) -> None:
        self._tell = tell
        self._log = log
        self._patience = patience
        self.forget()

    def forget(self) -> None:
        """It is another engine."""
        self.bad: Verdict | None = None
        self._said_at: float | None = None
        self._moved: float | None = None  # the engine's counters when it was found bad
        self._good_since: float | None = None

    def take_over(self) -> None:
        """A web before us has told the guard that this engine is stuck or dead."""
        self.bad = Verdict(Liveness.STUCK)

    def pause(self) -> None:
        """Nobody looks for a while: what comes after it is no continuation."""
        self._good_since = None

    def judged(self, judgement: Judgement, now: float, moved: float | None, about: Sequence[Identity]) -> None:
        """Tell the guard what it has to know. `moved` is the last known sum of the engine's counters, `about` whom
        the judgement is about.
        """
        if judgement.reason is not None:
            self._good_since = None
            self._say_bad(judgement, now, moved, about)
        elif self.bad is not None:
            self._say_good(judgement, now, moved, about)

    def _say_bad(self, judgement: Judgement, now: float, moved: float | None, about: Sequence[Identity]) -> None:
        verdict = judgement.verdict
        if self.bad is None:
            self._moved = moved
        if self.bad is None or self.bad.liveness is not verdict.liveness:
            self._log(
                "the engine makes no progress",
                verdict=verdict.liveness.value,
                because="; ".join(verdict.because),
                odd=", ".join(verdict.odd) or None,
                seconds=round(verdict.since, 1),
            )
        elif self._said_at is not None and now - self._said_at < _REPEAT:
            return
        self.bad = verdict
        self._said_at = now if self._send(judgement, about) else None

    def _say_good(self, judgement: Judgement, now: float, moved: float | None, about: Sequence[Identity]) -> None:
        """Once its counters have moved, or it has looked well for as long as it takes to see that it is not: a pause
        while an incident is open, or a web that has just begun, must not look like a recovery.
        """
        if self._good_since is None:
            self._good_since = now
        if self._moved is None:
            self._moved = moved
        if moved == self._moved and now - self._good_since < self._patience:
            return
        if self._send(judgement, about):
            self._log("the engine makes progress again", verdict=judgement.verdict.liveness.value)
            self.forget()

    def _send(self, judgement: Judgement, about: Sequence[Identity]) -> bool:
        ranks = [plain(identity) for identity in about]
        verdict = plain(judgement.verdict)
        return self._tell({"type": "liveness", "verdict": verdict, "probe": judgement.probe, "ranks": ranks})


def shown_verdict(verdict: Verdict | None) -> dict[str, Any]:
    """A verdict for people, in JSON's values; all empty where there is none yet."""
    return {
        "verdict": verdict.liveness.value if verdict else None,
        "because": list(verdict.because) if verdict else [],
        "odd": list(verdict.odd) if verdict else [],
        "no_progress_seconds": round(verdict.since, 3) if verdict else None,
    }
