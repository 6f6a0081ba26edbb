"""Evidence through the whole of Rankguard: what a hang leaves, what a death leaves, and what must be in neither."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hanging_engine import Doubles, artifacts, hung, sealed
from life_parts import ask, port_of, stopped, watched
from sidecar_process import Sidecar, events_of, eventually, running

from sidecar.recorder.coredump.elf import shortfall

DUMPS = ("--captures", "process,cuda_coredump")
SMALL = ("--size", "300000")


@contextmanager
def tmpfs(where: Path, size: str) -> Iterator[Path]:
    """A small volume of its own, unmounted at the end even if something still uses it."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(where)], check=True, timeout=30)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=False, capture_output=True, timeout=30)


def whole(folder: Path, artifact: dict[str, Any]) -> None:
    """A captured dump is there as the record says, and is a complete coredump."""
    assert artifact["status"] == "captured", artifact["detail"]
    path = folder / artifact["path"]
    data = path.read_bytes()
    assert (artifact["bytes"], artifact["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    with path.open("rb") as file:
        assert shortfall(file.fileno()) == ""


def stalled(sidecar: Sidecar, engine: Doubles) -> tuple[Path, dict[str, Any]]:
    """The engine is killed for its hang, with one incident of it; that comes after all its captures."""
    engine.wait_gone(sidecar)
    (record,) = sealed(sidecar, 1)
    assert record["reason"] == "EngineStalled", record["summary"]
    assert record["verdict"]["liveness"] == "stuck"
    assert record["termination"]["outcome"] in ("reaped", "exited_unreaped")
    steps = events_of(record)
    assert steps.index("detected") < steps.index("frozen") < steps.index("killed") < steps.index("gone")
    return sidecar.incidents()[0], record


def test_dumps_are_moved_into_the_incident(tmp_path: Path) -> None:
    """On one volume: by a rename, whole, before anything is stopped; two snapshots of each rank stand beside them."""
    with (
        Doubles(tmp_path / "engine", tmp_path, [SMALL, (*SMALL, "--delay", "0.3")]) as engine,
        hung(tmp_path / "dumps", engine, *DUMPS) as sidecar,
    ):
        folder, record = stalled(sidecar, engine)
        found = artifacts(record, "cuda_coredump")
        assert sorted(found) == ["TP0", "TP1"]
        for artifact in found.values():
            whole(folder, artifact)
            assert "moved" in artifact["detail"]
        assert list(tmp_path.glob("dump.*")) == []
        steps = events_of(record)
        last = len(steps) - 1 - steps[::-1].index("captured")
        assert last < steps.index("frozen")
        assert {"TP0", "TP1"} <= set(artifacts(record, "process")) & set(artifacts(record, "process2"))


@pytest.mark.root
def test_dumps_are_streamed_from_another_file_system(tmp_path: Path) -> None:
    """The copy is whole, and the driver's file is gone from where it would fill that place."""
    with (
        tmpfs(tmp_path / "scratch", "16m") as scratch,
        Doubles(tmp_path / "engine", scratch, [SMALL, SMALL]) as engine,
        hung(tmp_path / "dumps", engine, *DUMPS) as sidecar,
    ):
        folder, record = stalled(sidecar, engine)
        for artifact in artifacts(record, "cuda_coredump").values():
            whole(folder, artifact)
            assert "copied" in artifact["detail"]
        assert list(scratch.glob("dump.*")) == []


def test_one_rank_never_writes_its_dump(tmp_path: Path) -> None:
    """The others' dumps are taken, that one is told apart, and the deadline and the kill are kept."""
    with (
        Doubles(tmp_path / "engine", tmp_path, [SMALL, ("--behaviour", "no-file"), SMALL]) as engine,
        hung(tmp_path / "dumps", engine, *DUMPS, "--liveness-deadline", "8") as sidecar,
    ):
        folder, record = stalled(sidecar, engine)
        found = artifacts(record, "cuda_coredump")
        whole(folder, found["TP0"])
        whole(folder, found["TP2"])
        assert found["TP1"]["status"] == "timed_out"
        assert "triggered" in found["TP1"]["detail"]
        assert found["TP1"]["path"] == ""


def test_a_rank_dies_while_it_writes(tmp_path: Path) -> None:
    """Its death is part of the incident, its half dump is never called whole, and the engine is killed."""
    with (
        Doubles(tmp_path / "engine", tmp_path, [SMALL, (*SMALL, "--behaviour", "half-then-die")]) as engine,
        hung(tmp_path / "dumps", engine, *DUMPS) as sidecar,
    ):
        folder, record = stalled(sidecar, engine)
        assert [(f["rank"], f["cause"]) for f in record["failures"]] == [("TP1", "sigkill")]
        found = artifacts(record, "cuda_coredump")
        assert found["TP1"]["status"] in ("partial", "failed")
        assert "died" in found["TP1"]["detail"]
        whole(folder, found["TP0"])
        assert "as did" not in record["summary"]


def test_a_rank_aborts_after_its_dump(tmp_path: Path) -> None:
    """As the driver may do without skip_abort: the dumps are whole, and the ends are of this incident."""
    with (
        Doubles(
            tmp_path / "engine", tmp_path, [SMALL, SMALL], environ={"CUDA_COREDUMP_GENERATION_FLAGS": ""}
        ) as engine,
        hung(tmp_path / "dumps", engine, *DUMPS) as sidecar,
    ):
        folder, record = stalled(sidecar, engine)
        found = artifacts(record, "cuda_coredump")
        assert [artifact["status"] for artifact in found.values()].count("captured") >= 1, found
        for artifact in found.values():
            if artifact["status"] == "captured":
                whole(folder, artifact)
        assert {failure["cause"] for failure in record["failures"]} <= {"sigabrt"}


@pytest.mark.root
def test_no_room_for_the_dumps(tmp_path: Path) -> None:
    """By the quota, by the limit of one, by the volume: the rest is kept, and the record says what was too large."""
    short = {"quota": ("--dump-max-bytes", "2MiB"), "one": ("--coredump-max-bytes", "1MiB"), "volume": ()}
    with tmpfs(tmp_path / "volume", "4m") as mounted, ExitStack() as stack:
        pairs = []  # all at the same time: most of it is waiting
        for name, flags in short.items():
            dumps = mounted if name == "volume" else tmp_path / name
            folder = tmp_path / f"engine-{name}"
            engine = stack.enter_context(Doubles(folder, folder, [("--size", "6000000")] * 2))
            flags = (*DUMPS, "--dump-free-floor", "0", *flags)
            pairs.append((engine, stack.enter_context(hung(dumps / "dumps", engine, *flags))))
        for engine, sidecar in pairs:
            folder, record = stalled(sidecar, engine)
            for artifact in artifacts(record, "cuda_coredump").values():
                assert (artifact["status"], artifact["path"]) == ("skipped", ""), artifact
                assert re.search(r"no room for the dump: it has \d{7} bytes", artifact["detail"]), artifact
            assert not list(folder.glob("cuda_coredump/*"))
            assert {a["status"] for a in artifacts(record, "process").values()} == {"captured"}
        assert len(list(tmp_path.glob("engine-*/dump.*"))) == 6  # they stay with their writers


@pytest.mark.root
@pytest.mark.parametrize("how", ["full", "vanished"])
def test_the_volume_fails_in_the_middle(tmp_path: Path, how: str) -> None:
    """After the opening record it is full, or not mounted any more: the kill happens, and the loss is told."""
    slow = (*SMALL, "--delay", "2")
    with (
        tmpfs(tmp_path / "volume", "1m") as mounted,
        Doubles(tmp_path / "engine", tmp_path, [slow, slow]) as engine,
        hung(mounted / "dumps", engine, *DUMPS, "--dump-free-floor", "0", "--liveness-deadline", "8") as sidecar,
    ):
        sidecar.wait("liveness failed")
        eventually(lambda: "triggered" in engine.said(), "a dump asked for")
        if how == "full":
            fill(mounted / "filler")
        else:
            subprocess.run(["umount", "--lazy", str(mounted)], check=True, timeout=30)
        engine.wait_gone(sidecar)
        sidecar.wait("gone")
        eventually(
            lambda: sidecar.events("lost") or any(line["process"] == "guard" for line in sidecar.events("sealed")),
            f"the record, or word of its loss\n{sidecar.log()}", 60.0,
        )  # fmt: skip
        if how == "full" and sidecar.incidents() and not sidecar.events("lost"):
            (record,) = sealed(sidecar, 1)
            statuses = {a["status"] for a in artifacts(record, "cuda_coredump").values()}
            assert "captured" not in statuses, record["artifacts"]


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def test_a_death_with_all_captures(tmp_path: Path) -> None:
    """What needs running processes is skipped and says so; the freeze comes first and the kill is not late."""
    with watched(tmp_path / "dumps") as (engine, sidecar):
        engine.kill("TP1")
        assert engine.wait_gone(20) == []
        record = sidecar.incident()
        for kind in ("nccl_ras", "flight_recorder", "stacks_native", "cuda_coredump"):
            skipped = [a for a in record["artifacts"] if a["kind"] == kind]
            if kind != "stacks_native":
                assert skipped, (kind, {a["kind"] for a in record["artifacts"]})
            for artifact in skipped:
                assert (artifact["status"], "running process" in artifact["detail"]) == ("skipped", True), artifact
        assert "captured" in {a["status"] for a in record["artifacts"] if a["kind"] == "process"}
        assert "deadline" not in events_of(record)
        steps = events_of(record)
        assert steps.index("detected") < steps.index("frozen") < steps.index("killed")
        assert stopped([rank.identity for rank in engine.ranks]) == []


def test_the_metrics_before_a_death(tmp_path: Path) -> None:
    """The record of a death has what the engine's metrics said before it."""
    with (
        Doubles(tmp_path / "engine", tmp_path) as engine,
        Sidecar(tmp_path / "dumps", *engine.flags, "--captures", "process,metrics") as sidecar,
    ):
        sidecar.wait_serving()
        sidecar.wait("the engine answers")
        engine.pages.seen(4711)
        subprocess.run(["kill", "-9", str(engine.ranks[0].pid)], check=True)
        engine.wait_gone(sidecar)
        (record,) = sealed(sidecar, 1)
        assert record["reason"] == "RankDied"
        (artifact,) = [a for a in record["artifacts"] if a["kind"] == "engine_metrics"]
        text = (sidecar.incidents()[0] / artifact["path"]).read_text()
        assert "vllm:generation_tokens_total" in text
        assert "4711" in text


def status(sidecar: Sidecar) -> str:
    """/api/v1/status."""
    host = sidecar.wait("listening", process="supervisor")["api_listen"]
    with urllib.request.urlopen(f"http://{host}/api/v1/status", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


SECRETS = {
    "arg": "argSecretValue17", "env": "envSecretValue23", "user": "urlUserSecret31", "query": "queryTokenValue47",
    "hook": "hookTokenValue59", "vllm": "vllmKeyValue61",
}  # fmt: skip


def test_no_secret_is_seen_anywhere(tmp_path: Path) -> None:
    """After a hang with all collectors: in no file of the dump folder, in no log line, in no answer of ours."""
    environ = {"HF_TOKEN": SECRETS["env"], "VLLM_API_KEY": SECRETS["vllm"]}
    with Doubles(tmp_path / "engine", tmp_path, [SMALL, SMALL], f"--api-key {SECRETS['arg']}", environ) as engine:
        address = engine.pages.url.removeprefix("http://")
        urls = (
            "--health-url", f"http://{address}/health?token={SECRETS['query']}",
            "--metrics-url", f"http://{address}/metrics?api_key={SECRETS['query']}",
        )  # fmt: skip
        with Sidecar(
            tmp_path / "dumps", *engine.flags, *urls, "--api-listen", "127.0.0.1:0", "--hook-token", SECRETS["hook"],
            "--captures", "process,pyspy,metrics,nccl_ras,flight_recorder,nvml,pyspy_native,cuda_coredump,crash_folder",
            "--liveness-deadline", "20",
        ) as sidecar:  # fmt: skip
            sidecar.wait_serving()
            sidecar.wait("the engine answers")
            shown = [status(sidecar)]
            engine.hang()
            stalled(sidecar, engine)
            shown += [status(sidecar), sidecar.log(), ask(port_of(sidecar), "/metrics")[1]]
            sidecar.stop()
            shown += [sidecar.log()]
        files = [path for path in (tmp_path / "dumps").rglob("*") if path.is_file()]
        assert len(files) > 5
        shown += [path.read_bytes().decode("utf-8", "replace") for path in files]
        assert any("--api-key ***" in text for text in shown)  # it was there to be masked
        leaks = [(name, text[max(0, text.find(v) - 200) : text.find(v) + 60])
                 for name, v in SECRETS.items() for text in shown if v in text]  # fmt: skip
        assert leaks == []


def test_a_password_in_a_url_is_refused_unseen(tmp_path: Path) -> None:
    with Sidecar(tmp_path / "dumps", "--health-url", f"http://me:{SECRETS['user']}@127.0.0.1/health") as sidecar:
        assert sidecar.process.wait(20) == 2
        eventually(lambda: "password" in sidecar.log(), "the line about it")
        assert SECRETS["user"] not in sidecar.log()


def test_a_crash_loop_across_restarts(tmp_path: Path) -> None:
    """With one full incident an hour, the next ones are summaries that count, though each has a new Rankguard."""
    for count in (1, 2, 3):
        with (
            Doubles(tmp_path / f"engine{count}", tmp_path) as engine,
            Sidecar(
                tmp_path / "dumps", *engine.flags, "--captures", "process", "--full-incidents-per-hour", "1"
            ) as sidecar,
        ):
            sidecar.wait_serving()
            subprocess.run(["kill", "-9", str(engine.ranks[0].pid)], check=True)
            engine.wait_gone(sidecar)
            record = sealed(sidecar, count)[-1]
            captured = [a for a in record["artifacts"] if a["status"] == "captured"]
            if count == 1:
                assert captured
                assert record["throttled"] is None
            else:
                assert captured == []
                assert (record["throttled"]["limit"], record["throttled"]["count"]) == (1, count - 1)
            assert record["termination"] is not None
            assert not any(running(identity) for identity in engine.everyone)
    listed = subprocess.run(
        [sys.executable, "-m", "sidecar", "incidents", "list", "--dump-dir", str(tmp_path / "dumps")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert listed.stdout.count("rankdied") >= 3, listed
