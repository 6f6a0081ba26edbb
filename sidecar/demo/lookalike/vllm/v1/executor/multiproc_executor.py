"""The two ends between an engine core and its workers."""

from sidecar.demo.seat import Seat

from ...distributed.shm_broadcast import MessageQueue
from ..worker.gpu_model_runner import GPUModelRunner


class MultiprocExecutor:
    def __init__(self, seat: Seat) -> None:
        self.response_mq = MessageQueue(seat)

    def execute_model(self) -> bytes:
        return self.collective_rpc()

    def collective_rpc(self) -> bytes:
        def get_response() -> bytes:
            return self.response_mq.dequeue()

        return get_response()


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
        if self.seat.work == "synchronize":
            return self.model_runner.sample_tokens()
        return self.model_runner.execute_model()
