"""`rankguard view`: the page and its API over a dump folder, of a pod or of a whole volume, with no sidecar running."""

from __future__ import annotations

import os
import socket

import click

from sidecar import listening
from sidecar.commands import units
from sidecar.commands.terminal import Refused
from sidecar.errors import SettingError, UsageError
from sidecar.settings import Settings

_DEFAULT_DUMP_DIR = Settings().dump_dir
_DEFAULT_API = str(Settings().api_listen)


@click.command(short_help="The page and its API over a dump folder, of one pod or of a whole volume.")
@click.option("--dump-dir", metavar="DIR", envvar="RANKGUARD_DUMP_DIR", default=_DEFAULT_DUMP_DIR, show_default=True,
              help="The folder with the incidents, of one pod or of a whole volume.")  # fmt: skip
@click.option("--api-listen", metavar="HOST:PORT", envvar="RANKGUARD_API_LISTEN", default=_DEFAULT_API,
              show_default=True, help="Where people ask. Beyond loopback only with --api-token-file.")  # fmt: skip
@click.option("--api-token-file", metavar="FILE", envvar="RANKGUARD_API_TOKEN_FILE",
              help="File with the bearer token that is asked for; read again when it changes.")  # fmt: skip
@click.option("--listen", metavar="HOST:PORT", envvar="RANKGUARD_LISTEN", default="none", show_default=True,
              help="Where /metrics and /healthz are, for machines; :PORT is every interface.")  # fmt: skip
@click.option("--write", is_flag=True, envvar="RANKGUARD_WRITE",
              help="Let who has the token remove and pin incidents. Else nothing is ever changed.")  # fmt: skip
@click.option("--scan-period", metavar="DURATION", envvar="RANKGUARD_SCAN_PERIOD", default="30s", show_default=True,
              help="How long to wait between two looks at the whole volume, for its metrics.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), envvar="RANKGUARD_LOG_FORMAT", default="text",
              show_default=True, help="How the log is written, to standard error.")  # fmt: skip
def view(
    dump_dir: str,
    api_listen: str,
    api_token_file: str | None,
    listen: str,
    write: bool,
    scan_period: str,
    log_format: str,
) -> None:
    """Serve the incidents of a dump folder: the page and the API of the sidecar's port for people, over all pods of a
    volume.

    It watches nothing, and reads the files alone. GET /api/v1 says which addresses there are. Ends on SIGTERM.
    """
    api_token_file = api_token_file or None
    try:
        period = units.duration(scan_period)
    except ValueError as error:
        raise SettingError("--scan-period", scan_period, str(error)) from error
    if not 1 <= period <= 86400:
        raise SettingError("--scan-period", scan_period, "it takes 1s to 1d")
    api = _address("--api-listen", api_listen)
    if api is None:
        raise SettingError("--api-listen", api_listen, "there would be nothing to view; give HOST:PORT")
    if not api.loopback and api_token_file is None:
        raise SettingError("--api-listen", api_listen, "beyond loopback it needs --api-token-file")
    if write and api_token_file is None:
        raise UsageError("--write needs --api-token-file: only who has the token may remove and pin")
    if api_token_file is not None and not os.access(api_token_file, os.R_OK):
        raise SettingError("--api-token-file", api_token_file, "there is no such file that can be read")
    try:
        os.listdir(dump_dir)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SettingError("--dump-dir", dump_dir, f"it cannot be read: {why}") from error
    machines = _address("--listen", listen)
    sockets = _bound("--api-listen", api_listen, api)
    more = _bound("--listen", listen, machines) if machines is not None else []

    from sidecar.view.process import ViewOptions, run

    options = ViewOptions(
        dump_dir=dump_dir, api_token_file=api_token_file, write=write, scan_period=period, log_format=log_format
    )
    run(options, sockets, more)


def _address(option: str, text: str) -> listening.Address | None:
    if text == "none":
        return None
    try:
        return listening.parse(text)
    except ValueError as error:
        raise SettingError(option, text, str(error)) from error


def _bound(option: str, text: str, address: listening.Address) -> list[socket.socket]:
    try:
        sockets = [socket.socket(fileno=fd) for fd in listening.bind(address)]
    except OSError as error:
        raise Refused(f"{option}: cannot listen at {text}: {error.strerror or error}", 1) from error
    for sock in sockets:
        sock.setblocking(False)
        sock.set_inheritable(False)
    return sockets
