"""The doctor as its callers start it, with the rights of a test's choice, and processes for it to look at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from sidecar_process import eventually, identity_of

from sidecar import checkup
from sidecar.checkup import Checkup, Order, Result
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.system.proc import Proc

ROOT = Path(__file__).resolve().parents[2]
FULL = ("sys_ptrace", "kill", "dac_override")
USER = 1000
# What another user's interpreter could not import any more, where Python is in root's own folder.
_AS_USER = """
import sys
sys.path.insert(0, sys.argv[1])
import ctypes, encodings.ascii, encodings.unicode_escape, os, subprocess
from sidecar.doctor.__main__ import main
user = int(sys.argv.pop(2))
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
main(*sys.argv[2:])
"""


def root_with(*capabilities: str) -> list[str]:
    """The beginning of a command line that is run as root with these capabilities and no other."""
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    return ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all"]


def nothing() -> dict[str, Any]:
    """Settings by which no process of this machine is an engine's."""
    return {"engine": "generic", "rank_pattern": f"^no-process-{os.getpid()}-is-called-so$"}


def check(
    folder: Path,
    *pids: int,
    prefix: Sequence[str] = (),
    user: int | None = None,
    seconds: float = 30.0,
    env: dict[str, str] | None = None,
    order: dict[str, Any] | None = None,
    **settings: Any,
) -> Checkup:
    """A whole checkup. `prefix`: what its command line begins with; `user`: as whom, with no capability."""
    told = Order(pids=pids, seconds=seconds, **(order or {}))
    launch = Launch(
        settings=Settings(**{"dump_dir": str(folder), **settings}), python=sys.executable, package_root=str(ROOT)
    )
    fd = launch_to_fd(launch)
    argv = checkup.argv(sys.executable, str(ROOT), fd, told)
    if user is not None:
        argv[argv.index("-c") + 1] = _AS_USER
        argv.insert(argv.index(str(ROOT)) + 1, str(user))
    try:
        ran = subprocess.run(
            [*prefix, *argv], pass_fds=(fd,), stdin=subprocess.DEVNULL, capture_output=True, timeout=100,
            env={"PATH": os.environ["PATH"], **(env or {})}, check=False,
        )  # fmt: skip
    finally:
        os.close(fd)
    assert ran.stderr == b"", ran.stderr.decode()
    return checkup.decoded(ran.stdout)


def result(found: Checkup, capability: str) -> Result:
    (one,) = (result for result in found.results if result.capability == capability)
    return one


def statuses(found: Checkup, *capabilities: str) -> list[str]:
    chosen = [result(found, capability) for capability in capabilities]
    for one in chosen:
        print(one.status, one.capability, one.seen)
    return [one.status.value for one in chosen]


def ways(one: Result) -> list[Any]:
    """Its remedies, read as YAML."""
    return [yaml.safe_load(remedy.yaml) for remedy in one.remedies]


@contextlib.contextmanager
def process(*argv: str, user: int | None = None, prefix: Sequence[str] = (), **popen: Any) -> Iterator[int]:
    """A process that sleeps, or another; its pid, once it is past its exec."""
    command = list(argv) or ["sleep", "600"]
    started = subprocess.Popen(
        [*prefix, *command], user=user, group=user, extra_groups=[] if user is not None else None,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, **popen,
    )  # fmt: skip
    try:
        identity_of(started.pid)
        proc = Proc()
        eventually(lambda: proc.cmdline(started.pid).split(b"\0")[0] == command[0].encode(), f"{command[0]} started")
        proc.close()
        yield started.pid
    finally:
        started.kill()
        started.wait(20)
