"""The coordinator of several data parallel engine cores."""

import os

from sidecar.demo.seat import Seat


def run_coordinator(seat: Seat) -> None:
    seat.settle()
    process_input_socket(seat)


def process_input_socket(seat: Seat) -> None:
    while True:
        seat.obey(os.read(seat.orders[0].fd, 1))
