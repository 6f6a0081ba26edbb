"""What there is of the PersistentVolumeClaims that a pod's sidecar is to write to. A pod with one that is missing would
stay Pending, and one that only one node may mount would keep the pods of other nodes from starting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any
from urllib.parse import quote

from sidecar.inject.options import Options
from sidecar.inject.volumes import wanted_claim
from sidecar.inject.words import ClaimState
from sidecar.webhook.api import Api, ApiError
from sidecar.webhook.lookups import Lookups
from sidecar.webhook.metrics import Metrics

_PATIENCE = 2.0  # seconds for one call
_FRESH, _FRESH_MISSING, _STALE = 30.0, 2.0, 300.0  # seconds; one that is missing may be created any moment
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


def claims_wanted(pod: Any, options: Options) -> tuple[str, ...]:
    """The claims that are to be looked up for this pod."""
    annotations = _mapping(_mapping(_mapping(pod).get("metadata")).get("annotations"))
    claim = wanted_claim(annotations, options)
    return (claim,) if _NAME.fullmatch(claim) else ()


class Claims:
    def __init__(self, api: Api, executor: Executor, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics
        self._lookups: Lookups[tuple[str, str], ClaimState] = Lookups(
            self._get, executor, self._on_error, stale=_STALE,
            fresh=lambda state: _FRESH_MISSING if state is ClaimState.MISSING else _FRESH,
        )  # fmt: skip

    async def ask(self, namespace: str, names: Sequence[str]) -> dict[str, ClaimState] | None:
        """The states of those that are known; None where none is wanted. Takes a moment at most and never raises."""
        if not names or not self._api.reachable:
            return None
        found = {name: await self._lookups.ask((namespace, name)) for name in names}
        return {name: state for name, state in found.items() if state is not None}

    def _get(self, key: tuple[str, str]) -> ClaimState:
        namespace, name = (quote(part, safe="") for part in key)
        try:
            claim = self._api.call(
                "GET", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}", seconds=_PATIENCE
            )
        except ApiError as error:
            if error.status == 404:
                return ClaimState.MISSING
            raise
        modes = _mapping(claim.get("spec")).get("accessModes")
        shared = isinstance(modes, list) and "ReadWriteMany" in modes
        return ClaimState.OK if shared else ClaimState.NOT_SHARED

    def _on_error(self, _: ApiError) -> None:
        self._metrics.api_errors.labels("claim").inc()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
