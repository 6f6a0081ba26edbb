"""Whether py-spy is there and runs. That it may look into the ranks is the check `ptrace`."""

from __future__ import annotations

import os
import resource

from sidecar.checkup import Status
from sidecar.doctor.scene import Found, Scene, Step
from sidecar.system.programs import find_pyspy

_MEMORY = 48 << 20  # bytes; the only program of the doctor's that is not ours gets limits too, in a small container


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    if not {"pyspy", "pyspy_native"} & set(scene.settings.captures):
        return (Found("pyspy", Status.NOT_APPLICABLE, "--captures does not ask for stacks"),)
    program = find_pyspy(scene.python, os.environ.get("PATH", ""))
    if not program:
        return (Found("pyspy", Status.MISSING, "py-spy is neither beside our Python nor on the PATH: install it"),)
    step(f"run {program} --version")
    import subprocess  # only here: the other checks need none of it

    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))  # for the fork that this check is, and what it starts

    try:
        ran = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=scene.order.seconds,
            check=False,
        )
    except OSError as error:
        return (Found("pyspy", Status.MISSING, f"{program} cannot be started: {error.strerror}"),)
    except subprocess.TimeoutExpired:
        return (Found("pyspy", Status.HUNG, f"{program} --version did not end within {scene.order.seconds:g} s"),)
    if ran.returncode:
        return (Found("pyspy", Status.MISSING, f"{program} --version ended with status {ran.returncode}"),)
    said = ran.stdout.decode("utf-8", "replace").strip()[:60]
    return (Found("pyspy", Status.OK, f"{program} runs: {said}"),)
