"""A rank as torchrun starts it: a script of the user's own, with its rank in its environment and no title."""

import os

from sidecar.demo.seat import Seat


def main() -> None:
    seat = Seat.from_environment()
    seat.settle()
    serve(seat)


def serve(seat: Seat) -> None:
    while True:
        seat.obey(next_batch(seat) if seat.work == "idle" else forward(seat))


def next_batch(seat: Seat) -> bytes:
    return broadcast_object_list(seat)


def broadcast_object_list(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)


def forward(seat: Seat) -> bytes:
    return all_reduce(seat) if seat.waits else attention(seat)


def all_reduce(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)


def attention(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)


if __name__ == "__main__":
    main()
