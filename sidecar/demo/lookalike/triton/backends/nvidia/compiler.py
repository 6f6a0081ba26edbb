"""The stage that calls `ptxas` and waits for it."""

from sidecar.demo.seat import Seat


class CUDABackend:
    def make_cubin(self, seat: Seat) -> bytes:
        from sidecar.demo.compiler import start_compiler  # seldom needed

        process = start_compiler(seat)
        orders: list[bytes] = []

        def end(order: bytes) -> None:
            orders.append(order)
            process.kill()

        seat.when_ordered(end)
        process.wait()
        return orders[0]
