"""A rank as torchrun starts it: a script of the user's own, with its rank in its environment and no title."""

import os

from torch.cuda.streams import Event
from torch.distributed.distributed_c10d import all_reduce, broadcast
from triton.compiler.compiler import compile as compile_kernel

from sidecar.demo.seat import STEP_DONE, Seat


def main() -> None:
    seat = Seat.from_environment()
    seat.settle()
    serve(seat)


def serve(seat: Seat) -> None:
    while True:
        seat.obey(next_batch(seat) if seat.work == "idle" else forward(seat))


def next_batch(seat: Seat) -> bytes:
    order: bytes = broadcast(seat)
    return order


def forward(seat: Seat) -> bytes:
    if seat.work == "blocked":
        return load_adapter(seat)
    order: bytes
    if seat.work == "synchronize":
        order = Event(seat).synchronize()
    elif seat.work == "compile":
        order = compile_kernel(seat)
    else:
        order = all_reduce(seat) if seat.waits else attention(seat)
    return order


def attention(seat: Seat) -> bytes:
    if seat.work == "step" and not any(seat.polls()):
        return STEP_DONE
    return os.read(seat.orders[0].fd, 1)


def load_adapter(seat: Seat) -> bytes:
    from concurrent.futures import Future  # the real one, for its stack; seldom needed

    loaded: Future[bytes] = Future()
    seat.when_ordered(loaded.set_result)
    return loaded.result()


if __name__ == "__main__":
    main()
