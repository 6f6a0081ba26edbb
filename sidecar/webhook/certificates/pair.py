"""A certificate with its key, checked before it is used, and the one that new handshakes get.

The listening context has no certificate: each handshake is handed the context that is current then. Loading a new pair
into a context in use would leave the old one in place where the two have keys of different types.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from sidecar.errors import RankguardError


class BadPair(RankguardError):
    """A certificate or key that cannot be served. The text says why, and holds nothing of the key."""


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM. `chain` begins with the server's own certificate."""

    chain: bytes
    key: bytes


def leaf(pair: Pair) -> x509.Certificate:
    """Raises `BadPair`."""
    try:
        return x509.load_pem_x509_certificate(pair.chain)
    except ValueError as error:
        raise BadPair("there is no certificate in PEM") from error


def context(pair: Pair) -> ssl.SSLContext:
    """A server's context for the pair. Raises `BadPair` where the two do not belong together, or are none."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # In memory, since the library takes files only, and a key is written to no disk.
    fd = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pair.chain + b"\n" + pair.key)
        # With a password that none has: the library would ask on the terminal for that of an encrypted key.
        made.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    except ssl.SSLError as error:
        raise BadPair(f"certificate and key cannot be used together ({error.reason or 'no PEM'})") from error
    except OSError as error:
        raise BadPair(f"certificate and key cannot be used: {error.strerror}") from error
    finally:
        os.close(fd)
    return made


class Served:
    """What is served now. `use` may be called from any thread."""

    def __init__(self) -> None:
        self._current: ssl.SSLContext | None = None
        self.pair: Pair | None = None
        self.ends: datetime | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.num_tickets = 0  # a resumed session would go on with the certificate that it began with
        self.context.options |= ssl.OP_NO_TICKET
        self.context.sni_callback = self._choose  # called for clients that name no server too

    def use(self, pair: Pair) -> None:
        """Serve it from the next handshake on. Raises `BadPair`, and then all is as before."""
        certificate = leaf(pair)
        if certificate.not_valid_after_utc <= datetime.now(UTC):
            raise BadPair(f"the certificate ended at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        self._current = context(pair)
        self.pair, self.ends = pair, certificate.not_valid_after_utc

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None
