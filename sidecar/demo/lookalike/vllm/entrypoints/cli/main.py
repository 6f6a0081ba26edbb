"""What the command `vllm serve` runs."""

from sidecar.demo.options import Options
from sidecar.demo.server import Server

from ...v1.engine.coordinator import run_coordinator
from ...v1.engine.core import run_engine_core


def main() -> None:
    run_server(Server(Options.from_environment()))


def run_server(server: Server) -> None:
    launch_core_engines(server)
    server.run()


def launch_core_engines(server: Server) -> None:
    for number, seat in enumerate(server.seats):
        if seat.place.role == "engine_core":
            workers = [worker for worker in server.seats if worker.place.parent == number]
            server.children.spawn(run_engine_core, seat, workers)
        elif seat.place.role == "controller":
            server.children.spawn(run_coordinator, seat)
