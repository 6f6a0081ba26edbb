"""What the kernel gives to all: pidfds, and the exit status of a process that is not our child."""

from __future__ import annotations

from sidecar.checkup import Status
from sidecar.doctor import remedies
from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import whom
from sidecar.errors import OutOfDescriptors
from sidecar.system.features import Features, probe

_WORDS = {
    "thread_pidfd": "pidfds of threads (6.9)",
    "pidfd_hup": "EPOLLHUP at the reaping (6.9)",
    "pidfd_info": "PIDFD_GET_INFO with the exit status (6.15)",
}


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    step("try pidfds on a child of ours")
    try:
        features = probe(scene.settings.mask_features)
    except OutOfDescriptors as error:
        return tuple(Found(name, Status.UNKNOWN, str(error)) for name in ("pidfd", "exit_status"))
    return _pidfd(features), _exit_status(scene, step, features)


def _pidfd(features: Features) -> Found:
    if not features.pidfd:
        # Old kernels (before 5.3), some seccomp filters and gVisor.
        return Found(
            "pidfd", Status.MISSING, "pidfd_open is refused by the kernel or a filter; /proc is polled instead"
        )
    there = [words for name, words in _WORDS.items() if getattr(features, name)]
    lacking = [words for name, words in _WORDS.items() if not getattr(features, name)]
    seen = f"pidfd_open works; {', '.join(there) or 'nothing more'}"
    return Found("pidfd", Status.OK, seen + (f"; not here: {', '.join(lacking)}" if lacking else ""))


def _exit_status(scene: Scene, step: Step, features: Features) -> Found:
    if features.pidfd_info:
        return Found("exit_status", Status.OK, "a child that exited with 7 said so by PIDFD_GET_INFO after its end")
    hidden: list[Target] = []
    shown: list[Target] = []
    for target in whom(scene):
        step(f"read the stat of {target.named}")
        stat = scene.proc.stat(target.pid)
        if stat is not None and stat.identity == target.identity:
            (shown if stat.permitted else hidden).append(target)
    if hidden:
        seen = f"no PIDFD_GET_INFO, and /proc/PID/stat hides the status of {', '.join(t.named for t in hidden)}"
        ways = remedies.to_reach(scene.own, [target.credentials for target in (*hidden, *shown)], ("SYS_PTRACE",))
        engine = any(target.engine for target in hidden)
        return Found("exit_status", Status.MISSING if engine else Status.UNKNOWN, seen, ways)
    if shown:
        seen = f"/proc/PID/stat shows the status of {', '.join(target.named for target in shown)}"
        return Found("exit_status", Status.OK, f"{seen}, until it is reaped (no PIDFD_GET_INFO here)")
    return Found(
        "exit_status", Status.UNKNOWN, scene.blind or "no PIDFD_GET_INFO, and no process to try its stat on yet"
    )
