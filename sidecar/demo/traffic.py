"""What requests make of a stand-in engine: where each rank is to stand, which steps are made, what is counted.

A step is one order to every rank and the answers of all: where one rank does not answer, the others stand in the
all-reduce, no step follows and every number stays as it was, as in a real engine. The numbers are what the engine's
driver process said last, so they freeze when it hangs.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sidecar.demo.layout import RANK_ROLES
from sidecar.demo.options import Options
from sidecar.demo.seat import BLOCK, COMPILE, FORWARD, IDLE, PING, REDUCE, SPIN, STEP, Seat

_BETWEEN_STEPS = 0.02
_STEPS_OF_A_REQUEST = 10
_PROMPT_TOKENS = 100
# In these the ranks are in a step that does not end, and answer nobody.
_DEAF = ("forward", "prefill", "spin", "hang", "compile")


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the engine knows of itself. `decoded` and `prefilled` rise with each step, the others at a request's end."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    prefilled: int = 0
    decoded: int = 0
    finished: int = 0


class Traffic:
    """Belongs to the server's loop, all but `numbers`, `dead` and `ranks_answer`, which its HTTP threads use.

    `settled` is called with the name of the work and the seats that are at rest, once all stand where they were told.
    """

    def __init__(self, options: Options, seats: Sequence[Seat], settled: Callable[[str, Sequence[Seat]], None]) -> None:
        self.numbers = Numbers()
        self.dead = False  # the engine's own word that it is over
        self.work = options.work
        self.next: float | None = None  # when `step` is due, monotonic
        self._ranks = [seat for seat in seats if seat.place.role in RANK_ROLES]
        self._drivers = [seat for seat in seats if seat.place.role == "engine_core"]
        self._settled = settled
        self._wanted = Numbers()
        self._endless = False
        self._unconfirmed: Counter[str] = Counter()
        self._stepping: set[str] = set()
        self._settling = False
        self._resting: list[Seat] = []
        self._news = threading.Condition()
        self._answers: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()

    # Orders.

    def start(
        self, work: str, label: str = "", running: int | None = None, waiting: int | None = None, endless: bool = False
    ) -> None:
        """Begin this work. Numbers not given stay as they are: a driver in a step that does not end tells no new ones.

        Raises `KeyError` for an unknown name.
        """
        usual, special = {
            "idle": (IDLE, IDLE), "serve": (STEP, STEP), "prefill": (SPIN, SPIN), "spin": (SPIN, SPIN),
            "hang": (REDUCE, BLOCK), "compile": (REDUCE, COMPILE),
        }[work]  # fmt: skip
        label = label or self._ranks[0].place.label
        self._wanted = replace(
            self.numbers,
            running=self.numbers.running if running is None else running,
            waiting=self.numbers.waiting if waiting is None else waiting,
        )
        if work == "idle":
            self._wanted = replace(self._wanted, running=0, waiting=0)
        if work != "serve":
            self.numbers = self._wanted  # else they are told with the first step
        self.next, self._endless, self._stepping = None, endless, set()
        self._resting = []
        for seat in self._ranks:
            self.order(seat, special if seat.place.label == label else usual)
        for seat in self._drivers:
            self.order(seat, IDLE if work == "idle" else FORWARD)
        self.began(work)

    def began(self, work: str) -> None:
        """Note that this work's orders are given."""
        self._settling = True
        with self._news:
            self.work = work
            self._news.notify_all()

    def order(self, seat: Seat, order: bytes) -> None:
        """Send one rank or driver to its place."""
        if order == STEP:
            self._stepping.add(seat.place.label)
        else:
            self._unconfirmed[seat.place.label] += 1
            if order != SPIN:
                self._resting.append(seat)
        os.write(seat.orders[1].fd, order)

    # What comes of them.

    def reported(self, label: str, what: str) -> None:
        """`at`: it goes where it was told. `stepped`: its part of a step is done. `pong`: it answers a health check."""
        if what == "pong":
            with self._news:
                self._answers[label] += 1
                self._news.notify_all()
        elif what == "at":
            self._unconfirmed[label] -= 1
        elif label in self._stepping:
            self._stepping.discard(label)
            if not self._stepping:
                self._count()
                self.next = time.monotonic() + _BETWEEN_STEPS
        if self._settling and not self._stepping and not any(n > 0 for n in self._unconfirmed.values()):
            self._settling = False
            resting, self._resting = self._resting, []
            self._settled(self.work, resting)

    def _count(self) -> None:
        now, wanted = self.numbers, self._wanted
        fresh = now.running != wanted.running or not now.steps
        ended = wanted.running if not self._endless and (now.steps + 1) % _STEPS_OF_A_REQUEST == 0 else 0
        self.numbers = Numbers(
            wanted.running,
            wanted.waiting,
            now.steps + 1,
            now.prefilled + _PROMPT_TOKENS * (wanted.running if fresh else ended),
            now.decoded + wanted.running,
            now.finished + ended,
        )

    def step(self) -> None:
        """Send all ranks into the next step."""
        self.next = None
        for seat in self._ranks:
            self.order(seat, STEP)

    # For the HTTP threads.

    def ranks_answer(self, limit: float) -> bool:
        """Whether all ranks answer within `limit` seconds, as those do who can be given a request."""
        deadline = time.monotonic() + limit
        with self._news:
            if not self._news.wait_for(lambda: self.work not in _DEAF, limit):
                return False
            for seat in self._ranks:
                self._asked[seat.place.label] += 1
                os.write(seat.orders[1].fd, PING)
            asked = self._asked.copy()
            return self._news.wait_for(lambda: asked <= self._answers, max(0.0, deadline - time.monotonic()))
