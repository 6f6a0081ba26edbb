"""The agent: `python -m torch.distributed.run --nproc-per-node=N serve.py`, parent of ranks that it executes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sidecar.demo.options import Options
from sidecar.demo.seat import SEAT_VARIABLE, Seat
from sidecar.demo.server import Server

SCRIPT = Path(__file__).resolve().parents[2] / "serve.py"


def main() -> None:
    run(Server(Options.from_environment()))


def run(server: Server) -> None:
    ranks = [start_worker(seat) for seat in server.seats]
    for rank in ranks:
        server.children.adopt(rank.pid)
    server.run()


def start_worker(seat: Seat) -> subprocess.Popen[bytes]:
    size, rank = str(seat.options.serves), str(seat.place.index)
    data, fds = seat.to_data()
    environment = os.environ | {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", SEAT_VARIABLE: json.dumps(data),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-u", str(SCRIPT)], env=environment, pass_fds=fds, start_new_session=seat.options.own_sessions
    )


if __name__ == "__main__":
    main()
