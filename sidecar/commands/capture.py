"""`rankguard capture`: ask a running sidecar for a manual incident. It captures, and kills nothing."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

import click

from sidecar.errors import SettingError

TIMEOUT = 10.0  # seconds; the sidecar answers at once, the capture itself goes on after the answer
ALLOWED = "HOST:PORT or http://HOST:PORT, as --api-listen has it"


def capture(api: str, token_file: str | None) -> int:
    """POST to the people's port at `api` (`HOST:PORT` or a URL). The exit status: 0 accepted, 1 refused or no answer.

    Raises `SettingError` where `api` is no address or the token's file cannot be read.
    """
    secure, host, port = _address(api)
    headers = {"Content-Length": "0"}
    if token_file:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    # Not a client that follows redirects or proxies of the environment: the token is for this address alone.
    make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = make(host, port, timeout=TIMEOUT)
    try:
        connection.request("POST", "/api/v1/captures", headers=headers)
        answer = connection.getresponse()
        status, body = answer.status, answer.read(65536)
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"no sidecar answers at {host}:{port}: {error}", err=True)
        return 1
    finally:
        connection.close()
    if status == 202:
        click.echo("accepted: the evidence is being captured; `rankguard incidents list` shows it")
        return 0
    click.echo(f"refused with status {status}: {_error_in(body)}", err=True)
    return 1


def _address(api: str) -> tuple[bool, str, int]:
    try:
        url = urlsplit(api if "://" in api else f"http://{api}")
        port = url.port
    except ValueError as error:
        raise SettingError("api", api, ALLOWED) from error
    if url.scheme not in ("http", "https") or url.username is not None or url.path.strip("/") or url.query:
        raise SettingError("api", api, ALLOWED)
    if port is None and "://" not in api:
        raise SettingError("api", api, ALLOWED)
    host = url.hostname or ""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - "every interface" is where it listens; loopback is one of them
        host = "::1" if host == "::" else "127.0.0.1"
    return url.scheme == "https", host, port or (443 if url.scheme == "https" else 80)


def _token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(65536).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingError("api_token_file", path, f"a file that can be read ({reason})") from error
    if not token or not token.isprintable() or " " in token:
        raise SettingError("api_token_file", path, "a file that holds one token")
    return token


def _error_in(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    text = told.get("error") if isinstance(told, dict) else None
    text = text if isinstance(text, str) else "the answer is none of a sidecar's"
    return "".join(c if c.isprintable() else "?" for c in text)[:500]
