"""What is told to the API server, on kmock behind TLS: Events, the annotation, the switch, and ways to be refused."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp.web
import pytest
from cluster_rig import EVENTS, NAMESPACE, POD, PODS, UID, ApiServer, api_server

from sidecar.log import Log
from sidecar.settings import Launch, Settings
from sidecar.web.kubernetes import outbox as outbox_module
from sidecar.web.kubernetes.api import Api
from sidecar.web.kubernetes.asking import Asking, Call
from sidecar.web.kubernetes.cluster import Cluster
from sidecar.web.kubernetes.fleet import FleetSwitch
from sidecar.web.state import EngineState, state_from

Script = Callable[["Life"], Awaitable[None]]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "account") as server:
        server.pod()
        yield server


class Life:
    """One web's Kubernetes side. `told` is what the guard was told, `failed` the operations that were counted."""

    def __init__(self, api: ApiServer, log: Log, errors: tuple[str, ...] = (), **settings: Any) -> None:
        named = {"pod_namespace": NAMESPACE, "pod_name": POD, "pod_uid": UID, **settings}
        self.told: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self.cluster = Cluster(
            Launch(settings=Settings(service_account_dir=str(api.folder), **named), config_errors=errors), log,
            self._tell, self.failed.append, lambda: None, api.environ,
        )  # fmt: skip

    def _tell(self, message: dict[str, Any]) -> bool:
        self.told.append(message)
        return True

    def event(self, name: str, incident: str = "i1", **fields: Any) -> None:
        """One of the guard's, as it makes them."""
        told = {
            "name": name, "incident": incident, "wall": time.time(), "reason": "RankDied", "action": "kill",
            "because": "TP3 signal 9", "rank": "TP3", "role": "scheduler", "cause": "sigkill", "ended": "signal 9",
            "container": "engine", "deaths": 1,
        }  # fmt: skip
        self.cluster.on_event({**told, **fields})

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, what
            await asyncio.sleep(0.02)


def live(api: ApiServer, script: Script, capfd: pytest.CaptureFixture[str], **more: Any) -> str:
    """Run `script` in a life; then the log."""

    async def run() -> None:
        life = Life(api, Log("web", "text"), **more)
        task = asyncio.create_task(life.cluster.run())
        try:
            await script(life)
        finally:
            task.cancel()

    asyncio.run(run())
    log = capfd.readouterr().err
    print(log)
    assert "t0ken" not in log
    assert "mistake of ours" not in log
    return log


