"""An API server for tests: kmock's emulator behind TLS, on a loop of its own, with a service account's folder.

Objects are kept as the server was told. `fail` makes it answer otherwise for a while.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import selectors
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp.test_utils
import aiohttp.web
import kmock
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMESPACE, POD, UID = "models", "engine-0", "5d1c7a4e-0000-4000-8000-000000000001"
EVENTS, PODS, MAPS = kmock.resource("v1/events"), kmock.resource("v1/pods"), kmock.resource("v1/configmaps")
_LONG_AGO = datetime.timedelta(hours=-1)
Failing = Callable[[aiohttp.web.BaseRequest], Awaitable[aiohttp.web.StreamResponse] | None]


class _Emulator(kmock.KubernetesEmulator):
    """Asks `failing` before it answers."""

    failing: Failing | None = None

    async def __call__(self, raw: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        answer = self.failing(raw) if self.failing is not None else None
        if answer is not None:
            await raw.read()
            return await answer
        return await super().__call__(raw)


class ApiServer:
    """`folder` is the service account's, `environ` what the kubelet sets. Use `api_server`."""

    def __init__(self, folder: Path, valid_from: datetime.timedelta) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str]] = []  # method, path, authorization: all that came
        self._failing: Failing | None = None
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self.port = 0
        self._context = _certified(folder, valid_from)
        (folder / "token").write_text("t0ken")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    @property
    def environ(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def put(self, resource: kmock.resource, name: str, body: dict[str, Any], namespace: str = NAMESPACE) -> None:
        """Have this object."""

        def put() -> None:
            self._kmock.objects[resource, namespace, name] = body

        self._call(put)

    def pod(self, spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **metadata: Any) -> None:
        """Have our pod."""
        meta = {"name": POD, "namespace": NAMESPACE, "uid": UID, **metadata}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec or {}, "status": status or {}}
        self.put(PODS, POD, body)

    def fleet(self, mode: str) -> None:
        """Turn the switch `system/fleet`."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fleet"}, "data": {"mode": mode}}
        self.put(MAPS, "fleet", body, "system")

    def objects(self, resource: kmock.resource) -> list[dict[str, Any]]:
        """Those that are there."""
        return self._call(
            lambda: [dict(o.last.raw) for (r, *_), o in self._kmock.objects.items() if r == resource and not o.deleted]
        )

    def events(self) -> dict[str, list[dict[str, Any]]]:
        """By reason."""
        found: dict[str, list[dict[str, Any]]] = {}
        for event in self.objects(EVENTS):
            found.setdefault(event["reason"], []).append(event)
        return found

    def asked(self, method: str, part: str = "") -> int:
        return sum(1 for m, path, _ in list(self.requests) if m == method and part in path)

    def fail(self, failing: Failing | None) -> None:
        """Answer as `failing` does, which gives None to what is to be answered well."""
        self._failing = failing

    def refuse(self, status: int, method: str = "", part: str = "", body: bytes | None = None) -> None:
        """Answer requests like these with this status."""

        def failing(raw: aiohttp.web.BaseRequest) -> Awaitable[aiohttp.web.StreamResponse] | None:
            if method not in ("", raw.method) or part not in raw.path:
                return None

            async def answer() -> aiohttp.web.StreamResponse:
                said = {"kind": "Status", "metadata": {}, "message": f"no, {status}"}
                if body is not None:
                    return aiohttp.web.Response(body=body, status=status)
                return aiohttp.web.json_response(said, status=status)

            return answer()

        self.fail(failing)

    def hang(self, part: str = "") -> None:
        """Never answer requests like these."""

        async def for_ever() -> aiohttp.web.StreamResponse:
            await self._over.wait()
            return aiohttp.web.Response(status=500)

        self.fail(lambda raw: for_ever() if part in raw.path else None)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(20)

    def _call(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self) -> None:
        def seen(raw: aiohttp.web.BaseRequest) -> Awaitable[aiohttp.web.StreamResponse] | None:
            self.requests.append((raw.method, raw.path, raw.headers.get("authorization", "")))
            return self._failing(raw) if self._failing is not None else None

        self._kmock = _Emulator()
        self._kmock.failing = seen
        async with self._kmock as handler:
            for resource in (EVENTS, PODS, MAPS):
                handler.resources[resource] = {}
            server = aiohttp.test_utils.RawTestServer(handler, host="127.0.0.1", scheme="https")
            await server.start_server(ssl=self._context)
            self.port = int(server.port or 0)
            self._ready.set()
            await self._over.wait()
            await server.close()
            # What was closed ends in later rounds of the loop, TLS when the other side has said so too; what is open
            # then would be complained of in somebody else's test.
            end = time.monotonic() + 2
            while len(self._selector.get_map()) > 1 and time.monotonic() < end:  # one is the loop's own
                await asyncio.sleep(0.01)
            for key in list(self._selector.get_map().values()):
                for handle in filter(None, key.data):
                    transport = getattr(getattr(handle, "_callback", None), "__self__", None)
                    if isinstance(transport, asyncio.WriteTransport):
                        transport.abort()
            await asyncio.sleep(0.1)


@contextmanager
def api_server(folder: Path, valid_from: datetime.timedelta = _LONG_AGO) -> Iterator[ApiServer]:
    """`valid_from`: from when its certificate is valid, seen from now."""
    folder.mkdir(exist_ok=True)
    server = ApiServer(folder, valid_from)
    try:
        yield server
    finally:
        server.close()


def _certified(folder: Path, begins: datetime.timedelta) -> ssl.SSLContext:
    """A certificate for 127.0.0.1, and its CA as `ca.crt` in the folder."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("ca", "kubernetes")]
    made = []
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + (begins if number else datetime.timedelta(hours=-2)))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
        )
        if number:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()))
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made[0].public_bytes(pem))
    chain = folder / "server.pem"
    private = keys[1].private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    chain.write_bytes(private + made[1].public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context
