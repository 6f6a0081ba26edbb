"""Which library's collective a thread waits in, by the names of its frames, Python's and native ones. Pure tables.

Whether a frame waits for other ranks at all is known in `sidecar.policy.places`; here is whose waiting it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sidecar.policy import places
from sidecar.policy.stacks import Frame

# From the most telling to the least: a torch.distributed call that goes to NCCL is NCCL's.
# Python files: SGLang's and vLLM's device_communicators; mpi4py is Cython, so its frames show in native stacks only.
_FAMILIES: tuple[tuple[str, re.Pattern[str], re.Pattern[str]], ...] = (
    (
        "custom all-reduce",
        re.compile(r"(custom_all_reduce\w*|quick_all_reduce|symm_mem|torch_symm_mem|flashinfer_all_reduce)\.py$"),
        re.compile(r"(cross_device_reduce|CustomAllreduce|all_reduce_(reg|unreg)|trtllm_allreduce)"),
    ),
    ("NCCL", re.compile(r"(pynccl|pynccl_wrapper)\.py$"), re.compile(r"(\bnccl[A-Z]\w+|ProcessGroupNCCL|WorkNCCL)")),
    ("gloo", re.compile(r"$^"), re.compile(r"(\bgloo::|ProcessGroupGloo|GlooWork)")),
    ("MPI", re.compile(r"mpi4py/"), re.compile(r"(\bP?MPI_[A-Z]\w+|\bompi_|\bMPIR_|ProcessGroupMPI)")),
    ("shared memory queue", re.compile(r"shm_broadcast\.py$"), re.compile(r"$^")),
    (
        "torch.distributed",
        re.compile(r"torch/distributed/"),
        re.compile(r"(c10d::|torch::distributed)"),
    ),
)


def family(frames: Iterable[Frame]) -> str:
    """`NCCL`, `gloo`, `torch.distributed`, ...; "" where no frame is a collective's.

    Only frames that wait for others count, so that a model's file in a folder of such a name does not.
    """
    known = list(frames)
    for name, path, function in _FAMILIES:
        for frame in known:
            if function.search(frame.function):
                return name
            if path.search(frame.path) and (name == "MPI" or places.is_collective(frame.function, frame.path)):
                return name
    return "collective" if any(places.is_collective(frame.function, frame.path) for frame in known) else ""


def native_call(frames: Iterable[Frame]) -> str:
    """The outermost native frame that is a collective's and no template of somebody's binding; "" for none."""
    found = ""
    for frame in frames:  # the innermost first
        if "<" not in frame.function and any(function.search(frame.function) for _, _, function in _FAMILIES):
            found = frame.function.partition("(")[0]
    return found
