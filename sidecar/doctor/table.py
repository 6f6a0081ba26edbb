"""Every check once, in the order in which they are shown, and what is lost without what it looks for.

`REQUIRED` is what Rankguard cannot do its work without: an engine that it cannot see, or whose processes it cannot
signal, is not watched over; and with no volume there is no evidence. All else costs a piece of evidence, or a way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.doctor import (
    cgroups,
    coredump,
    flight_recorder,
    kernel,
    looking,
    nccl_ras,
    pod,
    ptrace,
    pyspy,
    signals,
    volume,
)
from sidecar.doctor.scene import Check
from sidecar.model import Action
from sidecar.settings import Settings

REQUIRED = ("process_namespace", "signals", "volume")


@dataclass(frozen=True, slots=True)
class Entry:
    """`lost`: each capability that the check tells of, with what there is not without it."""

    check: Check
    lost: Mapping[str, str]


TABLE = (
    Entry(pod.namespace, {"process_namespace": "The engine's processes are not seen: nothing is watched."}),
    Entry(
        signals.check,
        {"signals": "The engine is neither frozen nor killed: after a rank's death the rest of it stays."},
    ),
    Entry(ptrace.check, {"ptrace": "No Python stacks: the record does not say where the ranks stood."}),
    Entry(
        looking.root,
        {
            "root": "No CUDA coredumps, no crash folder, and no removal of shared memory: none of the engine's files"
            " can be reached."
        },
    ),
    Entry(
        looking.environment,
        {
            "environment": "Ranks of torchrun and of other launchers are not known by their environment, and the"
            " record shows none of it."
        },
    ),
    Entry(
        looking.descriptors,
        {"descriptors": "The trigger pipes of coredumps and of the Flight Recorder are found by their paths alone."},
    ),
    Entry(
        looking.maps,
        {"memory_maps": "Shared memory that a killed engine left in /dev/shm is reported and not removed."},
    ),
    Entry(cgroups.check, {"cgroup": "A kill for memory is told as sigkill, and not as oom_killed."}),
    Entry(
        kernel.check,
        {
            "pidfd": "Deaths are seen by polling /proc, up to 0.1 s later.",
            "exit_status": "The cause of a death can be unknown, and a clean stop can look like a failure.",
        },
    ),
    Entry(pyspy.check, {"pyspy": "No Python stacks."}),
    Entry(coredump.check, {"coredump_pipe": "No CUDA coredump: the record does not say what ran on the GPUs."}),
    Entry(flight_recorder.check, {"flight_recorder": "No list of each rank's last collectives."}),
    Entry(nccl_ras.check, {"nccl_ras": "NCCL's own word on its ranks is missing."}),
    Entry(
        volume.check,
        {
            "volume": "No evidence and no record: nothing is left of a failure but metrics and log lines.",
            "volume_room": "Coredumps and other large evidence are not kept.",
        },
    ),
    Entry(
        pod.api,
        {
            "api_access": "A preStop hook does not know why it is called, and a healthy engine's is taken for a"
            " deletion of the pod.",
            "grace_period": "The kubelet kills the engine before its evidence is taken.",
        },
    ),
    Entry(
        pod.rights,
        {
            "api_rights": "Of Events, the pod's annotation, its deletion and the fleet switch, what is asked for is not"
            " done."
        },
    ),
)


def lost(capability: str) -> str:
    return next((entry.lost[capability] for entry in TABLE if capability in entry.lost), "")


def required(capability: str, settings: Settings) -> bool:
    """Whether Rankguard, set like this, needs it. One that only observes signals nobody."""
    if capability == "signals" and {settings.on_rank_death, settings.on_liveness_failure} == {Action.OBSERVE}:
        return False
    return capability in REQUIRED
