"""What of a process's folder in /proc may be read: its root, its environment, its descriptors, its maps.

`root` and `maps` take ptrace rights; the environment and the descriptors take the owner's permission beside them, which
root has over others by DAC_OVERRIDE alone (all seen).
"""

from __future__ import annotations

import os

from sidecar.checkup import Status
from sidecar.doctor import remedies
from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import gone, on_targets, refusal

_LOOK = ("SYS_PTRACE",)
_READ = ("SYS_PTRACE", "DAC_OVERRIDE")


def root(scene: Scene, step: Step) -> tuple[Found, ...]:
    def attempt(target: Target) -> str | None:
        try:
            fd = os.open(f"{scene.proc.root}/{target.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return None if gone(error) else refusal(error)
        os.close(fd)
        return ""

    return (on_targets(scene, step, "root", "opened the root folder of", attempt, _LOOK),)


def environment(scene: Scene, step: Step) -> tuple[Found, ...]:
    wiped: list[int] = []

    def attempt(target: Target) -> str | None:
        try:
            with open(f"{scene.proc.root}/{target.pid}/environ", "rb", buffering=0) as file:
                data = file.read(1 << 20) or b""
        except OSError as error:
            return None if gone(error) else refusal(error)
        if not data.strip(b"\0"):
            wiped.append(target.pid)
        return ""

    found = on_targets(scene, step, "environment", "read the environment of", attempt, _READ)
    if found.status is Status.OK and wiped:
        # Permitted, and nothing there: setproctitle writes over it, and then its parents are read instead.
        which = f"that of {', '.join(map(str, wiped))} is empty: none was given, or a title was written over it"
        found = Found(found.capability, found.status, f"{found.seen}; {which} (SPT_NOENV=1 keeps it)")
    return (found,)


def descriptors(scene: Scene, step: Step) -> tuple[Found, ...]:
    def attempt(target: Target) -> str | None:
        folder = f"{scene.proc.root}/{target.pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError as error:
            return None if gone(error) else refusal(error)
        for name in names:
            try:
                os.readlink(f"{folder}/{name}")
            except FileNotFoundError:
                continue  # closed meanwhile
            except OSError as error:
                return None if gone(error) else f"listed, but what they are is {refusal(error)}"
            break
        return ""

    return (on_targets(scene, step, "descriptors", "listed the open files of", attempt, _READ),)


def maps(scene: Scene, step: Step) -> tuple[Found, ...]:
    """Of everybody, PID 1 included: shared memory may be removed only where nobody can be using it."""
    if scene.blind:
        return (Found("memory_maps", Status.UNKNOWN, scene.blind),)
    read, refused = 0, []
    for target in scene.targets:
        step(f"read the memory maps of {target.named}")
        stat = scene.proc.stat(target.pid)
        if stat is None or stat.identity != target.identity:
            continue
        try:
            with open(f"{scene.proc.root}/{target.pid}/maps", "rb", buffering=0) as file:
                file.read(1)
            read += 1
        except OSError as error:
            if not gone(error):
                refused.append((target, refusal(error)))
    if refused:
        seen = "; ".join(f"{target.named}: {said}" for target, said in refused)
        ways = remedies.to_reach(scene.own, [target.credentials for target in scene.targets], _LOOK)
        return (Found("memory_maps", Status.MISSING, f"could not read the memory maps of {seen}", ways),)
    if not read:
        return (Found("memory_maps", Status.UNKNOWN, "no process of another container to try it on yet"),)
    number = f"{read} process{'' if read == 1 else 'es'}, one of each container and right"
    return (Found("memory_maps", Status.OK, f"read the memory maps of {number}"),)
