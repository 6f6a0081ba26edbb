"""Which page a browser's request comes from, by the headers that the browser alone sets. Pure.

A port that `kubectl port-forward` opened is in reach of every page in the same browser. Host tells a name that was
bound to 127.0.0.1; Origin a request that a script or a form of another page made; `Sec-Fetch-Site` also what carries
no Origin: a link, an image, a script from elsewhere. Another port of localhost is the same *site* and another origin.
Programs such as curl send neither of the last two, and pass.
"""

from __future__ import annotations

import re
from typing import Any

_LOCAL = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_LOOKED_AT = (b"host", b"origin", b"authorization", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest")
_OURS = ("", "same-origin", "none")  # no browser, or an old one; our own page; a person, by the address bar
READING = ("GET", "HEAD")
SHELL = "/"

Refusal = tuple[int, str]


def stranger(scope: Any, local_only: bool) -> Refusal | None:
    """Status and reason where a request is refused for where it comes from. `local_only`: to no host but this one."""
    given: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _LOOKED_AT and name in given:
            return 400, f"{name.decode()} was given twice"
        given[name] = value.decode("latin-1").strip().lower()
    host = given.get(b"host", "")
    if not host:
        return 400, "a Host header is needed"
    if local_only and _LOCAL.fullmatch(host) is None:
        return 403, "this port answers to localhost only; use kubectl port-forward, or set --api-token-file"
    if b"origin" in given and not _same_host(given[b"origin"], host):
        return 403, "requests from other sites are refused"
    if given.get(b"sec-fetch-site", "") not in _OURS and not _is_link_to_the_shell(scope, given):
        return 403, "requests from other sites are refused; a link may lead to the page alone"
    return None


def is_shell(scope: Any) -> bool:
    """Whether the request is for the page itself, which holds no data."""
    return scope["path"] == SHELL and scope["method"] in READING


def _is_link_to_the_shell(scope: Any, given: dict[bytes, str]) -> bool:
    """Somebody follows a link, in a chat or beside an alert, and it fills a window of its own: the page that it stood
    on gets nothing of it, and what ours then asks for is asked by ours. A frame is no window of its own."""
    window = given.get(b"sec-fetch-mode") == "navigate" and given.get(b"sec-fetch-dest") == "document"
    return window and is_shell(scope)


def _same_host(origin: str, host: str) -> bool:
    scheme, found, rest = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    if not found or port is None:
        return False  # also "null", which a sandboxed frame or a file sends
    return rest.removesuffix(port) == host.removesuffix(port)
