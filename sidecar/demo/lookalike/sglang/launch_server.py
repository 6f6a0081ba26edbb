"""The server process: `python -m sglang.launch_server`. The spawned ranks import this module too: keep it lean."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.demo.server import Server


def main() -> None:
    from sidecar.demo.options import Options
    from sidecar.demo.server import Server

    launch_server(Server(Options.from_environment()))


def launch_server(server: Server) -> None:
    launch_subprocesses(server)
    server.run()


def launch_subprocesses(server: Server) -> None:
    from .srt.managers.data_parallel_controller import run_data_parallel_controller_process
    from .srt.managers.detokenizer_manager import run_detokenizer_process
    from .srt.managers.scheduler import run_scheduler_process

    schedulers = [seat for seat in server.seats if seat.place.role == "scheduler"]
    for seat in server.seats:
        if seat.place.role == "controller":
            server.children.spawn(run_data_parallel_controller_process, seat, schedulers)
        elif seat.place.role == "detokenizer":
            server.children.spawn(run_detokenizer_process, seat)
        elif seat.place.parent is None and not server.options.light:
            server.children.spawn(run_scheduler_process, seat)
    if server.options.light:
        server.children.fork(schedulers, run_scheduler_process)


if __name__ == "__main__":
    main()
