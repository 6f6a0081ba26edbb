"""Termination logs below the roots of real processes: opened where that is safe, and nothing else is ever touched."""

from __future__ import annotations

import os
import select
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from system_processes import NOBODY, Script

from sidecar.errors import ProcessGone
from sidecar.model import Identity
from sidecar.system.inside import Unusable, remote_on_the_way
from sidecar.system.proc import Proc
from sidecar.system.termination_log import open_to_append, same_file

PROC = Proc()
LOG = "/dev/termination-log"
IN_ITS_ROOT = "os.chroot(sys.argv[1]); os.chdir('/'); say('ready'); hear()"
# A mount namespace of its own, and in it a file bound onto a path, as the kubelet does it.
WITH_A_MOUNT = """
libc = ctypes.CDLL(None, use_errno=True)
def call(result): assert result == 0, os.strerror(ctypes.get_errno())
file, path, flags = sys.argv[1].encode(), sys.argv[2].encode(), int(sys.argv[3])
call(libc.unshare(0x20000))
call(libc.mount(b"none", b"/", None, 0x44000, None))
call(libc.mount(file, path, None, 0x1000, None))
if flags: call(libc.mount(b"none", path, None, 0x1020 | flags, None))
say("ready")
hear()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder to be some process's root, with a /dev of its own."""
    (tmp_path / "root" / "dev").mkdir(parents=True)
    return tmp_path / "root"


def opened(root: Path, path: str = LOG) -> int:
    """The log of a process with this root."""
    with Script(IN_ITS_ROOT, str(root)) as script:
        script.heard()
        return open_to_append(PROC, script.identity, path)


@pytest.mark.root
def test_the_file_in_the_targets_root_is_written_to_at_its_end(root: Path) -> None:
    """What is there stays, and the descriptor still writes when the process and its root are gone."""
    log = root / "dev" / "termination-log"
    log.write_text("the engine's own words\n")
    kept = os.open(log, os.O_RDONLY)
    fd = opened(root)
    try:
        shutil.rmtree(root)
        os.write(fd, b"ours\n")
        assert os.read(kept, 100) == b"the engine's own words\nours\n"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
        os.close(kept)


@pytest.mark.root
@pytest.mark.parametrize("target", ["absolute", "relative", "hanging"])
@pytest.mark.parametrize("part", ["the file", "its folder", "its folder's folder"])
def test_no_link_is_followed(root: Path, tmp_path: Path, part: str, target: str) -> None:
    """Neither one that would lead out of the target's root into ours, nor one that stays inside."""
    victim = tmp_path / "victim" / "dev" / "termination-log"
    victim.parent.mkdir(parents=True)
    victim.write_text("ours")
    inside = root / "victim" / "dev" / "termination-log"
    inside.parent.mkdir(parents=True)
    inside.write_text("inside")
    (root / "var").mkdir()
    link, to, path = {
        "the file": ("var/log", "victim/dev/termination-log", "/var/log"),
        "its folder": ("var/dev", "victim/dev", "/var/dev/termination-log"),
        "its folder's folder": ("var/run", "victim", "/var/run/dev/termination-log"),
    }[part]
    ends = {"absolute": str(tmp_path / to), "relative": f"../{to}", "hanging": "/nowhere"}
    (root / link).symlink_to(ends[target])
    with pytest.raises(Unusable, match="symbolic link"):
        opened(root, path)
    assert (victim.read_text(), inside.read_text()) == ("ours", "inside")


@pytest.mark.root
def test_a_fifo_is_not_even_opened(root: Path) -> None:
    """Whoever reads from it would see that somebody came."""
    log = root / "dev" / "termination-log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(Unusable, match="no regular file"):
            opened(root)
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        assert poll.poll(0) == []
    finally:
        os.close(reader)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["folder", "device"])
