"""The queue in shared memory: an idle worker waits on one for orders, the engine core on another for answers."""

import os

from sidecar.demo.seat import Seat


class MessageQueue:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def dequeue(self) -> bytes:
        return self.acquire_read()

    def acquire_read(self) -> bytes:
        return os.read(self.seat.orders[0].fd, 1)
