"""What a checkup finds: which rights and ways are there, what is lost without one, and what would give it.

The checks are a program of their own (`sidecar.doctor`), started by its command line and never imported: it reads
processes and a volume that may hang. Here are the words that it shares with those who start it, `rankguard doctor` and
the web process: how it is started, what it is told, and the document that it writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sidecar.errors import ProtocolError
from sidecar.model import Identity, plain

SCHEMA = "rankguard.dev/doctor/v1"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # where every pod has it, if it has one
MOST_BYTES = 1 << 20  # of a document; one of sixteen targets has some 30 KiB
TIERS = ("full", "twin", "signals only", "none")

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from sidecar.doctor.__main__ import main; main(*sys.argv[2:])"


class Status(StrEnum):
    """`unknown`: nothing could be tried, and the reason says why. `hung`: tried, and no answer came in time."""

    OK = "ok"
    MISSING = "missing"
    HUNG = "hung"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not_applicable"

    @property
    def available(self) -> bool | None:
        """Whether it is there; None where that is not known, or not asked."""
        return {Status.OK: True, Status.MISSING: False, Status.HUNG: False}.get(self)


@dataclass(frozen=True, slots=True)
class Remedy:
    """`yaml` is to be put in at `place`, in words: "the container rankguard", "the pod's spec"."""

    place: str
    yaml: str


@dataclass(frozen=True, slots=True)
class Result:
    """One right or way. `seen`: what was done, and what came of it. `lost`: what there is not without it.

    `remedies` are alternatives, the smallest change first. `required`: without it Rankguard does not do its work.
    """

    capability: str
    status: Status
    seen: str
    lost: str = ""
    remedies: tuple[Remedy, ...] = ()
    required: bool = False

    @property
    def fails(self) -> bool:
        return self.required and self.status.available is False


@dataclass(frozen=True, slots=True)
class Order:
    """What the doctor is told. `known` are the engine's ranks as (pid, start time, role, rank), () where it is to look
    for them; `pids` are processes to take for the engine, by a person's word. `seconds` is the time of each check.
    `quiet`: give way to everybody. `account` is the folder of the service account.
    """

    known: tuple[tuple[int, int, str, str], ...] = ()
    pids: tuple[int, ...] = ()
    seconds: float = 5.0
    quiet: bool = False
    account: str = SERVICE_ACCOUNT


@dataclass(frozen=True, slots=True)
class Checkup:
    """All of it. `tier` is one of `TIERS`, "" where there was no process of an engine to try it on."""

    tier: str
    because: str
    targets: tuple[dict[str, Any], ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def fails(self) -> bool:
        return any(result.fails for result in self.results)


def argv(python: str, package_root: str, launch_fd: int, order: Order) -> list[str]:
    """The doctor's command line. `launch_fd` is a memfd of `settings.launch_to_fd`, which it inherits."""
    return [python, "-I", "-S", "-c", _BOOT, package_root, str(launch_fd), json.dumps(plain(order))]


def order_from(text: str) -> Order:
    """The `Order` in a command line of `argv`."""
    data = json.loads(text)
    known = tuple((int(pid), int(start), str(role), str(rank)) for pid, start, role, rank in data.pop("known"))
    return Order(**{**data, "known": known, "pids": tuple(data["pids"])})


def encoded(checkup: Checkup) -> bytes:
    return json.dumps({"schema": SCHEMA, **document(checkup)}).encode()


def document(checkup: Checkup) -> dict[str, Any]:
    """As people and programs read it: the API, and `rankguard doctor --json`."""
    return {
        "ok": not checkup.fails,
        "tier": checkup.tier or None,
        "because": checkup.because,
        "targets": list(checkup.targets),
        "checks": [plain(result) for result in checkup.results],
    }


def decoded(data: bytes) -> Checkup:
    """What `encoded` made. Raises `ProtocolError` where it is cut off or something else."""
    try:
        found = json.loads(data)
        if found["schema"] != SCHEMA:
            raise ValueError("another schema")
        return Checkup(
            tier=found["tier"] or "",
            because=found["because"],
            targets=tuple(found["targets"]),
            results=results_from(found["checks"]),
        )
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ProtocolError(f"the doctor's answer cannot be read: {error}") from error


def results_from(rows: Sequence[dict[str, Any]]) -> tuple[Result, ...]:
    """The `Result`s that `plain` made rows of. Raises what a wrong row raises."""
    return tuple(
        Result(
            **{
                **row,
                "status": Status(row["status"]),
                "remedies": tuple(Remedy(**remedy) for remedy in row["remedies"]),
            }
        )
        for row in rows
    )


def identity_of(known: tuple[int, int, str, str]) -> Identity:
    return Identity(known[0], known[1])
