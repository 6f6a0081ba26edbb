"""What the dead left in /dev/shm: only names that were seen, that engines use, and that nobody alive holds."""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidecar_process import PROC, eventually
from system_processes import END_MAIN_THREAD, NOBODY, Script

from sidecar.system import shm
from sidecar.system.proc import Proc

SHM = Path("/dev/shm")
PATTERNS = ("psm_*", "sem.mp-*")
IN_USE = "still in use by a living process"

# `hold` maps a file with no descriptor left, as an engine's segments are, or `open`s one and maps nothing.
HOLD = """
def hold(path):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    fd = os.open(path, os.O_RDWR)
    assert libc.mmap(None, 4096, 1, 1, fd, 0) != ctypes.c_void_p(-1).value
    os.close(fd)
"""


@pytest.fixture
def segment() -> Iterator[Callable[..., str]]:
    """Makes a file in /dev/shm and gives its name; what is left at the end is removed."""
    made: list[str] = []

    def make(begin: str = "psm_", end: str = "") -> str:
        name = f"{begin}{uuid.uuid4().hex}{end}"
        made.append(name)
        (SHM / name).write_bytes(bytes(4096))
        return name

    yield make
    for name in made:
        (SHM / name).unlink(missing_ok=True)


@pytest.fixture
def folder() -> Iterator[int]:
    fd = os.open(SHM, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def mapper(*names: str, then: str = "hear()") -> Script:
    """A process that maps these names, and holds no descriptor of them. It says a line once it does."""
    return Script(f"{HOLD}for name in sys.argv[1:]: hold('/dev/shm/' + name)\nsay('ready')\n{then}", *names)


NEW_MOUNTS, NEW_IPC, NEW_PID = 0x00020000, 0x08000000, 0x20000000

# The first process of a PID namespace, with a /proc of that namespace which only its own mount namespace has.
FIRST = f"""
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call, *arguments):
    if call(*arguments):
        say('refused', os.strerror(ctypes.get_errno()))
        os._exit(0)
attempt(libc.unshare, {NEW_PID | NEW_MOUNTS})
child = os.fork()
if child == 0:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    attempt(libc.mount, b'none', b'/', None, 0x44000, None)  # private, and all below
    attempt(libc.mount, b'proc', os.fsencode(sys.argv[1]), b'proc', 0, None)
    say('mounted')
    while True: signal.pause()
say(child)
hear()
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Proc]:
    """A PID namespace of which everybody can be looked at, and its /proc. Processes started meanwhile live in it.

    Not so the machine: its first process may have rights that ours are not enough to look into.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with Script(FIRST, str(tmp_path)) as script:
        said = sorted((script.heard(), "refused" if script.process.poll() is not None else script.heard()))
        if any(line.startswith("refused") for line in said):
            if any(PROC.maps(pid) is None for pid in PROC.pids()):
                pytest.skip("not every process can be looked at here, and no namespace can be made")
            yield PROC
            return
        assert said[1] == "mounted"
        ours, theirs = (os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY) for pid in ("self", said[0]))
        proc = Proc(f"/proc/{said[0]}/root{tmp_path}")
        try:
            assert libc.setns(theirs, NEW_PID) == 0, os.strerror(ctypes.get_errno())
            try:
                yield proc
            finally:
                assert libc.setns(ours, NEW_PID) == 0, os.strerror(ctypes.get_errno())
        finally:
            proc.close()
            os.close(ours)
            os.close(theirs)


RECORDED = (
    rb"""
5601c0a00000-5601c0a01000 r--p 00000000 fe:00 26723                      /usr/bin/python3.11
7f18e0000000-7f18e4000000 rw-s 00000000 00:19 7                          /dev/shm/psm_4f9c1a2b
7f18e4000000-7f18e4001000 rw-s 00001000 00:19 7                          /dev/shm/psm_4f9c1a2b
7f18e5000000-7f18e5001000 rw-s 00000000 00:19 8                          /dev/shm/sem.mp-abc_x
7f18e6000000-7f18e6001000 rw-s 00000000 00:19 9                          /dev/shm/psm_unlinked (deleted)
7f18e7000000-7f18e7001000 rw-s 00000000 00:19 10                         /dev/shm/with a space
7f18e8000000-7f18e8001000 rw-s 00000000 00:19 11                         /dev/shm/folder/psm_inside
7f18e9000000-7f18e9001000 rw-s 00000000 00:19 12                         /dev/shm/line\012break
7f18ea000000-7f18ea001000 rw-s 00000000 00:19 13                         /dev/shm/
7f18eb000000-7f18eb001000 rw-s 00000000 00:01 536                        /dev/zero (deleted)
7f18ec000000-7f18ec001000 rw-p 00000000 00:00 0
7f18ed000000-7f18ed001000 r-xp 00000000 00:00 0                          [vdso]
7f18ee000000-7f18ee001000 rw-s 00000000 fe:00 77                         /tmp/dev/shm/psm_elsewhere
7f18ef000000-7f18ef001000 rw-s 00000000 00:19 14                         /dev/shm/%b
"""
    % b"\xff\xfe"
)


