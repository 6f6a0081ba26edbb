"""The web process: tells what the guard sees. It wires the parts together and owns nothing but its event loop.

supervisor ──control channel──▶ guard's socket ──▶ GuardLink ──state──▶ Metrics ──▶ /metrics, /readyz, API
                                                      ├──event──▶ Ledger ──▶ counters on the volume ──▶ ack
                                                      ├──state──▶ Doctor ──▶ checks of our rights, in a child
the API server ◀── Events, looks, the fleet switch ── Cluster ◀── event, state
                                            └── what is learnt of the pod ──▶ GuardLink ──▶ guard
the engine ◀── health, metrics, looks ── Monitor ◀────┘
                                            └──liveness──▶ GuardLink ──▶ guard
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import time
from typing import Any

from sidecar.errors import PeerGone, ProtocolError
from sidecar.history import HistoryWriter
from sidecar.keeping import about, keeping_of
from sidecar.log import Log
from sidecar.messages import Channel, Message
from sidecar.settings import Launch
from sidecar.system.memory import OwnMemory
from sidecar.system.programs import find_pyspy
from sidecar.version import VERSION
from sidecar.web.apps import About, People, machine_app, people_app
from sidecar.web.counters import seeded
from sidecar.web.doctor import Doctor
from sidecar.web.gate import Gate
from sidecar.web.hooks import Hooks
from sidecar.web.keeper import CountersFile, counters_path
from sidecar.web.kubernetes.cluster import Cluster
from sidecar.web.ledger import Ledger
from sidecar.web.library import Library
from sidecar.web.link import PATIENCE, GuardLink
from sidecar.web.listen import adopt, bind_patiently, is_loopback
from sidecar.web.liveness.monitor import Monitor
from sidecar.web.metrics import Metrics
from sidecar.web.news import News
from sidecar.web.openapi import add_openapi
from sidecar.web.pool import Pool
from sidecar.web.server import App, QuietServer
from sidecar.web.state import EngineState, state_from
from sidecar.web.tickets import Tickets
from sidecar.web.token_file import TokenFile

LOAD_SECONDS = 1.0  # the start waits this long for the counters on the volume, so that no scrape sees a 0 before them
RECORD_LIMIT = 4 << 20  # bytes of a record that is read here, beside everything else; the viewer takes more
FLUSH_SECONDS = 1.0  # the end waits this long for the last write


class Web:
    """One life of the process, made and run on its event loop. `run` returns when the process is to end.

    `history_fd` is the memfd that scraped metrics are kept in (`sidecar.history`), -1 where there is none.
    """

    def __init__(
        self, launch: Launch, control: Channel, log: Log, history_fd: int = -1, memory: OwnMemory | None = None
    ) -> None:
        settings = launch.settings
        self._launch = launch
        self._log = log
        self._control = control
        self._ended = asyncio.Event()
        self._state: EngineState | None = None
        self._servers: dict[str, QuietServer] = {}
        self._counts = seeded(settings.captures)
        self._counts.about = about(settings.pod, keeping_of(settings))
        build = {"version": VERSION, "python": platform.python_version(), "kernel": platform.release()}
        self._metrics = Metrics(self._counts, build, len(launch.config_errors))
        self._link = GuardLink(log, self._on_message, self._on_away)
        file = CountersFile(counters_path(settings.dump_dir, settings.pod_uid))
        self._cluster = Cluster(launch, log, self._link.tell, self._count_trouble, self._on_switch)
        self._ledger = Ledger(
            self._counts, file, log, self._link.ack, self._metrics.changed, on_new=self._cluster.on_event
        )
        self._started = time.monotonic()
        self._monitor = Monitor(
            settings,
            log,
            self._link.tell,
            pyspy=find_pyspy(launch.python, os.environ.get("PATH", "")),
            history=HistoryWriter(history_fd) if history_fd >= 0 else None,
            memory=memory,
        )
        self._doctor = Doctor(launch, log, self._metrics.show_rights)
        self._hooks = Hooks(settings, self._cluster.pod, self._link.tell, log)
        self._library = Library(
            settings.dump_dir, Pool("incidents"), RECORD_LIMIT, own=(settings.pod, keeping_of(settings))
        )
        self._news = News(self._library, self._engine_now)

    async def run(self) -> None:
        """Serve until SIGTERM, or until the supervisor is gone. Raises what a port failed with."""
        settings = self._launch.settings
        loop = asyncio.get_running_loop()
        # Ctrl-C and a closed terminal reach the whole process group; when to end is the supervisor's word alone.
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(ignored, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._ended.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        loop.add_reader(self._control.fileno(), self._on_control)

        await self._ledger.start(LOAD_SECONDS)
        tickets = Tickets()
        file = settings.api_token_file
        token = TokenFile(file, self._log, tickets.renew) if file else None
        ended = asyncio.create_task(self._ended.wait())
        monitoring = asyncio.create_task(self._monitor.run())
        rounds = asyncio.create_task(self._doctor.run())
        cluster = asyncio.create_task(self._cluster.run())
        people = People(library=self._library, news=self._news, tickets=tickets, about=self._about())
        api = people_app(self, people)
        add_openapi(api, "Rankguard, beside an engine", asks=token is not None)
        gate = Gate(api, token, tickets)
        ports = {
            "listen": asyncio.create_task(
                self._port("listen", settings.listen, machine_app(self), loopback_only=False)
            ),
            "api_listen": asyncio.create_task(
                self._port("api_listen", settings.api_listen, gate, loopback_only=token is None)
            ),
        }
        # What was imported stays for good: the collector need not walk it again, nor write into its pages.
        gc.collect()
        gc.freeze()
        try:
            waiting = {ended, *ports.values()}
            while not ended.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {ended}:
                    await task
        finally:
            ended.cancel()
            monitoring.cancel()
            rounds.cancel()
            cluster.cancel()
            loop.remove_reader(self._control.fileno())
            self._news.close()
            for setting, task in ports.items():
                if setting in self._servers:
                    self._servers[setting].stop()
                else:
                    task.cancel()  # it still waits for its port
            await self._ledger.stop(FLUSH_SECONDS)
            await asyncio.wait(ports.values(), timeout=2.0)
            self._link.close()
            self._control.close()

    async def _port(self, setting: str, address: str | None, app: App, *, loopback_only: bool) -> None:
        """Serve `app` on the sockets that were handed over for `setting`, or bind them; return at the end."""
        fds = self._launch.listen_fds.get(setting, ())
        if not fds and not address:
            return
        sockets = adopt(fds) if fds else await bind_patiently(str(address), setting, self._log)
        if loopback_only and not all(is_loopback(sock) for sock in sockets):
            # The settings refuse this at the start; what came some other way is refused here.
            self._log("not listening beyond loopback without api_token_file", setting=setting, address=address)
            for sock in sockets:
                sock.close()
            return
        server = QuietServer(app)
        self._servers[setting] = server
        await server.serve(sockets=sockets)

    # What comes in.

    def _on_control(self) -> None:
        while True:
            try:
                received = self._control.receive()
            except PeerGone:
                self._log("the supervisor is gone; ending")
                asyncio.get_running_loop().remove_reader(self._control.fileno())  # the end stays readable for ever
                self._ended.set()
                return
            except ProtocolError as error:
                self._log("a message of the supervisor's was ignored", error=error)
                continue
            if received is None:
                return
            message, fds = received
            if message["type"] == "guard" and len(fds) == 1:
                self._link.adopt(Channel.from_fd(fds[0]))
                self._hooks.on_guard()
                self._cluster.on_guard()
                continue
            self._log("a message of the supervisor's was ignored", type=message["type"], descriptors=len(fds))
            for fd in fds:
                Channel.from_fd(fd).close()

    def _on_message(self, message: Message) -> None:
        if message["type"] == "event":
            self._ledger.event(message)
        elif message["type"] == "state":
            self._state = state_from(message)
            self._metrics.show(self._state)
            self._monitor.on_state(self._state)
            self._doctor.on_state(self._state)
            self._cluster.on_state(self._state)
            self._news.happened()
        elif message["type"] == "hook_done":
            self._hooks.on_done(message)
        else:
            raise ProtocolError("a message of an unknown type")

    def _on_away(self) -> None:
        self._log("there is no guard", seconds=PATIENCE)
        self._state = None  # nobody watches the ranks now: what was known of them must not be shown as if it were so
        self._metrics.show(None)
        self._monitor.on_state(None)
        self._doctor.on_state(None)
        self._hooks.on_away()
        self._cluster.on_state(None)
        self._news.happened()

    def _count_trouble(self, operation: str) -> None:
        self._ledger.count("kubernetes_errors", (operation,))

    def _on_switch(self) -> None:
        self._metrics.show_fleet(bool(self._cluster.fleet.observe))

    # What is told (`apps.View`).

    def health(self) -> tuple[bool, str]:
        if self._link.away > PATIENCE:
            return False, "the guard is not running"
        return True, "ok"

    def readiness(self) -> tuple[bool, str]:
        if self._state is not None:
            return self._state.readiness()
        healthy, why = self.health()
        return False, why if not healthy else "the guard has not reported yet"

    def livez(self) -> tuple[bool, str]:
        """The engine: fails only where the guard says so, since a sidecar that is down must not fail it. Not while the
        fleet switch is on: the kubelet would kill by our word."""
        if self._state is not None and self._state.failed and not self._state.observes:
            return False, "the engine was found stuck or dead, and is still there"
        return True, "ok"

    async def prestop(self, token: bytes, waited: float) -> tuple[int, str]:
        monitor = self._monitor
        return await self._hooks.call(token, failing=monitor.failing, running=monitor.running, waited=waited)

    def metrics(self, accept: str, compress: bool) -> tuple[str, bytes]:
        return self._metrics.render(accept, compress)

    def _about(self) -> About:
        settings = self._launch.settings
        pod = {"namespace": settings.pod_namespace, "name": settings.pod_name} if settings.pod_name else None
        return About(kind="sidecar", version=VERSION, write=False, dump_dir=settings.dump_dir, pod=pod)

    def _engine_now(self) -> dict[str, Any]:
        """What changes of the status while one looks at it."""
        state = self._state
        return {
            "state": state.state if state else None,
            "engine": state.engine if state else None,
            "ranks_expected": state.expected if state else None,
            "ranks_up": sum(rank.up for rank in state.counted()) if state else None,
            "incident": (state.incident or None) if state else None,
            "ready": self.readiness()[0],
        }

    def status(self) -> dict[str, Any]:
        state, settings = self._state, self._launch.settings
        healthy, health = self.health()
        return {
            "version": VERSION,
            "healthy": healthy,
            "health": health,
            "ready_detail": self.readiness()[1],
            **self._engine_now(),
            "capabilities": dict(state.features) if state else {},
            "checks": self._doctor.status(),
            "incidents_total": {labels[0]: n for labels, n in self._counts.counters["incidents"].items()},
            "rank_deaths_total": {labels[0]: n for labels, n in self._counts.counters["rank_deaths"].items()},
            "liveness": self._monitor.summary(),
            "on_rank_death": settings.on_rank_death.value,
            "on_liveness_failure": settings.on_liveness_failure.value,
            "kubernetes": self._cluster.status(),
            "dump_dir": settings.dump_dir,
            "config_errors": list(self._launch.config_errors),
            "pod": {
                "namespace": settings.pod_namespace,
                "name": settings.pod_name,
                "uid": settings.pod_uid,
                "node": settings.node_name,
            },
            "uptime_seconds": round(time.monotonic() - self._started, 3),
        }

    def ranks(self) -> list[dict[str, Any]]:
        deaths = self._counts.counters["rank_deaths_by_rank"]
        return [
            {
                "role": rank.role,
                "rank": rank.rank,
                "up": rank.up,
                "pid": rank.pid or None,
                "container": rank.container or None,
                "container_name": self._cluster.names.of(rank.container) or None,
                "title": rank.title,
                "deaths": deaths.get((rank.role, rank.rank), 0),
            }
            for rank in (self._state.ranks if self._state else ())
        ]

    def request_capture(self) -> bool:
        asked = self._link.manual()
        self._log("a capture was asked for", passed_on=asked)
        return asked
