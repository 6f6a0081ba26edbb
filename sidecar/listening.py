"""Addresses to listen on: reading them, and the sockets for them.

Only addresses and `localhost` are taken, no other names: a lookup could wait for a name server before anything is
watched, and what it answers may be more than the interface that was meant. Stdlib only.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass

ALLOWED = "HOST:PORT with an IP address or localhost, [::1]:PORT, :PORT for every interface, or none"
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Address:
    """`host` is "" for every interface, `localhost`, or an IP address without brackets. Port 0: any free port."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return self.host == "localhost" or bool(self.host and ipaddress.ip_address(self.host).is_loopback)


def parse(text: str) -> Address:
    """Read `HOST:PORT`. Raises `ValueError` with what is allowed."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"it takes {ALLOWED}")
    host = match[1] or match[2] or ""
    if host not in ("", "localhost"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError as error:
            raise ValueError(f"it takes {ALLOWED}") from error
        if (version == 6) != bool(match[1]):
            raise ValueError(f"it takes {ALLOWED}")
    return Address(host, int(match[3]))


def bind(address: Address) -> tuple[int, ...]:
    """Listening sockets for `address`, inheritable, the caller's to close: one, or one for each IP version.

    They listen at once, so that nobody else can take the port before somebody accepts. Raises `OSError` with a text
    that a person can use; then nothing is left open.
    """
    try:
        sockets = _bound(address)
    except OSError as error:
        raise OSError(error.errno, _reason(error, address)) from error
    for sock in sockets:
        sock.set_inheritable(True)
    return tuple(sock.detach() for sock in sockets)


def _bound(address: Address) -> list[socket.socket]:
    if address.host == "":
        try:
            return [_one(socket.AF_INET6, "::", address.port, dual=True)]
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
        return _both("0.0.0.0", "::", address.port)  # noqa: S104  # every interface is what was asked for
    if address.host == "localhost":
        return _both("127.0.0.1", "::1", address.port)
    version = ipaddress.ip_address(address.host).version
    return [_one(socket.AF_INET6 if version == 6 else socket.AF_INET, address.host, address.port)]


def _both(host4: str, host6: str, port: int) -> list[socket.socket]:
    """One socket for each IP version on the same port; one alone where the machine has but one version."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, host in ((socket.AF_INET, host4), (socket.AF_INET6, host6)):
        try:
            sockets.append(_one(family, host, port or (sockets[0].getsockname()[1] if sockets else 0)))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
                for sock in sockets:
                    sock.close()
                raise
            missing = error
    if missing and not sockets:
        raise missing
    return sockets


def _one(family: socket.AddressFamily, host: str, port: int, dual: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits out old connections
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        # Numeric only, so nothing is looked up; it also turns fe80::1%eth0 into an address with its interface.
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        [(*_, where)] = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _reason(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {address.port} is in use by another process"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {address.port} needs rights that this process does not have (take one from 1024 up)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"no interface here has the address {address.host}"
    if isinstance(error, socket.gaierror) or error.errno is None:
        return f"{address.host} is no address of this machine"
    return os.strerror(error.errno)
