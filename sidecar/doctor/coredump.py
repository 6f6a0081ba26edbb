"""Whether the CUDA driver of each rank has its trigger pipe, reads it, and would take a byte of ours.

Looked for as the collector does it. Nothing is written and it is not even opened for writing: what the driver makes of
the end of a writer that wrote nothing is not documented.
"""

from __future__ import annotations

from collections import Counter

from sidecar.checkup import Remedy, Status
from sidecar.doctor import remedies
from sidecar.doctor.gpu import uses_gpu
from sidecar.doctor.remedies import ENGINE
from sidecar.doctor.scene import Found, Scene, Step, Target
from sidecar.doctor.trying import refusal
from sidecar.engines.sglang import crash_folder
from sidecar.errors import ProcessGone
from sidecar.recorder.capture.inherited import command_lines, inherited
from sidecar.recorder.coredump import pipe as pipes
from sidecar.recorder.coredump.target import TargetProcess
from sidecar.recorder.coredump.template import VARIABLES, expand, names

_CAPABILITY = "coredump_pipe"
_MOST_RANKS = 64
_NOT_ENABLED = "user-triggered coredumps are not enabled"
_NOT_BEGUN = "enabled, and no pipe yet: CUDA has not begun there"
_DENIED = "no permission"
_ENABLE = Remedy(
    ENGINE,
    "env:\n"
    '  - {name: CUDA_ENABLE_USER_TRIGGERED_COREDUMP, value: "1"}\n'
    "  - {name: CUDA_COREDUMP_PIPE, value: /tmp/corepipe.cuda.%h.%p}\n"
    "  - {name: CUDA_COREDUMP_FILE, value: /var/lib/rankguard/engine/core.cuda.%h.%p.%t}\n"
    "  - name: CUDA_COREDUMP_GENERATION_FLAGS\n"
    "    value: skip_nonrelocated_elf_images,skip_global_memory,skip_shared_memory,skip_local_memory,"
    "skip_constbank_memory,skip_abort",
)


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    if "cuda_coredump" not in scene.settings.captures:
        return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "--captures does not ask for cuda_coredump"),)
    ranks = scene.ranks[:_MOST_RANKS]
    if not ranks:
        return (Found(_CAPABILITY, Status.UNKNOWN, scene.blind or "no rank of an engine is there yet"),)
    said: list[tuple[Target, str]] = []
    for rank in ranks:
        step(f"look for the trigger pipe of {rank.named}")
        if (words := _look(scene, rank)) is not None:
            said.append((rank, words))
    bad = [(rank, words) for rank, words in said if words]
    read = len(said) - len(bad)
    if read and all(words in (_NOT_ENABLED, _NOT_BEGUN) for _, words in bad):
        # An engine core beside workers is a rank to us, and has no CUDA.
        return (Found(_CAPABILITY, Status.OK, f"the pipe of {read} of {len(said)} ranks is there and read by it"),)
    kinds = Counter(words for _, words in bad)
    seen = "; ".join(f"{_some(bad, words)}: {words}" for words in kinds) or "the ranks have ended"
    if any(words.startswith(_DENIED) for words in kinds):
        whose = [one.credentials for one in scene.engine]
        ways = remedies.to_reach(scene.own, whose, ("SYS_PTRACE", "DAC_OVERRIDE"))
        return (Found(_CAPABILITY, Status.MISSING, seen, ways),)
    if not bad or set(kinds) == {_NOT_BEGUN}:
        return (Found(_CAPABILITY, Status.UNKNOWN, seen),)
    if _NOT_ENABLED not in kinds:
        return (Found(_CAPABILITY, Status.MISSING, seen),)
    if uses_gpu(scene) is False:
        return (Found(_CAPABILITY, Status.NOT_APPLICABLE, "no process of the engine has an NVIDIA GPU open"),)
    return (Found(_CAPABILITY, Status.MISSING, seen, (_ENABLE,)),)


def _look(scene: Scene, rank: Target) -> str | None:
    """ "" where its pipe is there and read, else what is wrong; None where it has ended."""
    others = [other.pid for other in scene.engine[:_MOST_RANKS] if other is not rank]
    try:
        target = TargetProcess(scene.proc.root, rank.identity)
        target.enter()
        environ = inherited(scene.proc, rank.pid, VARIABLES, others)
        lines = command_lines(scene.proc, rank.pid, others)
        folder = next((folder for line in lines if (folder := crash_folder(line))), "")
        called = names(environ, folder)
        patterns = tuple(expand(template, target.host(), target.pid_inside) for template in called.pipes)
        pipe = pipes.find(target, patterns)
    except ProcessGone:
        return None
    except pipes.Refused as refused:
        if refused.there:
            return f"{_DENIED}: {refused}" if "permission" in str(refused) else str(refused)
        return _NOT_BEGUN if called.enabled else _NOT_ENABLED
    except PermissionError as error:
        return f"{_DENIED} to look into it ({refusal(error)})"
    except OSError as error:
        return f"it cannot be looked into ({refusal(error)})"
    try:
        read = pipe.is_read_by(target)
    except (OSError, ProcessGone):
        return f"{_DENIED} to see who reads its pipe {pipe.path}"
    if not read:
        return f"nobody reads its pipe {pipe.path}"
    return "" if pipe.may_be_written() else f"{_DENIED} to write to its pipe {pipe.path}"


def _some(bad: list[tuple[Target, str]], words: str) -> str:
    labels = [rank.rank or str(rank.pid) for rank, said in bad if said == words]
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
