"""`rankguard webhook` at work: wires the parts together and owns nothing but its event loop.

SIGTERM: not ready from now on, but serving for as long as it takes until nobody is sent here any more; then no new
connections, the answers that are under way, and the end.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sidecar.log import Log
from sidecar.web.server import QuietServer
from sidecar.webhook.admission import Admission, Answer
from sidecar.webhook.api import Api
from sidecar.webhook.apps import admission_app, machine_app
from sidecar.webhook.certificates.brought import BroughtFiles
from sidecar.webhook.certificates.own import CONFIGURATIONS, OwnCertificates, Place
from sidecar.webhook.certificates.pair import Served
from sidecar.webhook.claims import Claims
from sidecar.webhook.events import Events
from sidecar.webhook.metrics import Metrics
from sidecar.webhook.namespaces import Namespaces
from sidecar.webhook.options_file import OptionsFile, keep_looking
from sidecar.webhook.server import SecureServer
from sidecar.webhook.watch import Watch

THREADS = 4  # for calls to the API server that a request waits for, and for large requests


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line says. Exactly one of `files` (certificate, key) and `own` is there. Seconds."""

    options: str | None
    files: tuple[str, str] | None
    own: Place | None
    namespace: str
    instance: str
    drain: float


class Webhook:
    """One life. Raises `UsageError` or `BadPair` where it cannot begin."""

    def __init__(self, plan: Plan, api: Api, log: Log) -> None:
        self.metrics = Metrics()
        self.draining = False
        self._plan = plan
        self._api = api
        self._log = log
        self._served = Served()
        self._options = OptionsFile(plan.options, self.metrics, log)
        looks = [self._options.look]
        if plan.files is not None:
            files = BroughtFiles(*plan.files, self._served, self.metrics, log)
            files.first()
            looks.append(files.look)
        self._looks = looks
        self._own = OwnCertificates(api, plan.own, self._served, self.metrics, log) if plan.own is not None else None
        self._executor = ThreadPoolExecutor(THREADS, "lookup")
        self._namespaces = Namespaces(api, self._executor, self.metrics, log)
        self._events = Events(api, plan.instance, self.metrics, log)
        claims = Claims(api, self._executor, self.metrics)
        self._admission = Admission(
            self._options, self._namespaces, claims, self._events, self._executor, plan.namespace, log
        )

    async def run(self, secure: list[socket.socket], plain: list[socket.socket]) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.set_exception_handler(self._on_exception)
        keep_looking(self._looks, self._log)
        if self._api.reachable:
            self._events.start()
            self._namespaces.start()
        elif self._own is None:
            self._log("there is no service account: nothing is known of namespaces and claims, no Events are posted")
        if self._own is not None and self._plan.own is not None:
            self._follow(self._own, self._plan.own)
        server = SecureServer(admission_app(self), self._served.context, self._log)
        machines = QuietServer(machine_app(self))
        gc.collect()
        gc.freeze()  # what was imported stays for good
        serving = [asyncio.create_task(server.serve(sockets=secure))]
        if plain:
            serving.append(asyncio.create_task(machines.serve(sockets=plain)))
        self._log("serving", address=_address(secure), metrics=_address(plain))
        stop = asyncio.create_task(ended.wait())
        done, _ = await asyncio.wait({stop, *serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stop}:
            await task
        self.draining = True
        self._log("ending; serving until nobody comes any more", seconds=self._plan.drain)
        ended.clear()
        try:
            await asyncio.wait_for(ended.wait(), self._plan.drain)  # a second signal ends the wait
        except TimeoutError:
            pass
        server.stop()
        await serving[0]
        machines.stop()
        await asyncio.gather(*serving[1:])
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._log("ended")

    def _follow(self, own: OwnCertificates, place: Place) -> None:
        """Go round on a thread, and at once when what we wrote is changed by others."""

        def wake(_kind: str, _metadata: dict[str, Any]) -> None:
            own.wake()

        threading.Thread(target=own.run, name="certificates", daemon=True).start()
        if self._api.reachable:
            for path, operation, name in (
                (CONFIGURATIONS, "webhook_configuration", place.configuration),
                (place.secrets_path, "secret", place.secret),
            ):
                selector = f"metadata.name={name}"
                Watch(self._api, path, wake, self.metrics, self._log, operation=operation, selector=selector).start()

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, (ssl.SSLError, ConnectionError)):  # those are the clients' affairs
            self._log("a bug", what=context.get("message"), error=f"{type(error).__name__}: {error}")

    # What is told (`apps.View`).

    async def answer(self, body: bytes) -> Answer:
        return await self._admission.answer(body)

    def readiness(self) -> tuple[bool, str]:
        if self.draining:
            return False, "it is ending"
        if self._served.pair is None:
            return False, f"there is no certificate yet ({self._own.trouble if self._own else ''})"
        if self._own is not None and not self._own.trusted:
            return False, f"the API server does not trust our certificate yet ({self._own.trouble})"
        if not self._namespaces.settled:
            return False, "nothing is known of namespaces yet"
        return True, "ok"


def _address(sockets: list[socket.socket]) -> str | None:
    found = [sock.getsockname()[:2] for sock in sockets]
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found) or None
