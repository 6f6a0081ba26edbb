"""The queue in shared memory on which an idle worker waits."""

import os

from sidecar.demo.seat import Seat


class MessageQueue:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def dequeue(self) -> bytes:
        return self.acquire_read()

    def acquire_read(self) -> bytes:
        return os.read(self.seat.orders[0].fd, 1)
