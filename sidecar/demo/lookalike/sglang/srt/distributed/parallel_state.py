"""The collective of a forward pass, in which a rank waits for the others."""

import os

from sidecar.demo.seat import Seat


def all_reduce(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)
