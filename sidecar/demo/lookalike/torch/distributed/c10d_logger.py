"""What every collective of PyTorch is called through."""

from collections.abc import Callable
from functools import wraps

from sidecar.demo.seat import Seat


def _exception_logger(func: Callable[[Seat], bytes]) -> Callable[[Seat], bytes]:
    @wraps(func)
    def wrapper(seat: Seat) -> bytes:
        return func(seat)

    return wrapper