def test_the_names_in_recorded_maps():
    """Each name once; not what is unlinked already, not what lies in a folder, and nothing that was escaped."""
    names = shm.names_in_maps(RECORDED)
    assert names == {"psm_4f9c1a2b", "sem.mp-abc_x", "with a space", os.fsdecode(b"\xff\xfe")}
    assert shm.names_in_maps(b"") == set()


def test_a_path_elsewhere_is_not_mistaken_for_shared_memory():
    """A folder may end in a space. Mapping a file in it must not put somebody else's segment up for removal."""
    line = b"7f18ee000000-7f18ee001000 rw-s 00000000 fe:00 77                         /tmp/x /dev/shm/psm_victim\n"
    assert shm.names_in_maps(line) == set()


@given(st.lists(st.binary(max_size=40)).map(b" /dev/shm/".join) | st.binary(max_size=200))
def test_no_maps_text_gives_a_name_that_leads_elsewhere(text):
    for name in shm.names_in_maps(text):
        assert name
        assert "/" not in name


def test_the_names_that_a_real_process_holds(segment):
    """Mapped without a descriptor or open without a mapping; not what it has unlinked, not what it has let go."""
    mapped, opened, gone = segment(), segment(), segment()
    source = f"{HOLD}mapped, opened, gone = ('/dev/shm/' + name for name in sys.argv[1:])\n" + (
        "hold(mapped)\nheld = open(opened)\nhold(gone)\nalso = open(gone)\nos.unlink(gone)\n"
        "say('ready')\nhear()\nheld.close()\nsay('closed')\nhear()"
    )
    with Script(source, mapped, opened, gone) as script:
        script.heard()
        assert shm.names_held(PROC, script.pid) == {mapped, opened}
        script.tell()
        script.heard()
        assert shm.names_held(PROC, script.pid) == {mapped}
    assert shm.names_held(PROC, script.pid) == set()


def test_a_process_with_many_mappings_shows_them_all(segment):
    """The kernel hands out maps a page at a time; what stands on a later page is held as well."""
    name = segment()
    many = "import mmap\nmany = [mmap.mmap(-1, 4096 * (1 + n % 2)) for n in range(300)]\n"
    # Both ends of the address space, wherever this kernel puts the next mapping.
    source = f"{HOLD}hold('/dev/shm/' + sys.argv[1])\n{many}say('ready')\nhear()"
    after = f"{HOLD}{many}hold('/dev/shm/' + sys.argv[1])\nsay('ready')\nhear()"
    for text in (source, after):
        with Script(text, name) as script:
            script.heard()
            assert shm.names_held(PROC, script.pid) == {name}


def test_only_what_was_seen_matches_and_is_unused_is_removed(world, segment, folder):
    """Of five segments one goes: the others are mapped, open, of a name that engines do not use, or were never seen."""
    unused, mapped, opened = segment(), segment("sem.mp-"), segment()
    foreign, unseen = segment("someone-elses-"), segment()
    holder = f"{HOLD}hold('/dev/shm/' + sys.argv[1])\nheld = open('/dev/shm/' + sys.argv[2])\nsay('ready')\nhear()"
    with Script(holder, mapped, opened) as script:
        script.heard()
        removed, kept, why = shm.remove_leftovers(world, {unused, mapped, opened, foreign}, PATTERNS, folder)
        assert (removed, kept, why) == ([unused], sorted([mapped, opened]), IN_USE)
        assert not (SHM / unused).exists()
        assert all((SHM / name).exists() for name in (mapped, opened, foreign, unseen))
    assert shm.remove_leftovers(world, {mapped, opened, foreign}, PATTERNS, folder) == (
        sorted([mapped, opened]),
        [],
        "",
    )
    assert all((SHM / name).exists() for name in (foreign, unseen))


def test_nothing_wanted_is_nothing_looked_at(world, segment, folder):
    """No candidate that matches: no process's maps are read, and there is nothing to report."""
    foreign = segment("someone-elses-")
    assert shm.remove_leftovers(world, {foreign}, PATTERNS, folder) == ([], [], "")
    assert shm.remove_leftovers(world, set(), PATTERNS, folder) == ([], [], "")
    assert (SHM / foreign).exists()


def test_a_zombie_holds_nothing(world, segment, folder):
    name = segment()
    with mapper(name) as script:
        script.heard()
        assert shm.remove_leftovers(world, {name}, PATTERNS, folder)[:2] == ([], [name])
        script.process.kill()
        script.until_zombie()
        assert shm.remove_leftovers(world, {name}, PATTERNS, folder) == ([name], [], "")


