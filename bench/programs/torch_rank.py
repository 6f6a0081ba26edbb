"""A rank with torch loaded that stands in a gloo collective: `torch_rank RANK SIZE STORE STILL`.

The last rank never enters it. A thread of each wakes every 2 ms, and writes each time in which it could not into the
file STILL (see `bench.stillness`): so a rank says itself how long it stood still, whoever stopped it. Prints `ready`
when all are there.
"""

from __future__ import annotations

import sys
import threading
import time
import warnings

from bench.stillness import TICK, Writer
from sidecar.demo.seat import allow_ptrace


def tick(writer: Writer) -> None:
    while True:
        time.sleep(TICK)
        writer.tick(time.monotonic())


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def main() -> None:
    rank, size, store, still = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    allow_ptrace()
    warnings.simplefilter("ignore")  # torch does without numpy, and says so
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)

    class Layer(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if rank == size - 1:
                wait_for_a_lock()
            dist.all_reduce(x)
            return x

    dist.barrier()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Thread(target=tick, args=(Writer(still),), daemon=True).start()
    torch.nn.Sequential(Layer(), Layer())(torch.ones(8))


if __name__ == "__main__":
    main()
