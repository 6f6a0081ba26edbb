"""`rankguard doctor`: what Rankguard may do here, found out by doing it, each with what is lost and what would give it.

The checks run in a process of their own (`sidecar.doctor`), the same that `rankguard run` has run at its start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import click

from sidecar import checkup
from sidecar.checkup import SCHEMA, Checkup, Order
from sidecar.commands import options
from sidecar.commands.run import package_root
from sidecar.commands.terminal import Refused, printable
from sidecar.errors import ProtocolError, SettingError
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.system.proc import Proc

_SETTINGS = (
    "engine", "rank_pattern", "root_pid", "on_rank_death", "on_liveness_failure", "captures", "liveness_deadline",
    "termination_grace_period", "dump_dir", "dump_max_bytes", "dump_free_floor", "dump_volume_limit",
    "coredump_max_bytes", "in_pod", "pod_namespace", "pod_name", "mask_features", "kubernetes_events",
    "kubernetes_annotation", "after_kill", "fleet_switch", "service_account_dir",
)  # fmt: skip
_LEAST, _MOST = 0.1, 600.0
_START = 20.0  # seconds for what is not checking: the interpreter's start and its end

_HELP = """Test what Rankguard may do here: one line each, and what is missing with the YAML that gives it.

Each right is tested by using it, harmlessly: nothing is stopped, signalled or triggered. Run it where the sidecar runs,
as `kubectl exec POD -c rankguard -- rankguard doctor`. The engine's processes are found as `run` finds them.

Exit status 1: a required one is missing, that is the shared PID namespace, the right to signal every engine process
(unless both actions are observe), or the volume. Without one of the others some evidence is missing; the status is 0.
"""

_EPILOG = """Settings are read as `rankguard run` reads them, since what it would do is what is tested: these from
flags, environment and --config, all others from the last two."""


@click.command(
    "doctor",
    params=[
        click.Option(["--json", "as_json"], is_flag=True, help="Print a JSON document instead."),
        click.Option(
            ["--pid"], multiple=True, metavar="N", help="Take this process for the engine's. Can be given more often."
        ),
        click.Option(
            ["--check-timeout"], default="5", show_default=True, metavar="SECONDS",
            help="After so long a check counts as hung. All run at the same time.",
        ),
        *options.for_settings(_SETTINGS),
    ],
    help=_HELP,
    epilog=_EPILOG,
    short_help="Test what Rankguard may do here.",
)  # fmt: skip
def doctor(as_json: bool, pid: tuple[str, ...], check_timeout: str, **flags: Any) -> int:
    order = Order(pids=tuple(_pid(text) for text in pid), seconds=_seconds(check_timeout))
    found = _checked(_settings(flags), order)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **checkup.document(found)}, indent=2))
    else:
        from sidecar.commands import doctor_pages

        doctor_pages.print_page(found)
    return 1 if found.fails else 0


def _pid(text: str) -> int:
    proc = Proc()
    try:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 11 else 0
        if number < 2:
            raise SettingError("--pid", text, "it takes a process's number, 2 or more")
        stat = proc.stat(number)
        if stat is None or stat.zombie:
            raise SettingError("--pid", text, "there is no such process in this PID namespace")
        return number
    finally:
        proc.close()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST <= seconds <= _MOST:
        raise SettingError("--check-timeout", text, f"it takes seconds, a number from {_LEAST:g} to {_MOST:g}")
    return seconds


def _settings(flags: dict[str, Any]) -> Settings:
    """The settings as `run` would have them. What is refused ends us, or in a pod is said and has its default there."""
    from sidecar import config  # pydantic: not for --help

    loaded = config.load(flags, os.environ)
    for error in loaded.errors:
        if not loaded.settings.in_pod:
            raise error
        click.echo(f"rankguard: {printable(str(error))}; `run` uses its default, and only observes", err=True)
    return Settings(
        **{
            **{name: getattr(loaded.settings, name) for name in Settings.__dataclass_fields__},
            "dump_dir": os.path.abspath(loaded.settings.dump_dir),
        }
    )


def _checked(settings: Settings, order: Order) -> Checkup:
    """Raises `Refused` where the doctor itself cannot be had."""
    root = package_root()
    fd = launch_to_fd(Launch(settings=settings, python=sys.executable, package_root=root))
    try:
        ran = subprocess.run(
            checkup.argv(sys.executable, root, fd, order), pass_fds=(fd,), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, timeout=2 * order.seconds + _START, check=False,
        )  # fmt: skip
        return checkup.decoded(ran.stdout)
    except (OSError, subprocess.TimeoutExpired, ProtocolError) as error:
        raise Refused(f"the checks could not be made: {error}", 1) from error
    finally:
        os.close(fd)
