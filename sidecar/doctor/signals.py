"""Whether we may signal a process: signal 0, which the kernel checks like any other and does not send."""

from __future__ import annotations

from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import on_targets
from sidecar.system import signals
from sidecar.system.signals import Sent


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    use_pidfd = "pidfd" not in scene.settings.mask_features

    def attempt(target: Target) -> str | None:
        sent = signals.to_process(scene.proc, target.identity, 0, use_pidfd=use_pidfd)
        if sent is Sent.GONE:
            return None
        uid = scene.own.uid
        return "" if sent is Sent.SENT else f"EPERM: it is of uid {target.uids[0]}, we of {uid}, without KILL"

    return (on_targets(scene, step, "signals", "sent signal 0 to", attempt, ("KILL",)),)
