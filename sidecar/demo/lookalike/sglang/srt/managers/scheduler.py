"""One scheduler: a tensor parallel rank of SGLang."""

from sidecar.demo.seat import Seat

from ..distributed.parallel_state import broadcast
from .tp_worker import TpModelWorker


def run_scheduler_process(seat: Seat) -> None:
    seat.settle()
    Scheduler(seat).event_loop_overlap()


class Scheduler:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.tp_worker = TpModelWorker(seat)

    def event_loop_overlap(self) -> None:
        while True:
            order = self.recv_requests() if self.seat.work == "idle" else self.run_batch()
            self.seat.obey(order)

    def recv_requests(self) -> bytes:
        return broadcast(self.seat)

    def run_batch(self) -> bytes:
        return self.tp_worker.forward_batch_generation()
