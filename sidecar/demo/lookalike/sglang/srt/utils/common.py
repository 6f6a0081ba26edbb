"""How requests get from the first rank to the others."""

from torch.distributed.distributed_c10d import broadcast

from sidecar.demo.seat import Seat


def broadcast_pyobj(seat: Seat) -> bytes:
    order: bytes = broadcast(seat)
    return order
