"""One scheduler: a tensor parallel rank of SGLang."""

from torch.cuda.streams import Event

from sidecar.demo.seat import Seat

from ..utils.common import broadcast_pyobj
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
            if self.seat.work == "idle":
                order = self.recv_requests()
            elif self.seat.work == "blocked":
                order = self.get_next_batch_to_run()
            elif self.seat.work == "synchronize":
                order = self.process_batch_result()
            else:
                order = self.run_batch()
            self.seat.obey(order)

    def recv_requests(self) -> bytes:
        return broadcast_pyobj(self.seat)

    def get_next_batch_to_run(self) -> bytes:
        return self.get_new_batch_prefill()

    def get_new_batch_prefill(self) -> bytes:
        return self.move_ready_grammar_requests()

    def move_ready_grammar_requests(self) -> bytes:
        from concurrent.futures import Future  # the real one, for its stack; seldom needed

        grammar: Future[bytes] = Future()
        self.seat.when_ordered(grammar.set_result)
        return grammar.result()

    def process_batch_result(self) -> bytes:
        return self.process_batch_result_prefill()

    def process_batch_result_prefill(self) -> bytes:
        copy_done = Event(self.seat)
        order: bytes = copy_done.synchronize()
        return order

    def run_batch(self) -> bytes:
        return self.tp_worker.forward_batch_generation()
