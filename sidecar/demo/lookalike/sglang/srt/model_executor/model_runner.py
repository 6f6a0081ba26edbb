"""A forward pass: in the attention, in the all-reduce after it, or in the compiler of a kernel."""

import os

from triton.compiler.compiler import compile as compile_kernel

from sidecar.demo.seat import STEP_DONE, Seat

from ..distributed.parallel_state import all_reduce


class ModelRunner:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def forward(self) -> bytes:
        return self.forward_decode()

    def forward_decode(self) -> bytes:
        return LlamaDecoderLayer(self.seat).forward()


class LlamaDecoderLayer:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def forward(self) -> bytes:
        if self.seat.waits:
            return all_reduce(self.seat)
        if self.seat.work == "compile":
            order: bytes = compile_kernel(self.seat)
            return order
        return self.self_attn()

    def self_attn(self) -> bytes:
        return flash_attn_with_kvcache(self.seat)


def flash_attn_with_kvcache(seat: Seat) -> bytes:
    if seat.work == "step" and not any(seat.polls()):
        return STEP_DONE
    return os.read(seat.orders[0].fd, 1)
