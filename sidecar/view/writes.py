"""What `--write` allows, and only with the token: removing an incident, pinning it, taking the pin back."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sidecar.dumps.folder import entry_at
from sidecar.dumps.lock import is_held
from sidecar.dumps.names import above_and_id
from sidecar.dumps.opening import down, top
from sidecar.dumps.pins import pin
from sidecar.dumps.removal import remove
from sidecar.log import Log
from sidecar.policy.retention import Limits
from sidecar.web.incidents import ONE, Json, told
from sidecar.web.library import Library

_READ_ONLY = "this viewer is read-only: it was started without --write"


def add_writes(app: FastAPI, library: Library, json: Json, log: Log, allowed: bool) -> None:
    """Add the three addresses to `app`; where they are not `allowed` they say so."""

    def change(path: str, call: Callable[..., str | None], *args: object) -> str | None:
        """Why it must not be, None where it was done."""
        with top(library.folder) as root:
            return call(root, path, *args)

    async def done(path: str, word: str, call: Callable[..., str | None], *args: object) -> None:
        if not allowed:
            raise HTTPException(403, _READ_ONLY)
        refusal = await told(library.pool.run(change, path, call, *args), f"there is no incident {path}")
        if refusal is not None:
            raise HTTPException(409, refusal)
        log(word, incident=path)

    def discarded(root: int, path: str) -> str | None:
        refusal = _must_stay(root, path)
        if refusal is None:
            remove(library.folder, path)
        return refusal

    async def delete(incident: str) -> Response:
        await done(incident, "removed", discarded)
        return json({"removed": incident})

    async def set_pin(incident: str) -> Response:
        await done(incident, "pinned", pin, True)
        return json({"pinned": True})

    async def take_pin(incident: str) -> Response:
        await done(incident, "the pin was taken back", pin, False)
        return json({"pinned": False})

    for path, method, endpoint in ((ONE, "DELETE", delete), (ONE + "/pin", "PUT", set_pin),
                                   (ONE + "/pin", "DELETE", take_pin)):  # fmt: skip
        app.add_api_route(path, endpoint, methods=[method], response_model=None)


def _must_stay(root: int, path: str) -> str | None:
    """Why the incident must not be removed now. Raises `FileNotFoundError` where there is none."""
    entry = entry_at(root, path)
    if entry.pinned:
        return "it is pinned; take the pin back first"
    above, name = above_and_id(path)
    young = abs(time.time() - entry.wall) < Limits(None, None, None, 0.0).protect_unsealed_seconds
    if not entry.sealed and young:
        return "it is not sealed, and may still be written to: wait an hour"
    try:
        with down(root, [*above, name]) as fd:
            return "it is being written" if is_held(fd) else None
    except OSError:
        return None  # a link, or a file: that goes itself
