"""Each way a CUDA coredump can go, with the driver's stand-in as a real process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coredump_rig import GIB, Double, Run, collected, scene
from recorder_rig import identity_of, state_of, wait_for

from sidecar.model import ArtifactStatus
from sidecar.recorder.coredump import elf
from sidecar.recorder.coredump.program import Answer, Order, answer_to

Start = Callable[..., Double]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    doubles: list[Double] = []

    def begin(*arguments: str, **how: object) -> Double:
        doubles.append(Double(tmp_path / f"engine{len(doubles)}", *arguments, **how))
        return doubles[-1]

    try:
        yield begin
    finally:
        for double in doubles:
            double.close()


@pytest.fixture
def incident(tmp_path: Path) -> Path:
    folder = tmp_path / "incident"
    folder.mkdir()
    return folder


def ordered(double: Double, incident: Path, lethal: bool = True, seconds: float = 20.0) -> Answer:
    """What the program answers, run in this process."""
    identity = double.identity
    deadline = time.monotonic() + seconds
    return answer_to(Order("/proc", identity.pid, identity.start, (), str(incident), "TP0", GIB, GIB, deadline, lethal))


def test_a_dump_is_captured_whole(start: Start, incident: Path) -> None:
    """It is in the incident's folder, with its size and checksum, the process lives, and its own folder is clean."""
    double = start("--size", "300000", "--delay", "0.3")
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.CAPTURED, piece.detail
    assert piece.file == "cuda_coredump/TP0.core"
    data = (incident / piece.file).read_bytes()
    assert piece.written == (len(data), hashlib.sha256(data).hexdigest())
    fd = os.open(incident / piece.file, os.O_RDONLY)
    assert elf.shortfall(fd) == ""
    os.close(fd)
    assert (incident / piece.file).stat().st_mode & 0o777 == 0o600
    assert "triggered with 1 byte" in piece.detail
    assert double.dumps() == []
    assert double.process.poll() is None


def test_not_enabled_is_skipped_and_says_how_to_enable_it(start: Start, incident: Path) -> None:
    double = start(environ={"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": ""})
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.SKIPPED
    assert "CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1" in piece.detail
    assert not (incident / "cuda_coredump").exists()


