"""What is known of one incident: its failures, its timeline, whom it is about, how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sidecar.model import Failure, Identity, Incident, Member, Termination, TimelineEntry
from sidecar.system import clock


class Story:
    """Grows as the incident goes on. `incident` gives the record as it stands."""

    def __init__(self, incident: Incident) -> None:
        self.failures: list[Failure] = list(incident.failures)
        self.members: dict[Identity, Member] = {m.identity: m for m in incident.members}
        self.termination: Termination | None = incident.termination
        self._incident = incident
        self._timeline: list[TimelineEntry] = list(incident.timeline)

    def incident(self) -> Incident:
        """The record as it stands."""
        return replace(
            self._incident,
            failures=tuple(self.failures),
            timeline=tuple(sorted(self._timeline, key=lambda entry: entry.at)),
            members=tuple(self.members.values()),
            termination=self.termination,
        )

    def failed(self) -> set[Identity]:
        """Who has failed, by identity."""
        return {Identity(f.pid, f.start) for f in self.failures}

    def add_failure(self, failure: Failure) -> None:
        """A further process failed; the first by time is the root cause."""
        self.failures.append(failure)
        self.failures.sort(key=lambda f: f.at)
        detail = f"{failure.rank}: {_ended(failure)} (seen by {failure.seen_by})"
        self._timeline.append(TimelineEntry(failure.at, failure.wall, "died", detail))

    def correct_failure(self, failure: Failure) -> None:
        """The exit status of a failure became known after it was recorded."""
        self.failures = [failure if (f.pid, f.start) == (failure.pid, failure.start) else f for f in self.failures]

    def keep(self, entry: TimelineEntry) -> None:
        """One line that somebody else has made."""
        self._timeline.append(entry)

    def note(self, event: str, detail: str, at: float | None = None) -> None:
        """One line of the timeline; `at` is monotonic, now where it is None."""
        now, wall = clock.monotonic(), clock.wall()
        at = now if at is None else at
        self._timeline.append(TimelineEntry(at, wall - (now - at), event, detail))


def pids(identities: Iterable[Identity]) -> str:
    """The pids in order, for people."""
    return ", ".join(str(i.pid) for i in sorted(identities, key=lambda i: i.pid))


def in_words(failure: Failure) -> str:
    """How it ended, without the cause: `signal 9`, `exit status 1`."""
    return _ended(failure).partition(", ")[2]


def _ended(failure: Failure) -> str:
    status = failure.status
    if status.signal is not None:
        return f"{failure.cause}, signal {status.signal}"
    if status.code is not None:
        return f"{failure.cause}, exit status {status.code}"
    return f"{failure.cause}, {status.why_unknown}"
