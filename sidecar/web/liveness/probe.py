"""The health check: one request, and what its answer says of the engine."""

from __future__ import annotations

import time

from sidecar.policy.sightings import Answer, ProbeResult
from sidecar.web.liveness.fetch import Fetcher, NoAnswer


class Prober:
    """Asks for one engine's health. `fetcher` may be shared with whoever scrapes it."""

    def __init__(self, fetcher: Fetcher | None = None) -> None:
        self._fetcher = fetcher or Fetcher()

    async def probe(self, url: str, timeout: float, unhealthy_is_dead: bool = False) -> ProbeResult:
        """One health check of `url` ("" is none), over within `timeout` seconds. Never raises for what answers.

        The status decides and the body is not read: a 2xx is the engine's word that it is well, a redirect is not, and
        a 503 is `OVER` where the engine says that only when it is over (`Endpoint.unhealthy_is_dead`).
        """
        at = time.monotonic()
        if not url:
            return ProbeResult(at, Answer.UNKNOWN, "no URL")
        try:
            head = await self._fetcher.get(url, timeout)
        except NoAnswer as error:
            return ProbeResult(at, error.answer, str(error))
        if 200 <= head.status < 300:
            return ProbeResult(at, Answer.OK, str(head.status))
        over = unhealthy_is_dead and head.status == 503
        return ProbeResult(at, Answer.OVER if over else Answer.UNHEALTHY, str(head.status))
