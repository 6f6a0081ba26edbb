"""`rankguard incidents`: a dump folder in the terminal, and cleaning it up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from sidecar.commands import units
from sidecar.commands.gone_pods import Pruned, prune_pods
from sidecar.commands.terminal import Refused, printable
from sidecar.dumps import folder
from sidecar.dumps.bundle import bundle as archive
from sidecar.dumps.names import bundle_name
from sidecar.dumps.opening import top
from sidecar.dumps.pods import LEAST_GONE
from sidecar.dumps.removal import remove
from sidecar.dumps.rows import row_of
from sidecar.errors import SettingError
from sidecar.model import Reason
from sidecar.policy import retention
from sidecar.settings import Settings

_DEFAULT_DUMP_DIR = next(f.default for f in fields(Settings) if f.name == "dump_dir")

_dump_dir = click.option(
    "--dump-dir",
    metavar="DIR",
    envvar="RANKGUARD_DUMP_DIR",
    default=_DEFAULT_DUMP_DIR,
    help="The folder with the incidents, of one pod or of a whole volume. Environment: RANKGUARD_DUMP_DIR."
    f" [default: {_DEFAULT_DUMP_DIR}]",
)


def _as_json(what: str) -> Callable[[Any], Any]:
    return click.option("--json", "as_json", is_flag=True, help=what)


@click.group(short_help="Look at recorded incidents, and remove old ones.")
def incidents() -> None:
    """Look at recorded incidents, and remove old ones. Works on the files alone: no sidecar need be running."""


@incidents.command("list", short_help="One line for each incident, newest first.")
@_dump_dir
@click.option("--reason", metavar="REASON", help=f"Only these: {', '.join(Reason)}.")
@click.option("--limit", metavar="N", help="At most N, the newest.")
@_as_json("Print a JSON list instead.")
def list_incidents(dump_dir: str, reason: str | None, limit: str | None, as_json: bool) -> None:
    """One line for each incident, newest first.

    What cannot be read is listed too, with the reason why.
    """
    known = {word.lower(): word.value for word in Reason}
    if reason is not None and reason.lower() not in known:
        raise SettingError("--reason", reason, f"it takes one of {', '.join(Reason)}")
    at_most = None if limit is None else _whole_number("--limit", limit, 1)
    dump = _read(dump_dir)
    chosen = [e for e in dump.entries if reason is None or e.record.get("reason") == known[reason.lower()]][:at_most]
    if as_json:
        _print_json([row_of(entry) for entry in chosen])
    else:
        from sidecar.commands import incident_pages

        incident_pages.print_table(dump_dir, chosen)
    _tell_closed(dump)


@incidents.command(short_help="Everything about one incident.")
@click.argument("incident", metavar="ID")
@_dump_dir
@_as_json("Print its incident.json instead.")
def show(incident: str, dump_dir: str, as_json: bool) -> None:
    """Everything about one incident, as a page.

    ID is an incident's id, the beginning of one, or "latest". On a whole volume NAMESPACE/POD/ID works too.
    """
    entry = _one(_read(dump_dir), incident, dump_dir)
    if entry.unreadable:
        raise Refused(f"{entry.path} is unreadable: {entry.unreadable}", 1)
    if as_json:
        _print_json(entry.record)
    else:
        from sidecar.commands import incident_pages

        incident_pages.print_page(dump_dir, entry)


@incidents.command(short_help="One incident as a .tar.gz.")
@click.argument("incident", metavar="ID")
@_dump_dir
@click.option("--output", "-o", metavar="FILE", help="Where to; - is standard output. [default: <ID>.tar.gz, here]")
def bundle(incident: str, dump_dir: str, output: str | None) -> None:
    """One incident with all its files as a .tar.gz, with an index of sizes and checksums.

    ID is as for show. What exists already is not overwritten.
    """
    entry = _one(_read(dump_dir), incident, dump_dir)
    name = output or bundle_name(entry.path)
    try:
        with top(dump_dir) as root, click.open_file(name, "wb" if name == "-" else "xb") as file:
            for piece in archive(root, entry.path):
                file.write(piece)
    except FileExistsError as error:
        raise Refused(f"{name} exists already; give another name with --output", 1) from error
    except (OSError, ValueError) as error:
        raise Refused(f"no bundle of {entry.path} in {name}: {_why(error)}", 1) from error
    if name != "-":
        click.echo(name)


@incidents.command(short_help="Remove old incidents, and folders of pods that are gone.")
@_dump_dir
@click.option("--keep", metavar="N", help="Keep the N newest.")
@click.option("--max-bytes", metavar="SIZE", help="Keep as many of the newest as fit into SIZE: 500M, 10Gi, ...")
@click.option("--older-than", metavar="DURATION", help="Remove what is older: 36h, 7d, ...")
@click.option(
    "--pods-gone-for",
    metavar="DURATION",
    help="On a volume of many pods: remove the folder of every pod that has written nothing for so long: 7d, ...",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_as_json("Print what was removed as JSON.")
def prune(
    dump_dir: str,
    keep: str | None,
    max_bytes: str | None,
    older_than: str | None,
    pods_gone_for: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove incidents, oldest first, until every limit given holds; and folders of pods that are gone.

    At least one limit is needed. An incident of the last hour that is not sealed may still be written to and is never
    removed, nor is one that is pinned. On a whole volume the limits are for all pods together. Nothing else in the
    folder is touched.

    --pods-gone-for asks no API server: a living sidecar writes to its folder at least once an hour. A folder with a
    pinned incident stays, as does one that holds anything that is not Rankguard's. What the pod's sidecar had counted
    is added to .totals.json at the top of the volume, so that totals over the volume never fall.
    """
    limits = retention.Limits(
        max_count=None if keep is None else _whole_number("--keep", keep, 0),
        max_bytes=None if max_bytes is None else _measure("--max-bytes", max_bytes, units.size),
        max_age=None if older_than is None else _measure("--older-than", older_than, units.duration),
        now=time.time(),
    )
    limited = not (limits.max_count is None and limits.max_bytes is None and limits.max_age is None)
    if not limited and pods_gone_for is None:
        raise click.UsageError("prune needs at least one limit: --keep, --max-bytes, --older-than or --pods-gone-for")
    dump = _read(dump_dir)
    pods = None if pods_gone_for is None else _prune_pods(dump_dir, pods_gone_for, dry_run, as_json)
    if pods is not None and limited:
        dump = _read(dump_dir)
    by_path = {entry.path: entry for entry in dump.entries}
    kept = [
        retention.Kept(id=e.path, bytes=e.bytes, wall=e.wall, sealed=e.sealed, protected=e.pinned) for e in dump.entries
    ]
    removed, failed = [], {}
    for path in retention.choose(kept, limits) if limited else ():
        try:
            if not dry_run:
                remove(dump_dir, path)
        except FileNotFoundError:
            continue  # a sidecar pruned it meanwhile
        except OSError as error:
            failed[path] = error.strerror or str(error)
            continue
        removed.append(by_path[path])
        if not as_json:
            size = units.shown_size(by_path[path].bytes)
            click.echo(f"{'would remove' if dry_run else 'removed'} {printable(path)} ({size})")
    freed = sum(entry.bytes for entry in removed)
    left = len(dump.entries) - len(removed)
    if as_json:
        _print_json(
            {
                "removed": [{"path": entry.path, "bytes": entry.bytes} for entry in removed],
                "failed": failed,
                "freed_bytes": freed,
                "left": left,
                "dry_run": dry_run,
            }
            | ({} if pods is None else {"pods": pods.as_json()})
        )
    elif limited:
        verb = "would be removed" if dry_run else "removed"
        click.echo(f"{len(removed)} {verb} ({units.shown_size(freed)}), {left} left")
    _tell_closed(dump)
    if pods is not None:
        failed = pods.failed | failed
    if failed:
        path, why = next(iter(failed.items()))
        raise Refused(f"{len(failed)} could not be removed, the first is {path}: {why}", 1)