def test_enabled_but_cuda_has_not_begun(start: Start, incident: Path) -> None:
    """The environment asks for it, and there is no pipe."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print('x', flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=incident, env={**os.environ, "CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        piece = Run(identity_of(process.pid), scene(incident)).piece()
    finally:
        process.communicate(b"\n")
    assert piece.status is ArtifactStatus.SKIPPED
    assert "CUDA has not begun" in piece.detail


def test_a_pipe_that_nobody_reads(start: Start, incident: Path, tmp_path: Path) -> None:
    """A pipe that an earlier process left under this name is no reader."""
    os.mkfifo(tmp_path / "left-over")
    double = start(
        environ={"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "", "CUDA_COREDUMP_PIPE": str(tmp_path / "left-over")}
    )
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.FAILED
    assert "nobody reads the trigger pipe" in piece.detail


@pytest.mark.root
def test_no_permission_says_what_is_needed(incident: Path) -> None:
    """Run as another user, it may not look into the process: failed, with the remedy."""
    mine = identity_of(os.getpid())
    order = {
        "proc": "/proc", "pid": mine.pid, "start": mine.start, "others": [], "folder": str(incident), "label": "TP0",
        "room": GIB, "most": GIB, "deadline": time.monotonic() + 20, "lethal": True,
    }  # fmt: skip
    code = "import sys; sys.path.insert(0, sys.argv[1]); from sidecar.recorder.coredump.program import main; "
    drop = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); main(sys.argv[2])"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code + drop, root, json.dumps(order)], capture_output=True, timeout=30, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == "failed"
    assert "no permission" in said["detail"]
    assert "DAC_OVERRIDE" in said["detail"]


def test_triggered_but_no_file_in_time(start: Start, incident: Path) -> None:
    """It has written more and more, and says with how many bytes; the process is left as it was."""
    double = start("--behaviour", "no-file")
    piece = collected(double, scene(incident), seconds=2.5)
    assert piece.status is ArtifactStatus.TIMED_OUT
    assert "no dump file came" in piece.detail
    assert "triggered with 1 byte" not in piece.detail
    assert double.process.poll() is None


def test_a_driver_that_does_not_read_is_told_apart(start: Start, incident: Path) -> None:
    """Its pipe fills up, which neither blocks nor breaks anything."""
    double = start("--behaviour", "not-reading")
    piece = collected(double, scene(incident), seconds=2.5)
    assert piece.status is ArtifactStatus.TIMED_OUT
    assert "has not read its trigger pipe" in piece.detail


def test_a_driver_that_needs_a_megabyte(start: Start, incident: Path) -> None:
    """Small writes are not enough for it: more is written until the dump comes."""
    double = start("--behaviour", "needs-1mib")
    piece = collected(double, scene(incident), seconds=8.0)
    assert piece.status is ArtifactStatus.CAPTURED, piece.detail
    sent = re.search(r"triggered with ([0-9]+) bytes", piece.detail)
    assert sent is not None
    assert int(sent[1]) >= 1 << 20


def test_the_file_is_not_whole_at_the_deadline(start: Start, incident: Path) -> None:
    """What is there is kept, and called partial."""
    double = start("--behaviour", "never-ends", "--size", "200000")
    piece = collected(double, scene(incident), seconds=3.0)
    assert piece.status is ArtifactStatus.PARTIAL
    assert "not whole at the deadline" in piece.detail
    assert (incident / piece.file).stat().st_size > 0


def test_a_truncated_file_is_partial(start: Start, incident: Path) -> None:
    """It is still, and its section table is not in it."""
    double = start("--behaviour", "truncated", "--size", "3000000")
    piece = collected(double, scene(incident), seconds=3.0)
    assert piece.status is ArtifactStatus.PARTIAL
    assert "the section table is not in the file" in piece.detail


def test_the_target_dies_while_it_writes(start: Start, incident: Path) -> None:
    double = start("--behaviour", "half-then-die", "--size", "4000000")
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.PARTIAL
    assert "died while the dump was written" in piece.detail
    assert (incident / piece.file).stat().st_size > 1_000_000


def test_the_target_dies_before_it_writes(start: Start, incident: Path) -> None:
    double = start("--delay", "60")
    run = Run(double.identity, scene(incident))
    double.wait("triggered")
    double.process.kill()
    piece = run.piece()
    assert piece.status is ArtifactStatus.FAILED
    assert "died before it wrote" in piece.detail


def test_a_dump_that_ends_its_process_is_whole(start: Start, incident: Path) -> None:
    """Without skip_abort the process aborts after its dump: nothing of the dump is lost by that."""
    double = start("--size", "500000", environ={"CUDA_COREDUMP_GENERATION_FLAGS": "skip_global_memory"})
    answer = ordered(double, incident)
    assert answer.status is ArtifactStatus.CAPTURED, answer.detail
    assert "skip_abort was not set" in answer.detail
    assert double.process.wait(20) == -signal.SIGABRT


def test_a_process_that_is_to_live_is_not_aborted(start: Start, incident: Path) -> None:
    """Where the engine is not to be killed, no dump is triggered that may end it."""
    double = start(environ={"CUDA_COREDUMP_GENERATION_FLAGS": ""})
    answer = ordered(double, incident, lethal=False)
    assert answer.status is ArtifactStatus.SKIPPED
    assert "lacks skip_abort" in answer.detail
    assert double.process.poll() is None


def test_the_environment_that_a_title_wiped_out(start: Start, incident: Path) -> None:
    """setproctitle zeroes the rank's environment in /proc: the pipe is found by the rank's descriptors all the same."""
    double = start("--title", "sglang::scheduler_TP0", environ={
        "CUDA_COREDUMP_PIPE": "corepipe.cuda.%h.%p", "CUDA_COREDUMP_FILE": "core.cuda.%t.%p",
    })  # fmt: skip
    assert not Path(f"/proc/{double.identity.pid}/environ").read_bytes().strip(b"\0")
    answer = ordered(double, incident)
    assert answer.status is ArtifactStatus.CAPTURED, answer.detail


def test_frozen_and_stopped_ranks_are_skipped(start: Start, incident: Path) -> None:
    double = start()
    assert "frozen" in collected(double, scene(incident, frozen=True)).detail
    double.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(double.identity.pid) == "T")
    piece = collected(double, scene(incident))
    assert piece.status is ArtifactStatus.SKIPPED
    assert "this one is stopped" in piece.detail


def test_a_process_that_is_gone_is_skipped(start: Start, incident: Path) -> None:
    double = start()
    double.close()
    piece = collected(double, scene(incident))
    assert (piece.status, piece.detail) == (ArtifactStatus.SKIPPED, "the process is gone")


def test_the_deadline_is_kept_by_the_program_itself(start: Start, incident: Path) -> None:
    """It says what it was at before anybody has to kill it."""
    double = start("--delay", "600")
    piece = collected(double, scene(incident), seconds=1.5)
    assert piece.status is ArtifactStatus.TIMED_OUT
    assert "the driver read its trigger pipe, but no dump file came" in piece.detail


def test_a_program_that_is_killed_tells_what_it_was_at(start: Start, incident: Path) -> None:
    double = start("--delay", "600")
    run = Run(double.identity, scene(incident))
    double.wait("triggered")
    run.kill()
    piece = run.piece()
    assert piece.status is ArtifactStatus.TIMED_OUT
    assert "while triggering the dump" in piece.detail


def test_ranks_side_by_side_each_have_their_own(start: Start, incident: Path) -> None:
    """Two at a time, in one folder; one has no room for its dump, which is left where it is."""
    doubles = [start("--size", "400000"), start("--size", "400000")]
    rooms = (600_000, 300_000)
    runs = [Run(d.identity, scene(incident, room=rooms[n]), label=f"TP{n}") for n, d in enumerate(doubles)]
    captured, left = (run.piece() for run in runs)
    assert captured.status is ArtifactStatus.CAPTURED, captured.detail
    assert left.status is ArtifactStatus.SKIPPED
    assert "the volume has room for 300000" in left.detail
    assert os.listdir(incident / "cuda_coredump") == ["TP0.core"]
    assert [len(double.dumps()) for double in doubles] == [0, 1]


def test_a_dump_above_the_limit_is_left_where_it_is(start: Start, incident: Path) -> None:
    double = start("--size", "400000")
    piece = collected(double, scene(incident, most=100_000))
    assert piece.status is ArtifactStatus.SKIPPED
    assert "--coredump-max-bytes" in piece.detail
    assert str(double.folder) in piece.detail
    assert len(double.dumps()) == 1


def test_a_vanished_incident_folder(start: Start, tmp_path: Path) -> None:
    """Nothing is triggered where nothing could be kept."""
    double = start()
    piece = collected(double, scene(tmp_path / "nowhere"))
    assert piece.status is ArtifactStatus.FAILED
    assert piece.detail.startswith("the incident's folder cannot be used: ENOENT")
    assert double.dumps() == []
