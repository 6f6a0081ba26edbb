"""`--certificate self`: certificates that the webhook makes, shares with its replicas through a Secret, and has the API
server trust by writing caBundle into its own MutatingWebhookConfiguration.

One thread goes round: read the Secret, plan, write it where something changed, write caBundle where it is not ours,
serve. It goes round every `PERIOD` seconds, and at once when a watch says that the Secret or the configuration changed:
a tool that applies its manifests again empties caBundle, and until it is written again no pod is injected.

Replicas do the same at the same time. The first to create or update the Secret wins; the API server refuses the others
(409), who then read what won. A caBundle is only ever written by one who read the Secret a moment before.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from sidecar.log import Log
from sidecar.webhook.api import JSON_PATCH, Api, ApiError
from sidecar.webhook.certificates.pair import BadPair, Served
from sidecar.webhook.certificates.plan import Kept, Lifetimes, from_data, planned, to_data
from sidecar.webhook.metrics import Metrics

PERIOD = 30.0  # seconds
FIRST_RETRY = 1.0
PATIENCE = 5.0  # seconds for one call
_ROUNDS = 5  # of a race for the Secret; then it is another round's

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are kept. `hosts` are the server's names."""

    namespace: str
    secret: str
    configuration: str
    hosts: Sequence[str]
    lives: Lifetimes

    @property
    def secrets_path(self) -> str:
        return f"/api/v1/namespaces/{quote(self.namespace, safe='')}/secrets"

    @property
    def secret_path(self) -> str:
        return f"{self.secrets_path}/{quote(self.secret, safe='')}"

    @property
    def configuration_path(self) -> str:
        return f"{CONFIGURATIONS}/{quote(self.configuration, safe='')}"