def _prune_pods(dump_dir: str, gone_for: str, dry_run: bool, as_json: bool) -> Pruned:
    seconds = _measure("--pods-gone-for", gone_for, units.duration)
    if seconds < LEAST_GONE:
        least = f"at least {LEAST_GONE / 3600:.0f}h, since a living sidecar writes once an hour"
        raise SettingError("--pods-gone-for", gone_for, f"it takes {least}")
    try:
        pods = prune_pods(dump_dir, seconds, dry_run, (lambda _: None) if as_json else click.echo)
    except OSError as error:
        raise Refused(f"the folders of pods that are gone cannot be removed: {_why(error)}", 1) from error
    if not as_json:
        click.echo(f"{len(pods.removed)} pods' folders {'would be ' if dry_run else ''}removed, {len(pods.kept)} kept")
    return pods


def _read(dump_dir: str) -> folder.Dump:
    try:
        return folder.read(dump_dir)
    except (OSError, ValueError) as error:
        raise SettingError("--dump-dir", dump_dir, f"it cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _one(dump: folder.Dump, wanted: str, dump_dir: str) -> folder.Entry:
    """The incident that `wanted` means. Raises `Refused` (exit 1) where it means none or several."""
    if not dump.entries:
        raise Refused(f"there are no incidents in {dump_dir}", 1)
    if wanted == "latest":
        return dump.entries[0]
    exact = [e for e in dump.entries if wanted in (e.id, e.path)]
    found = exact or [e for e in dump.entries if wanted and (e.id.startswith(wanted) or e.path.startswith(wanted))]
    if not found:
        raise Refused(f"there is no incident {wanted!r} in {dump_dir}", 1)
    if len(found) > 1:
        some = ", ".join(e.path for e in found[:3]) + (", ..." if len(found) > 3 else "")
        raise Refused(f"{wanted!r} may be any of {len(found)} incidents: {some}", 1)
    return found[0]


def _print_json(value: Any) -> None:
    # ASCII only, so that text from outside cannot reach a terminal as anything but letters.
    click.echo(json.dumps(value, indent=2))


def _tell_closed(dump: folder.Dump) -> None:
    if dump.closed:
        click.echo(f"rankguard: not looked into, no right to: {printable(', '.join(dump.closed))}", err=True)


def _whole_number(option: str, value: str, least: int) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) >= least):
        raise SettingError(option, value, f"it takes a whole number of at least {least}")
    return int(value)


def _measure(option: str, value: str, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(value)
    except ValueError as error:
        raise SettingError(option, value, str(error)) from error
