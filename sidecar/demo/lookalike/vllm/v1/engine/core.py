"""The engine core: parent of its workers; waits for requests, or for the workers' answers."""

import queue

from sidecar.demo.children import Children, watch
from sidecar.demo.seat import Seat

from ..executor.multiproc_executor import MultiprocExecutor, worker_main


def run_engine_core(seat: Seat, workers: list[Seat]) -> None:
    children = Children(seat.options.reap)
    if seat.options.light:
        children.fork_here(workers, worker_main)
    else:
        for worker in workers:
            children.spawn(worker_main, worker)
    seat.settle()
    watch(children, seat.options, "MultiprocWorkerMonitor")
    EngineCoreProc(seat).run_busy_loop()


class EngineCoreProc:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.input_queue: queue.Queue[bytes] = queue.Queue()
        self.model_executor = MultiprocExecutor(seat)

    def run_busy_loop(self) -> None:
        while True:
            order = self._process_input_queue() if self.seat.work == "idle" else self._process_engine_step()
            self.seat.obey(order)

    def _process_input_queue(self) -> bytes:
        self.seat.when_ordered(self.input_queue.put)
        return self.input_queue.get()

    def _process_engine_step(self) -> bytes:
        return self.step()

    def step(self) -> bytes:
        return self.model_executor.execute_model()
