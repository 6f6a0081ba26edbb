"""A process held by descriptor: which one is opened, what it tells after the end, and what a full table means."""

from __future__ import annotations

import os
import signal

import pytest
from sidecar_process import PROC, identity_of
from system_processes import Script, echo, open_descriptors, readable

from sidecar.errors import ProcessGone, Unsupported
from sidecar.model import Identity
from sidecar.system import features, pidfd
from sidecar.system.features import Features
from sidecar.system.proc import status_from_wait

KERNEL = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
HERE = features.probe()
needs_info = pytest.mark.skipif(not HERE.pidfd_info, reason="no exit status of others from this kernel")


def test_the_right_process_is_opened():
    """The descriptor becomes readable when exactly this process ends."""
    with echo() as script:
        fd = pidfd.open_process(PROC, script.identity)
        try:
            assert readable([fd], timeout=0) == []
            assert pidfd.send(fd, signal.SIGKILL)
            assert readable([fd]) == [fd]
            script.process.wait(30)
            assert not pidfd.send(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def test_another_start_time_is_another_process():
    """A pid alone opens nothing, and what was opened on the way is closed again."""
    before = open_descriptors()
    with echo() as script:
        opened = open_descriptors()
        for start in (script.identity.start - 1, script.identity.start + 1, 0):
            with pytest.raises(ProcessGone):
                pidfd.open_process(PROC, Identity(script.pid, start))
        assert open_descriptors() == opened
        assert script.answers()
    assert open_descriptors() == before


def test_a_zombie_and_nobody_are_gone():
    """A zombie has released all that it held: there is nothing to open, as for a process that was reaped."""
    with Script("pass") as script:
        script.until_zombie()
        assert PROC.stat(script.pid) is not None
        before = open_descriptors()
        with pytest.raises(ProcessGone):
            pidfd.open_process(PROC, script.identity)
        assert open_descriptors() == before
        script.process.wait(30)
        with pytest.raises(ProcessGone):
            pidfd.open_process(PROC, script.identity)


@pytest.mark.skipif(not HERE.thread_pidfd, reason="no thread pidfds on this kernel")
def test_the_end_of_a_thread_is_seen_while_its_process_lives():
    """A thread's pidfd tells of that thread alone; the process's own stays silent."""
    source = "t = threading.Thread(target=hear)\nt.start()\nsay(t.native_id)\nt.join()\nsay('joined')\nhear()"
    with Script(source) as script:
        thread = pidfd.open_thread(int(script.heard()))
        whole = pidfd.open_process(PROC, script.identity)
        try:
            assert readable([thread, whole], timeout=0) == []
            script.tell()
            assert readable([thread, whole]) == [thread]
            assert script.heard() == "joined"
        finally:
            os.close(thread)
            os.close(whole)


def test_a_thread_that_is_no_more():
    """No thread, no descriptor: `ProcessGone` where the kernel has thread pidfds, else `Unsupported`."""
    with Script("pass") as script:
        script.process.wait(30)
        with pytest.raises(ProcessGone if HERE.thread_pidfd else Unsupported):
            pidfd.open_thread(script.pid)


REAPER = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    os.read(read, 1)
    exec(sys.argv[1])
    os._exit(99)
say(child)
hear()
os.close(write)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
say('zombie')
hear()
say(os.waitpid(child, 0)[1])
hear()
"""


@needs_info
@pytest.mark.parametrize(
    ("end", "code", "number"),
    [
        ("os._exit(0)", 0, None),
        ("os._exit(3)", 3, None),
        ("os.kill(os.getpid(), signal.SIGSEGV)", None, signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", None, signal.SIGKILL),
    ],
)
def test_the_exit_status_of_a_process_that_is_not_ours(tmp_path, end, code, number):
    """Once its own parent has reaped it, the pidfd tells what only that parent could know, the core flag included."""
    with Script(REAPER, end, cwd=tmp_path) as parent:
        child = identity_of(int(parent.heard()))
        parent.others.append(child)
        fd = pidfd.open_process(PROC, child)
        try:
            running = pidfd.reaped_status(fd)
            parent.tell()
            assert parent.heard() == "zombie"
            unreaped = pidfd.reaped_status(fd)
            for status in (running, unreaped):
                assert not status.known
                assert status.why_unknown
            assert readable([fd]) == [fd]
            parent.tell()
            status = pidfd.reaped_status(fd) if (waited := int(parent.heard())) >= 0 else None
            assert status == status_from_wait(waited)
            assert status is not None
            assert (status.code, status.signal) == (code, number)
        finally:
            os.close(fd)


def test_a_core_dump_is_told_from_a_bare_signal():
    """The wait status word says whether a core was written (wait(2)); a stop or a continue is no end."""
    assert status_from_wait(0x8B).core_dumped
    assert not status_from_wait(0x0B).core_dumped
    assert (status_from_wait(0x0B).signal, status_from_wait(0x8B).signal) == (11, 11)
    assert status_from_wait(3 << 8).code == 3
    for stopped in (0x137F, 0xFFFF):
        assert not status_from_wait(stopped).known
        assert status_from_wait(stopped).why_unknown


def test_a_refused_ioctl_is_unknown_and_says_why(tmp_path):
    """What is no pidfd has no status: never 0."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        status = pidfd.reaped_status(fd)
        assert not status.known
        assert "PIDFD_GET_INFO" in status.why_unknown
    finally:
        os.close(fd)


# --- features


def test_every_feature_that_this_kernel_has_is_found():
    """Found by doing it. The versions are those of the kernels that first had each (see `features`)."""
    found = {"pidfd": (5, 3), "thread_pidfd": (6, 9), "pidfd_hup": (6, 9), "pidfd_info": (6, 15)}
    for name, since in found.items():
        if since <= KERNEL:
            assert getattr(HERE, name), f"Linux {KERNEL} has {name}"


@pytest.mark.parametrize("mask", ["thread_pidfd", "pidfd_hup", "pidfd_info"])
def test_a_masked_feature_is_not_there_and_the_others_are(mask):
    expected = {name: getattr(HERE, name) for name in Features.__slots__} | {mask: False}
    assert features.probe((mask,)) == Features(**expected)


def test_without_pidfds_there_is_nothing_of_them():
    """The other three are ways to use a pidfd."""
    assert features.probe(("pidfd",)) == Features(False, False, False, False)
    assert features.probe(("pidfd", "pidfd_info")) == Features(False, False, False, False)


def test_probing_leaves_nothing_behind():
    """No descriptor, no child, no thread."""
    with Script(
        "from sidecar.system import features\nbefore = sorted(os.listdir('/proc/self/fd'))\nfeatures.probe()\n"
        "say(before == sorted(os.listdir('/proc/self/fd')), threading.active_count())\n"
        "try: os.waitpid(-1, 0)\nexcept ChildProcessError: say('no child')"
    ) as script:
        assert script.heard() == "True 1"
        assert script.heard() == "no child"


# --- out of descriptors

LIMITED = """
import resource
from sidecar.errors import OutOfDescriptors, Unsupported
from sidecar.model import Identity
from sidecar.system import features, pidfd, signals
from sidecar.system.proc import Proc
proc = Proc()
target = Identity(int(sys.argv[1]), int(sys.argv[2]))
held = []
def leave(free):
    '''Use up every descriptor but so many.'''
    while held: os.close(held.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True: held.append(os.dup(0))
    except OSError: pass
    for _ in range(free): os.close(held.pop())
def free():
    '''How many more can be opened.'''
    some = []
    try:
        while True: some.append(os.dup(0))
    except OSError: pass
    for fd in some: os.close(fd)
    return len(some)
def attempt(what, *arguments):
    try: what(*arguments)
    except OutOfDescriptors as error: say('out of descriptors', isinstance(error, Unsupported))
    except Exception as error: say(type(error).__name__, error)
    else: say('done')
"""


def test_no_descriptor_left_is_not_unsupported():
    """With a full table every opening says `OutOfDescriptors`: the call is there and would work with a higher limit."""
    source = LIMITED + (
        "leave(0)\nfor call in (features.probe,), (pidfd.open_process, proc, target), (pidfd.open_thread, target.pid), "
        "(proc.open_stat, target.pid), (proc.stat, target.pid), (proc.cmdline, target.pid), (proc.environ, target.pid):"
        " attempt(*call)\nleave(3)\nattempt(features.probe)\nattempt(pidfd.open_process, proc, target)"
    )
    with echo() as target, Script(source, str(target.pid), str(target.identity.start)) as script:
        for _ in range(7):
            assert script.heard() == "out of descriptors False"
        assert script.heard() == "done"
        assert script.heard() == "done"


def test_with_one_descriptor_left_none_is_lost():
    """The pidfd takes the last one and the check has none: an error, and the pidfd is closed again."""
    source = LIMITED + "leave(1)\nfor _ in range(2):\n  attempt(pidfd.open_process, proc, target)\n  say(free())"
    with echo() as target, Script(source, str(target.pid), str(target.identity.start)) as script:
        assert [script.heard() for _ in range(4)] == ["out of descriptors False", "1"] * 2


def test_with_one_descriptor_left_a_process_is_still_signalled():
    """No room for the pidfd and the check at once: then the checked pid has to do."""
    source = LIMITED + "leave(1)\nattempt(lambda: say(signals.to_process(proc, target, signal.SIGKILL)))"
    with echo() as target, Script(source, str(target.pid), str(target.identity.start)) as script:
        assert script.heard() == "sent"
        assert target.process.wait(30) == -signal.SIGKILL


def test_a_full_table_does_not_stop_the_kill():
    """Who holds a pidfd needs no further descriptor to signal its process."""
    source = LIMITED + (
        "fd = pidfd.open_process(proc, target)\nleave(0)\nsay(signals.to_process(proc, target, signal.SIGKILL, fd))"
    )
    with echo() as target, Script(source, str(target.pid), str(target.identity.start)) as script:
        assert script.heard() == "sent"
        assert target.process.wait(30) == -signal.SIGKILL
