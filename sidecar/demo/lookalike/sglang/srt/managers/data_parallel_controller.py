"""The controller of several data parallel groups: parent of the schedulers."""

import os

from sidecar.demo.children import Children, watch
from sidecar.demo.seat import Seat

from .scheduler import run_scheduler_process


def run_data_parallel_controller_process(seat: Seat, schedulers: list[Seat]) -> None:
    children = Children(seat.options.reap)
    for scheduler in schedulers:
        children.spawn(run_scheduler_process, scheduler)
    seat.settle()
    watch(children, seat.options, "dp_controller_watchdog")
    event_loop(seat)


def event_loop(seat: Seat) -> None:
    while True:
        seat.obey(recv_requests(seat))


def recv_requests(seat: Seat) -> bytes:
    return os.read(seat.orders[0].fd, 1)
