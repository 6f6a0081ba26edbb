"""`rankguard webhook`: settings, checks and sockets, then the admission server, in this process."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from sidecar import listening
from sidecar.commands import units
from sidecar.errors import SettingError, UsageError
from sidecar.log import Log

if TYPE_CHECKING:
    from sidecar.webhook.process import Plan

_HELP = """Add the sidecar to labelled pods as they are created: an admission server for Kubernetes.

It answers POST /mutate over TLS, and always lets the pod through. The certificate is one that somebody else makes
(--cert-file, --key-file: cert-manager's Secret, mounted, or your own), read again when it changes; or, with
--certificate self, one that it makes, keeps in a Secret, renews, and has the API server trust.
"""

_EPILOG = """Each option is also read from the environment (--cert-file as RANKGUARD_WEBHOOK_CERT_FILE)."""

_DNS = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_SELF = ("secret", "service", "webhook_configuration", "namespace")


@click.command(
    "webhook", help=_HELP, epilog=_EPILOG, short_help="Add the sidecar to labelled pods: an admission server.",
    context_settings={"auto_envvar_prefix": "RANKGUARD_WEBHOOK"},
)  # fmt: skip
@click.option("--listen", metavar="HOST:PORT", default=":8443", show_default=True, help="Where the API server asks.")
@click.option(
    "--metrics-listen", metavar="HOST:PORT", default=":8080", show_default=True,
    help="/metrics, /healthz and /readyz without TLS, for scrapers and probes; none for no such port.",
)  # fmt: skip
@click.option("--config", metavar="FILE", help="YAML file with the defaults of injection, read again when it changes.")
@click.option("--cert-file", metavar="FILE", help="The server's certificate in PEM, with what leads to its CA.")
@click.option("--key-file", metavar="FILE", help="Its key in PEM.")
@click.option("--certificate", type=click.Choice(["files", "self"]), default="files", show_default=True,
              help="Who makes the certificate: files of somebody else's, or the webhook itself.")  # fmt: skip
@click.option("--secret", metavar="NAME", help="self: the Secret that all replicas keep it in.")
@click.option("--service", metavar="NAME", help="self: the Service that the API server asks, for the names in it.")
@click.option("--webhook-configuration", metavar="NAME", help="self: the MutatingWebhookConfiguration with caBundle.")
@click.option("--namespace", metavar="NAME", envvar=["RANKGUARD_WEBHOOK_NAMESPACE", "POD_NAMESPACE"],
              help="The namespace that the webhook runs in; pods in it are left alone.")  # fmt: skip
@click.option("--certificate-lifetime", metavar="DURATION", default="90d", show_default=True,
              help="self: how long a certificate lasts. It is renewed in its last third.")  # fmt: skip
@click.option("--ca-lifetime", metavar="DURATION", default="730d", show_default=True,
              help="self: how long the CA lasts. The next one is trusted before it is used.")  # fmt: skip
@click.option("--shutdown-delay", metavar="SECONDS", default="5", show_default=True,
              help="How long it serves on after SIGTERM, until nobody is sent here any more.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True,
              help="How log lines look.")  # fmt: skip
@click.option("--service-account", metavar="DIR", hidden=True)
def webhook(**given: Any) -> None:
    plan = _plan(given)
    addresses = {name: _address(name, given[name]) for name in ("listen", "metrics_listen")}
    if addresses["listen"] is None:
        raise SettingError("--listen", given["listen"], f"it takes {listening.ALLOWED.removesuffix(', or none')}")
    from sidecar.web.listen import adopt
    from sidecar.webhook.api import SERVICE_ACCOUNT, Api
    from sidecar.webhook.certificates.pair import BadPair
    from sidecar.webhook.process import Webhook

    log = Log("webhook", given["log_format"])
    try:
        process = Webhook(plan, Api(os.environ, given["service_account"] or SERVICE_ACCOUNT), log)
    except BadPair as error:
        raise UsageError(f"--cert-file, --key-file: {error}") from error
    sockets = []
    for name, address in addresses.items():
        try:
            sockets.append(adopt(listening.bind(address)) if address is not None else [])
        except OSError as error:
            raise SettingError(_flag(name), given[name], str(error.strerror)) from error
    asyncio.run(process.run(*sockets))


def _plan(given: Mapping[str, Any]) -> Plan:
    """Raises `UsageError`."""
    from sidecar.webhook.certificates.authority import names
    from sidecar.webhook.certificates.own import Place
    from sidecar.webhook.certificates.plan import Lifetimes
    from sidecar.webhook.process import Plan

    for name in _SELF:
        if given[name] is not None and not _DNS.fullmatch(given[name]):
            raise SettingError(_flag(name), given[name], "it takes the name of an object in Kubernetes")
    files = own = None
    if given["certificate"] == "self":
        for name in ("cert_file", "key_file"):
            if given[name]:
                raise SettingError(_flag(name), given[name], "with --certificate self there are no files: leave it out")
        for name in _SELF:
            if not given[name]:
                raise UsageError(f"{_flag(name)} is needed with --certificate self")
        lives = Lifetimes(*(_lifetime(name, given[name]) for name in ("ca_lifetime", "certificate_lifetime")))
        hosts = names(given["service"], given["namespace"])
        own = Place(given["namespace"], given["secret"], given["webhook_configuration"], hosts, lives)
    else:
        for name in ("cert_file", "key_file"):
            if not given[name]:
                raise UsageError(f"{_flag(name)} is needed, or --certificate self")
        files = (given["cert_file"], given["key_file"])
    return Plan(
        options=given["config"],
        files=files,
        own=own,
        namespace=given["namespace"] or "",
        instance=os.environ.get("POD_NAME", ""),
        drain=_seconds("shutdown_delay", given["shutdown_delay"]),
    )


def _address(name: str, text: str) -> listening.Address | None:
    if text == "none":
        return None
    try:
        return listening.parse(text)
    except ValueError as error:
        raise SettingError(_flag(name), text, str(error)) from error


def _lifetime(name: str, text: str) -> timedelta:
    try:
        seconds = units.duration(text)
    except ValueError as error:
        raise SettingError(_flag(name), text, str(error)) from error
    if not 10.0 <= seconds <= 3650 * 86400.0:
        raise SettingError(_flag(name), text, "it takes 10s to 3650d")
    return timedelta(seconds=seconds)


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= 600.0:
        raise SettingError(_flag(name), text, "it takes seconds, a number from 0 to 600")
    return seconds


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
