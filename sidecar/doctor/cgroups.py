"""Which container a process is in, and its cgroup's count of kills for memory."""

from __future__ import annotations

import os

from sidecar.checkup import Status
from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import on_targets
from sidecar.system.cgroup import OomCounter, memory_cgroup


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    numbers: list[str] = []

    def attempt(target: Target) -> str | None:
        text = scene.proc.cgroup(target.pid)
        if not text:
            return "its cgroup file cannot be read" if os.path.exists(f"{scene.proc.root}/{target.pid}") else None
        version, _ = memory_cgroup(text)
        if not version:
            return "it is in no memory cgroup"
        counter = OomCounter(scene.proc, target.pid)
        try:
            kills = counter.count()
        finally:
            counter.close()
        if kills is None:
            return f"its oom_kill counter (cgroup {version}) cannot be read"
        numbers.append(f"{kills} so far ({version})")
        return ""

    found = on_targets(scene, step, "cgroup", "read the count of memory kills of", attempt, ("SYS_PTRACE",))
    if found.status is Status.OK and numbers:
        found = Found(found.capability, found.status, f"{found.seen}: {', '.join(dict.fromkeys(numbers))}")
    return (found,)
