"""A real pod for a test: played by podman, seen from the node (this machine), and never left over."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from podman import Podman, PodmanError
from prometheus_client.parser import text_string_to_metric_families
from sidecar_process import PROC, eventually, kill_identity, load, state_of

from sidecar.engines.python_processes import clean_argv
from sidecar.model import Identity
from sidecar.system.cgroup import container_id


@dataclass(frozen=True, slots=True)
class Seen:
    """A process of the pod as the node sees it. `inside` is its pid in the pod's PID namespace."""

    identity: Identity
    inside: int
    container: str
    title: str

    @property
    def state(self) -> str | None:
        return state_of(self.identity)

    def kill(self, number: int = 9) -> None:
        """As the kernel or another node process would: from outside the pod."""
        kill_identity(self.identity, number)


class Pod:
    """`spec` is a Pod of Kubernetes, or a Deployment of one. Use as a context manager: at its end the pod is removed,
    whatever happened.

    `folder` is for the files that podman needs. A pod with a container called `neighbour` is checked at a good end: no
    signal has reached it, and its processes are the same as at the start.
    """

    def __init__(self, podman: Podman, spec: dict[str, Any], folder: Path) -> None:
        self.podman = podman
        template = spec["spec"].get("template")
        self.name: str = spec["metadata"]["name"] + ("-pod-0" if template else "")  # as podman names it
        self.spec = spec
        self._file = folder / f"{self.name}.yaml"
        self._containers = [container["name"] for container in (template or spec)["spec"]["containers"]]
        self._neighbours: list[Identity] = []
        self._logs: dict[str, Path] = {}
        self._ids: dict[str, str] = {}

    def __enter__(self) -> Pod:
        self._file.write_text(json.dumps(self.spec))  # JSON is YAML
        try:
            self.podman.run("kube", "play", str(self._file), timeout=100)
            self._infra = self.podman.run("pod", "inspect", "-f", "{{.InfraContainerID}}", self.name).stdout.strip()
            self._namespace = os.readlink(f"/proc/{self.inspect(self._infra)['State']['Pid']}/ns/pid")
            if "neighbour" in self._containers:
                eventually(lambda: "neighbour up" in self.logs("neighbour"), "the neighbour is up", 60)
                self._neighbours = [seen.identity for seen in self.processes("neighbour")]
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None and self._neighbours:
                self.check_neighbour()
        finally:
            self._remove()

    def _remove(self) -> None:
        with suppress(PodmanError, subprocess.TimeoutExpired):
            self.podman.run("pod", "rm", "-f", "-t", "0", self.name, timeout=100)
            for volume in self.spec["spec"].get("volumes", []):
                if "emptyDir" in volume:  # podman keeps it
                    self.podman.run("volume", "rm", "-f", volume["name"])

    def check_neighbour(self) -> None:
        """Nothing of ours touched the container that is none of ours."""
        assert [seen.identity for seen in self.processes("neighbour")] == self._neighbours
        said = [line for line in self.logs("neighbour").splitlines() if line != "neighbour up"]
        assert said == []
        assert self.restarts("neighbour") == 0
        assert {seen.state for seen in self.processes("neighbour")} == {"S"}
        kept = self.exec("neighbour", "sh", "-c", "cat /dev/shm/psm_neighbour*").stdout
        assert kept == "mine" * len(self._neighbours)

    # -- the node's and the kubelet's view ----------------------------------------------------------------------

    def full(self, container: str) -> str:
        return f"{self.name}-{container}"

    def inspect(self, container: str) -> dict[str, Any]:
        name = self.full(container) if container in self._containers else container
        # In the middle of a restart podman says nothing, and that all is well.
        text = eventually(lambda: self.podman.run("inspect", "--type", "container", name).stdout, f"{name} inspected")
        (found,) = json.loads(text)
        assert isinstance(found, dict)
        return found

    def identifier(self, container: str) -> str:
        """The container's id, which it keeps over its restarts."""
        if container not in self._ids:
            self._ids[container] = str(self.inspect(container)["Id"])
        return self._ids[container]

    def mounted(self, container: str, path: str) -> Path:
        """The folder of the node that a container has mounted there."""
        (found,) = [mount for mount in self.inspect(container)["Mounts"] if mount["Destination"] == path]
        return Path(found["Source"])

    def restarts(self, container: str) -> int:
        return int(self.inspect(container)["RestartCount"])

    def state(self, container: str) -> str:
        return str(self.inspect(container)["State"]["Status"])

    def exits(self, container: str) -> list[int]:
        """The exit codes of a container so far, in order."""
        told = self.podman.run(
            "events", "--stream=false", "--since", "30m", "--filter", "event=died",
            "--filter", f"container={self.full(container)}", "--format", "{{.ContainerExitCode}}",
        )  # fmt: skip
        return [int(line) for line in told.stdout.split()]

    def processes(self, container: str = "") -> list[Seen]:
        """The pod's processes, or one container's, by their pid in the pod."""
        wanted = self.identifier(container) if container else ""
        found = []
        for pid in PROC.pids():
            if PROC.link(f"{pid}/ns/pid") != self._namespace:
                continue
            inside = _pid_inside(pid)
            stat = PROC.stat(pid)
            if stat is None or not inside:
                continue
            where = container_id(PROC.cgroup(pid))
            if not wanted or where == wanted:
                title = " ".join(clean_argv(PROC.cmdline(pid)))
                found.append(Seen(stat.identity, inside, where, title))
        return sorted(found, key=lambda seen: seen.inside)

    def rank(self, label: str, container: str = "engine") -> Seen:
        """The process titled for this rank: `TP3` is `sglang::scheduler_TP3` or `VLLM::Worker_TP3`."""
        named = {f"sglang::scheduler_{label}", f"VLLM::Worker_{label}"}
        return _only([seen for seen in self.processes(container) if seen.title in named], label)

    def worker(self, kind: str) -> Seen | None:
        """A worker of the sidecar's (`guard`, `web`, `recorder`), None while there is none."""
        mine = [seen for seen in self.processes("rankguard") if f"sidecar.{kind}.__main__" in seen.title]
        return mine[0] if mine else None

    def supervisor(self) -> Seen:
        mine = [seen for seen in self.processes("rankguard") if "sidecar.supervisor.__main__" in seen.title]
        return _only(mine, "supervisor")

    @cached_property
    def address(self) -> str:
        networks = self.inspect(self._infra)["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    # -- what a user does ---------------------------------------------------------------------------------------

    def exec(self, container: str, *command: str, check: bool = True, timeout: float = 60.0) -> Any:
        return self.podman.run("exec", self.full(container), *command, check=check, timeout=timeout)

    def logs(self, container: str) -> str:
        """All that a container has said, over its restarts: the file that the kubelet, too, would read."""
        if container not in self._logs:
            config = self.inspect(container)["HostConfig"]["LogConfig"]
            assert config["Type"] == "k8s-file", config
            self._logs[container] = Path(config["Path"])
        # Each piece is "TIME STREAM F text", or P for the part of a line that is not yet whole.
        pieces = (line.split(" ", 3) for line in self._logs[container].read_text(errors="replace").splitlines())
        return "".join(piece[3] + ("\n" if piece[2] == "F" else "") for piece in pieces if len(piece) == 4)

    def lines(self, event: str = "", **match: Any) -> list[dict[str, Any]]:
        """The sidecar's log lines with this event and these values."""
        found = []
        for text in self.logs("rankguard").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if (not event or line["event"] == event) and all(line.get(k) == v for k, v in match.items()):
                    found.append(line)
        return found

    def wait_line(self, event: str, timeout: float = 60.0, after: int = 0, **match: Any) -> dict[str, Any]:
        """The log line of this event, once there are more than `after` of them."""
        try:
            found = eventually(lambda: self.lines(event, **match)[after:], f"{event} {match}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs('rankguard')}") from error
        line = found[0]
        assert isinstance(line, dict)
        return line

    def wait_serving(self, ranks: int, times: int = 1) -> Pod:
        """Until the engine has been found complete for the `times`-th time, and a recorder stands by."""
        self.wait_line("watching", after=times - 1, state="serving", ranks=ranks)
        self.wait_line("recorder stands by")
        return self

    def get(self, path: str, port: int = 21400, timeout: float = 30.0, **headers: str) -> tuple[int, str]:
        """A GET from outside the pod: status and body. While the web is being started, it is asked again."""

        def once() -> tuple[int, str] | None:
            connection = http.client.HTTPConnection(self.address, port, timeout=timeout)
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                body = answer.read().decode()
                return None if body == "the web process is being started\n" else (answer.status, body)
            except (ConnectionError, http.client.HTTPException):
                return None
            finally:
                connection.close()

        answer = eventually(once, f"an answer to {path}", 60)
        return int(answer[0]), str(answer[1])

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """A scrape from outside the pod: label values and value by sample name."""
        status, text = self.get("/metrics")
        assert status == 200, text
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return found


def sealed(dumps: Path, count: int = 1, timeout: float = 60.0) -> list[dict[str, Any]]:
    """The records on the volume, oldest first, once there are `count` and all are sealed. Raises `AssertionError`."""

    def records() -> list[dict[str, Any]] | None:
        found = [load(path.parent) for path in sorted(dumps.glob("*/incident.json"))]
        return found if len(found) >= count and all(record["sealed"] for record in found) else None

    found = eventually(records, f"{count} sealed incidents in {sorted(p.name for p in dumps.iterdir())}", timeout)
    assert isinstance(found, list)
    assert len(found) == count, [record["id"] for record in found]
    return found


def artifacts(record: dict[str, Any], kind: str, status: str = "captured") -> dict[str, dict[str, Any]]:
    """The record's artifacts of one kind and status, by rank."""
    return {a["rank"]: a for a in record["artifacts"] if a["kind"] == kind and a["status"] == status}


def fill(file: Path) -> None:
    """Leave no byte free on the file's volume."""
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def said(command: list[str]) -> str:
    """A command as a shell takes it."""
    return shlex.join(command)


def _only(found: list[Seen], what: str) -> Seen:
    assert len(found) == 1, f"{what}: {found}"
    return found[0]


def _pid_inside(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0
