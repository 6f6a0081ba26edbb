"""What the API server says of our own pod: whether it is being deleted, and which group of pods it is part of.

Auxiliary: with no token, no rights, or an API server that is slow, nothing is known and the caller decides without.
The client library is imported only where there is a service account's token, on a thread, at the start: it takes half
a second (seen), and a hook has none to spare. Only its reading of the pod's own configuration and its connection pool
are used: with the typed API (`CoreV1Api`) the web would be 21 MiB bigger (seen), and the whole pod would be parsed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sidecar.log import Log
from sidecar.settings import Settings
from sidecar.web.worker import Worker

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # where every pod has it, if it has one
PATIENCE = 1.5  # seconds for the API server
WARM_UP = 30.0  # seconds for the first look, with the import
MOST_BYTES = 2 * 2**20  # of an answer; the metadata of a pod have a few KiB

# The metadata alone. An API server that cannot leave the rest out sends the whole pod, which will do too.
_ACCEPT = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_KINDS = ("PartialObjectMetadata", "Pod")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

# https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/
_LWS = "leaderworkerset.sigs.k8s.io/"
_JOBSET = "jobset.sigs.k8s.io/jobset-name"


@dataclass(frozen=True, slots=True)
class PodLook:
    """`group` is the name of the group whose pods fail together, "" for a pod of its own."""

    deleting: bool
    group: str = ""


class PodStatus:
    """Asks about our own pod. Made and used on the event loop. `folder` is the service account's."""

    def __init__(
        self, settings: Settings, log: Log, environ: Mapping[str, str] = os.environ, folder: str = SERVICE_ACCOUNT
    ) -> None:
        self._settings = settings
        self._log = log
        self._environ = environ
        self._folder = folder
        self._worker = Worker("kubernetes")
        self._warming: asyncio.Task[PodLook | None] | None = None
        self._last: PodLook | None = None
        self._trouble = ""
        there = environ.get("KUBERNETES_SERVICE_HOST") and os.path.exists(os.path.join(folder, "token"))
        self._reachable = bool(there and settings.pod_namespace and settings.pod_name)
        if there and not self._reachable:
            log("the API server is not asked about the pod", because="pod_namespace or pod_name is not set")

    @property
    def group(self) -> str:
        """The group by what is known without asking: an earlier answer, the setting, the environment."""
        known = self._last.group if self._last is not None else ""
        return known or self._settings.pod_group or group_in_environment(self._environ)

    def start(self) -> None:
        """Import the client and ask once, in the background. That learns the group, and says early what is wrong."""
        if self._reachable and self._warming is None:
            self._warming = asyncio.ensure_future(self._look(WARM_UP))

    async def look(self) -> PodLook | None:
        """What the API server says now, or None where it does not say within `PATIENCE` seconds. Never raises."""
        return await self._look(PATIENCE) if self._reachable else None

    async def _look(self, patience: float) -> PodLook | None:
        asked = self._worker.submit(self._ask)
        await asyncio.wait({asked}, timeout=patience)
        answer: PodLook | str = f"it did not answer within {patience:g} s"
        if asked.done():
            failed = asked.exception()
            answer = str(failed) if failed is not None else asked.result()
        else:
            asked.cancel()
        if isinstance(answer, str):
            if answer != self._trouble:
                self._log("the API server does not tell about the pod", because=answer)
            self._trouble = answer
            return None
        self._trouble = ""
        self._last = answer
        return answer

    # On the worker's thread.

    def _ask(self) -> PodLook | str:
        """The pod, or a line that says why there is none."""
        try:
            status, body = self._get()
        except (OSError, ValueError, ImportError) as error:
            return f"{type(error).__name__}: {error}"
        name = f"{self._settings.pod_namespace}/{self._settings.pod_name}"
        if status == 404 and self._last is not None:
            return PodLook(deleting=True, group=self._last.group)  # it was there before: deleted by force
        if status in (401, 403):
            return f"status {status}: the service account may not get the pod {name}"
        if status != 200:
            return f"status {status} for the pod {name}"
        try:
            return pod_in(body, self._settings.pod_uid)
        except (ValueError, RecursionError) as error:
            return f"its answer is no pod: {error}"

    def _get(self) -> tuple[int, bytes]:
        """Status and body. Raises OSError, ValueError or ImportError, whatever the library's own errors are."""
        import urllib3
        from kubernetes.client import Configuration
        from kubernetes.client.rest import RESTClientObject
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader

        # All is read anew: the kubelet rotates the token and the CA, and this is asked a few times in a pod's life.
        config = Configuration()
        loader: Any = InClusterConfigLoader
        try:
            loader(
                token_filename=os.path.join(self._folder, "token"),
                cert_filename=os.path.join(self._folder, "ca.crt"),
                environ=self._environ,
            ).load_and_set(config)
            config.proxy = None  # the environment's proxy is for what the engine downloads
            pool = RESTClientObject(config).pool_manager
        except ConfigException as error:
            raise ValueError(str(error)) from error
        namespace, name = quote(self._settings.pod_namespace, safe=""), quote(self._settings.pod_name, safe="")
        token = str(config.auth_settings()["BearerToken"]["value"])
        try:
            response = pool.request(
                "GET",
                f"{config.host}/api/v1/namespaces/{namespace}/pods/{name}",
                headers={"authorization": token.strip(), "accept": _ACCEPT},
                timeout=urllib3.Timeout(total=PATIENCE),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                return int(response.status), bytes(response.read(MOST_BYTES))
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            pool.clear()


def pod_in(body: bytes, uid: str = "") -> PodLook:
    """The pod in an answer. `uid` is ours: a pod of our name with another one has taken our place.

    Raises `ValueError` or `RecursionError` where it is none.
    """
    pod = json.loads(body)
    if not isinstance(pod, dict) or pod.get("kind") not in _KINDS or not isinstance(pod.get("metadata"), dict):
        raise ValueError("it is JSON of another kind")
    metadata = pod["metadata"]
    replaced = bool(uid) and metadata.get("uid", uid) != uid
    deleting = metadata.get("deletionTimestamp") is not None or replaced
    return PodLook(deleting, _group(_texts(metadata.get("labels")), _texts(metadata.get("annotations"))))


def group_in_environment(environ: Mapping[str, str]) -> str:
    """A LeaderWorkerSet tells every container of its pods, ours too, where the group's leader is."""
    if environ.get("LWS_GROUP_SIZE") == "1":
        return ""
    return _named(environ.get("LWS_LEADER_ADDRESS", "").partition(".")[0])


def _group(labels: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    """The group in a pod's labels. A LeaderWorkerSet restarts one of its groups, whose name is that of its leader's
    pod; a JobSet all of its jobs.
    """
    name, index = labels.get(_LWS + "name", ""), labels.get(_LWS + "group-index", "")
    if name and index:
        return "" if annotations.get(_LWS + "size") == "1" else _named(f"{name}-{index}")
    return _named(name or labels.get(_JOBSET, ""))


def _named(text: str) -> str:
    """`text` if it is a name, else "": it goes into a record and a log."""
    return text if _NAME.fullmatch(text) else ""


def _texts(value: Any) -> dict[str, str]:
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}
