"""Calls to the API server, from any thread, each with a deadline.

Of the client library only the pod's own configuration and the connection pool are used: the typed API would cost some
20 MiB and parse whole objects. It is imported with the first call, which nothing that has to answer waits for.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.errors import RankguardError

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # where every pod has it, if it has one
MOST_BYTES = 8 * 2**20  # of one answer
MOST_LINE = 4 * 2**20  # of one event of a watch; an object has at most 1.5 MiB
RENEW = 600.0  # seconds after which the CA is read again; the token is read again every minute by the library

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
# An API server that cannot leave the rest out sends the whole object, which will do too.
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"


class ApiError(RankguardError):
    """The API server said no, or nothing. `status` is its HTTP status, 0 where there was no answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text}" if status else text)
        self.status = status


class Api:
    """`environ` is what the kubelet sets, `folder` the service account's. Safe to use from several threads."""

    def __init__(self, environ: Mapping[str, str] = os.environ, folder: str = SERVICE_ACCOUNT) -> None:
        self._environ = environ
        self._folder = folder
        self._lock = threading.Lock()
        self._made = -RENEW
        self._config: Any = None
        self._pool: Any = None

    @property
    def reachable(self) -> bool:
        """Whether this is a pod with a service account."""
        there = self._environ.get("KUBERNETES_SERVICE_HOST")
        return bool(there) and os.path.exists(os.path.join(self._folder, "token"))

    def call(
        self, method: str, path: str, body: object = None, *, seconds: float, kind: str = JSON, accept: str = JSON
    ) -> Any:
        """The answer's JSON. `kind` is the body's content type. Raises `ApiError`, after `seconds` or little more."""
        self._connected()  # the first call imports the client, which is not the API server's time
        deadline = time.monotonic() + seconds
        response = self._request(method, path, body, seconds, kind, accept)
        try:
            data = b""
            while chunk := self._read(response):
                data += chunk
                if len(data) > MOST_BYTES or time.monotonic() > deadline:
                    raise ApiError(0, "its answer is too long, or too slow")
        except ApiError:
            response.close()  # with what is unread in it the connection is of no more use
            raise
        response.release_conn()
        return _answer(int(response.status), data)

    def watch(self, path: str, *, silence: float, accept: str = JSON) -> Iterator[dict[str, Any]]:
        """The events of a watch as they come, until the API server ends it. The first tell what is there already.

        Raises `ApiError` where it is refused, or when nothing came for `silence` seconds.
        """
        response = self._request("GET", path, None, silence, JSON, accept)
        try:
            if int(response.status) != 200:
                _answer(int(response.status), self._read(response))
            rest = b""
            while chunk := self._read(response):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MOST_LINE:
                    raise ApiError(0, "an event of a watch is too long")
                for line in filter(None, lines):
                    yield _object(line)
        finally:
            response.close()

    def _request(self, method: str, path: str, body: object, seconds: float, kind: str, accept: str) -> Any:
        import urllib3

        config, pool = self._connected()
        token = str(config.auth_settings()["BearerToken"]["value"])
        headers = {"authorization": token.strip(), "accept": accept, "user-agent": "rankguard-webhook"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = kind
        try:
            return pool.request(
                method, config.host + path, body=data, headers=headers, retries=False, redirect=False,
                preload_content=False, timeout=urllib3.Timeout(connect=min(seconds, 5.0), read=seconds),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, f"{type(error).__name__}: {error}") from error

    def _read(self, response: Any) -> bytes:
        import urllib3

        try:
            return bytes(response.read1(64 * 1024))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(0, f"{type(error).__name__}: {error}") from error

    def _connected(self) -> tuple[Any, Any]:
        with self._lock:
            if time.monotonic() - self._made >= RENEW:
                self._config, self._pool = self._connection()
                self._made = time.monotonic()
            return self._config, self._pool

    def _connection(self) -> tuple[Any, Any]:
        from kubernetes.client import Configuration
        from kubernetes.client.rest import RESTClientObject
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader

        config = Configuration()
        loader: Any = InClusterConfigLoader
        try:
            loader(
                token_filename=os.path.join(self._folder, "token"),
                cert_filename=os.path.join(self._folder, "ca.crt"),
                environ=self._environ,
            ).load_and_set(config)
            config.proxy = None  # the API server of our own cluster is behind none
            config.connection_pool_maxsize = 16
            return config, RESTClientObject(config).pool_manager
        except (ConfigException, OSError) as error:
            raise ApiError(0, f"no connection can be set up: {error}") from error


def _answer(status: int, data: bytes) -> Any:
    if 200 <= status < 300:
        return _object(data)
    try:
        said = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = data[:200].decode(errors="replace")
    raise ApiError(status, said[:300])


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(0, "its answer is no JSON") from error
    if not isinstance(found, dict):
        raise ApiError(0, "its answer is no JSON object")
    return found
