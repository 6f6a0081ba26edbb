"""One pod with an engine and, if all is well, a sidecar: what the API, kubectl, its log and its metrics say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from e2e_cluster import ApiError, Cluster, Json, core, until
from e2e_specs import HANG, PYTHON
from prometheus_client.parser import text_string_to_metric_families

SIDECAR = "rankguard"
DUMPS = "/var/lib/rankguard"
_RECORDS = f"""
import glob, json
print(json.dumps([json.load(open(p)) for p in sorted(glob.glob({DUMPS + "/*/incident.json"!r}))]))
"""
# Signals processes by title, or all of a container's by a part of their command lines; says how many.
_SIGNAL = """
import os, sys
number, title, exactly = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "exactly"
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace").rstrip("\\0").split("\\0")
    except OSError:
        continue
    text = " ".join(words).strip()
    if int(pid) != os.getpid() and (text == title if exactly else title in text):
        found.append(int(pid))
for pid in found:
    os.kill(pid, number)
print(len(found))
"""


class Pod:
    """`known` is the pod as the API server has said it. Whoever made it clears its namespace."""

    def __init__(self, cluster: Cluster, namespace: str, known: Json) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name: str = known["metadata"]["name"]
        self.uid: str = known["metadata"]["uid"]

    @classmethod
    def made(cls, cluster: Cluster, namespace: str, spec: Json) -> Pod:
        return cls(cluster, namespace, cluster.post(core(namespace, "pods"), spec))

    @classmethod
    def found(cls, cluster: Cluster, namespace: str, labels: str) -> Pod:
        """The one pod with these labels."""
        (known,) = cluster.get(core(namespace, "pods"), labelSelector=labels)["items"]
        return cls(cluster, namespace, known)

    @property
    def path(self) -> str:
        return core(self.namespace, "pods", self.name)

    # -- what the API says --------------------------------------------------------------------------------------

    def read(self) -> Json:
        return self.cluster.get(self.path)

    def annotations(self) -> dict[str, str]:
        return dict(self.read()["metadata"].get("annotations", {}))

    def container(self, name: str) -> Json:
        """As it was admitted."""
        spec = self.read()["spec"]
        (found,) = (each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == name)
        assert isinstance(found, dict)
        return found

    def status(self, container: str) -> Json:
        """The container's status; {} while the kubelet has told none."""
        return status_of(self.read(), container)

    def restarts(self, container: str) -> int:
        return int(self.status(container).get("restartCount", 0))

    def last_end(self, container: str) -> Json:
        """How its run before this one ended; {} where there was none."""
        return dict(self.status(container).get("lastState", {}).get("terminated", {}))

    def is_ready(self) -> bool:
        return "True" in [
            each["status"] for each in self.read()["status"].get("conditions", []) if each["type"] == "Ready"
        ]

    def gone(self) -> bool:
        """Whether this very pod is away."""
        try:
            return bool(self.read()["metadata"]["uid"] != self.uid)
        except ApiError as error:
            if error.status == 404:
                return True
            raise

    def events(self, reason: str = "") -> list[Json]:
        """The Events on this pod, oldest first."""
        selector = f"involvedObject.name={self.name},involvedObject.uid={self.uid}"
        selector += f",reason={reason}" if reason else ""
        told = self.cluster.get(core(self.namespace, "events"), fieldSelector=selector)
        return sorted(told["items"], key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")))

    # -- waiting ------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 180.0) -> Any:
        """`until`, whose failure tells what became of the pod."""
        try:
            return until(condition, f"{self.namespace}/{self.name}: {what}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from error

    def wait_ready(self) -> Pod:
        self.until(self.is_ready, "it is Ready", 300)
        return self

    def wait_serving(self, ranks: int, times: int = 1) -> Pod:
        """Until the engine has been found complete for the `times`-th time by this run of the sidecar."""
        self.wait_line("watching", after=times - 1, state="serving", ranks=ranks)
        self.wait_line("recorder stands by")
        return self

    def wait_restart(self, container: str = "engine", count: int = 1) -> Json:
        """How the container's run ended that the `count`-th restart followed."""
        self.until(lambda: self.restarts(container) >= count, f"{container} was restarted", 300)
        return self.last_end(container)

    def wait_event(self, reason: str, timeout: float = 120.0) -> Json:
        events = self.until(lambda: self.events(reason), f"an Event {reason}", timeout)
        assert isinstance(events, list)
        return dict(events[-1])

    def wait_gone(self, timeout: float = 300.0) -> None:
        self.until(self.gone, "it is gone", timeout)

    # -- what the sidecar says ----------------------------------------------------------------------------------

    def logs(self, container: str = SIDECAR, previous: bool = False) -> str:
        """A container's log, "" where there is none yet."""
        try:
            asked = {"container": container, "previous": str(previous).lower()}
            return self.cluster.ask("GET", f"{self.path}/log", **asked).decode(errors="replace")
        except ApiError as error:
            if error.status in (400, 404):  # it has not run
                return ""
            raise

    def lines(self, event: str, **match: Any) -> list[Json]:
        return lines_of(self.logs(), event, **match)

    def wait_line(self, event: str, timeout: float = 180.0, after: int = 0, **match: Any) -> Json:
        found = self.until(lambda: self.lines(event, **match)[after:], f"log line {event} {match}", timeout)
        return dict(found[0])

    def get(self, path: str, port: int = 21400) -> tuple[int, str]:
        """A GET at the pod, by way of the API server: status and body."""
        try:
            return 200, self.cluster.ask("GET", f"{self.path}:{port}/proxy{path}").decode()
        except ApiError as error:
            return error.status, error.body

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """A scrape: label values and value by sample name. Empty while there is none."""
        status, text = self.get("/metrics")
        return samples(text) if status == 200 else {}

    def incidents(self) -> list[Json]:
        """The records on the volume, oldest first."""
        found = json.loads(self.exec(SIDECAR, PYTHON, "-c", _RECORDS))
        assert isinstance(found, list)
        return found

    def sealed(self, count: int = 1) -> list[Json]:
        """The records, once there are so many and all are sealed."""

        def all_sealed() -> list[Json] | None:
            records = self.incidents()
            return records if len(records) >= count and all(record["sealed"] for record in records) else None

        found = self.until(all_sealed, f"{count} sealed incidents")
        assert isinstance(found, list)
        assert len(found) == count, [record["id"] for record in found]
        return found

    # -- what a person, or fate, does ---------------------------------------------------------------------------

    def exec(self, container: str, *command: str, check: bool = True) -> str:
        words = ("exec", "-n", self.namespace, self.name, "-c", container, "--", *command)
        return str(self.cluster.kubectl(*words, check=check).stdout)

    def kill(self, title: str, number: int = 9) -> None:
        """The process with exactly this title, from within the engine's container."""
        count = self.exec("engine", PYTHON, "-c", _SIGNAL, str(number), title, "exactly").strip()
        assert count == "1", f"{count} processes are titled {title}"

    def signal_sidecar(self, number: int, part: str = "-c import sys") -> int:
        """Every process of the sidecar, from the engine's container. How many there were."""
        return int(self.exec("engine", PYTHON, "-c", _SIGNAL, str(number), part, "in"))

    def order(self, line: str) -> None:
        """One order to the stand-in engine."""
        self.exec("engine", "sh", "-c", f"echo {line} > /tmp/control")

    def hang(self) -> None:
        """The engine stands still, and its livenessProbe says so from now on."""
        self.order("work hang TP1 running=2 waiting=1")
        self.exec("engine", "touch", HANG)

    def delete(self, grace: int | None = None) -> None:
        more = {} if grace is None else {"gracePeriodSeconds": str(grace)}
        self.cluster.ask("DELETE", self.path, **more)

    def story(self) -> str:
        """For whoever reads of a failure."""
        told = []
        with suppress(ApiError, AssertionError):
            pod = self.read()
            told.append(json.dumps(pod["metadata"].get("annotations", {}), indent=1))
            told.append(json.dumps(pod["status"], indent=1)[:6000])
            told += [f"{event['reason']}: {event.get('message')}" for event in self.events()]
            told += ["", *self.logs().splitlines()[-60:]]
        return "\n".join(told)


def status_of(pod: Json, container: str) -> Json:
    status = pod.get("status", {})
    for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        if each["name"] == container:
            return dict(each)
    return {}


def lines_of(log: str, event: str, **match: Any) -> list[Json]:
    """The log's lines with this event and these values."""
    found = []
    for text in log.splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if line["event"] == event and all(line.get(key) == value for key, value in match.items()):
                found.append(line)
    return found


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def artifacts(record: Json, kind: str, status: str = "captured") -> set[str]:
    """The ranks of which there is an artifact of this kind and status."""
    return {each["rank"] for each in record["artifacts"] if each["kind"] == kind and each["status"] == status}
