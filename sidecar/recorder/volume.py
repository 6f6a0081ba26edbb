"""What is done on the volume, and in which order; each task on the writer's thread, one at a time.

Standing by: a survey, then retention, and both again each hour. With an incident: its folder and the opening record
first, then files, the smallest first, then the record anew, and the seal when all is written. Room for large files is
made after the small ones; but at once where the engine runs, since then its coredumps come soon. A task that fails is
said to be lost and tried again after a while; one that never returns holds up nobody.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from typing import Any

from sidecar.log import Log
from sidecar.model import Incident
from sidecar.policy.signature import signature
from sidecar.policy.throttle import Throttled, throttled
from sidecar.recorder.evidence import Item, write_items
from sidecar.recorder.fingerprint import fingerprint_of
from sidecar.recorder.reactor import Reactor
from sidecar.recorder.record import Record, build, encode
from sidecar.recorder.store import SMALL, Found, Store
from sidecar.recorder.summary import in_order, summary
from sidecar.recorder.survey import Survey, wall_of
from sidecar.recorder.work import Work
from sidecar.recorder.writer import Writer

_SURVEY_PATIENCE = 1.0  # then we say that we stand by without knowing the volume
_SURVEY_AGAIN = (0.5, 10.0)  # while incidents are open elsewhere, or the volume is bad: first, at most
_TIDY_EVERY = 3600.0
_RECORD_EVERY = 0.2
_RETRY = 0.5
_HANGS = 5.0  # how long a task takes before we say that the volume hangs

Tell = Callable[..., None]


class Volume:
    """Call `step` whenever something has changed or `wake_at` has come. `exit_status` is set when all is over."""

    def __init__(self, store: Store, reactor: Reactor, log: Log, tell: Tell) -> None:
        self.exit_status: int | None = None
        self._store = store
        self._survey: Survey | None = None
        self._throttled: Throttled | None = None
        self._signature: str | None = None
        self._made_room = False
        self._log = log
        self._tell = tell
        self._writer = Writer()
        reactor.add(self._writer.fileno(), self._writer.collect)
        self._work: Work | None = None
        self._earlier: list[Record] = []
        self._told_lost: set[tuple[str, str]] = set()
        self._told_opened = False
        self._retry_at = 0.0
        self._record_at = 0.0
        self._synced = False
        self._began = time.monotonic()
        self._stands_by = False
        self._knows_volume = False
        self._told_unfinished: set[str] = set()
        self._survey_at = 0.0
        self._survey_pause = _SURVEY_AGAIN[0]
        self._tidies = False

    @property
    def room(self) -> int:
        """Bytes that large files may still take, all together; 0 until the volume was looked at."""
        return self._store.room

    def throttled(self, incident: Incident) -> bool:
        """Whether the incident is to be a summary, by what was on the volume at the last look. Never blocks."""
        return self._throttle(incident) is not None

    def holds_all(self, work: Work) -> bool:
        """Whether all that was captured is on the volume, and nothing is being done there."""
        return work.opened and self._writer.busy_since is None and not work.evidence.batch(rendering=True)

    def begin(self, work: Work) -> None:
        """From now on there is an incident."""
        self._throttled = self._throttle(work.incident)
        self._work = work
        if self._throttled is not None:
            said = f"{self._throttled.limit} in full within the hour, this is summary {self._throttled.count} since"
            work.note("throttled", said)
            self._log("throttled", work.incident.id, limit=self._throttled.limit, count=self._throttled.count)

    def _throttle(self, incident: Incident) -> Throttled | None:
        limit = self._store.full_per_hour
        if limit is None or self._survey is None:
            return None
        try:
            wall = wall_of(incident.id)
        except ValueError:  # the store will refuse it, and say so
            return None
        earlier = [one for one in self._survey.earlier if one.id != incident.id]
        return throttled(incident.reason, wall, earlier, limit)

    def step(self) -> None:
        """Do what can be done now. Never blocks."""
        now = time.monotonic()
        if self._work is not None:
            self._watch(self._work, now)
        elif not self._stands_by and now - self._began >= _SURVEY_PATIENCE:
            self._stand_by(None)
        if self._writer.busy_since is None and self.exit_status is None:
            if self._work is not None:
                self._next_task(self._work, time.monotonic())
            elif now >= self._survey_at:
                look = self._store.tidy if self._tidies else self._store.survey
                self._writer.submit(lambda: look(lambda: self._work is not None), self._surveyed)

    def wake_at(self) -> float:
        """When `step` is due without anything having changed; monotonic seconds, may be infinite."""
        work, busy_since = self._work, self._writer.busy_since
        if work is None:
            due = math.inf if self._stands_by else self._began + _SURVEY_PATIENCE
            return due if busy_since is not None else min(due, self._survey_at)
        if busy_since is not None:
            due = work.give_up_at if work.leaving else math.inf
            hangs_at = busy_since + _HANGS
            return min(due, hangs_at) if time.monotonic() < hangs_at else due
        if not work.opened:
            return min(work.give_up_at, max(self._retry_at, work.told_by if work.telling else 0.0))
        waits = work.telling or not work.explained
        if work.sealing and work.captured and waits and not work.evidence.batch(rendering=True):
            return work.give_up_at
        if not work.captured and time.monotonic() < work.quiet_until:
            return min(work.give_up_at, work.quiet_until)
        if work.dirty or work.sealing or work.leaving:
            return min(work.give_up_at, max(self._record_at, self._retry_at))
        return work.give_up_at

    # -- standing by --------------------------------------------------------------------------------------------------

    def _surveyed(self, result: Any) -> None:
        now = time.monotonic()
        if isinstance(result, Survey):
            self._survey = result
            self._stand_by(result)
        elif isinstance(result, BaseException):
            self._stand_by(None)
            self._lost("retention" if self._tidies else "dump folder", result)
        if isinstance(result, Survey) and not result.held:
            self._survey_at = now + _TIDY_EVERY if self._tidies else now
            self._tidies = True
        elif self._tidies and isinstance(result, BaseException):
            self._survey_at = now + _TIDY_EVERY  # what could not be removed then can hardly be removed now
        else:
            self._survey_at = now + self._survey_pause
            self._survey_pause = min(2 * self._survey_pause, _SURVEY_AGAIN[1])

    def _stand_by(self, survey: Survey | None) -> None:
        """Say that we are ready; and again when there is more to say."""
        if self._work is not None:
            return
        left = survey.unfinished if survey else ()
        fresh = [incident for incident in left if incident["id"] not in self._told_unfinished]
        self._told_unfinished.update(incident["id"] for incident in fresh)
        news = not self._stands_by or bool(fresh) or (survey is not None and not self._knows_volume)
        self._stands_by = True
        self._knows_volume = self._knows_volume or survey is not None
        if news:
            self._tell("standing_by", unfinished=fresh, **_room(survey))

    # -- an incident --------------------------------------------------------------------------------------------------

    def _next_task(self, work: Work, now: float) -> None:
        """Give the writer, who has nothing to do, what matters most."""
        if now < self._retry_at:
            return
        if not work.opened:
            if work.telling and now < work.told_by:
                return
            opening = self._encoded(work)
            self._writer.submit(lambda: self._store.open(work.incident.id, opening), self._opened)
        elif not (work.frozen or self._made_room or work.captured or work.sealing or work.leaving):
            self._make_room()
        elif not work.captured and now < work.quiet_until:
            return
        elif batch := work.evidence.batch(rendering=work.captured):
            self._write(work, batch)
        elif work.sealing and work.captured and work.telling:
            return  # the record says what came of it
        elif work.sealing and work.captured and not work.explained:
            return  # it reads what is on the volume now
        elif work.sealing and work.captured and not self._synced:
            paths = work.evidence.paths()
            self._writer.submit(lambda: self._store.sync(paths), self._on_synced)
        elif work.sealing and work.captured and self._signature is None:
            artifacts, engine, read = work.evidence.artifacts(), work.incident.engine, self._store.read_artifact
            self._writer.submit(lambda: fingerprint_of(artifacts, engine, read), self._fingerprinted)
        elif work.sealing and work.captured:
            final = self._encoded(work, sealed=True)
            self._writer.submit(lambda: self._store.seal(final), self._sealed)
        elif work.dirty and (now >= self._record_at or work.leaving):
            work.dirty = False
            self._record_at = now + _RECORD_EVERY
            data, durable = self._encoded(work), work.leaving
            self._writer.submit(lambda: self._store.write_record(data, durable), self._recorded)
        elif work.leaving and work.captured:
            self.exit_status = 0

    def _write(self, work: Work, batch: list[Item]) -> None:
        """The small before the large, and between the two what makes room."""
        small = [item for item in batch if item.weight <= SMALL]
        if small or self._made_room or work.leaving:
            some = small or batch
            self._writer.submit(lambda: write_items(some, self._store.write_artifact), self._stored)
        else:
            self._make_room()

    def _make_room(self) -> None:
        self._made_room = True
        self._writer.submit(self._store.make_room, self._on_room)

    def _watch(self, work: Work, now: float) -> None:
        """Give up on a volume that refuses for too long, and say so of one that does not answer."""
        busy_since = self._writer.busy_since
        if busy_since is not None and now - busy_since >= _HANGS:
            self._lost("volume", TimeoutError(errno.ETIMEDOUT, "it does not answer"))
        if now < work.give_up_at or (busy_since is not None and not work.leaving):
            return  # while a task hangs nothing is decided: this process could not even end
        for artifact in work.evidence.give_up("the volume could not be written"):
            self._log("lost", work.incident.id, what=artifact.kind, rank=artifact.rank)
        self._lost("incident", OSError(errno.EIO, "not sealed" if work.sealing else "not written to the end"))
        self.exit_status = 1

    def _encoded(self, work: Work, sealed: bool = False) -> bytes:
        artifacts = work.evidence.artifacts()
        record = build(
            work.incident,
            artifacts,
            work.own,
            self._earlier,
            work.notes,
            sealed,
            self._signature or "",
            self._throttled,
            work.finding,
        )
        return encode(record)

    def _lost(self, what: str, error: BaseException) -> None:
        """Say, once for each thing and reason, that something could not be written."""
        detail = _reason(error)
        if (what, detail) in self._told_lost:
            return
        self._told_lost.add((what, detail))
        self._log("lost", self._work.incident.id if self._work else "", what=what, detail=detail)
        if self._work is not None:
            self._work.notes.append(f"lost: {what}: {detail}")
            self._work.dirty = True
        self._tell("lost", what=what, detail=detail)

    def _refused(self, what: str, error: BaseException) -> None:
        """The volume refused: say so, and open the folder anew after a while."""
        self._lost(what, error)
        self._retry_at = time.monotonic() + _RETRY
        self._synced = False
        if self._work is not None:
            self._work.opened = False
            self._work.dirty = True

    def _opened(self, result: Any) -> None:
        work = self._work
        if work is None:
            return
        if isinstance(result, BaseException):
            self._refused("incident folder", result)
            return
        work.opened = True
        if isinstance(result, Found) and not self._told_opened:  # after that, what is found is our own
            work.evidence.adopt(result)
            self._earlier = _timeline_of(result.record)
            work.dirty = True
        if not self._told_opened:
            self._told_opened = True
            self._tell("opened", id=work.incident.id)

    def _stored(self, result: Any) -> None:
        if self._work is None:
            return
        if isinstance(result, BaseException):
            self._refused("artifacts", result)
            return
        lost, broken = self._work.evidence.stored(result)
        for artifact in lost:
            self._lost(f"{artifact.kind} of {artifact.rank}", ValueError(artifact.detail))
        self._work.dirty = True
        if broken is not None:
            self._refused("artifacts", broken)

    def _recorded(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._refused("incident.json", result)

    def _on_synced(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._refused("artifacts", result)
            return
        self._synced = True
        if self._work is not None:
            for path, error in result:
                self._work.evidence.vanished(path, _reason(error))
                self._lost(path, error)

    def _on_room(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._lost("retention", result)

    def _fingerprinted(self, result: Any) -> None:
        """A signature without a fingerprint is better than none."""
        if self._work is None:
            return
        incident = self._work.incident
        causes = [failure.cause.value for failure in in_order(incident)]
        causes += [incident.verdict.liveness.value] if incident.verdict else []
        cause = causes[0] if causes else ""
        self._signature = signature(incident.reason.value, cause, result if isinstance(result, str) else "")

    def _sealed(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._refused("incident.json", result)
        else:
            self._writer.submit(self._store.tidy, self._tidied)

    def _tidied(self, result: Any) -> None:
        work = self._work
        if work is None:
            return
        if isinstance(result, BaseException):
            self._lost("retention", result)
        room = _room(result if isinstance(result, Survey) else None)
        saved = sum(1 for artifact in work.evidence.artifacts() if artifact.path)
        self._tell("sealed", id=work.incident.id, summary=summary(work.incident, sealed=True), saved=saved, **room)
        self._log("sealed", work.incident.id, dump_bytes=room["dump_bytes"])
        self.exit_status = 0


def _room(survey: Survey | None) -> dict[str, int]:
    """-1 stands for what is not known."""
    return {
        "dump_bytes": survey.dump_bytes if survey else -1,
        "free_bytes": survey.free_bytes if survey else -1,
    }


def _timeline_of(record: Record) -> list[Record]:
    rows = record.get("timeline")
    keys = ("at", "event", "detail")
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys)]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, str(error.errno))}: {error.strerror}"
    return str(error) or type(error).__name__
