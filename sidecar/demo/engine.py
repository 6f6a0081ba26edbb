"""Start a stand-in engine: `python -m sidecar.demo.engine --engine vllm --tp 4`.

It looks from outside as the real engines do (what was seen of them is the model): the server keeps a Python command
line, its ranks are spawned children with threads and plausible Python stacks, which name themselves late, with a real
resource tracker beside them. No GPU, no model, no network.

This process takes on the server's command line by exec, so pid and start time stay, as with `bash -c "…; exec …"`. On
stdout come JSON lines, each a dict with `event`:

`starting`  `server`: pid. Before the exec.
`spawned`   every process runs its Python; no title yet. `server`, `port`, `shm` (names in /dev/shm), `processes` (each
            `pid`, `start` in clock ticks since boot, `ppid`, `role`, `label`), and `ranks`: those of them that compute.
`titled`    the same, after a `title` command that was not the last one (vLLM names its workers twice).
`ready`     the same, once every process bears its last title and waits (with `--title-when never`: at once).
`working`   the same and `work`, after a `work` command: every rank stands where it was told to, or has made a step.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from sidecar.demo.options import Options, parse

LISTEN_VARIABLE = "STANDIN_LISTEN"  # the descriptor of the bound socket
HERE = Path(__file__).resolve().parent
LOOKALIKE = HERE / "lookalike"


def server_command(options: Options, bound: int | None = None) -> list[str]:
    """The command line that the server is to have. `bound` is the port that it serves on, None where it does not."""
    sizes: list[str] = []
    listen = ["--host", "127.0.0.1"] if bound else []
    listen += ["--port", str(bound or (30000 if options.engine == "sglang" else 8000))]
    if options.engine == "sglang":
        if options.tp_in_cmdline:
            sizes = ["--tp-size", str(options.tp)]
            sizes += ["--pp-size", str(options.pp)] if options.pp > 1 else []
            sizes += ["--dp-size", str(options.dp)] if options.dp > 1 else []
        sizes += ["--enable-metrics"] if bound and options.metrics else []
        return [sys.executable, "-m", "sglang.launch_server", "--model-path", "stand-in/8b", *sizes, *listen]
    if options.engine == "vllm":
        if options.tp_in_cmdline:
            sizes = ["--tensor-parallel-size", str(options.tp)]
            sizes += ["--pipeline-parallel-size", str(options.pp)] if options.pp > 1 else []
            sizes += ["--data-parallel-size", str(options.dp)] if options.dp > 1 else []
        sizes += ["--disable-log-stats"] if bound and not options.metrics else []
        return [sys.executable, str(LOOKALIKE / "bin" / "vllm"), "serve", "stand-in/8b", *sizes, *listen]
    sizes = [f"--nproc-per-node={options.serves}"] if options.tp_in_cmdline else []
    return [sys.executable, "-m", "torch.distributed.run", *sizes, "--standalone", str(LOOKALIKE / "serve.py")]


def main() -> None:
    options = parse(sys.argv[1:])
    sys.stdout.write(json.dumps({"event": "starting", "server": os.getpid()}) + "\n")
    sys.stdout.flush()
    if options.start_when == "fifo":
        control = os.open(options.control, os.O_RDWR | os.O_CLOEXEC)
        while os.read(control, 1) != b"\n":  # no more than the first line: the others are for the server
            pass
    inherited = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    path = os.pathsep.join([str(LOOKALIKE), str(HERE.parent.parent), *inherited])
    environment = os.environ | options.to_environment() | {"PYTHONPATH": path}
    os.chdir(LOOKALIKE)  # `-m` looks for the engine's name in the working folder first
    bound = None
    if options.health_port is not None:
        # Bound here, since the command line is to say the number; until the server listens, connections are refused.
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", options.health_port))
        listener.set_inheritable(True)
        bound = listener.getsockname()[1]
        environment[LISTEN_VARIABLE] = str(listener.fileno())
    command = server_command(options, bound)
    os.execve(command[0], command, environment)  # noqa: S606


if __name__ == "__main__":
    main()
