"""What a stand-in engine can be told, as flags of `python -m sidecar.demo.engine` and as one value inside it.

The flags are read once, by `engine`; the process that takes its place has a real engine's command line and reads the
value from its environment (`STANDIN_OPTIONS`), since there is no room for flags of ours in that command line.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields

VARIABLE = "STANDIN_OPTIONS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A duration is in seconds. `waiting`: labels of the ranks that stand in an all-reduce during a forward pass."""

    engine: str = "sglang"
    tp: int = 4
    dp: int = 1
    pp: int = 1
    tp_in_cmdline: bool = True
    own_sessions: bool = False
    light: bool = False
    detokenizer: bool = True
    helpers: bool = False
    escape: str = "no"

    start_when: str = "now"
    title_when: str = "now"
    control: str = ""

    memory_mib: int = 0
    threads: int = 2
    shm: bool = False
    health_port: int | None = None
    metrics: bool = True
    plain_health: bool = False
    health_seconds: float = 0.05
    health_limit: float = 20.0
    work: str = "idle"
    waiting: tuple[str, ...] = ()

    server_behaviour: str = "stay"
    reap: bool = True
    reaction: float = 0.5
    grace: float = 4.0
    ignore_sigterm: bool = False
    exit_clean_on_term: bool = False
    die_with_stdin: bool = False

    @property
    def serves(self) -> int:
        """How many ranks the whole engine has."""
        return self.tp * self.dp * self.pp

    def to_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Options:
        """Read what `to_environment` wrote. Raises `KeyError` where this process was not started by `engine`."""
        data = json.loads(os.environ[VARIABLE])
        data["waiting"] = tuple(data["waiting"])
        return cls(**data)

    def to_arguments(self) -> list[str]:
        """The flags that make `parse` return this value again."""
        arguments = []
        default = Options()
        for f in fields(self):
            value = getattr(self, f.name)
            flag = "--" + f.name.replace("_", "-")
            if value == getattr(default, f.name):
                continue
            if isinstance(value, bool):
                arguments.append(flag if value else f"--no-{flag[2:]}")
            else:
                arguments.append(f"{flag}={','.join(value) if isinstance(value, tuple) else value}")
        return arguments


def parse(arguments: list[str]) -> Options:
    """Read the flags. Ends the process with status 2 and one line on stderr where they make no sense."""
    import argparse  # not needed by the processes that only want the value

    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m sidecar.demo.engine",
        description="A stand-in for an inference engine: real processes that look like one from outside.",
    )

    def flag(name: str, help: str, **more: object) -> None:
        attribute = name.removeprefix("--").replace("-", "_")
        value = getattr(default, attribute)
        if isinstance(value, bool):
            more["action"] = argparse.BooleanOptionalAction
        elif type(value) in (int, float):
            more["type"] = type(value)
        parser.add_argument(name, default=value, help=help, **more)  # type: ignore[arg-type]

    flag("--engine", "whose looks", choices=("sglang", "vllm", "generic"))
    flag("--tp", "tensor parallel size")
    flag("--dp", "data parallel size")
    flag("--pp", "pipeline parallel size")
    flag("--tp-in-cmdline", "say the sizes in the server's command line")
    flag("--own-sessions", "each rank in a session of its own, as torchrun starts them")
    flag("--light", "ranks are forked, not spawned: hundreds of them in a second")
    flag("--detokenizer", "with a detokenizer (engine sglang)")
    flag("--helpers", "with helpers (lscpu, file -b) in the group until the ranks are ready")
    flag("--escape", "one child that leaves: into a session of its own, or double-forked as well",
         choices=("no", "session", "daemon"))  # fmt: skip
    flag("--start-when", "when to take on the server's command line (fifo: at the line 'start')",
         choices=("now", "fifo"))  # fmt: skip
    flag("--title-when", "when the ranks get their titles (fifo: at each line 'title')",
         choices=("now", "fifo", "never"))  # fmt: skip
    flag("--control", "a FIFO to read commands from: start, title [LABEL], work idle|forward [LABEL],"
         " work serve|prefill|spin|hang|compile [LABEL] [running=N] [waiting=N] [endless=1], exit LABEL STATUS,"
         " leader-exit LABEL, declare-dead, close-port")  # fmt: skip
    flag("--memory-mib", "touched private memory of each rank, in MiB")
    flag("--threads", "threads of each rank beside its main thread")
    flag("--shm", "shared memory and a semaphore in /dev/shm, mapped by every rank")
    parser.add_argument("--health-port", type=int, help="serve HTTP as the engine does on this loopback port (0: any)")
    flag("--metrics", "serve /metrics (SGLang: with --enable-metrics in its command line)")
    flag("--plain-health", "SGLang's /health of old: 200 whatever the ranks do; /health_generate still needs them")
    flag("--health-seconds", "what SGLang's health check takes when all is well (the real one: 1)")
    flag("--health-limit", "after how many seconds without an answer of the ranks SGLang's health check says 503")
    flag("--work", "where the ranks' stacks stand", choices=("idle", "forward"))
    parser.add_argument(
        "--waiting", default="", help="labels, comma-separated: these stand in an all-reduce in the forward"
    )
    flag("--server-behaviour", "what the server does about a dead child: nothing; as vLLM (TERM, grace, KILL, exit 0);"
         " as SGLang (kills all, then itself)", choices=("stay", "vllm", "sglang"))  # fmt: skip
    flag("--reap", "collect dead children (--no-reap leaves zombies)")
    flag("--reaction", "seconds from a death until the engine notices it")
    flag("--grace", "seconds from the engine's own TERM to its KILL")
    flag("--ignore-sigterm", "ranks ignore SIGTERM")
    flag("--exit-clean-on-term", "SIGTERM to the server makes everything leave with 0")
    flag("--die-with-stdin", "every process is killed when stdin, a pipe, is closed at its other end")
    data = vars(parser.parse_args(arguments))
    data["waiting"] = tuple(label for label in data["waiting"].split(",") if label)
    data["control"] = data["control"] and os.path.abspath(data["control"])
    options = Options(**data)
    if min(options.tp, options.dp, options.pp) < 1:
        parser.error("--tp, --dp and --pp begin at 1")
    if options.light and (options.engine == "generic" or options.title_when == "fifo" or options.own_sessions):
        parser.error("--light goes with neither --engine generic nor --title-when fifo nor --own-sessions")
    if (options.start_when == "fifo" or options.title_when == "fifo") and not options.control:
        parser.error("--start-when fifo and --title-when fifo need --control")
    return options
