"""A forward pass that never ends, at one of two places: in the attention, or in the all-reduce after it."""

import os

from sidecar.demo.seat import Seat

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
        return self.self_attn()

    def self_attn(self) -> bytes:
        return flash_attn_with_kvcache(self.seat)


def flash_attn_with_kvcache(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)