class OwnCertificates:
    """`wake` may be called from any thread. `trusted`: caBundle was seen to be ours."""

    def __init__(self, api: Api, place: Place, served: Served, metrics: Metrics, log: Log) -> None:
        self._api = api
        self._place = place
        self._served = served
        self._metrics = metrics
        self._log = log
        self._woken = threading.Event()
        self._troubles: dict[str, str] = {}
        self.trusted = False

    def wake(self) -> None:
        self._woken.set()

    def run(self) -> None:
        """Go round for ever; for a daemon thread."""
        delay = FIRST_RETRY
        while True:
            self._woken.clear()
            try:
                delay = PERIOD if self.round() else min(delay * 2, PERIOD)
            except Exception as error:  # noqa: BLE001 - the outermost loop: certificates must not run out
                self._metrics.certificate_errors.inc()
                self._log("a bug", what="certificates", error=f"{type(error).__name__}: {error}")
                delay = PERIOD
            ends = self._served.ends
            left = (ends - datetime.now(UTC)).total_seconds() if ends else PERIOD
            self._woken.wait(max(FIRST_RETRY, min(delay, left / 20)))

    def round(self) -> bool:
        """Whether everything is as it should be."""
        try:
            kept = self._shared()
        except ApiError as error:
            self._complain("secret", f"the Secret {self._place.namespace}/{self._place.secret}", error)
            return False
        self._troubles.pop("secret", None)
        try:
            self._have_trusted(kept)  # before it is served
            self._troubles.pop("webhook_configuration", None)
            self.trusted = True
        except ApiError as error:
            what = f"caBundle in the MutatingWebhookConfiguration {self._place.configuration}"
            self._complain("webhook_configuration", what, error)
        if self._served.pair != kept.server:
            try:
                self._served.use(kept.server)
            except BadPair as error:  # ended meanwhile, or a clock that jumped
                self._metrics.certificate_errors.inc()
                self._log("our own certificate cannot be used", because=error)
                return False
            assert self._served.ends is not None
            self._metrics.expiry.set(self._served.ends.timestamp())
            self._log("a new certificate is served", until=f"{self._served.ends:%Y-%m-%dT%H:%M:%SZ}")
        return not self._troubles

    def _shared(self) -> Kept:
        """What all replicas serve now. Raises `ApiError`."""
        for _ in range(_ROUNDS):
            secret = self._read_secret()
            kept = from_data(_data_of(secret)) if secret is not None else None
            wanted = planned(kept, self._place.hosts, datetime.now(UTC), self._place.lives)
            if wanted is kept:
                return wanted
            try:
                self._write_secret(secret, wanted)
            except ApiError as error:
                if error.status == 409:
                    continue  # another replica was faster: what it wrote is what counts
                if error.status == 404 and secret is not None:
                    continue  # deleted meanwhile
                raise
            self._log("certificates were written", secret=self._place.secret)
            return wanted
        raise ApiError(409, "it changes faster than it can be read")

    def _read_secret(self) -> dict[str, Any] | None:
        try:
            found = self._api.call("GET", self._place.secret_path, seconds=PATIENCE)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found if isinstance(found, dict) else None

    def _write_secret(self, secret: dict[str, Any] | None, kept: Kept) -> None:
        data = {key: base64.b64encode(value).decode() for key, value in to_data(kept).items()}
        if secret is not None:
            # With its resourceVersion in it: refused where somebody else has written since.
            body = {**secret, "data": {**_mapping(secret.get("data")), **data}}
            self._api.call("PUT", self._place.secret_path, body, seconds=PATIENCE)
            return
        labels = {"app.kubernetes.io/name": "rankguard", "app.kubernetes.io/component": "webhook"}
        metadata = {"name": self._place.secret, "namespace": self._place.namespace, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}
        self._api.call("POST", self._place.secrets_path, body, seconds=PATIENCE)

    def _have_trusted(self, kept: Kept) -> None:
        """Have caBundle in every webhook of the configuration. Raises `ApiError`."""
        for left in reversed(range(_ROUNDS)):
            try:
                self._write_bundle(kept)
                return
            except ApiError as error:
                if error.status not in (409, 422) or not left:  # another replica was faster, perhaps with the same
                    raise

    def _write_bundle(self, kept: Kept) -> None:
        path = self._place.configuration_path
        configuration = self._api.call("GET", path, seconds=PATIENCE)
        bundle = base64.b64encode(kept.bundle).decode()
        webhooks = configuration.get("webhooks")
        patch: list[dict[str, Any]] = [
            {"op": "add", "path": f"/webhooks/{at}/clientConfig/caBundle", "value": bundle}
            for at, webhook in enumerate(webhooks if isinstance(webhooks, list) else [])
            if _mapping(_mapping(webhook).get("clientConfig")).get("caBundle") != bundle
        ]
        if not patch:
            return
        version = _mapping(configuration.get("metadata")).get("resourceVersion")
        # Places in a list are only right in the very version that was read.
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        self._api.call("PATCH", path, [test, *patch], seconds=PATIENCE, kind=JSON_PATCH)
        self._metrics.bundles.inc()
        self._log("caBundle was written", configuration=self._place.configuration, webhooks=len(patch))

    def _complain(self, operation: str, what: str, error: ApiError) -> None:
        self._metrics.api_errors.labels(operation).inc()
        if self._troubles.get(operation) != str(error):
            self._troubles[operation] = str(error)
            self._log("the API server does not let us keep our certificates; trying again", what=what, because=error)

    @property
    def trouble(self) -> str:
        """What is in the way, in words, "" for nothing."""
        return "; ".join(f"{name}: {text}" for name, text in list(self._troubles.items()))


def _data_of(secret: dict[str, Any]) -> dict[str, bytes]:
    """What is no base64 counts as empty: then there is no pair that can be used, and a new one is made."""
    found = {}
    for key, value in _mapping(secret.get("data")).items():
        try:
            found[str(key)] = base64.b64decode(value)
        except (binascii.Error, TypeError, ValueError):
            found[str(key)] = b""
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
