"""Certificates that somebody else makes: two files, read again when they change.

A Secret's volume swaps a symbolic link for both files at once; the two are read one after the other all the same, so
a pair that does not fit may be half old, half new: it is read again until it fits.
"""

from __future__ import annotations

import os

from sidecar.log import Log
from sidecar.webhook.certificates.pair import BadPair, Pair, Served
from sidecar.webhook.metrics import Metrics

_MOST_BYTES = 1 << 20


class BroughtFiles:
    """`look` is called from one thread, again and again."""

    def __init__(self, cert_file: str, key_file: str, served: Served, metrics: Metrics, log: Log) -> None:
        self._files = (cert_file, key_file)
        self._served = served
        self._metrics = metrics
        self._log = log
        self._trouble = ""

    def first(self) -> None:
        """Raises `BadPair` where there is nothing to serve: then there is no use in starting."""
        self._use(self._read())

    def look(self) -> None:
        """Take over what is new. What cannot be used is said once, and the old pair stays."""
        try:
            pair = self._read()
            if pair != self._served.pair:
                self._use(pair)
                self._log("a new certificate is served", until=f"{self._served.ends:%Y-%m-%dT%H:%M:%SZ}")
            self._trouble = ""
        except BadPair as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._metrics.certificate_errors.inc()
                self._log("the new certificate cannot be used; the old one stays", because=error)

    def _use(self, pair: Pair) -> None:
        self._served.use(pair)
        if self._served.ends is not None:
            self._metrics.expiry.set(self._served.ends.timestamp())

    def _read(self) -> Pair:
        return Pair(*(_bytes(path) for path in self._files))


def _bytes(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise BadPair(f"{path} cannot be read: {error.strerror}") from error
    if not data or len(data) > _MOST_BYTES:
        raise BadPair(f"{path} is empty" if not data else f"{path} is larger than {_MOST_BYTES} bytes")
    return data
