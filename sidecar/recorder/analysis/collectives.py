"""Which library's collective a thread waits in, by the names of its frames, Python's and native ones. Pure tables.

Whether a frame waits for other ranks at all is known in `sidecar.policy.places`; here is whose waiting it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sidecar.policy import places
from sidecar.policy.places import Uses
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


_CALLS = re.compile("|".join(function.pattern for _, _, function in _FAMILIES))


class Libraries:
    """For the stacks of one engine. A file is looked up once: ranks run the same ones."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses
        self._files: dict[str, list[int]] = {}

    def family(self, frames: Iterable[Frame]) -> str:
        """`NCCL`, `gloo`, `torch.distributed`, ...; "" where no frame is a collective's.

        Only frames that wait for others count, so that a model's file in a folder of such a name does not.
        """
        found = len(_FAMILIES) + 1
        for frame in frames:
            waits = bool(self._uses.of(frame.function, frame.path) & places.COLLECTIVE)
            if waits:
                found = min(found, len(_FAMILIES))
            for place in self._of_file(frame.path):
                if waits or _FAMILIES[place][0] == "MPI":
                    found = min(found, place)
            if _CALLS.search(frame.function):
                found = min(found, *(at for at, (*_, call) in enumerate(_FAMILIES) if call.search(frame.function)))
        return (*(name for name, *_ in _FAMILIES), "collective", "")[found]

    def _of_file(self, path: str) -> list[int]:
        """The places of the families whose file this is."""
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = [at for at, (_, file, _) in enumerate(_FAMILIES) if file.search(path)]
        return found


def native_call(frames: Iterable[Frame]) -> str:
    """The outermost native frame that is a collective's and no template of somebody's binding; "" for none."""
    found = ""
    for frame in frames:  # the innermost first
        if "<" not in frame.function and any(function.search(frame.function) for _, _, function in _FAMILIES):
            found = frame.function.partition("(")[0]
    return found
