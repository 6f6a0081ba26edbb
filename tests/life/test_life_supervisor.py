"""The supervisor ends without a word: nothing stays stopped, none of ours stays, a later run finishes the record."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from life_parts import (
    assert_counted_once,
    await_ended,
    await_frozen,
    await_metric,
    hanging_pyspy,
    metric,
    stopped,
    watched,
    whole_tree,
)
from sidecar_process import Sidecar, events_of, eventually, identity_of, kill_identity, load, running

LONG = ("--death-deadline", "60")


def test_killed_at_rest(tmp_path: Path) -> None:
    """The engine is not touched, our processes leave, there is no incident."""
    with watched(tmp_path / "dumps") as (engine, sidecar), whole_tree(sidecar) as tree:
        before = [process.identity for process in engine.alive()]
        assert len(tree) == 4
        sidecar.process.kill()
        await_ended(tree, "our processes ended")
        assert [i for i in before if not running(i)] == []
        assert stopped(before) == []
        assert sidecar.incidents() == []


def test_killed_with_the_engine_frozen(tmp_path: Path) -> None:
    """The guard does at once what the captures held up; what is left of us, or a later run, seals the record."""
    dumps = tmp_path / "dumps"
    with (
        hanging_pyspy(tmp_path) as python,
        watched(dumps, *LONG, python=python) as (engine, sidecar),
        whole_tree(sidecar) as tree,
    ):
        engine.kill("TP1")
        sidecar.wait("frozen")
        await_frozen(engine)
        sidecar.process.kill()
        assert engine.wait_gone(20) == []
        await_ended(tree, "our processes ended")
        assert "captures cut short" in events_of(load(sidecar.incidents()[0]))
        finished_by_a_later_run(dumps)


def test_killed_with_the_engine_frozen_and_not_to_be_killed(tmp_path: Path) -> None:
    """Action capture: every process runs on, and no process of ours is left."""
    dumps = tmp_path / "dumps"
    with (
        hanging_pyspy(tmp_path) as python,
        watched(dumps, *LONG, "--on-rank-death", "capture", python=python) as (engine, sidecar),
        whole_tree(sidecar) as tree,
    ):
        engine.kill("TP1")
        sidecar.wait("frozen")
        await_frozen(engine)
        frozen = [process.identity for process in engine.alive()]
        sidecar.process.kill()
        await_ended(tree, "our processes ended")
        assert stopped(frozen) == []
        assert [i for i in frozen if not running(i)] == []
        assert "captures cut short" in events_of(load(sidecar.incidents()[0]))


def test_all_of_ours_killed_with_the_engine_frozen(tmp_path: Path) -> None:
    """The whole container at once: the next run on the folder kills what still stands frozen and seals the incident."""
    dumps = tmp_path / "dumps"
    with (
        hanging_pyspy(tmp_path) as python,
        watched(dumps, *LONG, python=python) as (engine, sidecar),
        whole_tree(sidecar) as tree,
    ):
        engine.kill("TP1")
        sidecar.wait("captured", status="captured")
        await_frozen(engine)
        eventually(sidecar.incidents, "the opening record")
        for identity in tree:  # stopped first: none of them sees another one end
            kill_identity(identity, signal.SIGSTOP)
        for identity in tree:
            kill_identity(identity)
        await_ended(tree, "our processes ended")
        assert stopped([process.identity for process in engine.alive()])
        assert not load(sidecar.incidents()[0])["sealed"]
        with Sidecar(dumps, "--root-pid", str(engine.server)) as later:
            assert engine.wait_gone(20) == [], later.log()
            record = later.incident()
            assert [(f["rank"], f["cause"]) for f in record["failures"] if f["first"]] == [("TP1", "sigkill")]
            await_metric(later, 1, "terminations_total")
            assert_counted_once(later)
            assert len(later.incidents()) == 1


def test_an_unfinished_record_that_makes_no_sense(tmp_path: Path) -> None:
    """Somebody wrote into it: it is said and left alone, and the next run watches as if it were not there."""
    dumps = tmp_path / "dumps"
    with (
        hanging_pyspy(tmp_path) as python,
        watched(dumps, *LONG, python=python) as (engine, sidecar),
        whole_tree(sidecar) as tree,
    ):
        engine.kill("TP1")
        sidecar.wait("captured", status="captured")
        eventually(sidecar.incidents, "the opening record")
        for identity in tree:
            kill_identity(identity, signal.SIGSTOP)
        for identity in tree:
            kill_identity(identity)
        await_ended(tree, "our processes ended")
        record = sidecar.incidents()[0] / "incident.json"
        engine.kill_all()
    whole = record.read_text()
    for right, wrong in ((r'"deadline": 60\.0', '"deadline": "soon"'), (r'"pid": \d+', '"pid": 99999999999')):
        text = re.sub(right, wrong, whole)
        assert text != whole
        record.write_text(text)
        with watched(dumps, "--captures", "process") as (engine, later):
            later.wait("an unfinished incident cannot be read")
            engine.kill("TP0")
            assert engine.wait_gone(20) == [], later.log()
            later.wait("sealed", process="guard")
            assert not [line for line in later.events("process ended") if line["what"] == "guard"]


def finished_by_a_later_run(dumps: Path) -> None:
    """One incident is in the folder; after another run on it (with another engine) it is sealed, and the only one."""
    with watched(dumps) as (other, later):
        record = later.incident()
        assert [(f["rank"], f["cause"]) for f in record["failures"] if f["first"]] == [("TP1", "sigkill")]
        assert record["termination"] is not None
        await_metric(later, 1, "incidents_total")
        assert_counted_once(later)
        assert len(other.alive()) == len(other.processes)
        assert len(later.incidents()) == 1


def test_restarts_are_counted(tmp_path: Path) -> None:
    """`rankguard_process_restarts_total` says which of ours was started again, once each time."""
    counted = {"recorder": 0, "web": 0, "guard": 0}
    with watched(tmp_path / "dumps") as (_, sidecar):
        for kind in ("recorder", "web", "guard"):
            kill_identity(identity_of(sidecar.worker(kind)))
            counted[kind] += 1
            await_metric(sidecar, 1, "process_restarts_total", process=kind)
            if kind == "guard":
                del counted["recorder"]  # one that stands by leaves with its guard
            assert {name: metric(sidecar, "process_restarts_total", process=name) for name in counted} == counted
