"""A real engine under a real `rankguard run`, which both end and are started again, as in a container that crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from sidecar_process import eventually, load

ENGINE = """
import subprocess, sys, time
token = sys.argv[1]
ranks = [subprocess.Popen([f"{token} TP{n}", "600"], executable="/bin/sleep") for n in range(2)]
print(*(rank.pid for rank in ranks), flush=True)
for rank in ranks:
    rank.wait()
"""


def crash(dumps: Path, log: Path) -> None:
    """One life: the engine is up and watched, its TP1 is killed, and all ends."""
    token = f"rank-{uuid.uuid4().hex}"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "sidecar", "run", "--log-format", "json", "--dump-dir", str(dumps),
                "--listen", "none", "--api-listen", "none", "--engine", "generic", "--captures", "process",
                "--rank-pattern", rf"^{token} TP(?P<TP>\d+)\b", "--expected-ranks", "2",
                "--full-incidents-per-hour", "1", "--", sys.executable, "-c", ENGINE, token,
            ],
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]

        def watched() -> bool:
            lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            events = [line["event"] for line in lines]
            return events.count("rank") >= 2 and "recorder stands by" in events

        eventually(watched, "the engine watched")
        os.kill(pids[1], signal.SIGKILL)
        process.wait(30)
    finally:
        if process.poll() is None:
            process.terminate()  # a drain: it takes its engine with it
            process.wait(30)
        process.stdout.close()


def test_each_restart_is_recorded_and_only_one_an_hour_in_full(tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    for n in range(3):
        crash(dumps, tmp_path / f"log{n}")
    records = [load(path.parent) for path in sorted(dumps.glob("*/incident.json"))]
    assert [record["sealed"] for record in records] == [True] * 3
    counts = [record["throttled"] and record["throttled"]["count"] for record in records]
    assert counts == [None, 1, 2]
    assert [bool(record["artifacts"]) for record in records] == [True, False, False]
    assert {record["termination"]["outcome"] for record in records} <= {"reaped", "exited_unreaped"}
    assert {record["summary"].split(";")[0] for record in records} == {records[0]["summary"].split(";")[0]}
