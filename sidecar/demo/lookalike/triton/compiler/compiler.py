"""Triton compiles a kernel in the rank, and calls the assembler for the last stage."""

from sidecar.demo.seat import Seat

from ..backends.nvidia.compiler import CUDABackend


def compile(seat: Seat) -> bytes:
    return CUDABackend().make_cubin(seat)
