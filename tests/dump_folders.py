"""Dump folders as the recorder writes them, for tests of what reads them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from sidecar.model import (
    Artifact,
    ArtifactStatus,
    Cause,
    Decision,
    ExitStatus,
    Failure,
    Incident,
    PodInfo,
    Reason,
    Role,
)
from sidecar.recorder.record import build, encode
from sidecar.system.clock import id_stamp
from sidecar.web.counters import seeded

HOUR = 3600.0
STACK = bytes(range(256)) * 40


def incident(hours_old: float, rank: str = "TP3", reason: Reason = Reason.RANK_DIED, pod: str = "") -> Incident:
    from sidecar.model import Action

    wall = time.time() - hours_old * HOUR
    namespace, _, name = pod.partition("/")
    failure = Failure(Role.SCHEDULER, rank, 4242, 77, ExitStatus(signal=9), Cause.SIGKILL, at=100.0, wall=wall)
    return Incident(
        id=f"{id_stamp(wall)}-{reason.lower()}-{rank.lower()}", reason=reason, engine="sglang",
        pod=PodInfo(namespace, name, f"uid-{name}", "node-1"),
        decision=Decision(reason, Action.KILL, ("pyspy",), 3.0, (f"{rank} signal 9",)), failures=(failure,),
    )  # fmt: skip


def put(folder: Path, made: Incident, sealed: bool = True) -> Path:
    """Write the incident with one stack of `STACK` beside it; gives its folder."""
    home = folder / made.id
    (home / "pyspy").mkdir(parents=True)
    (home / "pyspy" / "TP0.json").write_bytes(STACK)
    artifacts = [Artifact("pyspy", "TP0", ArtifactStatus.CAPTURED, "pyspy/TP0.json", len(STACK), "ab" * 32, 0.04)]
    (home / "incident.json").write_bytes(encode(build(made, artifacts, sealed=sealed)))
    return home


def rewrite(home: Path, **changes: Any) -> None:
    """Change keys of a record, as the recorder would: one file in place of another."""
    record = json.loads((home / "incident.json").read_bytes())
    (home / "new").write_text(json.dumps(record | changes))
    os.replace(home / "new", home / "incident.json")


def count(pod: Path, uid: str, deaths: int) -> Path:
    """A pod's counters file, as its sidecar writes it after `deaths` deaths by SIGKILL."""
    counts = seeded(())
    for _ in range(deaths):
        counts.apply({"name": "rank_death", "cause": "sigkill", "role": "scheduler", "rank": "TP0"})
    pod.mkdir(parents=True, exist_ok=True)
    file = pod / f".counters-{uid}.json"
    file.write_bytes(counts.dump())
    return file


def age(folder: Path, hours: float) -> None:
    """Let everything in a folder look as if it was last changed so long ago."""
    then = time.time() - hours * HOUR
    for above, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.utime(os.path.join(above, name), (then, then), follow_symlinks=False)
    os.utime(folder, (then, then))


def everything(folder: Path) -> list[str]:
    """Every path below a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
