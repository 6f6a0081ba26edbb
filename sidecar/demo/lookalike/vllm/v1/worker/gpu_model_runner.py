"""A forward pass: in the attention, in the all-reduce after it, or in the compiler of a kernel."""

import os

from torch.cuda.streams import Event
from triton.compiler.compiler import compile as compile_kernel

from sidecar.demo.seat import STEP_DONE, Seat

from ...distributed.parallel_state import all_reduce
from .kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin


class GPUModelRunner(KVConnectorModelRunnerMixin):
    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def execute_model(self) -> bytes:
        if self.seat.work == "blocked":
            return self._get_kv_connector_output(self.seat)
        return LlamaDecoderLayer(self.seat).forward()

    def sample_tokens(self) -> bytes:
        return self._bookkeeping_sync()

    def _bookkeeping_sync(self) -> bytes:
        return self._to_list()

    def _to_list(self) -> bytes:
        transfer_event = Event(self.seat)
        order: bytes = transfer_event.synchronize()
        return order


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
        return unified_attention(self.seat)


def unified_attention(seat: Seat) -> bytes:
    if seat.work == "step" and not any(seat.polls()):
        return STEP_DONE
    return os.read(seat.orders[0].fd, 1)
