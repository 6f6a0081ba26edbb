"""Which processes to try things on: real ones of the PID namespace, one of each kind.

The engine's are those that the guard or a person names; else those that an engine's title or command line tells, and
what descends from them, within --root-pid where that is set. Beside them stands one of each other container and right,
to have something to try before the engine is there, and PID 1. On a host without containers others are no business of
ours. Reading a command line can block, so all of this runs in a fork that may be given up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sidecar.checkup import Order, identity_of
from sidecar.doctor import credentials
from sidecar.doctor.scene import Target
from sidecar.engines.profile import Profile
from sidecar.engines.python_processes import clean_argv
from sidecar.engines.table import profiles
from sidecar.errors import SettingError
from sidecar.masking import mask_arguments
from sidecar.model import Identity, Role, plain
from sidecar.settings import Settings
from sidecar.system.cgroup import container_id
from sidecar.system.proc import Proc, Stat

_MOST_KINDS = 16  # of targets that are tried, beside the engine's
_MOST_ENGINE = 1024
_TITLE = 120
_OURS = b"from sidecar."  # in the command line of each of Rankguard's processes


@dataclass(frozen=True, slots=True)
class Found:
    """`shared`: whether processes of other containers can be seen; None where that cannot be told."""

    targets: tuple[Target, ...]
    engine: tuple[Target, ...]
    shared: bool | None


def find(proc: Proc, settings: Settings, order: Order) -> Found:
    """The targets of a checkup. What has ended meanwhile is left out."""
    stats = {pid: stat for pid in proc.pids() if (stat := proc.stat(pid)) is not None}
    living = {pid: stat for pid, stat in stats.items() if not stat.kernel_thread and not stat.exiting}
    own = _kin(stats, os.getpid())
    own_container = container_id(proc.cgroup(os.getpid()))
    containers = {pid: container_id(proc.cgroup(pid)) for pid in living}
    known: tuple[Profile, ...]
    try:
        known = profiles(settings.engine, settings.rank_pattern)
    except SettingError:  # refused where settings are read; here there is only nothing to know a rank by
        known = ()
    told = _told(proc, living, order, known)
    marked = told or _recognised(proc, settings, living, own, known)
    if not told:
        below = _descendants(stats, marked)
        marked = {**dict.fromkeys(below & living.keys(), ("", "")), **marked}
    # In a cgroup namespace of its own (cgroup v2), a container does not see its own id, and still is in a pod.
    contained = bool(own_container) or settings.in_pod
    foreign = {pid for pid, container in containers.items() if contained and container != own_container}
    engine = []
    for pid in sorted(marked, key=lambda pid: (not marked[pid][0], living[pid].start, pid))[:_MOST_ENGINE]:
        role, rank = marked[pid]
        if (target := _target(proc, living[pid], containers[pid], role, rank, engine=True)) is not None:
            engine.append(target)
    others = [
        target
        for pid in sorted(foreign - marked.keys() - own)
        if (target := _target(proc, living[pid], containers[pid])) is not None
    ]
    shared: bool | None = True if foreign or engine else None
    if shared is None and settings.in_pod and all(pid in own or _OURS in proc.cmdline(pid) for pid in living):
        shared = False  # where it is shared there is at least PID 1, which is in a container of its own
    return Found((*_one_of_each(engine), *_one_of_each(others)[:_MOST_KINDS]), tuple(engine), shared)


def _told(proc: Proc, living: dict[int, Stat], order: Order, known: Iterable[Profile]) -> dict[int, tuple[str, str]]:
    told: dict[int, tuple[str, str]] = {}
    for pid in order.pids:
        if pid in living:  # named by a person: if it does not say what it is, it is taken for a rank
            argv = clean_argv(proc.cmdline(pid)) if living[pid].state != "D" else ()
            told[pid] = _said(proc, pid, argv, known) or (Role.WORKER.value, "")
    for rank in order.known:
        stat = living.get(rank[0])
        if stat is not None and stat.identity == identity_of(rank):
            told[stat.pid] = rank[2], rank[3]
    return told


def _recognised(
    proc: Proc, settings: Settings, living: dict[int, Stat], own: set[int], known: Iterable[Profile]
) -> dict[int, tuple[str, str]]:
    """The (role, rank) of each process that says that it is an engine's."""
    within = living.keys() - own - {1}
    if settings.root_pid is not None:
        within &= _descendants(living, [settings.root_pid]) | {settings.root_pid}
    found: dict[int, tuple[str, str]] = {}
    for pid in within:
        if living[pid].state == "D":
            continue  # its command line may not be to be had
        argv = clean_argv(proc.cmdline(pid))
        said = _said(proc, pid, argv, known)
        if said is not None:
            found[pid] = said
        elif pid == settings.root_pid:
            found[pid] = "", ""
    return found


