"""Whether each rank of PyTorch's has the pipe of its Flight Recorder, reads it, and would take a byte of ours.

Looked for as the collector does it, and not opened.
"""

from __future__ import annotations

import os
import stat

from sidecar.checkup import Remedy, Status
from sidecar.doctor import remedies
from sidecar.doctor.gpu import uses_gpu
from sidecar.doctor.remedies import ENGINE
from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import refusal
from sidecar.errors import ProcessGone
from sidecar.recorder.capture.flight_recorder import BUFFERS, PIPES, is_zero
from sidecar.recorder.capture.inherited import inherited
from sidecar.recorder.coredump.target import TargetProcess

_CAPABILITY = "flight_recorder"
_MOST_RANKS = 64
_ENABLE = Remedy(
    ENGINE,
    "env:\n"
    "  - {name: TORCH_NCCL_DEBUG_INFO_PIPE_FILE, value: /tmp/rankguard-fr-}\n"
    '  - {name: TORCH_NCCL_TRACE_BUFFER_SIZE, value: "2000"}',
)


class _Denied(Exception):
    """No permission; `args[0]` says for what."""


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    if _CAPABILITY not in scene.settings.captures:
        return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "--captures does not ask for it"),)
    ranks = scene.ranks[:_MOST_RANKS]
    if not ranks:
        return (Found(_CAPABILITY, Status.UNKNOWN, scene.blind or "no rank of an engine is there yet"),)
    read, enabled = [], []
    for rank in ranks:
        step(f"look for the Flight Recorder's pipe of {rank.named}")
        try:
            on, there = _look(scene, rank)
        except ProcessGone:
            continue
        except _Denied as denied:
            ways = remedies.to_reach(
                scene.own, [one.credentials for one in scene.engine], ("SYS_PTRACE", "DAC_OVERRIDE")
            )
            return (Found(_CAPABILITY, Status.MISSING, f"{rank.named}: no permission {denied}", ways),)
        enabled += [rank] if on else []
        read += [rank] if there else []
    if read:
        number = f"{len(read)} of {len(ranks)} ranks"
        return (Found(_CAPABILITY, Status.OK, f"the pipe of {number} is there and read by it"),)
    if enabled:
        seen = f"{PIPES[0]} is set, and no pipe yet: torch.distributed with NCCL has not begun there"
        return (Found(_CAPABILITY, Status.UNKNOWN, seen),)
    if uses_gpu(scene) is False:
        return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "no process of the engine has an NVIDIA GPU open"),)
    return (Found(_CAPABILITY, Status.MISSING, f"{PIPES[0]} is not set in the engine", (_ENABLE,)),)


def _look(scene: Scene, rank: Target) -> tuple[bool, bool]:
    """(whether it is enabled, whether its pipe is there and read). Raises `_Denied` or `ProcessGone`."""
    target = TargetProcess(scene.proc.root, rank.identity)
    if scene.proc.environ(rank.pid) is None:
        raise _Denied("to read its environment")
    others = [other.pid for other in scene.engine[:_MOST_RANKS] if other is not rank]
    set_ = inherited(scene.proc, rank.pid, (*PIPES, *BUFFERS), others)
    stem = next((set_[name] for name in PIPES if set_.get(name)), "")
    if not stem or any(is_zero(set_[name]) for name in BUFFERS if name in set_):
        return False, False
    try:
        for file in target.opened():
            # A relative value is relative to where the rank was started.
            if file.reads and os.path.basename(file.path).startswith(os.path.basename(stem)):
                info = target.stat_opened(file.number)
                if file.path.endswith(".pipe") and stat.S_ISFIFO(info.st_mode):
                    # Opened only when it counts: the owner's permission stands in its mode.
                    if not os.access(f"{scene.proc.root}/{rank.pid}/fd/{file.number}", os.W_OK, effective_ids=True):
                        raise _Denied(f"to write to its pipe {file.path}")
                    return True, True
    except OSError as error:
        raise _Denied(f"to list its open files ({refusal(error)})") from error
    return True, False
