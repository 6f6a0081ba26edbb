"""The two ends between an engine core and its workers."""

import os

from sidecar.demo.seat import Seat

from ...distributed.shm_broadcast import MessageQueue
from ..worker.gpu_model_runner import GPUModelRunner


class MultiprocExecutor:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def execute_model(self) -> bytes:
        return self.collective_rpc()

    def collective_rpc(self) -> bytes:
        return self.get_response()

    def get_response(self) -> bytes:
        return os.read(self.seat.orders[0].fd, 1)


def worker_main(seat: Seat) -> None:
    seat.settle()
    WorkerProc(seat).worker_busy_loop()


class WorkerProc:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.rpc_broadcast_mq = MessageQueue(seat)
        self.model_runner = GPUModelRunner(seat)

    def worker_busy_loop(self) -> None:
        while True:
            order = self.rpc_broadcast_mq.dequeue() if self.seat.work == "idle" else self.execute_model()
            self.seat.obey(order)

    def execute_model(self) -> bytes:
        return self.model_runner.execute_model()