def _said(proc: Proc, pid: int, argv: tuple[str, ...], known: Iterable[Profile]) -> tuple[str, str] | None:
    for profile in known if argv else ():
        title = profile.title(argv, _variables(proc, pid, profile.environment))
        if title is not None:
            return title.role.value, title.rank
        if profile.is_server(argv):
            return Role.SERVER.value, "server"
    return None


def _variables(proc: Proc, pid: int, names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for item in ((proc.environ(pid) if names else None) or b"").split(b"\0"):
        name, equals, value = item.decode("utf-8", "backslashreplace").partition("=")
        if equals and name in names:
            found[name] = value
    return found


def _target(
    proc: Proc, stat: Stat, container: str, role: str = "", rank: str = "", engine: bool = False
) -> Target | None:
    try:
        who = credentials.read(f"{proc.root}/{stat.pid}")
    except (OSError, ValueError):
        return None
    title = stat.comm
    if stat.state != "D" and (argv := clean_argv(proc.cmdline(stat.pid))):
        title = " ".join(mask_arguments(argv))
    return Target(
        stat.identity, who.uids, who.gids, who.permitted, container, printable(title[:_TITLE]), role,
        printable(rank[:_TITLE]), engine, stat.pid == 1,
    )  # fmt: skip


def printable(text: str) -> str:
    """Titles come from the processes that are looked at: none may write lines or escapes of its own."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _one_of_each(targets: list[Target]) -> list[Target]:
    kinds: dict[Any, Target] = {}
    for target in targets:
        kind = (target.container, target.uids, target.gids, target.permitted, target.init)
        first = kinds.setdefault(kind, target)
        if first is not target:
            kinds[kind] = replace(first, like=first.like + 1)
    return list(kinds.values())


def _kin(stats: dict[int, Stat], pid: int) -> set[int]:
    """A process, what it descends from and its descendants: Rankguard's own, or who runs the doctor."""
    above = {pid}
    while (stat := stats.get(pid)) is not None and stat.ppid > 0 and stat.ppid not in above:
        pid = stat.ppid
        above.add(pid)
    return above | _descendants(stats, [os.getpid()])


def _descendants(stats: dict[int, Stat], roots: Iterable[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.ppid, []).append(pid)
    found: set[int] = set()
    queue = list(roots)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def encoded(found: Found) -> dict[str, Any]:
    return {name: plain(getattr(found, name)) for name in ("targets", "engine", "shared")}


def decoded(data: dict[str, Any]) -> Found:
    """The `Found` that `encoded` made. Raises what a wrong one raises."""
    return Found(tuple(_rows(data["targets"])), tuple(_rows(data["engine"])), data["shared"])


def _rows(rows: list[dict[str, Any]]) -> Iterator[Target]:
    for row in rows:
        lists = {name: tuple(row[name]) for name in ("uids", "gids")}
        yield Target(**{**row, **lists, "identity": Identity(**row["identity"])})


def shown(target: Target) -> dict[str, Any]:
    """A target as the document has it."""
    return {
        "pid": target.pid,
        "start": target.identity.start,
        "uid": target.uids[1],
        "gid": target.gids[1],
        "capabilities": credentials.names_of(target.permitted),
        "container": target.container,
        "title": target.title,
        "role": target.role,
        "rank": target.rank,
        "engine": target.engine,
        "like": target.like,
    }