def test_one_event_a_reason(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Of our pod by its uid, about the container; a second incident raises the count, also for the next life of ours.
    What is told twice by a lost answer counts once.
    """

    async def twice(life: Life) -> None:
        life.event("incident")
        life.event("terminated", outcome="reaped", killed=9, seconds=0.25)
        life.event("closed", sealed=True, saved=12, summary="TP3 was killed by signal 9 (SIGKILL).", outcome="reaped")
        life.event("incident", "i2", deaths=3)
        await life.until(lambda: [e["count"] for e in api.events().get("RankDied", ())] == [2], "counted")
        assert life.failed == []

    async def again(life: Life) -> None:
        life.event("incident", "i3", rank="server", role="server", container="")
        await life.until(lambda: api.events()["RankDied"][0]["count"] == 3, "counted by the next life")

    async def lost(life: Life) -> None:
        life.event("incident", "i3", rank="server", role="server", container="")
        life.event("reap_timeout", "i3", detail="TP0 (pid 7, state D): the node needs a drain")
        await life.until(lambda: "ReapTimeout" in api.events(), "the last one")

    live(api, twice, capfd)
    live(api, again, capfd, target_container="engine")
    live(api, lost, capfd, target_container="engine")
    events = api.events()
    assert {reason: len(rows) for reason, rows in events.items()} == dict.fromkeys(
        ("RankDied", "EngineKilled", "EvidenceSaved", "ReapTimeout"), 1
    )
    (died,) = events["RankDied"]
    assert died["count"] == 3
    assert died["message"] == (
        "the server in container engine died of sigkill (signal 9); its evidence is taken, then the engine is killed."
        " Incident i3."
    )
    assert died["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": NAMESPACE, "name": POD, "uid": UID,
        "fieldPath": "spec.containers{engine}",
    }  # fmt: skip
    assert (died["type"], events["EngineKilled"][0]["type"]) == ("Warning", "Normal")
    assert "9 processes killed and gone within 0.2 s" in events["EngineKilled"][0]["message"]
    assert "12 files of evidence saved. TP3 was killed" in events["EvidenceSaved"][0]["message"]
    assert "needs a drain" in events["ReapTimeout"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"reason": "EngineStalled", "because": "TP1 is stopped"}, "LivenessFailed", "TP1 is stopped"),
        ({"reason": "LivenessFailed", "action": "capture"}, "LivenessFailed", "the engine runs on"),
        ({"reason": "PreStop", "because": "the kubelet stops the engine"}, "LivenessFailed", "the kubelet stops"),
        ({"reason": "RankMissing", "because": "3 of 4 ranks"}, "RankMissing", "3 of 4 ranks"),
        ({"reason": "RankDied", "action": "observe"}, "RankDied", "it is only recorded"),
        ({"reason": "EngineExited", "rank": "T\n\x1b[3m" + "x" * 2000}, "RankDied", "…"),
    ],
)
def test_the_other_reasons(
    api: ApiServer, capfd: pytest.CaptureFixture[str], fields: dict[str, str], reason: str, words: str
) -> None:
    """Whatever a title holds, a message is one line of bounded length that ends with the incident."""

    async def script(life: Life) -> None:
        life.event("incident", **fields)
        await life.until(lambda: api.events(), "told")

    live(api, script, capfd)
    ((told,),) = api.events().values()
    assert told["reason"] == reason
    assert words in told["message"]
    assert told["message"].endswith(" Incident i1.")
    assert told["message"].isprintable()
    assert len(told["message"]) <= 1000


def test_what_is_no_news_is_not_told(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Too old, of a kind that nobody tells, or nonsense; and a bad setting has an Event of its own."""

    async def script(life: Life) -> None:
        life.event("incident", wall=time.time() - 3600)
        life.event("incident", reason="Manual")
        life.event("terminated", outcome="denied", killed=0, seconds=1.0)
        life.event("closed", sealed=False, saved=0, summary="", outcome="")
        life.event("incident", reason="Nonsense")
        life.event("rank_death")
        await life.until(lambda: api.events(), "told")

    log = live(api, script, capfd, errors=("--death-deadline: 'soon' cannot be used", "another"))
    ((told,),) = api.events().values()
    assert told["reason"] == "BadSetting"
    assert "soon" in told["message"]
    assert "And 1 more." in told["message"]
    assert log.count("an event cannot be told to Kubernetes") == 1


def test_without_the_right_to_patch(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Each incident has Events of its own; that is no error, and said once."""

    async def script(life: Life) -> None:
        api.refuse(403, "PATCH")
        for number in range(4):
            life.event("incident", f"i{number}")
        await life.until(lambda: len(api.events().get("RankDied", ())) == 4, "one each")
        assert life.failed == []
        assert api.asked("PATCH") == 1

    assert live(api, script, capfd).count("each incident has Events of its own") == 1


def test_the_annotation(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """The last incident and its summary, where it is asked for; the pod's other annotations stay."""
    api.pod(annotations={"mine": "stays"})

    async def script(life: Life) -> None:
        life.event("closed", sealed=True, saved=1, summary="TP3 was killed.", outcome="reaped")
        await life.until(lambda: len(api.objects(PODS)[0]["metadata"]["annotations"]) == 2, "annotated")

    live(api, script, capfd, kubernetes_annotation=True, kubernetes_events=False)
    assert api.objects(PODS)[0]["metadata"]["annotations"] == {
        "mine": "stays", "rankguard.dev/last-incident": "i1 TP3 was killed.",
    }  # fmt: skip
    assert api.events() == {}


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_refusal_is_not_tried_again(api: ApiServer, capfd: pytest.CaptureFixture[str], status: int) -> None:
    """One count each, one line for all of them, and the next thing is tried."""

    async def script(life: Life) -> None:
        api.refuse(status, "POST")
        life.event("incident")
        life.event("incident", "i2")
        await life.until(lambda: len(life.failed) == 2, "counted")
        api.fail(None)
        life.event("incident", "i3")
        await life.until(lambda: not life.cluster.api.troubles(), "told")

    log = live(api, script, capfd)
    assert log.count("no Event can be made") == 1
    assert f"no, {status}" in log
    assert log.count("the API server answers again") == 1
    assert [e["count"] for e in api.events()["RankDied"]] == [1]


@pytest.mark.parametrize("way", ["503", "429", "401", "garbage", "closed"])
def test_what_may_pass_is_tried_again(
    api: ApiServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A server that is down, busy or lost its mind, a token that has expired: later it is told all the same."""
    monkeypatch.setattr(outbox_module, "_FIRST", 0.05)

    async def cut(raw: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        assert raw.transport is not None
        raw.transport.close()
        return aiohttp.web.Response()

    async def script(life: Life) -> None:
        if way == "garbage":
            api.refuse(500, body=b"\x00<html>" * 1000)
        elif way == "closed":
            api.fail(cut)
        else:
            api.refuse(int(way))
        life.event("incident")
        await life.until(lambda: life.failed.count("create_event") >= 2, "tried again")
        (api.folder / "token").write_text("t0ken-2")
        api.fail(None)
        await life.until(lambda: api.events(), "told in the end")

    log = live(api, script, capfd)
    assert log.count("no Event can be made") == 1
    assert api.requests[-1][2].endswith("t0ken-2")
    if way == "401":
        assert "it has expired, or a clock is wrong" in log


def test_a_silent_server_and_a_full_outbox(
    api: ApiServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on, what waits is bounded, and a call that somebody waits for does not stand behind it."""
    monkeypatch.setattr("sidecar.web.kubernetes.teller.PATIENCE", 0.5)

    async def script(life: Life) -> None:
        api.hang("/events")
        for number in range(200):
            life.event("incident", f"i{number}")
        await life.until(lambda: "create_event" in life.failed, "counted")
        assert await life.cluster.pod.look() is not None
        assert len(life.cluster._outbox._waiting) <= outbox_module.MOST_WAITING

    assert "it did not answer within" in (log := live(api, script, capfd)) or "Timeout" in log
    assert api.objects(EVENTS) == []


def test_a_clock_that_is_slow(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The server's certificate is not valid yet: one line says so, and no token is sent."""
    with api_server(tmp_path / "account", datetime.timedelta(hours=1)) as api:

        async def script(life: Life) -> None:
            life.event("incident")
            await life.until(lambda: {"create_event", "get_pod"} <= set(life.failed), "counted")

        log = live(api, script, capfd)
    assert "not yet valid" in log
    assert log.count("no Event can be made") == 1
    assert api.requests == []


def test_the_fleet_switch(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Turned on, off, gone and unreadable: the guard is told each change once, and a new guard the last word."""

    async def run() -> tuple[list[Any], list[str]]:
        told: list[Any] = []
        failed: list[str] = []
        taken = [False]

        def tell(message: dict[str, Any]) -> bool:
            taken[0] = not taken[0]  # every other time the guard does not take it
            if taken[0]:
                return False
            told.append(message["observe"])
            return True

        settings = Settings(pod_namespace=NAMESPACE, pod_name=POD, service_account_dir=str(api.folder))
        asked = Api(settings, Log("web", "text"), failed.append, api.environ)
        switch = FleetSwitch("system/fleet", asked, Log("web", "text"), tell, lambda: None, every=0.05)
        task = asyncio.create_task(switch.run())

        async def until(condition: Callable[[], Any]) -> None:
            end = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < end, told
                await asyncio.sleep(0.02)

        try:
            await until(lambda: told == [False])  # there is no ConfigMap yet
            assert failed == []
            api.fleet("observe")
            await until(lambda: told == [False, True])
            api.refuse(403, part="configmaps")
            await until(lambda: failed)
            assert switch.observe is True
            api.refuse(200, part="configmaps", body=b'{"kind": "ConfigMap", "metadata": {}, "data": ["observe"]}')
            await until(lambda: told == [False, True, False])
            api.fail(None)
            await until(lambda: told == [False, True, False, True])
            switch.on_guard()
            await until(lambda: len(told) == 5)
            return told, failed
        finally:
            task.cancel()

    told, _ = asyncio.run(run())
    assert told == [False, True, False, True, True]
    log = capfd.readouterr().err
    assert log.count("the fleet switch cannot be read") == 1
    assert log.count("mode=observe") == 2


def state(*ranks: tuple[int, bool, str], stands: str = "serving", incident: str = "") -> EngineState:
    """As the guard describes it: each rank is a pid, whether it is up, and its container."""
    told = [
        {"role": "scheduler", "rank": f"TP{pid}", "up": up, "pid": pid, "start": 1, "container": container}
        for pid, up, container in ranks
    ]
    return state_from({"state": stands, "incident": incident, "ranks": told})


def test_whether_the_pod_is_being_deleted(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked when a rank has gone or an incident has begun, not at rest nor in a drain; the guard is told if it is."""

    async def script(life: Life) -> None:
        cluster = life.cluster
        await life.until(lambda: cluster.pod.facts, "the pod read")
        asked = api.asked("GET")
        cluster.on_state(state((1, True, ""), (2, True, "")))
        cluster.on_state(state((1, True, ""), (2, True, ""), (3, True, "")))
        cluster.on_state(state((1, False, ""), (2, True, ""), stands="draining"))
        cluster.on_state(state((1, True, ""), (2, True, "")))
        assert cluster._looking is None
        cluster.on_state(state((1, False, ""), (2, True, "")))
        await life.until(lambda: api.asked("GET") == asked + 1, "asked")
        assert life.told == []
        api.pod(deletionTimestamp="2026-11-30T00:00:00Z", finalizers=["test"])
        cluster.on_state(state((2, True, ""), incident="i1"))
        await life.until(lambda: life.told == [{"type": "deleting"}], "told")

    live(api, script, capfd)


def test_containers_have_names(api: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    """The status is asked for when an id appears that is not known, until it has it; a new guard is told again."""
    one, two = "a" * 64, "b" * 64
    api.pod(status={"containerStatuses": [{"name": "engine", "containerID": f"containerd://{one}"}]})

    async def script(life: Life) -> None:
        cluster = life.cluster
        cluster.on_state(state((1, True, one), (2, True, "")))
        await life.until(lambda: cluster.names.of(one) == "engine", "known")
        asked = api.asked("GET")
        for _ in range(3):
            cluster.on_state(state((1, True, one)))
        assert cluster.names._task is not None
        assert cluster.names._task.done()
        cluster.on_state(state((1, True, two)))
        await life.until(lambda: api.asked("GET") > asked, "asked again")
        api.pod(status={"containerStatuses": [{"name": "engine", "containerID": f"containerd://{two}"}]})
        await life.until(lambda: cluster.names.of(two) == "engine", "the next container known")
        assert cluster.names.of(one) == "engine"
        cluster.on_guard()
        assert life.told[-1] == {"type": "containers", "names": {one: "engine", two: "engine"}}

    live(api, script, capfd)


def test_a_call_that_trickles_ends(api: ApiServer) -> None:
    """Each byte comes in time and all of them never: the thread is free again after the call's patience."""

    async def trickle(raw: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse()
        await response.prepare(raw)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    api.fail(trickle)
    asking = Asking("test", api.environ, str(api.folder))
    with pytest.raises(TimeoutError):
        asking.ask(Call("GET", "/api/v1/x", patience=0.3, keep=True))
    api.fail(None)
    assert asking.ask(Call("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}", patience=20.0))[0] == 200


def test_a_connection_is_kept_where_it_is_wanted(api: ApiServer) -> None:
    """The switch is read over one connection; a CA that was changed ends it."""
    ports: list[int] = []

    def seen(raw: aiohttp.web.BaseRequest) -> None:
        assert raw.transport is not None
        ports.append(raw.transport.get_extra_info("peername")[1])

    api.fail(seen)  # type: ignore[arg-type]
    asking = Asking("test", api.environ, str(api.folder))
    call = Call("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}", patience=20.0, keep=True)
    for _ in range(3):
        assert asking.ask(call)[0] == 200
    assert len(set(ports)) == 1
    ca = api.folder / "ca.crt"
    text = ca.read_bytes()
    ca.unlink()
    ca.write_bytes(text + b"\n")
    assert asking.ask(call)[0] == 200
    assert len(set(ports)) == 2
    asking._drop()
