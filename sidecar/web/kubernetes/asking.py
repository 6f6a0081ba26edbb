"""One call of the API server, on a thread, within its time. Only the library's reading of a pod's own configuration and
its connection pool are used: with the typed API (`CoreV1Api`) the web would be 21 MiB bigger (seen).

The library is imported on the thread: it takes half a second (seen), on a busy machine many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.web.worker import Worker

PATIENCE = 1.5  # seconds for the API server, where somebody waits
MOST_BYTES = 2 * 2**20  # of an answer; a pod has some ten KiB
JSON = "application/json"
MERGE = "application/merge-patch+json"
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Call:
    """`path` begins with a slash and is quoted already. `keep`: leave the connection open for the next call."""

    method: str
    path: str
    body: bytes = b""
    kind: str = JSON
    accept: str = JSON
    patience: float = PATIENCE
    keep: bool = False


class Asking:
    """Asks one call after the other on a thread of its own. `folder` is the service account's."""

    def __init__(self, name: str, environ: Mapping[str, str], folder: str) -> None:
        self.worker = Worker(name)
        self._environ = environ
        self._folder = folder
        self._pool: Any = None
        self._made_of: tuple[object, ...] = ()

    def load(self) -> None:
        """Import the library; on the thread."""
        import kubernetes.client.rest
        import kubernetes.config.incluster_config  # noqa: F401

    def ask(self, call: Call) -> tuple[int, bytes]:
        """Status and body; on the thread. Raises OSError, ValueError or ImportError, whatever the library's errors are.

        Token and CA are read anew each time, since the kubelet rotates both.
        """
        import urllib3
        from kubernetes.client import Configuration
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
        except ConfigException as error:
            raise ValueError(str(error)) from error
        config.proxy = None  # the environment's proxy is for what the engine downloads
        done = False
        try:
            answer = self._request(self._pool_for(config), call, config)
            done = True
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            if not (done and call.keep):
                self._drop()
        return answer

    def _request(self, pool: Any, call: Call, config: Any) -> tuple[int, bytes]:
        import urllib3

        token = str(config.auth_settings()["BearerToken"]["value"])
        headers = {"authorization": token.strip(), "accept": call.accept}
        if call.body:
            headers["content-type"] = call.kind
        until = time.monotonic() + call.patience
        response = pool.request(
            call.method, config.host + call.path, headers=headers, body=call.body or None, retries=False,
            redirect=False, preload_content=False, timeout=urllib3.Timeout(total=call.patience),
        )  # fmt: skip
        whole = False
        try:
            body = b""
            while len(body) < MOST_BYTES and (chunk := response.read1(_CHUNK)):
                body += chunk
                if time.monotonic() > until:  # each byte comes within its time, and all of them never
                    raise TimeoutError(f"its answer was not complete within {call.patience:g} s")
            whole = len(body) < MOST_BYTES
            return int(response.status), body[:MOST_BYTES]
        finally:
            if whole and call.keep:
                response.release_conn()
            else:
                response.close()

    def _pool_for(self, config: Any) -> Any:
        """The pool of the call before, unless the CA's file is another by now."""
        from kubernetes.client.rest import RESTClientObject

        there = os.stat(config.ssl_ca_cert)
        made_of = (config.host, there.st_ino, there.st_mtime_ns)
        if self._pool is None or made_of != self._made_of:
            self._drop()
            self._pool, self._made_of = RESTClientObject(config).pool_manager, made_of
        return self._pool

    def _drop(self) -> None:
        if self._pool is not None:
            self._pool.clear()
            self._pool = None
