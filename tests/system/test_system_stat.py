"""/proc/PID/stat: hostile names, half lines, and what it says of real processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidecar_process import PROC, eventually, identity_of
from system_processes import END_MAIN_THREAD, NOBODY, Script, echo

from sidecar.errors import ProcessGone, ProtocolError
from sidecar.system.proc import PF_EXITING, Proc, Stat, parse_stat, read_held_stat, status_from_wait

# All 52 fields of proc(5), as Linux 6.18 wrote them for a `sleep`; the name is field 2.
RECORDED = (
    b"11939 (%b) S 11934 11939 11934 34816 11942 4194304 99 0 1 0 7 5 0 0 20 0 1 0 5036821 2953216 448 "
    b"18446744073709551615 94526297178112 94526297195697 140727640838352 0 0 0 0 0 0 1 0 0 17 1 0 0 0 0 0 "
    b"94526297210512 94526297212072 94526314758144 140727640841543 140727640841553 140727640841553 140727640846313 "
    b"768\n"
)
# The last field that is read of every line is 31, the pending signals; cut right behind it, it could be half of one.
END_OF_FIELD_31 = RECORDED.index(b" 0 0 0 0 0 0 1 ") + len(b" 0 0 0")
NAMES = st.binary(max_size=64).map(lambda name: name.replace(b"\0", b""))


def recorded(name: bytes = b"sleep") -> bytes:
    return RECORDED.replace(b"%b", name)


def test_a_recorded_line():
    """Each field comes from its own place."""
    assert parse_stat(recorded()) == Stat(
        pid=11939, comm="sleep", state="S", ppid=11934, pgid=11939, sid=11934, flags=4194304, threads=1, start=5036821,
        kill_pending=False, permitted=True, exit_code=768, cpu_ticks=12,
    )  # fmt: skip


@given(NAMES)
def test_a_hostile_name_changes_no_field(name):
    """Whatever bytes a process calls itself, `)` and newlines included, every other field reads the same."""
    stat, plain = parse_stat(recorded(name)), parse_stat(recorded())
    assert stat.comm == name.decode("utf-8", "backslashreplace")
    stat.comm.encode()  # it can be written down
    for field in ("identity", "state", "ppid", "pgid", "sid", "flags", "threads", "exit_code", "cpu_ticks"):
        assert getattr(stat, field) == getattr(plain, field)


@pytest.mark.parametrize("name", [b") Z 1 1 1 0 -1 4", b"a) R (b", b"\n1 (x) Z\n", b"(((", b")))", b"", b"\xff\xfe"])
def test_names_that_imitate_a_line(name):
    stat = parse_stat(recorded(name))
    assert (stat.pid, stat.state, stat.ppid, stat.exiting) == (11939, "S", 11934, False)


@given(NAMES)
def test_a_line_cut_short_is_refused(name):
    """Cut anywhere before the last field that is needed has ended, a line gives `ProtocolError`, and nothing else."""
    whole = recorded(name)
    needed = END_OF_FIELD_31 + len(whole) - len(RECORDED)
    for end in range(needed + 1):
        with pytest.raises(ProtocolError):
            parse_stat(whole[:end])
    assert parse_stat(whole[: needed + 2]).identity == parse_stat(whole).identity


WORDS = st.lists(st.sampled_from([b"0", b"-1", b"x", b"S", b"1e3", b"9" * 5000, b")", b"(a)", b""]), max_size=56)


@given(st.binary(max_size=400) | WORDS.map(lambda words: b"1 (a) S " + b" ".join(words)))
def test_what_is_no_stat_line_is_refused(data):
    """Any bytes give a `Stat` or `ProtocolError`, never another error."""
    try:
        assert isinstance(parse_stat(data), Stat)
    except ProtocolError:
        pass


@pytest.mark.parametrize("name", [b"a) Z 0 0 (\n) x", b") R 1 1 1 1 1 1", b"\xff\xfe\x80\x1b[2J", b"\n\n\n"])
def test_a_real_process_with_a_hostile_name(name):
    """The kernel passes a name on as it is; who the process is and what it does is read all the same."""
    source = "open('/proc/self/comm', 'wb', buffering=0).write(bytes.fromhex(sys.argv[1]))\nsay('ready')\nhear()"
    with Script(source, name.hex()) as script:
        script.heard()
        stat = PROC.stat(script.pid)
        assert stat is not None
        assert stat.comm == name[:15].decode("utf-8", "backslashreplace")
        assert (stat.pid, stat.ppid, stat.pgid, stat.identity) == (
            script.pid, os.getpid(), script.pid, script.identity,
        )  # fmt: skip
        assert not stat.exiting


def test_a_living_process():
    """It goes on, holds what it holds, and is no kernel thread; parent, group and session are the kernel's."""
    with echo() as script:
        stat = PROC.stat(script.pid)
        assert stat is not None
        assert (stat.ppid, stat.pgid, stat.sid) == (os.getpid(), script.pid, os.getsid(0))
        assert (stat.exiting, stat.zombie, stat.holds_resources, stat.kernel_thread) == (False, False, True, False)
        assert stat.permitted
        assert not stat.kill_pending


