"""A job of three ranks on gloo under a real torchrun: known by identity, and gone when the block is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from sidecar_process import eventually, identity_of, kill_identity, running

from sidecar.model import Identity

SCRIPT = str(Path(__file__).with_name("torch_ranks.py"))
PACKAGE_ROOT = str(Path(__file__).parents[2])
SIZE = 3


class TorchJob:
    """Use as a context manager; then `agent` is torchrun's process and `ranks` are in the order of their ranks."""

    def __init__(self, folder: Path, seconds: float = 0.05) -> None:
        self.folder = folder
        folder.mkdir()
        self.ranks: list[Identity] = []
        self.port = 0
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RANKGUARD_")}
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}",
                SCRIPT, str(folder), str(seconds),
            ],
            stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, start_new_session=True,
            env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PACKAGE_ROOT},
        )  # fmt: skip
        self.agent = identity_of(self.process.pid)

    def __enter__(self) -> TorchJob:
        try:
            return self._wait_ready()
        except BaseException:
            self.end()
            raise

    def __exit__(self, *_: object) -> None:
        self.end()

    def _wait_ready(self) -> TorchJob:
        files = [self.folder / f"rank{number}.json" for number in range(SIZE)]

        def ready() -> bool:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            return all(file.exists() for file in files)

        eventually(ready, "the first step of every rank", 90)
        said = [json.loads(file.read_text()) for file in files]
        self.ranks = [identity_of(rank["pid"]) for rank in said]
        self.port = said[0]["port"]
        return self

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def steps(self) -> float:
        """How many steps are done. Raises `OSError` where rank 0 is gone."""
        with urllib.request.urlopen(self.url("/metrics"), timeout=20) as answer:
            return float(answer.read().split()[-1])

    def tell(self, word: str) -> None:
        """Have a rank do what the file of this name stands for: `block`, `raise`."""
        (self.folder / word).touch()

    def wait_still(self) -> None:
        """Wait until no step ends any more."""
        last = [-1.0]

        def still() -> bool:
            before, last[0] = last[0], self.steps()
            return before == last[0]

        eventually(lambda: still() and not eventually_moves(self, last[0]), "a job that stands still")

    def alive(self) -> list[Identity]:
        return [identity for identity in (self.agent, *self.ranks) if running(identity)]

    def end(self) -> None:
        """Kill what is left: the agent by its identity; its ranks too, and those not yet known by the kernel."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        for identity in (self.agent, *self.ranks):
            kill_identity(identity)
        self.process.wait(20)
        self.log.close()


def eventually_moves(job: TorchJob, steps: float) -> bool:
    """Whether another step ends within a second."""
    try:
        eventually(lambda: job.steps() != steps, "a step", 1.0)
    except AssertionError:
        return False
    return True
