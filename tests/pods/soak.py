"""Pods that fail all the time: random deaths, hangs, kills for memory, sidecar kills, full volumes; then the accounts.

    make soak        or, to say how: PYTHONPATH=tests python tests/pods/soak.py --seconds 600 --pods 2 --seed 7

Each pod has an engine, the sidecar and a neighbour, and goes through one failure after the other, at random. After each
there must be exactly one more incident, of the right reason and cause, and the next ranks must be watched. At the end
nothing outside the engine may have been touched, the sidecar's container never restarted, and no descriptor, thread,
memory or process of the sidecar leaked. Prints the counts; ends with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pod_specs import PYTHON, engine, host_folder, pod, sidecar
from podman import Podman, PodmanError
from pods import Pod, Seen, fill, sealed
from sidecar_process import eventually

from sidecar.model import Identity

RANKS = ("TP0", "TP1")
CRASHES = {signal.SIGKILL: "sigkill", signal.SIGSEGV: "sigsegv", signal.SIGABRT: "sigabrt", signal.SIGBUS: "sigbus"}
# Grows until the process that it is told is no more: the kernel has to take somebody for it.
EATER = """\
import sys
held = []
def there(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
while there(int(sys.argv[1])):
    held.append(bytearray(1 << 20))
"""
PATIENCE = 120.0  # seconds for one failure, on a machine that has a great deal to do
# What the workers may grow to, in KiB of anonymous memory, and how many descriptors may come to what there were.
MOST_MEMORY = {"supervisor": 12 << 10, "guard": 20 << 10, "web": 60 << 10}
MOST_MORE_DESCRIPTORS = 6


class Wrong(AssertionError):
    """An account that does not add up."""


@dataclass
class Accounts:
    """What happened to one pod. `wrong` are sentences; `held` samples of (descriptors, threads, KiB) by worker."""

    done: Counter[str] = field(default_factory=Counter)
    incidents: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    held: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)


class Trial:
    """One pod under failures. `chance` decides everything that is left to chance."""

    def __init__(self, running: Pod, dumps: Path, control: Path, chance: random.Random) -> None:
        self.running = running
        self.dumps = dumps
        self.accounts = Accounts()
        self._orders = control / "orders"
        self._chance = chance
        self._incidents = 0
        self._unfill = dumps / "filler"
        self.failures: dict[str, Callable[[], tuple[str, str]]] = {
            "a rank is killed": self._rank,
            "the server is killed": self._server,
            "a kill for memory": self._memory,
            "a hang": self._hang,
            "a death while there is no guard": self._without_guard,
            "the guard dies in the incident": lambda: self._worker_dies("guard"),
            "the recorder dies in the incident": lambda: self._worker_dies("recorder"),
            "the web dies in the incident": lambda: self._worker_dies("web"),
            "the volume is full": self._full,
        }

    def round(self, name: str) -> None:
        """One failure and what must follow. Raises `AssertionError`."""
        before = self._ranks()
        reason, cause = self.failures[name]()
        self._incidents += 1
        record = sealed(self.dumps, self._incidents, PATIENCE)[-1]
        self._unfill.unlink(missing_ok=True)
        first = next((failure["cause"] for failure in record["failures"] if failure["first"]), "")
        if record["reason"] != reason or first != cause:
            raise Wrong(f"{name}: {record['reason']} and {first!r}, not {reason} and {cause!r}: {record['summary']}")
        self.accounts.done[name] += 1
        self.accounts.incidents[f"{record['reason']} {first}".strip()] += 1
        eventually(lambda: self._watched(before), f"the next ranks watched after: {name}", PATIENCE)
        self.sample()

    def sample(self) -> None:
        """What the workers hold now."""
        found = {"supervisor": self.running.supervisor(), **{k: self.running.worker(k) for k in ("guard", "web")}}
        for kind, worker in found.items():
            if worker is not None:
                with suppress(OSError):
                    self.accounts.held.setdefault(kind, []).append(_held(worker))

    def close(self) -> None:
        """The accounts at the end. Adds to `wrong`."""
        wrong = self.accounts.wrong
        if self.running.restarts("rankguard") or self.running.exits("rankguard"):
            wrong.append(f"the sidecar's container was restarted: {self.running.exits('rankguard')}")
        eventually(lambda: self._at_rest(), "the sidecar at rest", PATIENCE)
        total = self._metric("rankguard_incidents_total")
        if total != self._incidents:
            wrong.append(f"{total:g} incidents counted, {self._incidents} on the volume")
        for kind, samples in self.accounts.held.items():
            _, _, memory = samples[-1]
            if memory > MOST_MEMORY[kind]:
                wrong.append(f"the {kind} holds {memory} KiB, more than {MOST_MEMORY[kind]}")
        # Of the supervisor alone there is one from the beginning to the end.
        samples = self.accounts.held["supervisor"]
        early = samples[min(2, len(samples) - 1)]
        if samples[-1][0] > early[0] + MOST_MORE_DESCRIPTORS or samples[-1][1] > early[1]:
            wrong.append(f"the supervisor went from {early[:2]} descriptors and threads to {samples[-1][:2]}")
        try:
            self.running.check_neighbour()
        except AssertionError as error:
            wrong.append(f"the neighbour was touched: {error}")

    # -- the failures; each gives the reason and the cause that the incident must have ----------------------------

    def _rank(self) -> tuple[str, str]:
        number = self._chance.choice(list(CRASHES))
        self.running.rank(self._chance.choice(RANKS)).kill(number)
        return "RankDied", CRASHES[number]

    def _server(self) -> tuple[str, str]:
        inside = min(seen.inside for seen in self.running.processes("engine"))
        next(seen for seen in self.running.processes("engine") if seen.inside == inside).kill()
        return "EngineExited", "sigkill"

    def _memory(self) -> tuple[str, str]:
        rank = self.running.rank(self._chance.choice(RANKS))
        Path(f"/proc/{rank.identity.pid}/oom_score_adj").write_text("1000")
        self.running.exec("engine", PYTHON, "-c", EATER, str(rank.inside), check=False, timeout=PATIENCE)
        return "RankDied", "oom_killed"

    def _hang(self) -> tuple[str, str]:
        eventually(lambda: self._order("work serve running=2"), "the engine takes work", PATIENCE)
        eventually(lambda: self._running_requests(), "the engine at work", PATIENCE)
        self.running.rank(self._chance.choice(RANKS)).kill(signal.SIGSTOP)
        return "EngineStalled", ""

    def _without_guard(self) -> tuple[str, str]:
        guard = eventually(lambda: self.running.worker("guard"), "a guard", PATIENCE)
        guard.kill(signal.SIGSTOP)
        self.running.rank(self._chance.choice(RANKS)).kill()
        guard.kill()
        return "RankDied", "sigkill"

    def _worker_dies(self, kind: str) -> tuple[str, str]:
        worker = eventually(lambda: self.running.worker(kind), f"a {kind}", PATIENCE)
        frozen = len(self.running.lines("frozen"))
        self.running.rank(self._chance.choice(RANKS)).kill()
        eventually(lambda: len(self.running.lines("frozen")) > frozen, "the freeze", PATIENCE)
        worker.kill()
        return "RankDied", "sigkill"

    def _full(self) -> tuple[str, str]:
        fill(self._unfill)
        self.running.rank(self._chance.choice(RANKS)).kill()
        eventually(lambda: self.running.lines("sealed")[self._incidents :], "the seal", PATIENCE)
        return "RankDied", "sigkill"

    # -- what is to be seen ---------------------------------------------------------------------------------------

    def _ranks(self) -> set[Identity]:
        return {self.running.rank(label).identity for label in RANKS}

    def _watched(self, before: set[Identity]) -> bool:
        """Other ranks than these are up, found by the guard under the same labels, and served by a whole sidecar."""
        titled = {seen.title.rpartition("_")[2]: seen for seen in self.running.processes("engine")}
        new = [titled[label] for label in RANKS if label in titled]
        if len(new) < len(RANKS) or {seen.identity for seen in new} & before:
            return False
        pids = {(line["rank"], line["pid"]) for line in self.running.lines("rank")}
        ours = {(seen.title.rpartition("_")[2], seen.inside) for seen in new}
        return ours <= pids and self._at_rest()

    def _at_rest(self) -> bool:
        """Supervisor, guard, web and one recorder, and no other process; the ranks are up by the metrics."""
        titles = [seen.title for seen in self.running.processes("rankguard")]
        kinds = Counter(kind for kind in ("guard", "web", "recorder", "supervisor") for t in titles if f".{kind}." in t)
        if len(titles) != 4 or kinds != Counter(guard=1, web=1, recorder=1, supervisor=1):
            return False
        up = self.running.metrics().get("rankguard_rank_up", {})
        return sum(value for labels, value in up.items() if set(labels) & set(RANKS)) == len(RANKS)

    def scene(self) -> str:
        """Who is there and what the metrics say of the ranks, for a finding."""
        there = [f"{kind}: {seen}" for kind in ("rankguard", "engine") for seen in self.running.processes(kind)]
        try:
            up = str(self.running.metrics().get("rankguard_rank_up"))
        except (OSError, AssertionError, PodmanError) as error:
            up = repr(error)
        return "\n".join([*there, f"rankguard_rank_up: {up}"])

    def _running_requests(self) -> bool:
        """By the last scrape that the sidecar took; then a hang will be seen as one."""
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:21401/api/v1/status').read().decode())"
        said = self.running.exec("rankguard", PYTHON, "-c", code, check=False).stdout
        scrape = json.loads(said)["liveness"]["last_scrape"] if said else None
        return scrape is not None and scrape["running"] > 0

    def _metric(self, name: str) -> float:
        return sum(self.running.metrics()[name].values())

    def _order(self, words: str) -> bool:
        try:
            fd = os.open(self._orders, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            os.write(fd, f"{words}\n".encode())
        finally:
            os.close(fd)
        return True


def _held(worker: Seen) -> tuple[int, int, int]:
    folder = Path(f"/proc/{worker.identity.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return len(list((folder / "fd").iterdir())), int(status["Threads"]), int(status["RssAnon"].split()[0])


@contextmanager
def on_trial(podman: Podman, folder: Path, looks: str, chance: random.Random) -> Iterator[Trial]:
    """A pod with a small volume of its own, serving."""
    folder.mkdir()
    dumps, control = folder / "dumps", folder / "control"
    dumps.mkdir()
    control.mkdir()
    os.mkfifo(control / "orders")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(dumps)], check=True, timeout=30)
    flags = ("--engine", looks, "--tp", "2", "--no-detokenizer", "--health-port", "0", "--control", "/control/orders")
    container = engine(
        *flags,
        resources={"limits": {"memory": "500Mi"}},
        volumeMounts=[{"name": "control", "mountPath": "/control"}],
    )
    settings = {"probe_period": 0.5, "stall_timeout": 3, "dump_max_incidents": 100_000, "full_incidents_per_hour": 1000}
    spec = pod(dumps, container, sidecar(settings=settings), volumes=[host_folder("control", control)])
    try:
        with Pod(podman, spec, folder) as running:
            running.wait_serving(2)
            yield Trial(running, dumps, control, chance)
    finally:
        subprocess.run(["umount", "--lazy", str(dumps)], check=False, capture_output=True, timeout=30)


def soak(podman: Podman, folder: Path, seconds: float, looks: str, seed: int, most: int = 1_000_000) -> Accounts:
    """Failures for so long, or so many of them; each kind once before any comes again. Returns the accounts."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    with on_trial(podman, folder, looks, chance) as trial:
        wrong = trial.accounts.wrong
        names: list[str] = []
        for _ in range(most):
            if time.monotonic() >= end:
                break
            names = names or chance.sample(list(trial.failures), len(trial.failures))
            name = names.pop()
            try:
                trial.round(name)
            except AssertionError as error:
                wrong.append(f"{name}: {error}\n{trial.scene()}\n{trial.running.logs('rankguard')[-6000:]}")
                break
        if not wrong:
            trial.close()
        return trial.accounts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--pods", type=int, default=2, help="how many at once (2); engines take turns in looks")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what chance begins with (the time)")
    options = parser.parse_args()
    print(f"soak: {options.pods} pods for {options.seconds:g} s, --seed {options.seed}", flush=True)
    podman = Podman()
    podman.share()
    looks = ("sglang", "vllm")
    with tempfile.TemporaryDirectory(prefix="rankguard-soak-") as folder, ThreadPoolExecutor(options.pods) as pool:
        runs = [
            pool.submit(soak, podman, Path(folder) / str(n), options.seconds, looks[n % 2], options.seed + n)
            for n in range(options.pods)
        ]
        accounts = [run.result() for run in runs]
    podman.close()
    return report(accounts)


def report(accounts: list[Accounts]) -> int:
    """Print the counts; 1 where anything is wrong."""
    done: Counter[str] = sum((a.done for a in accounts), Counter())
    incidents: Counter[str] = sum((a.incidents for a in accounts), Counter())
    print(f"failures: {done.total()}, each with exactly one incident")
    for name, count in sorted(done.items()):
        print(f"  {count:5}  {name}")
    print(f"incidents: {incidents.total()}")
    for name, count in sorted(incidents.items()):
        print(f"  {count:5}  {name}")
    print("held at the first / the last look: descriptors, threads, KiB of anonymous memory")
    for n, account in enumerate(accounts):
        for kind, samples in account.held.items():
            print(f"  pod {n}  {kind:10}  {samples[0]}  {samples[-1]}")
    wrong = [f"pod {n}: {sentence}" for n, account in enumerate(accounts) for sentence in account.wrong]
    print("\n".join(["wrong:", *wrong]) if wrong else "nothing else was touched, and nothing leaked")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
