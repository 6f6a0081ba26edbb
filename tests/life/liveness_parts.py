"""What the tests of a living engine's failures share: an engine at work with a Rankguard that asks for its health."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from life_parts import await_metric, metric, stopped, watched
from sidecar_process import Sidecar, events_of, eventually

from sidecar.demo.standin import StandIn

# Small, so that a test takes seconds; the proportions are those of the defaults.
STALL_TIMEOUT, STALL_LIMIT = 1.5, 5.0
WATCHING = (
    "--stall-timeout", str(STALL_TIMEOUT), "--stall-limit", str(STALL_LIMIT), "--probe-period", "0.3",
    "--probe-timeout", "1", "--probe-failures", "3", "--api-listen", "127.0.0.1:0", "--liveness-deadline", "4",
)  # fmt: skip
WORKING = {"light": False, "health_port": 0, "health_limit": 0.5}

# Holds a process as gdb does, until its stdin ends: PTRACE_SEIZE, PTRACE_INTERRUPT (ptrace(2)).
_DEBUGGER = """
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
for request in (0x4206, 0x4207):
    if libc.ptrace(request, pid, None, None):
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(pid, 0x40000000)  # __WALL: it has stopped
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def alive(dump_dir: Path, *arguments: str, **options: Any) -> Iterator[tuple[StandIn, Sidecar]]:
    """As `watched`, with an engine that serves HTTP and knows work, and has answered once."""
    with watched(dump_dir, *WATCHING, *arguments, **{**WORKING, **options}) as (engine, sidecar):
        sidecar.wait("the engine answers")
        yield engine, sidecar


@contextmanager
def from_the_start(dump_dir: Path, *arguments: str, **options: Any) -> Iterator[tuple[StandIn, Sidecar]]:
    """The same, and nothing is waited for."""
    with watched(dump_dir, *WATCHING, *arguments, ready=False, **{**WORKING, **options}) as (engine, sidecar):
        yield engine, sidecar


@contextmanager
def both(
    folder: Path, *arguments: str, names: Sequence[str] = ("sglang", "vllm"), **options: Any
) -> Iterator[list[tuple[StandIn, Sidecar]]]:
    """Several engines, each with a Rankguard of its own, at the same time: most of such a test is waiting."""
    with ExitStack() as stack:
        pairs = [
            stack.enter_context(from_the_start(folder / f"{n}-{name}", *arguments, engine=name, **options))
            for n, name in enumerate(names)
        ]
        for engine, sidecar in pairs:
            engine.wait_ready()
            sidecar.wait_serving()
            sidecar.wait("the engine answers")
        yield pairs


@contextmanager
def debugger(engine: StandIn, label: str) -> Iterator[None]:
    """A debugger holds this rank. What it held runs on at its end."""
    tracer = subprocess.Popen(
        [sys.executable, "-c", _DEBUGGER, str(engine.find(label).pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"held\n"
        yield
    finally:
        tracer.kill()
        tracer.communicate()


def get(port: int, path: str, headers: dict[str, str] | None = None, timeout: float = 60.0) -> tuple[int, str]:
    """Status and body of a GET, with headers. Raises `OSError`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def status(sidecar: Sidecar) -> dict[str, Any]:
    """/api/v1/status."""
    port = int(sidecar.wait("listening", process="supervisor")["api_listen"].rpartition(":")[2])
    found = json.loads(get(port, "/api/v1/status")[1])
    assert isinstance(found, dict)
    return found


def await_verdict(sidecar: Sidecar, *verdicts: str) -> dict[str, Any]:
    """Wait until the engine is found to be one of these. Returns the part `liveness` of the status."""

    def found() -> dict[str, Any] | None:
        said: dict[str, Any] = status(sidecar)["liveness"]
        return said if said["verdict"] in verdicts else None

    said: dict[str, Any] = eventually(found, f"{verdicts}; {status(sidecar)['liveness']}\n{sidecar.log()}")
    return said


def await_probe(sidecar: Sidecar, answer: str) -> None:
    """Wait for a health check of now that came out so."""

    def probed() -> bool:
        said = status(sidecar)["liveness"]
        return bool(said["watching"] and said["last_probe"] and said["last_probe"]["answer"] == answer)

    eventually(probed, f"{answer}; {status(sidecar)['liveness']}\n{sidecar.log()}")


def outlast(seconds: float, *pairs: tuple[StandIn, Sidecar]) -> None:
    """Wait until each Rankguard has run so much longer by its own word, and found nothing wrong all that time."""
    ends = [status(sidecar)["uptime_seconds"] + seconds for _, sidecar in pairs]
    for (engine, sidecar), end in zip(pairs, ends, strict=True):
        eventually(lambda s=sidecar, e=end: status(s)["uptime_seconds"] > e, f"{seconds} s more", 10 * seconds)
        assert_untouched(engine, sidecar)


def assert_untouched(engine: StandIn, sidecar: Sidecar) -> None:
    """Nothing was found wrong, and nothing was signalled."""
    assert not sidecar.events("the engine makes no progress"), sidecar.log()
    assert sidecar.incidents() == [], sidecar.log()
    assert metric(sidecar, "liveness_failures_total") == 0
    assert_all_there(engine)


def assert_all_there(engine: StandIn) -> None:
    """Each of its processes lives; a compiler ends by itself."""
    gone = {process.identity for process in engine.processes} - {process.identity for process in engine.alive()}
    assert [p.label for p in engine.processes if p.identity in gone and p.role != "compiler"] == []


def assert_ended(
    engine: StandIn, sidecar: Sidecar, liveness: str, odd: Sequence[str] | None = (), gone: bool = True
) -> dict[str, Any]:
    """There is one sealed incident about this engine that lives and fails; it is gone, or else nobody stands still.

    `odd` None: whoever. Returns the record.
    """
    stuck = liveness == "stuck"
    if gone:
        assert engine.wait_gone(30) == [], f"still there:\n{sidecar.log()}"
    record = sidecar.incident()
    assert record["reason"] == ("EngineStalled" if stuck else "LivenessFailed")
    assert record["verdict"]["liveness"] == liveness
    assert record["verdict"]["because"]
    if odd is not None:
        assert record["verdict"]["odd"] == list(odd), record["verdict"]
    assert record["summary"].startswith(f"The engine is {liveness}"), record["summary"]
    if gone:
        assert record["decision"]["action"] == "kill"
        assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
        assert record["termination"]["survivors"] == []
        events = events_of(record)
        assert events.index("captured") < events.index("frozen") < events.index("killed") < events.index("gone")
        await_metric(sidecar, 1, "terminations_total")
    else:
        assert record["termination"] is None
        assert stopped([process.identity for process in engine.alive()]) == []
    assert metric(sidecar, "incidents_total") == metric(sidecar, "incidents_total", reason=record["reason"]) == 1
    assert metric(sidecar, "liveness_failures_total") == 1
    assert metric(sidecar, "liveness_failures_total", probe="progress" if stuck else "http") == 1
    return record


def assert_two_snapshots(engine: StandIn, record: dict[str, Any]) -> str:
    """Each rank's stack was taken twice. Returns the note on who has moved between."""
    for kind in ("pyspy_json", "pyspy2_json"):
        taken = {a["rank"] for a in record["artifacts"] if a["kind"] == kind and a["status"] == "captured"}
        assert taken >= {rank.label for rank in engine.ranks}, (kind, taken, record["artifacts"])
    notes: list[str] = [note for note in record["notes"] if note.startswith("between two snapshots")]
    assert len(notes) == 1, record["notes"]
    return notes[0]
