"""Names, ELF files and mounts, as the coredump collector reads them."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder_rig import PROC, identity_of

from sidecar.demo.cuda_double import dump
from sidecar.recorder.capture.inherited import inherited
from sidecar.recorder.coredump import elf, mounts
from sidecar.recorder.coredump.target import TargetProcess
from sidecar.recorder.coredump.template import Names, expand, likely_file, names


def shortfall(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return elf.shortfall(fd)
    finally:
        os.close(fd)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    dump(str(tmp_path / "whole"), 20_000)
    return (tmp_path / "whole").read_bytes()


def test_no_beginning_of_a_dump_is_whole(tmp_path: Path, whole: bytes) -> None:
    """Wherever it is cut, something is missing; only all of it is whole."""
    assert shortfall(tmp_path / "a", whole) == ""
    for length in (*range(70), *range(70, len(whole), 997), len(whole) - 1):
        assert shortfall(tmp_path / "a", whole[:length]), length


def test_other_files_are_told_apart(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a"
    assert shortfall(path, b"") == "no ELF header yet"
    assert shortfall(path, b"x" * 4096) == "no ELF header"
    assert shortfall(path, Path(sys.executable).read_bytes()) == "an ELF file, but no CUDA coredump"
    no_table = bytearray(whole)
    struct.pack_into("<Q", no_table, 40, 0)
    assert shortfall(path, bytes(no_table)) == "no section table yet"


def test_more_sections_than_the_header_can_count(tmp_path: Path, whole: bytes) -> None:
    """Then their number stands in the first section (elf(5)); a dump of many warps has them."""
    data = bytearray(whole)
    (table,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    struct.pack_into("<H", data, 60, 0)
    struct.pack_into("<Q", data, table + 32, count)
    assert shortfall(tmp_path / "a", bytes(data)) == ""
    struct.pack_into("<Q", data, table + 32, 1 << 40)
    assert shortfall(tmp_path / "a", bytes(data)) == "a damaged section table"


@given(st.binary(max_size=300))
def test_garbage_is_never_whole(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    head = b"\x7fELF\x02\x01\x01\x33" + bytes(8) + struct.pack("<HH", 4, 0xBE)
    assert shortfall(folder / "garbage", garbage)
    assert isinstance(shortfall(folder / "garbage", head + garbage), str)


def test_templates_of_every_kind() -> None:
    folder, name = expand("/tmp/corepipe.cuda.%h.%p", "node.a", 7)
    assert folder == "/tmp"
    assert name.fullmatch("corepipe.cuda.node.a.7")
    assert not name.fullmatch("corepipe.cuda.nodexa.7")
    folder, name = expand("/d/%h/core.%t.%p", "h", 7)
    assert folder == "/d/h"
    assert name.fullmatch("core.1764236276.7")
    assert not name.fullmatch("core..7")
    assert expand("core", "h", 7)[0] == ""
    assert expand("/core", "h", 7)[0] == "/"
    assert likely_file(42)[1].fullmatch("gpucore-42.nvcudmp")
    assert not likely_file(42)[1].fullmatch("core.142")


def test_what_the_environment_says() -> None:
    assert names({}).enabled is None
    assert names({"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "0"}).enabled is False
    assert names({"CUDA_COREDUMP_GENERATION_FLAGS": "skip_global_memory, skip_abort"}).keeps_running
    assert not names({"CUDA_COREDUMP_GENERATION_FLAGS": "skip_abortion"}).keeps_running
    given_names = {"CUDA_ENABLE_USER_TRIGGERED_COREDUMP": "1", "CUDA_COREDUMP_PIPE": "/p", "CUDA_COREDUMP_FILE": "/f"}
    assert names(given_names, "/dumps") == Names(True, False, ("/p",), ("/f",))
    sglang = names({}, "/dumps/")
    assert sglang.enabled
    assert sglang.files[0] == "/dumps/%h/core.cuda.%t.%p"


def test_an_environment_that_was_wiped_out_is_read_from_the_parent() -> None:
    """A title hides the rank's own; what it inherited still stands with its parent."""
    code = "import setproctitle; setproctitle.setproctitle('VLLM::Worker_TP0'); print('ready', flush=True); input()"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "CUDA_COREDUMP_FILE": "/here"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = [pid for pid in PROC.pids() if (stat := PROC.stat(pid)) and stat.ppid == process.pid]
        assert b"CUDA" not in (PROC.environ(child) or b"")
        assert inherited(PROC, child, ["CUDA_COREDUMP_FILE"]) == {"CUDA_COREDUMP_FILE": "/here"}
        assert inherited(PROC, child, ["CUDA_COREDUMP_PIPE"]) == {}
    finally:
        process.communicate(b"\n")


def test_folders_of_the_target_are_walked_inside_its_root(tmp_path: Path) -> None:
    """Links are followed as the target would; a circle of them ends."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "up").symlink_to("link/../real/./inner")
    (tmp_path / "circle").symlink_to("circle")
    target = TargetProcess("/proc", identity_of(os.getpid()))
    target.enter()
    for path, real in (("link/inner", "real/inner"), ("up", "real/inner"), ("/../" + str(tmp_path)[1:], ".")):
        fd = target.folder(str(tmp_path / path) if not path.startswith("/") else path)
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / real))
        os.close(fd)
    with pytest.raises(OSError, match="too many"):
        target.folder(str(tmp_path / "circle"))
    with pytest.raises(FileNotFoundError):
        target.folder(str(tmp_path / "nothing"))


def test_mountinfo_lines() -> None:
    text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\nnonsense\n"
    assert list(mounts.parse(text)) == [mounts.Mount(36, "98:0", "/mnt1", "/mnt 2")]
