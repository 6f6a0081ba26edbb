"""The detokenizer: waits for token ids that never come."""

import os

from sidecar.demo.seat import Seat


def run_detokenizer_process(seat: Seat) -> None:
    seat.settle()
    event_loop(seat)


def event_loop(seat: Seat) -> None:
    while True:
        seat.obey(recv_from_scheduler(seat))


def recv_from_scheduler(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)
