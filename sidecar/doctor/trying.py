"""Trying one thing on every target, and making one finding of it. The engine's processes decide where there are any."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

from sidecar.checkup import Status
from sidecar.doctor import remedies
from sidecar.doctor.scene import Found, Scene, Step, Target

# "": it worked. Else why it was refused. None: the process has ended, which says nothing.
Attempt = Callable[[Target], str | None]


def on_targets(
    scene: Scene,
    step: Step,
    capability: str,
    done: str,
    attempt: Attempt,
    needed: Sequence[str],
) -> Found:
    """`done` is what is tried, as words before a target ("read a byte of"). `needed`: the capabilities that give it to
    a root sidecar.
    """
    if scene.blind:
        return Found(capability, Status.UNKNOWN, scene.blind)
    tried: list[tuple[Target, str]] = []
    for target in whom(scene):
        step(f"{done} {target.named}")
        if not _there(scene, target):
            continue
        said = attempt(target)
        if said is not None and _there(scene, target):  # what was learnt of who has the pid now is of no use
            tried.append((target, said))
    if not tried:
        return Found(capability, Status.UNKNOWN, f"no process to try it on yet; {promise(scene, needed)}")
    refused = [(target, said) for target, said in tried if said]
    if not refused:
        return Found(capability, Status.OK, f"{done} {_all(target for target, _ in tried)}")
    seen = "; ".join(f"{target.named}: {said}" for target, said in refused)
    ways = remedies.to_reach(scene.own, [target.credentials for target, _ in tried], needed)
    if any(target.engine for target, _ in refused):
        return Found(capability, Status.MISSING, f"could not {_infinitive(done)} {seen}", ways)
    why = "no process of an engine is known yet (name one by --pid)"
    return Found(capability, Status.UNKNOWN, f"{why}; could not {_infinitive(done)} {seen}", ways)


def whom(scene: Scene) -> list[Target]:
    """The engine's processes, else those of other containers; never PID 1."""
    return [t for t in scene.targets if t.engine] or [t for t in scene.targets if not t.init]


def promise(scene: Scene, needed: Sequence[str]) -> str:
    """What our capabilities say where nothing could be tried."""
    there = [name for name in needed if scene.own.has(name)]
    lacking = [name for name in needed if not scene.own.has(name)]
    if not lacking:
        return f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there"
    return f"no {', '.join(lacking)}: it takes a target of uid {scene.own.uid} with no capability that we lack"


def refusal(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def gone(error: OSError) -> bool:
    """The process ended while it was looked at."""
    return error.errno in (errno.ENOENT, errno.ESRCH)


def _there(scene: Scene, target: Target) -> bool:
    stat = scene.proc.stat(target.pid)
    return stat is not None and stat.identity == target.identity and not stat.zombie


def _all(targets: Iterable[Target]) -> str:
    return ", ".join(target.named for target in targets)


def _infinitive(done: str) -> str:
    """`read` and `sent`: the words before a target, after "could not"."""
    return done.replace("sent ", "send ", 1).replace("opened ", "open ", 1).replace("listed ", "list ", 1)
