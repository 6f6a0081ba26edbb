"""Wrap mode as a person runs it: in a terminal, with `| tee` behind it, and a terminal that goes away."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from life_parts import await_ended, stopped
from sidecar_process import descendants, eventually, identity_of, kill_identity, running

from sidecar.model import Identity

# The command says that it is there, takes its time for a stop, and says what it thinks of the end of `tee`.
_COMMAND = """
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(9))
signal.signal(signal.SIGHUP, lambda *_: os._exit(8))
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""


class Terminal:
    """A terminal with a process group in its foreground. `seen` is what was printed so far."""

    def __init__(self, script: str, environment: dict[str, str]) -> None:
        self.ours, theirs = pty.openpty()
        self.seen = ""

        def control() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            ["bash", "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | environment,
            start_new_session=True, preexec_fn=control,
        )  # fmt: skip
        os.close(theirs)

    def read_more(self, timeout: float = 30.0) -> bool:
        """Read something more. False at the end of all output. Raises `AssertionError` if nothing comes."""
        assert select.select([self.ours], [], [], timeout)[0], f"nothing more came:\n{self.seen}"
        try:
            chunk = os.read(self.ours, 65536)
        except OSError:  # EIO: nobody has it open any more
            return False
        self.seen += chunk.decode(errors="replace")
        return bool(chunk)

    def read_all(self) -> str:
        """Read to the end of all output."""
        while self.read_more():
            pass
        return self.seen

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def close(self) -> None:
        if self.ours >= 0:
            os.close(self.ours)
            self.ours = -1


@contextmanager
def terminal(script: str, **environment: str) -> Iterator[Terminal]:
    """Whatever is left of it at the end is killed, each process by its identity."""
    opened = Terminal(script, environment)
    tree: list[Identity] = []
    try:
        yield opened
    finally:
        if opened.process.poll() is None:
            tree = descendants(opened.process.pid)
            opened.process.kill()
        opened.process.wait()
        for identity in tree:
            kill_identity(identity)
        opened.close()


def wrapped(tmp_path: Path) -> str:
    """The command line, for a shell."""
    (tmp_path / "command.py").write_text(_COMMAND)
    return (
        f"{sys.executable} -m sidecar run --dump-dir {tmp_path}/dumps --listen none --api-listen none"
        f" -- {sys.executable} {tmp_path}/command.py"
    )


def ready(opened: Terminal) -> Identity:
    """Wait until the command runs. Its identity."""
    while not (line := re.search(r"ready (\d+)\r", opened.seen)):
        assert opened.read_more(), opened.seen
    return identity_of(int(line[1]))


def test_ctrl_c_under_tee(tmp_path: Path) -> None:
    """Ctrl-C ends `tee` as well: what we then print goes nowhere, and the status is still the command's."""
    script = f"{wrapped(tmp_path)} 2>&1 | tee {tmp_path}/out; echo statuses ${{PIPESTATUS[@]}}"
    # The shell itself outlives Ctrl-C, as an interactive one does.
    with terminal(f"trap : INT; {script}") as opened:
        command = ready(opened)
        shell = opened.process.pid
        eventually(lambda: len(descendants(shell)) >= 5, "guard, recorder and web")
        ours = descendants(shell)
        opened.type(b"\x03")
        printed = opened.read_all()
        assert "statuses 9 130" in printed
        assert "Traceback" not in printed + (tmp_path / "out").read_text()
        assert not running(command)
        await_ended(ours, "everything ended")
        assert list((tmp_path / "dumps").glob("*/incident.json")) == []


def test_a_reader_that_dies_is_no_stop(tmp_path: Path) -> None:
    """`| tee` is killed: nobody reads our log any more. That is no reason to end, and no crash."""
    script = (
        f"{wrapped(tmp_path)} 2>&1 | (cat > {tmp_path}/out & echo $! > {tmp_path}/cat; wait); echo ${{PIPESTATUS[0]}}"
    )
    with terminal(script) as opened:
        out = tmp_path / "out"
        line = eventually(lambda: out.exists() and re.search(r"ready (\d+)\n", out.read_text()), "ready")
        command = identity_of(int(line[1]))
        kill_identity(identity_of(int((tmp_path / "cat").read_text())))
        supervisor = supervisor_of(command)
        tree = descendants(supervisor.pid)
        guard = next(i for i in tree if b"sidecar.guard" in Path(f"/proc/{i.pid}/cmdline").read_bytes())
        kill_identity(guard)  # which makes the supervisor and the next guard log
        eventually(lambda: guards(supervisor) not in ([], [guard]), "the next guard")
        assert running(command)
        os.kill(supervisor.pid, signal.SIGINT)
        assert "9" in opened.read_all().splitlines()


def guards(supervisor: Identity) -> list[Identity]:
    found = []
    for identity in descendants(supervisor.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"sidecar.guard" in Path(f"/proc/{identity.pid}/cmdline").read_bytes():
                found.append(identity)
    return found


def supervisor_of(command: Identity) -> Identity:
    parent = int(Path(f"/proc/{command.pid}/stat").read_text().rpartition(")")[2].split()[1])
    return identity_of(parent)


def test_the_terminal_is_closed(tmp_path: Path) -> None:
    """The window goes away: SIGHUP is passed on, the command ends, nothing of it or of us is left, no incident."""
    with terminal(f"exec {wrapped(tmp_path)}") as opened:
        command = ready(opened)
        shell = opened.process.pid
        eventually(lambda: len(descendants(shell)) >= 4, "guard, recorder and web")
        ours = descendants(shell)
        opened.close()
        assert opened.process.wait(30) == 8
        await_ended([command, *ours], "everything ended")
        assert list((tmp_path / "dumps").glob("*/incident.json")) == []


def test_ctrl_z_does_not_stop_the_watch(tmp_path: Path) -> None:
    """Ctrl-Z reaches our whole group, as a job of an interactive shell, and stops none of it."""
    with terminal(f"set -m; {wrapped(tmp_path)}; echo status $?") as opened:
        command = ready(opened)
        shell = opened.process.pid
        eventually(lambda: len(descendants(shell)) >= 5, "guard, recorder and web")
        ours = descendants(shell)
        opened.type(b"\x1a")
        while "^Z" not in opened.seen:
            assert opened.read_more()
        assert stopped(ours) == []
        opened.type(b"\x03")
        assert "status 9" in opened.read_all()
        assert not running(command)
