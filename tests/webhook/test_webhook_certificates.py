"""Certificates: those that somebody else brings, and those that the webhook makes and has the API server trust."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from api_server import CONFIGURATIONS, ApiServer, Refusal
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from sidecar_process import eventually
from webhook_process import HOST, Webhook, certificates, pod, review

from sidecar.webhook.certificates.authority import BACKDATED, make_ca, make_server, names
from sidecar.webhook.certificates.pair import Pair, context, leaf
from sidecar.webhook.certificates.plan import Kept, Lifetimes, from_data, planned, to_data

SECRET = "/api/v1/namespaces/rankguard/secrets/rankguard-webhook"
CONFIGURATION = f"{CONFIGURATIONS}/rankguard-webhook"
SELF = (
    "--certificate", "self", "--secret", "rankguard-webhook", "--service", "rankguard-webhook",
    "--webhook-configuration", "rankguard-webhook", "--namespace", "rankguard",
)  # fmt: skip


# ---- brought


def test_a_new_pair_is_served_and_a_broken_one_is_not(tmp_path: Path) -> None:
    """Files as a Secret's volume has them, changed by its swap of a link; the key may be of another kind. A pair that
    does not fit leaves the old one in place, and is said and counted once.
    """
    swapped = tmp_path / "mounted"
    swapped.mkdir()

    def swap(name: str) -> Path:
        folder = swapped / f"..{name}"
        folder.mkdir()
        os.symlink(folder.name, swapped / "..new")
        return folder

    def commit() -> None:
        os.rename(swapped / "..new", swapped / "..data")

    certificates(swap("one"))
    commit()
    for name in ("tls.crt", "tls.key", "ca.crt"):
        os.symlink(f"..data/{name}", swapped / name)
    with Webhook(swapped) as webhook:
        webhook.ready()
        first = webhook.served()
        ca = (swapped / "ca.crt").read_bytes()

        folder = swap("two")
        certificates(folder)
        (folder / "tls.key").write_bytes((swapped / "tls.key").read_bytes())
        commit()
        webhook.wait_for("the new certificate cannot be used")
        assert webhook.served(ca) == first
        assert webhook.metric("rankguard_webhook_certificate_errors_total") == 1

        folder = swap("three")
        pair = _rsa_pair()
        for name, data in (("tls.crt", pair.chain), ("tls.key", pair.key), ("ca.crt", pair.chain)):
            (folder / name).write_bytes(data)
        commit()
        webhook.wait_for("a new certificate is served")
        assert webhook.served() == pair.chain
        assert webhook.metric("rankguard_webhook_certificate_expiry_timestamp_seconds") == pytest.approx(
            leaf(pair).not_valid_after_utc.timestamp()
        )
        with pytest.raises(ssl.SSLCertVerificationError):
            webhook.connect(ca)


def _rsa_pair() -> Pair:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mine")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return Pair(certificate.public_bytes(encoding), key.private_bytes(encoding, form, serialization.NoEncryption()))


# ---- our own, with an API server


def configuration(api: ApiServer, bundle: str = "", webhooks: int = 2) -> None:
    service = {"name": "rankguard-webhook", "namespace": "rankguard"}
    client = {"service": service} | ({"caBundle": bundle} if bundle else {})
    entries = [{"name": f"w{n}.rankguard.dev", "clientConfig": dict(client)} for n in range(webhooks)]
    api.put(CONFIGURATION, {"metadata": {"name": "rankguard-webhook"}, "webhooks": entries})


def bundles(api: ApiServer) -> set[str]:
    found = api.get(CONFIGURATION)
    assert found is not None
    return {webhook["clientConfig"].get("caBundle", "") for webhook in found["webhooks"]}


def trusted(api: ApiServer) -> bytes:
    (bundle,) = bundles(api)
    return base64.b64decode(bundle)


def own(api: ApiServer, folder: Path, *arguments: str) -> Webhook:
    return Webhook(folder, "--service-account", str(api.folder), *SELF, *arguments, env=api.environ)


@pytest.mark.parametrize("there", ["nothing", "an empty Secret", "a broken Secret"])
def test_replicas_agree_on_certificates_that_the_api_server_trusts(api: ApiServer, tmp_path: Path, there: str) -> None:
    """Started at once, with whatever is there: one writes the Secret, all serve what is in it, under the Service's
    name, and what is in caBundle trusts it. What somebody else writes into caBundle is written over.
    """
    configuration(api)
    if there != "nothing":
        data = {"tls.crt": "bm9uZQ==", "ca.crt": "%"} if there == "a broken Secret" else {}
        api.put(SECRET, {"metadata": {"name": "rankguard-webhook"}, "type": "Opaque", "data": data})
    with ExitStack() as stack:
        webhooks = [stack.enter_context(own(api, tmp_path)) for _ in range(2)]
        for webhook in webhooks:
            webhook.ready()
        ca = trusted(api)
        assert len({webhook.served(ca) for webhook in webhooks}) == 1
        assert sum(len(webhook.events("certificates were written")) for webhook in webhooks) == 1
        for webhook in webhooks:
            assert webhook.ask(review(pod(label=None)), ca)["allowed"]
        for bundle in ("", base64.b64encode(b"another").decode()):
            configuration(api, bundle)
            eventually(lambda: bundles(api) == {base64.b64encode(ca).decode()}, "caBundle is ours again")
        assert trusted(api) == ca


@pytest.mark.long
def test_a_new_ca_is_trusted_before_it_is_served(api: ApiServer, tmp_path: Path) -> None:
    """The whole rotation, with lifetimes of seconds, of two replicas: at every moment what a handshake gets is trusted
    by what caBundle held before it began.
    """
    configuration(api)
    lives = ("--ca-lifetime", "60s", "--certificate-lifetime", "30s")
    with ExitStack() as stack:
        webhooks = [stack.enter_context(own(api, tmp_path, *lives)) for _ in range(2)]
        for webhook in webhooks:
            webhook.ready()
        first = trusted(api)
        seen: set[bytes] = set()

        def rotated() -> bool:
            for webhook in webhooks:
                seen.add(webhook.served(trusted(api)))
            try:
                for webhook in webhooks:
                    webhook.served(first)
            except ssl.SSLCertVerificationError:
                return True
            return False

        eventually(rotated, "a CA that is not the first", 100)
        assert len(seen) >= 2


@pytest.mark.parametrize("refused", ["the Secret", "caBundle"])
def test_a_right_that_is_missing_is_said_and_tried_again(api: ApiServer, tmp_path: Path, refused: str) -> None:
    """Not ready meanwhile, with the reason; up, and ready once the right is there."""
    configuration(api)
    part = "/secrets" if refused == "the Secret" else "mutatingwebhookconfigurations"

    def fail(method: str, path: str) -> None:
        if part in path:
            raise Refusal(403, "is forbidden")

    api.fault = fail
    with own(api, tmp_path) as webhook:
        webhook.wait_for("the API server does not let us keep our certificates")
        eventually(lambda: "forbidden" in webhook.plain("/readyz").text, "the reason")
        assert webhook.plain("/readyz").status_code == 503
        assert webhook.plain("/healthz").status_code == 200
        api.fault = lambda method, path: None
        webhook.ready()
        assert webhook.served(trusted(api))


# ---- the plan


HOSTS = names("w", "n")
LIVES = Lifetimes(timedelta(days=730), timedelta(days=90))
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def steps(first: Kept, days: Sequence[float]) -> list[Kept]:
    found = [first]
    for day in days:
        found.append(planned(found[-1], HOSTS, NOW + timedelta(days=day), LIVES))
    return found


def test_certificates_last_and_are_renewed_in_time() -> None:
    """Four years, looked at every other day: what is served has always weeks to go, and was trusted before."""
    kept = planned(None, HOSTS, NOW, LIVES)
    assert planned(kept, HOSTS, NOW, LIVES) is kept
    cas, servers = {kept.ca.chain}, {kept.server.chain}
    for hour in range(0, 4 * 365 * 24, 48):
        now = NOW + timedelta(hours=hour)
        former, kept = kept, planned(kept, HOSTS, now, LIVES)
        if kept is former:
            continue
        cas.add(kept.ca.chain)
        servers.add(kept.server.chain)
        assert leaf(kept.server).not_valid_after_utc - now > timedelta(days=27)
        leaf(kept.server).verify_directly_issued_by(leaf(kept.ca))
        assert kept.ca.chain in former.bundle
        assert former.ca.chain in kept.bundle  # others may still serve it
        assert all(c.not_valid_after_utc > now for c in x509.load_pem_x509_certificates(kept.bundle))
        if kept.next_ca is not None:
            made = leaf(kept.next_ca).not_valid_before_utc + BACKDATED
            assert made == now
    assert len(cas) >= 3
    assert len(servers) >= 20


def test_what_is_kept_comes_back_from_a_secret() -> None:
    kept = steps(planned(None, HOSTS, NOW, LIVES), [500])[-1]
    assert kept.next_ca is not None
    assert from_data(to_data(kept)) == kept
    assert from_data({}) is None


@pytest.mark.parametrize("broken", ["another key", "another CA", "no PEM", "other names", "ended"])
def test_what_cannot_be_served_is_made_anew(broken: str) -> None:
    """And what was trusted stays trusted while it lasts."""
    kept = planned(None, HOSTS, NOW, LIVES)
    other = planned(None, HOSTS, NOW, LIVES)
    hosts, now = HOSTS, NOW + timedelta(days=1)
    if broken == "another key":
        kept = Kept(kept.ca, Pair(kept.server.chain, other.server.key))
    elif broken == "another CA":
        kept = Kept(kept.ca, other.server)
    elif broken == "no PEM":
        kept = Kept(kept.ca, Pair(b"none", b"none"), former=b"\xff")
    elif broken == "other names":
        hosts = names("w", "elsewhere")
    else:
        now = NOW + timedelta(days=800)
    found = planned(kept, hosts, now, LIVES)
    context(found.server)
    leaf(found.server).verify_directly_issued_by(leaf(found.ca))
    assert leaf(found.server).not_valid_after_utc > now
    served = leaf(found.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert served.get_values_for_type(x509.DNSName) == list(hosts)
    assert (kept.ca.chain in found.bundle) == (broken != "ended")


def test_a_servers_certificate_ends_with_its_ca() -> None:
    ca = make_ca(NOW, timedelta(days=10))
    pair = make_server(ca, HOSTS, NOW, timedelta(days=90))
    assert leaf(pair).not_valid_after_utc == leaf(ca).not_valid_after_utc


def test_a_next_ca_is_trusted_for_an_hour_before_it_signs() -> None:
    """Not a minute less: by then every API server has read of it."""
    at = NOW + timedelta(days=500)
    kept = planned(planned(None, HOSTS, NOW, LIVES), HOSTS, at, LIVES)
    assert kept.next_ca is not None
    early = planned(kept, HOSTS, at + timedelta(minutes=59), LIVES)
    assert early.ca == kept.ca
    late = planned(kept, HOSTS, at + timedelta(minutes=60), LIVES)
    assert late.ca == kept.next_ca
    assert late.former == kept.ca.chain
