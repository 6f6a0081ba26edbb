"""Listening sockets: those that were handed over, or, where a port was busy at the start, bound here with patience."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from sidecar.listening import bind, parse
from sidecar.log import Log

RETRY_FIRST, RETRY_MOST = 0.5, 30.0  # seconds between attempts on a busy port


def adopt(fds: tuple[int, ...]) -> list[socket.socket]:
    """The listening sockets behind descriptors, which they own from now on. One that is no socket raises OSError."""
    sockets = [socket.socket(fileno=fd) for fd in fds]
    for sock in sockets:
        sock.setblocking(False)
        sock.set_inheritable(False)
    return sockets


async def bind_patiently(text: str, setting: str, log: Log) -> list[socket.socket]:
    """Try to bind until it works; one line when it does not at first, one when it does then.

    Nothing is looked up, so an attempt takes microseconds. Raises `ValueError` where `text` is no address.
    """
    address = parse(text)
    delay = RETRY_FIRST
    told = False
    while True:
        try:
            sockets = adopt(bind(address))
        except OSError as error:
            if not told:
                log("cannot listen; trying again", setting=setting, address=text, error=error.strerror or error)
                told = True
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MOST)
        else:
            log("listening", setting=setting, address=text)
            return sockets


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine (or pod) can reach the socket."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
