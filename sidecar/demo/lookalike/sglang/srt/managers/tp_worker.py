"""What a scheduler hands its batches to."""

from sidecar.demo.seat import Seat

from ..model_executor.model_runner import ModelRunner


class TpModelWorker:
    def __init__(self, seat: Seat) -> None:
        self.model_runner = ModelRunner(seat)

    def forward_batch_generation(self) -> bytes:
        return self.model_runner.forward()
