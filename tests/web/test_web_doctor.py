"""The rounds of the doctor in the web process: when they are made, what is shown of them, and what cannot stop them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sidecar_process import PROC, descendants, identity_of, running
from web_harness import WebProcess, rank, wait_for, web_process

PATTERN = {"engine": "generic", "rank_pattern": "^no-process-is-called-like-this-one$"}
AVAILABLE = 'rankguard_capability_available{capability="%s"}'


@contextmanager
def sleeping(**popen: Any) -> Iterator[dict[str, Any]]:
    """A process, as the guard describes a rank."""
    started = subprocess.Popen(["sleep", "600"], **popen)
    try:
        yield rank("TP0", pid=started.pid, start=identity_of(started.pid).start, container="")
    finally:
        started.kill()
        started.wait(20)


def checks(web: WebProcess) -> dict[str, Any] | None:
    found = web.api("status").json()["checks"]
    assert found is None or isinstance(found, dict)
    return found


def doctors(web: WebProcess) -> list[int]:
    """The pids of the doctors that this web has at work."""
    at_work = descendants(web.pid)
    return [identity.pid for identity in at_work if b"sidecar.doctor.__main__" in PROC.cmdline(identity.pid)]


def status_of(found: dict[str, Any] | None, capability: str) -> str:
    assert found is not None
    (one,) = (check for check in found["checks"] if check["capability"] == capability)
    return str(one["status"])


def test_a_round_at_the_start_and_one_for_each_generation(tmp_path: Path) -> None:
    """What is found stands in the status and in the metrics; what is not known has no sample. A generation is looked at
    once, when its ranks are there, by their pids and start times.
    """
    with web_process(tmp_path, **PATTERN) as web, sleeping() as tp0:
        assert checks(web) is None
        guard = web.guard()
        guard.state(state="waiting", features={"pidfd": True, "pidfd_info": False})
        first = wait_for(lambda: checks(web), "the first round", 60.0)
        assert first["tier"] is None
        assert status_of(first, "ptrace") == "unknown"
        metrics = web.metrics()
        assert metrics[AVAILABLE % "volume"] == 1
        assert AVAILABLE % "ptrace" not in metrics
        guard.state([tp0], state="starting")
        guard.state([tp0], state="serving", features={"pidfd": False})
        second = wait_for(lambda: (now := checks(web)) != first and now, "the second round", 60.0)
        assert [target["pid"] for target in second["targets"]] == [tp0["pid"]]
        metrics = web.metrics()
        assert metrics[AVAILABLE % "ptrace"] == 1
        assert metrics[AVAILABLE % "pidfd"] == 0, "the guard's own word comes first"
        # The same generation again, with another rank: no third round; a new generation is one.
        guard.state([tp0, rank("TP1", up=False)], state="serving")
        guard.settled()
        assert doctors(web) == []
        assert checks(web) == second
        guard.state(state="restarting")
        guard.state([tp0], state="serving")
        wait_for(lambda: checks(web) != second, "the third round", 60.0)


def test_none_while_an_incident_is_open(tmp_path: Path) -> None:
    """One that is at work is ended when an incident opens, and made up for when it is over."""
    with web_process(tmp_path, **PATTERN) as web:
        guard = web.guard()
        guard.state(state="waiting", incident="i-1")
        guard.settled()
        assert doctors(web) == []
        guard.state(state="waiting")
        (at_work,) = wait_for(lambda: doctors(web), "a doctor at work")
        os.kill(at_work, 19)  # SIGSTOP: however fast it is, it is still at work when the incident opens
        guard.state(state="waiting", incident="i-2")
        wait_for(lambda: not doctors(web), "the doctor ended")
        guard.settled()
        assert checks(web) is None
        guard.state(state="restarting")
        wait_for(lambda: checks(web), "the round that was put off", 60.0)


@pytest.mark.root
def test_a_line_for_what_is_missing_and_none_while_it_stays_so(tmp_path: Path) -> None:
    """With what is lost. A later round that finds the same says nothing; one that finds it again says so."""
    blocked = tmp_path / "dumps"
    blocked.write_text("a file")
    with web_process(tmp_path, **PATTERN, dump_dir=str(blocked)) as web:
        guard = web.guard()
        guard.state(state="waiting")
        first = wait_for(lambda: checks(web), "the first round", 60.0)
        assert first["ok"] is False
        assert web.metrics()[AVAILABLE % "volume"] == 0

        def again() -> None:
            before = checks(web)
            with sleeping() as tp0:
                guard.state([tp0], state="serving")
                wait_for(lambda: checks(web) != before, "another round", 60.0)
            guard.state(state="restarting")

        again()
        (line,) = (line for line in web.log().splitlines() if "a capability is missing capability=volume " in line)
        assert "No evidence and no record" in line
        blocked.unlink()
        again()
        assert "a capability is there again capability=volume" in web.log()
        assert web.metrics()[AVAILABLE % "volume"] == 1


def test_it_gives_way_and_holds_nothing_open(tmp_path: Path) -> None:
    """The lowest priority, the first to go when memory is short, and no descriptor of the web's."""
    with web_process(tmp_path, **PATTERN) as web:
        web.guard().state(state="waiting")
        (at_work,) = wait_for(lambda: doctors(web)[:1], "a doctor at work")
        wait_for(lambda: os.getpriority(os.PRIO_PROCESS, at_work) == 19, "its priority")
        os.kill(at_work, 19)
        try:
            links = [os.readlink(f"/proc/{at_work}/fd/{name}") for name in os.listdir(f"/proc/{at_work}/fd")]
        finally:
            os.kill(at_work, 18)
        assert not [link for link in links if link.startswith(("socket:", "/memfd"))], links
        wait_for(lambda: checks(web), "the round", 60.0)


@contextmanager
def volume_that_hangs(folder: Path) -> Iterator[Path]:
    """An ext4 of its own that is frozen: whoever writes to it is held by the kernel until the end of this."""
    image, volume = folder / "image", folder / "volume"
    volume.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(volume)], check=True)
    try:
        subprocess.run(["fsfreeze", "--freeze", str(volume)], check=True)
        try:
            yield volume
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(volume)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(volume)], check=False)


@pytest.mark.root
def test_what_a_volume_holds_of_earlier_rounds_does_not_grow_without_end(tmp_path: Path) -> None:
    """A check that the kernel holds cannot be ended. With two rounds that left one, no further round is made."""
    left = []
    with web_process(tmp_path, **PATTERN, dump_dir=str(tmp_path / "volume")) as web:
        guard = web.guard()
        with volume_that_hangs(tmp_path):
            for number in range(2):
                guard.state(state="waiting")
                # By where it waits: D alone is also a page that comes from the disk.
                held = wait_for(
                    lambda: [pid for pid in doctors(web) if "rwsem" in PROC.wchan(pid)],
                    "a check that the kernel holds", 60.0,
                )  # fmt: skip
                left += [identity_of(pid) for pid in held]
                guard.state(state="waiting", incident=f"i-{number}")
                wait_for(lambda: not doctors(web), "the doctor ended")
            guard.state(state="waiting")
            wait_for(lambda: "those of earlier rounds hang" in web.log(), "the word on it")
            assert doctors(web) == []
            assert all(running(identity) for identity in left)
        wait_for(lambda: not any(running(identity) for identity in left), "all gone with the volume back")