def test_what_is_no_regular_file_is_refused(root: Path, kind: str) -> None:
    log = root / "dev" / "termination-log"
    if kind == "folder":
        log.mkdir()
    else:
        os.mknod(log, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(Unusable, match="no regular file"):
        opened(root)


@pytest.mark.root
def test_nothing_is_made(root: Path) -> None:
    """Where there is no file, or no folder, or a file where the folder should be."""
    with pytest.raises(FileNotFoundError):
        opened(root)
    with pytest.raises(FileNotFoundError):
        opened(root, "/nowhere/termination-log")
    (root / "file").touch()
    with pytest.raises(NotADirectoryError):
        opened(root, "/file/termination-log")
    assert sorted(path.name for path in root.rglob("*")) == ["dev", "file"]


@pytest.mark.parametrize("path", ["/dev/../termination-log", "/..", "/"])
def test_a_path_that_goes_up_is_refused(path: str) -> None:
    with pytest.raises(Unusable):
        open_to_append(PROC, Identity(os.getpid(), 0), path)


@pytest.mark.root
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_mounted_there(tmp_path: Path, read_only: bool) -> None:
    """As the kubelet does it: what is mounted in the target's view is opened, not what stands there in ours; and a
    mount that is read-only stays so, whatever we may.
    """
    file, place = tmp_path / "kubelets", tmp_path / "place"
    file.touch()
    place.touch()
    with Script(WITH_A_MOUNT, str(file), str(place), str(int(read_only))) as script:
        script.heard()
        if read_only:
            with pytest.raises(OSError, match="Read-only"):
                open_to_append(PROC, script.identity, str(place))
            return
        fd = open_to_append(PROC, script.identity, str(place))
    try:
        assert same_file(fd, str(file))
        assert not same_file(fd, str(place))
        assert not same_file(fd, str(tmp_path / "nothing"))
    finally:
        os.close(fd)


@pytest.mark.root
def test_a_process_that_is_gone_has_none(tmp_path: Path) -> None:
    """Gone, a zombie (whose root is gone first), or another one under its number: never a file of somebody else."""
    log = tmp_path / "log"
    log.touch()
    with Script("say('ready'); hear()") as script:
        script.heard()
        with pytest.raises(ProcessGone):
            open_to_append(PROC, Identity(script.pid, script.identity.start + 1), str(log))
        os.close(open_to_append(PROC, script.identity, str(log)))
        script.tell()
        os.waitid(os.P_PID, script.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessGone):
            open_to_append(PROC, script.identity, str(log))
        script.process.wait(30)
        with pytest.raises(ProcessGone):
            open_to_append(PROC, script.identity, str(log))
    assert log.read_text() == ""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# As another user, and open to be looked at, as a program that was started so is.
BECOME = """
def become(uid):
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
"""
TARGET = BECOME + "become(int(sys.argv[1]))\nsay('ready')\nhear()"
TRY = (
    BECOME
    + """
from sidecar.model import Identity
from sidecar.system.proc import Proc
from sidecar.system.termination_log import open_to_append
become(int(sys.argv[4]))
try:
    fd = open_to_append(Proc(), Identity(int(sys.argv[1]), int(sys.argv[2])), sys.argv[3])
    os.write(fd, b"told")
    say("written")
except OSError as error:
    say(type(error).__name__)
"""
)


@pytest.mark.root
@pytest.mark.parametrize(
    ("owner", "mode", "said"),
    [(NOBODY, 0o666, "written"), (0, 0o666, "PermissionError"), (NOBODY, 0o444, "PermissionError")],
    ids=["the same user", "root's process", "a file that may not be written to"],
)
def test_without_capabilities(open_folder: Path, owner: int, mode: int, said: str) -> None:
    """The engine's own user may, as for a pod without any capability; of another's process it is an honest no."""
    log = open_folder / "log"
    log.touch()
    log.chmod(mode)
    with Script(TARGET, str(owner)) as target:
        target.heard()
        with Script(TRY, str(target.pid), str(target.identity.start), str(log), str(NOBODY)) as script:
            assert script.heard() == said
    assert log.read_text() == ("told" if said == "written" else "")


MOUNT = "36 35 98:0 / {} rw,noatime master:1 - {} server:/export rw"


@pytest.mark.parametrize(
    ("point", "kind", "found"),
    [
        ("/", "nfs4", ""),  # its root: what it runs from is there already
        ("/logs", "nfs4", "nfs4"),
        ("/logs/a\\040b", "fuse.s3fs", "fuse.s3fs"),
        ("/logs/a\\040b/last", "cifs", "cifs"),
        ("/logs/a\\040b/last/more", "nfs", ""),
        ("/log", "nfs", ""),
        ("/logs", "ext4", ""),
        ("/logs", "tmpfs", ""),
    ],
)
def test_a_folder_that_may_not_answer_is_not_looked_into(point: str, kind: str, found: str) -> None:
    """A network file system on the way would hold up whoever looks for the file, for as long as it is gone."""
    text = f"garbage\n{MOUNT.format('/', 'overlay')}\n{MOUNT.format(point, kind)}\n"
    assert remote_on_the_way(text, ["logs", "a b", "last"]) == found


def test_more_mounts_than_can_be_looked_through(tmp_path: Path) -> None:
    """Who makes a hundred thousand of them does not hold up whoever looks for a file of his."""
    (tmp_path / "log").touch()
    with Script("say('ready'); hear()") as script:
        script.heard()
        folder = tmp_path / "proc" / str(script.pid)
        folder.mkdir(parents=True)
        (tmp_path / "proc" / "self").symlink_to("/proc/self")
        for name in ("root", "stat"):
            (folder / name).symlink_to(f"/proc/{script.pid}/{name}")
        proc = Proc(str(tmp_path / "proc"))
        mount = "36 35 98:0 / /mnt/%d rw,noatime shared:1 - ext4 /dev/root rw\n"
        (folder / "mountinfo").write_text("".join(mount % number for number in range(100)))
        os.close(open_to_append(proc, script.identity, str(tmp_path / "log")))
        (folder / "mountinfo").write_text("".join(mount % number for number in range(100_000)))
        with pytest.raises(Unusable, match="more mounts than can be looked through"):
            open_to_append(proc, script.identity, str(tmp_path / "log"))