@pytest.mark.parametrize(
    ("end", "code", "number"),
    [("os._exit(0)", 0, None), ("os._exit(3)", 3, None), ("os.kill(os.getpid(), 9)", None, 9)],
)
def test_a_zombie_has_given_everything_back_and_keeps_its_status(end, code, number):
    """A zombie is exiting, holds nothing, and its stat holds the wait status. Reaped, it is nobody."""
    with Script(end) as script:
        held = PROC.open_stat(script.pid)
        try:
            script.until_zombie()
            for stat in (PROC.stat(script.pid), read_held_stat(held)):
                assert stat is not None
                assert (stat.zombie, stat.exiting, stat.holds_resources) == (True, True, False)
                assert stat.flags & PF_EXITING
                status = status_from_wait(stat.exit_code)
                assert (status.code, status.signal) == (code, number)
            assert PROC.cmdline(script.pid) == b""
            script.process.wait(30)
            assert PROC.stat(script.pid) is None
            assert read_held_stat(held) is None
            with pytest.raises(ProcessGone):
                PROC.open_stat(script.pid)
        finally:
            os.close(held)


def test_a_zombie_leader_whose_threads_run_on_still_holds_everything():
    """It will not run its main code again, so it is exiting; but its memory is not free until the last thread ends."""
    with Script(f"threading.Thread(target=hear).start()\nsay('ready')\n{END_MAIN_THREAD}") as script:
        script.heard()
        stat = eventually(lambda: (s := PROC.stat(script.pid)) and s.zombie and s, "the leader a zombie")
        assert (stat.threads, stat.exiting, stat.holds_resources) == (2, True, True)
        assert len(PROC.threads(script.pid)) == 2
        script.tell()
        script.until_zombie()
        last = PROC.stat(script.pid)
        assert last is not None
        assert (last.zombie, last.holds_resources) == (True, False)


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.root
@pytest.mark.skipif(not os.access(FREEZER / "cgroup.procs", os.W_OK), reason="no cgroup v1 freezer here")
def test_a_kill_that_waits_behind_a_d_state_counts_as_exiting():
    """A process that the kernel holds cannot act on its SIGKILL. It is dying all the same, and still holds all."""
    path = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if "freezer" in line)
    group = FREEZER / path.strip("/") / f"rankguard-test-{os.getpid()}"
    group.mkdir()
    try:
        with echo() as script:
            try:
                (group / "cgroup.procs").write_text(str(script.pid))
                (group / "freezer.state").write_text("FROZEN")
                eventually(lambda: (group / "freezer.state").read_text() == "FROZEN\n", "frozen")
                before = PROC.stat(script.pid)
                assert before is not None
                assert (before.state, before.kill_pending, before.exiting) == ("D", False, False)
                signal.pidfd_send_signal(pidfd := os.pidfd_open(script.pid), signal.SIGKILL)
                os.close(pidfd)
                after = PROC.stat(script.pid)
                assert after is not None
                assert (after.kill_pending, after.exiting, after.zombie, after.holds_resources) == (
                    True, True, False, True,
                )  # fmt: skip
            finally:
                (group / "freezer.state").write_text("THAWED")
            assert script.process.wait(30) == -signal.SIGKILL
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the group empty")
        group.rmdir()


def test_another_signal_that_waits_is_no_kill():
    """Only SIGKILL in the queue ends a process; a blocked SIGTERM does not."""
    with Script("signal.pthread_sigmask(signal.SIG_BLOCK, [15])\nos.kill(os.getpid(), 15)\nsay('ready')\nhear()") as s:
        s.heard()
        stat = PROC.stat(s.pid)
        assert stat is not None
        assert (stat.kill_pending, stat.exiting) == (False, False)


@pytest.mark.root
def test_what_may_not_be_looked_at_says_so():
    """Of a process of another user, without ptrace rights: identity, state and flags are read, `permitted` is False."""
    source = f"""
from sidecar.system.proc import Proc
proc = Proc()
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
stat = proc.stat(int(sys.argv[1]))
say(stat.permitted, stat.start, stat.exit_code, stat.exiting, proc.environ(stat.pid), proc.maps(stat.pid))
own = proc.stat(os.getpid())
say(own.start == own.start, own.pid)
"""
    with echo() as target, Script(source, str(target.pid)) as reader:
        assert reader.heard() == f"False {target.identity.start} 0 False None None"
        assert reader.heard() == f"True {reader.pid}"


