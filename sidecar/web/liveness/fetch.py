"""One GET to the engine: bounded in time, in bytes and in work, whatever answers.

h11 over asyncio, both here already for uvicorn: httpx would take 4.6 MiB of the web's 60 (seen) for what is not wanted
here, a pool, redirects, proxies from the environment. A new connection each time, since whether the engine still
accepts one is half of the question. TLS is not verified: it is the engine's own certificate, mostly on loopback, and
nothing secret is sent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

import h11

from sidecar.engines.profile import Endpoint
from sidecar.errors import RankguardError
from sidecar.policy.sightings import Answer
from sidecar.web.worker import Worker

_READ = 64 * 1024
_LARGEST_HEADER = 16 * 1024  # bytes of a status line and its headers together
_ROOM = 64 * 1024  # bytes of an answer beside its body
_MOST_PIECES = 4096  # of an answer: each costs some 20 us, and a hostile one may have a piece for each byte
_ADDRESSES = 4  # of a name, tried one after the other


class NoAnswer(RankguardError):
    """There was no HTTP answer, or no end of it. `answer` is what that means for a health check."""

    def __init__(self, answer: Answer, detail: str) -> None:
        super().__init__(detail)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer begins with. `encoding` is its Content-Encoding, "" where it has none."""

    status: int
    encoding: str


def url_of(endpoint: Endpoint, path: str) -> str:
    """The URL of one of an endpoint's paths, or "" for a path that it does not have."""
    if not path:
        return ""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return f"{'https' if endpoint.tls else 'http'}://{host}:{endpoint.port}{path}"


class Fetcher:
    """Fetches, for one event loop. It keeps no connection.

    Names are looked up on a thread, since a silent name server must not hold up the loop; one that is still being
    looked up is not asked for a second time.
    """

    def __init__(self) -> None:
        self._resolver = Worker("resolver")
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def get(self, url: str, timeout: float, limit: int = 0, take: Callable[[bytes], None] | None = None) -> Head:
        """GET `url`. All of it together has `timeout` seconds, however slowly the answer trickles in.

        `take` is given the body of a 200, piece by piece, and what it raises ends it; an answer of many more bytes than
        `limit` is none. Without `take`, and with any other status, it is read as far as its headers. Redirects are not
        followed. Raises `NoAnswer`.
        """
        parts, port = _split(url)
        host = str(parts.hostname)
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEADER)
        request = _request(connection, parts)
        resolved = False
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(host)
                resolved = True
                reader, writer = await connect(addresses, port, host, tls=parts.scheme == "https")
                try:
                    writer.write(request)
                    return await _answer(reader, connection, limit, take)
                finally:
                    writer.transport.abort()  # a farewell in TLS would wait for the other end's
        except TimeoutError:
            if not resolved:
                raise NoAnswer(Answer.UNKNOWN, f"{host} is still being looked up after {timeout:g} s") from None
            raise NoAnswer(Answer.TIMEOUT, f"no answer in {timeout:g} s") from None
        except OSError as error:
            raise NoAnswer(_meaning(error), _words(error)) from error

    async def _addresses(self, host: str) -> list[str]:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                socket.inet_pton(family, host)
                return [host]
            except OSError:
                pass
        asked = self._asked.get(host)
        if asked is None:
            asked = self._asked[host] = self._resolver.submit(_look_up, host)
            asked.add_done_callback(lambda future: self._forget(host, future))
        try:
            return await asyncio.shield(asked)
        except (OSError, UnicodeError) as error:
            raise NoAnswer(Answer.UNKNOWN, f"{host} cannot be looked up: {_words(error)}") from None

    def _forget(self, host: str, future: asyncio.Future[list[str]]) -> None:
        del self._asked[host]
        if not future.cancelled():
            future.exception()  # whoever asked may be gone: asyncio would complain that nobody looked at it


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise NoAnswer(Answer.UNKNOWN, f"not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "\0" in parts.hostname:
        raise NoAnswer(Answer.UNKNOWN, "not a URL: it takes http://HOST[:PORT]/PATH, or https")
    if "@" in parts.netloc:
        raise NoAnswer(Answer.UNKNOWN, "a URL with a user or a password is not supported")
    return parts, port


def _request(connection: h11.Connection, parts: SplitResult) -> bytes:
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{parts.query}" if parts.query else "")
    headers = [("Host", parts.netloc), ("Accept", "text/plain, */*"), ("User-Agent", "rankguard"),
               ("Connection", "close")]  # fmt: skip
    try:
        request = connection.send(h11.Request(method="GET", target=target, headers=headers))
        return (request or b"") + (connection.send(h11.EndOfMessage()) or b"")
    except (h11.LocalProtocolError, UnicodeError) as error:
        raise NoAnswer(Answer.UNKNOWN, f"not a URL: {error}") from None


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found][:_ADDRESSES]


async def connect(
    addresses: list[str], port: int, host: str, tls: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first address that accepts one. Raises the last one's OSError."""
    context = _unverified() if tls else None
    failed: OSError | None = None
    for address in addresses:
        try:
            return await asyncio.open_connection(
                address, port, ssl=context, server_hostname=host if tls else None, limit=_READ
            )
        except OSError as error:
            failed = error
    raise failed or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _answer(
    reader: asyncio.StreamReader, connection: h11.Connection, limit: int, take: Callable[[bytes], None] | None
) -> Head:
    head: Head | None = None
    received = pieces = 0
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise NoAnswer(Answer.UNHEALTHY, f"no HTTP answer: {error}") from None
        if event is h11.NEED_DATA:
            data = await reader.read(_READ)
            received += len(data)
            connection.receive_data(data)
            continue
        pieces += 1
        if isinstance(event, h11.Response):
            encoding = dict(event.headers).get(b"content-encoding", b"")
            head = Head(event.status_code, encoding.decode("latin-1"))
            if take is None or head.status != 200:
                return head
        elif isinstance(event, h11.Data) and take is not None:
            take(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return head
        elif not isinstance(event, h11.InformationalResponse):
            raise NoAnswer(Answer.UNHEALTHY, "closed without an answer")
        if received > limit + _ROOM:
            raise NoAnswer(Answer.UNHEALTHY, f"an answer of more than {limit + _ROOM} bytes")
        if pieces > _MOST_PIECES:
            raise NoAnswer(Answer.UNHEALTHY, f"an answer in more than {_MOST_PIECES} pieces")


def _meaning(error: OSError) -> Answer:
    if isinstance(error, ConnectionRefusedError):
        return Answer.REFUSED
    if isinstance(error, (ConnectionError, ssl.SSLError)):
        return Answer.UNHEALTHY
    return Answer.UNKNOWN  # no descriptors left, no route: this says more of us than of the engine


def _words(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, socket.gaierror)) else 0
    return os.strerror(number) if number else str(error) or type(error).__name__
