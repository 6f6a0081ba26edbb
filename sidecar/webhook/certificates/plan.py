"""What is to be in the Secret now, given what is there: the certificates' whole life as one function of time.

    nothing, broken, other names, ended ──▶ a CA and a server's certificate of it
    the server's certificate in its last third ──▶ another one of the same CA
    the CA in its last third ──▶ a next CA beside it: everyone is told to trust both, and nothing of it is served yet
    the next CA known for long enough ──▶ it takes over; the former is trusted until it ends, others may still serve it

So at no time does a replica serve what the API server was not told to trust some while before. The certificates' own
dates are the only clock: what is kept has no other times in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from sidecar.webhook.certificates.authority import BACKDATED, make_ca, make_server
from sidecar.webhook.certificates.pair import Pair, leaf


@dataclass(frozen=True, slots=True)
class Kept:
    """`former` are the CA certificates (PEM, one after the other) that were in use before, and have not ended."""

    ca: Pair
    server: Pair
    next_ca: Pair | None = None
    former: bytes = b""

    @property
    def bundle(self) -> bytes:
        """What the API server is to trust."""
        return self.ca.chain + (self.next_ca.chain if self.next_ca else b"") + self.former


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """`settling`: how long a next CA is trusted before it signs what is served. Each replica must have put it into the
    webhook's configuration by then, and every API server have read that.
    """

    ca: timedelta
    server: timedelta

    @property
    def settling(self) -> timedelta:
        return min(timedelta(hours=1), self.ca / 10)


def planned(kept: Kept | None, hosts: Sequence[str], now: datetime, lives: Lifetimes) -> Kept:
    """What is to be kept; `kept` itself where nothing is to be done."""
    if kept is None or not _sound(kept, now):
        ca = make_ca(now, lives.ca)
        return Kept(ca, make_server(ca, hosts, now, lives.server), former=_still_valid(_bundle_of(kept), now))
    if kept.next_ca is None and _last_third(leaf(kept.ca), now, lives.ca):
        kept = replace(kept, next_ca=make_ca(now, lives.ca))
    elif kept.next_ca is not None and now >= _made_at(leaf(kept.next_ca)) + lives.settling:
        ca = kept.next_ca
        former = _still_valid(kept.ca.chain + kept.former, now)
        return Kept(ca, make_server(ca, hosts, now, lives.server), former=former)
    certificate = leaf(kept.server)
    # One that ends with its CA is no older than it can be: the next CA's brings a longer one.
    ends_with_ca = certificate.not_valid_after_utc >= leaf(kept.ca).not_valid_after_utc
    if _hosts(certificate) != set(hosts) or (not ends_with_ca and _last_third(certificate, now, lives.server)):
        kept = replace(kept, server=make_server(kept.ca, hosts, now, lives.server))
    former = _still_valid(kept.former, now)
    return kept if former == kept.former else replace(kept, former=former)


# As a Secret's data, by key, in bytes.

_KEYS = {"ca": "ca", "server": "tls", "next_ca": "next-ca"}
_FORMER = "former-ca.crt"


def to_data(kept: Kept) -> dict[str, bytes]:
    data = {_FORMER: kept.former}
    for field, key in _KEYS.items():
        pair: Pair | None = getattr(kept, field)
        data[f"{key}.crt"] = pair.chain if pair else b""
        data[f"{key}.key"] = pair.key if pair else b""
    return data


def from_data(data: Mapping[str, bytes]) -> Kept | None:
    """None where the Secret is empty, as a chart makes it. Whether what is in it can be used is `planned`'s to find."""
    pairs = {field: Pair(data.get(f"{key}.crt", b""), data.get(f"{key}.key", b"")) for field, key in _KEYS.items()}
    if not pairs["ca"].chain and not pairs["server"].chain:
        return None
    next_ca = pairs["next_ca"] if pairs["next_ca"].chain else None
    return Kept(pairs["ca"], pairs["server"], next_ca, data.get(_FORMER, b""))


def _sound(kept: Kept, now: datetime) -> bool:
    try:
        for pair in filter(None, (kept.ca, kept.server, kept.next_ca)):
            if load_pem_private_key(pair.key, None).public_key() != leaf(pair).public_key():
                return False
        if any(leaf(ca).not_valid_after_utc <= now for ca in filter(None, (kept.ca, kept.next_ca))):
            return False
        leaf(kept.server).verify_directly_issued_by(leaf(kept.ca))
        _certificates(kept.former)
    except Exception:  # noqa: BLE001 - whatever somebody wrote into the Secret, and whichever check finds it
        return False
    return True


def _last_third(certificate: x509.Certificate, now: datetime, lifetime: timedelta) -> bool:
    return now >= certificate.not_valid_after_utc - lifetime / 3


def _made_at(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_before_utc + BACKDATED


def _hosts(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(names.get_values_for_type(x509.DNSName))


def _bundle_of(kept: Kept | None) -> bytes:
    return kept.bundle if kept is not None else b""


def _certificates(bundle: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(bundle) if bundle.strip() else []


def _still_valid(bundle: bytes, now: datetime) -> bytes:
    try:
        found = _certificates(bundle)
    except ValueError:
        return b""
    return b"".join(c.public_bytes(Encoding.PEM) for c in found if c.not_valid_after_utc > now)
