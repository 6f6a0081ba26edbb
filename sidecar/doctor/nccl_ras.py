"""Whether NCCL's RAS service takes a connection and greets, which is how the collector begins."""

from __future__ import annotations

import time

from sidecar.checkup import Remedy, Status
from sidecar.doctor.gpu import uses_gpu
from sidecar.doctor.remedies import ENGINE
from sidecar.doctor.scene import Found, Scene, Step
from sidecar.masking import mask_text
from sidecar.recorder.capture import nccl_ras

_CAPABILITY = "nccl_ras"
_SHARE = 0.6  # of the check's time
_ENABLE = Remedy(ENGINE, 'env:\n  - {name: NCCL_RAS_ENABLE, value: "1"}   # NCCL 2.24 or newer; 1 is its default')


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    if _CAPABILITY not in scene.settings.captures:
        return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "--captures does not ask for it"),)
    if not scene.ranks:
        return (Found(_CAPABILITY, Status.UNKNOWN, scene.blind or "no rank of an engine is there yet"),)
    where = nccl_ras.address(scene.proc, (rank.pid for rank in scene.ranks))
    shown = mask_text(where)
    step(f"connect to {shown}")
    try:
        nccl_ras.connect(where, time.monotonic() + scene.order.seconds * _SHARE).close()
    except ConnectionRefusedError:
        if len(scene.ranks) < 2:
            return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "the engine has one rank, which needs no NCCL"),)
        if uses_gpu(scene) is False:
            return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "no process of the engine has an NVIDIA GPU open"),)
        seen = f"nobody listens at {shown}: RAS is off, NCCL is too old, or it has not begun yet"
        return (Found(_CAPABILITY, Status.MISSING, seen, (_ENABLE,)),)
    except TimeoutError:
        return (Found(_CAPABILITY, Status.HUNG, f"{shown} takes the connection and says nothing"),)
    except (OSError, ValueError) as error:
        return (Found(_CAPABILITY, Status.MISSING, f"{shown}: {error or type(error).__name__}"),)
    return (Found(_CAPABILITY, Status.OK, f"{shown} took a connection and greeted"),)