@pytest.mark.root
def test_a_zombie_that_may_not_be_looked_at_did_not_exit_with_0():
    """The kernel hides its status as a 0, and shows nothing that tells so. Unknown stays unknown, and says why."""
    source = f"""
import select
from sidecar.guard.exits import Exits
from sidecar.system.features import probe
from sidecar.system.proc import Proc
features, proc = probe(), Proc()
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
exits = Exits(proc, features, select.epoll())
for seen in exits.watch(proc.stat(int(sys.argv[1])).identity, 1.0): say(seen.status.code, bool(seen.status.why_unknown))
"""
    with Script("os._exit(3)") as target:
        target.until_zombie()
        with Script(source, str(target.pid)) as watcher:
            assert watcher.heard() == "None True"


def test_the_newest_pid_moves_when_a_process_starts():
    """As long as it stands, nothing was started; with each new process it moves to that pid."""
    proc = Proc()
    try:
        first = proc.newest_pid()
        with echo() as script:
            # Others start processes too on a shared machine, so it may be beyond ours already, never before it.
            assert proc.newest_pid() != first
            assert script.pid in proc.pids()
        with Script("say(os.getpid(), open('/proc/loadavg').read().split()[-1])") as script:
            own, newest = script.heard().split()
            assert own == newest or int(newest) != first
    finally:
        proc.close()
    assert proc.newest_pid() is None


def test_without_a_newest_pid_nothing_is_claimed(tmp_path):
    """Where /proc has no loadavg, or one that says no pid, the newest pid is unknown, and every look lists /proc."""
    empty = Proc(str(tmp_path))
    assert empty.newest_pid() is None
    assert empty.pids() == []
    (tmp_path / "loadavg").write_text("0.00 0.01 0.05 1/80 nonsense\n")
    odd = Proc(str(tmp_path))
    try:
        assert odd.newest_pid() is None
    finally:
        odd.close()


@pytest.mark.root
def test_a_used_pid_is_another_process(tmp_path):
    """A stat held open since before tells of its own process only: gone is gone, whoever has the number now.

    The kernel is asked for the same pid again (clone3 with set_tid), so the case is the real one.
    """
    source = """
class Arguments(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack",
                "stack_size", "tls", "set_tid", "set_tid_size", "cgroup")]
wanted = (ctypes.c_int * 1)(int(sys.argv[1]))
arguments = Arguments(exit_signal=17, set_tid=ctypes.addressof(wanted), set_tid_size=1)
libc = ctypes.PyDLL(None, use_errno=True)
pid = libc.syscall(435, ctypes.byref(arguments), ctypes.sizeof(arguments))
if pid == 0:
    signal.pause()
    os._exit(1)
say(pid, ctypes.get_errno())
hear()
"""
    with echo() as first:
        identity = first.identity
        held = PROC.open_stat(first.pid)
    try:
        with Script(source, str(identity.pid)) as starter:
            pid, error = map(int, starter.heard().split())
            if pid < 0:
                pytest.skip(f"the kernel gives no chosen pid here: {os.strerror(error)}")
            second = identity_of(pid)
            assert second.pid == identity.pid
            assert second != identity
            assert read_held_stat(held) is None
    finally:
        os.close(held)


def test_what_a_process_shows_of_itself(tmp_path):
    """Command line, environment, cgroup, threads, kernel wait and boot: read from a real process, empty of nobody."""
    with echo() as script:
        argv = PROC.cmdline(script.pid).split(b"\0")
        assert argv[:3] == [os.fsencode(sys.executable), b"-S", b"-c"]
        environ = PROC.environ(script.pid)
        assert environ is not None
        assert b"PYTHONPATH=" in environ
        assert PROC.cgroup(script.pid) == Path("/proc/self/cgroup").read_text()
        assert PROC.threads(script.pid) == [script.pid]
        assert PROC.link(f"{script.pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    gone = script.pid
    assert (PROC.stat(gone), PROC.cmdline(gone), PROC.environ(gone)) == (None, b"", None)
    assert (PROC.threads(gone), PROC.wchan(gone), PROC.maps(gone), PROC.link(f"{gone}/cwd")) == ([], "", b"", None)
    assert PROC.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_long_files_are_read_to_their_end():
    """The kernel hands out a page at a time: a long command line and a long maps come whole."""
    words = [f"word{n:06d}" for n in range(5000)]
    source = "import mmap\nmaps = [mmap.mmap(-1, 4096 * (1 + n % 2)) for n in range(300)]\nsay('ready')\nhear()"
    with Script(source, *words) as script:
        script.heard()
        assert PROC.cmdline(script.pid).split(b"\0")[-2] == words[-1].encode()
        maps = PROC.maps(script.pid)
        assert maps is not None
        assert len(maps) > 4096
        assert maps.rstrip().splitlines()[-1].endswith((b"[vsyscall]", b"[vdso]", b"[stack]"))
