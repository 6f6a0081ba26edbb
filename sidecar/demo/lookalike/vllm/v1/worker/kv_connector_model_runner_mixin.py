"""Before a forward pass a worker may wait for a KV cache from elsewhere."""

from sidecar.demo.seat import Seat


class KVConnectorModelRunnerMixin:
    def _get_kv_connector_output(self, seat: Seat) -> bytes:
        return start_load_kv(seat)


def start_load_kv(seat: Seat) -> bytes:
    from concurrent.futures import Future  # the real one, for its stack; seldom needed

    loaded: Future[bytes] = Future()
    seat.when_ordered(loaded.set_result)
    return loaded.result()