def test_a_zombie_leader_whose_threads_run_on_holds_its_segments(world, segment, folder):
    """Its own maps read empty, and the memory is still in use: the segment stays."""
    name = segment()
    then = f"threading.Thread(target=hear).start()\n{END_MAIN_THREAD}"
    with mapper(name, then=then) as script:
        script.heard()
        eventually(lambda: (s := PROC.stat(script.pid)) and s.zombie, "the leader a zombie")
        removed, _, _ = shm.remove_leftovers(world, {name}, PATTERNS, folder)
        assert removed == []
        assert (SHM / name).exists()


@pytest.mark.parametrize("odd", ["\\", "\n", "\\012"], ids=["backslash", "newline", "escaped newline"])
def test_a_name_that_maps_do_not_show_plainly_is_left_alone(world, segment, folder, odd):
    """The kernel escapes some bytes in maps, so such a name could be in use unseen: no process offers it."""
    name = segment(end=odd)
    with Script("held = open('/dev/shm/' + sys.argv[1])\nsay('ready')\nhear()", name) as dying:
        dying.heard()
        seen = shm.names_held(PROC, dying.pid)
    with mapper(name) as living:
        living.heard()
        shm.remove_leftovers(world, seen or set(), PATTERNS, folder)
        assert (SHM / name).exists()


def test_what_is_gone_or_no_file_is_passed_over(world, segment, folder):
    """Somebody else was faster, or a folder has the name: the rest is removed all the same."""
    here = segment()
    missing, directory = f"psm_{uuid.uuid4().hex}", f"psm_{uuid.uuid4().hex}"
    (SHM / directory).mkdir()
    try:
        assert shm.remove_leftovers(world, {missing, directory, here}, PATTERNS, folder) == ([here], [], "")
    finally:
        (SHM / directory).rmdir()


def test_it_is_the_engines_folder_that_is_cleaned(world, segment, tmp_path_factory):
    """Removal goes through the folder that was opened while the engine lived, not through our own view."""
    name = segment()
    theirs = tmp_path_factory.mktemp("shm")
    (theirs / name).touch()
    fd = os.open(theirs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert shm.remove_leftovers(world, {name}, PATTERNS, fd) == ([name], [], "")
    finally:
        os.close(fd)
    assert not (theirs / name).exists()
    assert (SHM / name).exists()


@pytest.mark.root
def test_where_some_maps_cannot_be_read_nothing_is_removed(segment):
    """Another user's process could be using the name: it is reported, with who could not be looked at."""
    name = segment()
    os.chown(SHM / name, NOBODY, NOBODY)
    source = f"""
from sidecar.system import shm
from sidecar.system.proc import Proc
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
folder = os.open('/dev/shm', os.O_RDONLY | os.O_DIRECTORY)
print(*shm.remove_leftovers(Proc(), {{sys.argv[1]}}, ('psm_*',), folder), sep='\\n', flush=True)
"""
    with Script(source, name) as script:
        assert script.heard() == "[]"
        assert script.heard() == f"['{name}']"
        words = script.heard()
        assert words.startswith("the memory maps of process ")
        assert words.endswith(" cannot be read")
    assert (SHM / name).exists()


IN_NAMESPACES = """
from sidecar.system import shm
from sidecar.system.proc import Proc
if ctypes.CDLL(None, use_errno=True).unshare(int(sys.argv[1])):
    say('refused')
child = os.fork()  # a new PID namespace is the children's
if child == 0:
    say(repr(shm.may_remove(Proc(), in_pod=False)))
    say(repr(shm.may_remove(Proc(), in_pod=True)))
    os._exit(0)
os.waitpid(child, 0)
"""
INITIAL = (
    os.readlink("/proc/self/ns/pid") == "pid:[4026531836]" and os.readlink("/proc/self/ns/ipc") == "ipc:[4026531839]"
)


@pytest.mark.root
@pytest.mark.parametrize("flags", [0, NEW_IPC, NEW_PID, NEW_IPC | NEW_PID], ids=["host", "ipc", "pid", "both"])
def test_removing_is_refused_where_somebody_could_be_out_of_sight(flags):
    """On a host every process must be visible; in a pod the shared memory must be the pod's own."""
    with Script(IN_NAMESPACES, str(flags)) as script:
        on_host = script.heard()
        if on_host == "refused":
            pytest.skip("no new namespaces here")
        in_pod = script.heard()
        if INITIAL or flags & NEW_PID:
            assert ("PID namespace" in on_host) == bool(flags & NEW_PID)
        if INITIAL or flags & NEW_IPC:
            assert ("hostIPC" in in_pod) == (not flags & NEW_IPC)
        assert (on_host == "''") == ("PID namespace" not in on_host)
        assert (in_pod == "''") == ("hostIPC" not in in_pod)
