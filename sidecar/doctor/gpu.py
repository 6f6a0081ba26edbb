"""Whether anything of the engine uses an NVIDIA GPU: without one, nothing is lost by what only such an engine has."""

from __future__ import annotations

import os

from sidecar.doctor.scene import Scene


def uses_gpu(scene: Scene) -> bool | None:
    """Whether one of the engine's processes has a device of NVIDIA's open; None where none may be looked at."""
    seen = False
    for target in scene.engine:
        folder = f"{scene.proc.root}/{target.pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                path = os.readlink(f"{folder}/{name}")
            except FileNotFoundError:
                continue
            except OSError:
                break
            if path.startswith("/dev/nvidia"):
                return True
        else:
            seen = True
    return False if seen else None
