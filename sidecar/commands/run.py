"""`rankguard run`: settings, checks and sockets, then exec into the supervisor.

The exec is what frees the memory of click and pydantic: nothing of this module lives on in the watch. What the
supervisor needs travels in a memfd (`sidecar.settings.Launch`) and as inherited listening sockets.

On a command line the first thing that is wrong ends it, with one line and status 2 (127 or 126 for the engine's
command), before anything is watched. In a pod it stays up: a refused setting means its default and only observing;
a volume or a port that is not there yet is not refused at all, since the processes that use it try again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sidecar import listening
from sidecar.commands import options, preflight
from sidecar.commands.terminal import Refused, printable
from sidecar.errors import SettingError, UsageError
from sidecar.log import Log
from sidecar.model import Action
from sidecar.settings import Launch, Settings, launch_to_fd
from sidecar.system.proc import Proc

if TYPE_CHECKING:
    from sidecar.config import Loaded

# -I and -S: no PYTHON* variable and no site-packages of the engine's image can get into the supervisor.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sidecar.supervisor.__main__ import main; main(int(sys.argv[2]))"
)

_HELP = """Watch an inference engine, and act when a rank dies.

Without a command it watches every process of the PID namespace (in a pod: every container but its own). With
"-- CMD…" it starts CMD, watches that, and exits with its status.

A rank that dies is seen, the survivors are frozen and their evidence is saved under --dump-dir, the engine is killed
and shown to be gone; then the record says which rank failed first and of what.
"""

_EPILOG = """Each setting is also read from the environment (--dump-dir as RANKGUARD_DUMP_DIR) and from the file of
--config (dump-dir: /data). A flag beats the environment, which beats the file. An empty variable counts as not set.
"""


class _RunCommand(click.Command):
    """Takes what follows `--` as it is. In a pod, flags that are none become errors to report, and the rest stands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = Given(in_pod=_says_in_pod(args, os.environ))
        ctx.obj = given
        if "--" in args:
            at = args.index("--")
            args, given.command = args[:at], tuple(args[at + 1 :])
            if not given.command:
                given.refuse(UsageError("there is no command after --"))
        ctx.allow_extra_args = True
        while True:
            try:
                super().parse_args(ctx, list(args))
                break
            except click.UsageError as error:
                given.refuse(UsageError(error.format_message()))
                args = _without_the_refused(args, error)
        for word in ctx.args:
            given.refuse(UsageError(f"{word!r} is no option; the engine's command comes after --"))
        return []

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] [-- CMD…]")


@dataclass(slots=True)
class Given:
    """What stood on the command line beside the settings."""

    in_pod: bool
    command: tuple[str, ...] = ()
    errors: tuple[UsageError, ...] = ()

    def refuse(self, error: UsageError) -> None:
        """Raise it, or in a pod keep it."""
        if not self.in_pod:
            raise error
        self.errors += (error,)


def _says_in_pod(args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Must we stay up? Asked before anything else is read, so that an error in reading is no reason to end."""
    for arg in reversed(args):
        if arg.split("=")[0] in ("--in-pod", "--no-in-pod"):
            return not arg.startswith("--no")
    return environ.get("RANKGUARD_IN_POD", "").strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _without_the_refused(args: list[str], error: click.UsageError) -> list[str]:
    """`args` without the flag that click could not take and the value behind it, if there is one."""
    name = getattr(error, "option_name", None)
    for at, arg in enumerate(args):
        if name and (arg == name or arg.startswith(f"{name}=") or (name[:2] != "--" and arg.startswith(name))):
            takes_next = "=" not in arg and at + 1 < len(args) and not args[at + 1].startswith("-")
            return args[:at] + args[at + 1 + takes_next :]
    return []


@click.command(
    "run",
    cls=_RunCommand,
    params=options.for_settings(),
    help=_HELP,
    epilog=_EPILOG,
    short_help="Watch an engine, and act when a rank dies.",
)
@click.pass_obj
def run(given: Given, /, **flags: Any) -> None:
    execute(prepare(flags, given, os.environ), os.execv)


def prepare(flags: Mapping[str, Any], given: Given, environ: Mapping[str, str]) -> Launch:
    """Read, check and bind. Raises `UsageError`, and then has left nothing behind but perhaps the dump folder."""
    from sidecar import config  # pydantic: not for --help

    loaded = config.load(flags, environ)
    in_pod = given.in_pod or loaded.settings.in_pod
    errors = [*given.errors, *loaded.errors]
    settings, refused = _checked(loaded)
    errors += refused
    if errors and not in_pod:
        raise errors[0]
    if errors:
        settings = replace(settings, in_pod=True, on_rank_death=Action.OBSERVE, on_liveness_failure=Action.OBSERVE)
    if given.command:
        status, why = preflight.command(given.command[0])
        if status:
            raise Refused(f"{given.command[0]!r} cannot be started: {why}", status)
    trouble = preflight.dump_dir(settings.dump_dir)
    unavailable = [SettingError(loaded.where("dump_dir"), settings.dump_dir, trouble)] if trouble else []
    sockets: dict[str, tuple[int, ...]] = {}
    for name in ("listen", "api_listen"):
        text: str | None = getattr(settings, name)
        try:
            sockets[name] = listening.bind(listening.parse(text)) if text else ()
        except OSError as error:
            unavailable.append(SettingError(loaded.where(name), text, str(error.strerror)))
    if unavailable and not in_pod:
        for fd in (fd for fds in sockets.values() for fd in fds):
            os.close(fd)
        raise unavailable[0]
    log = Log("run", settings.log_format)
    for refusal in errors:
        log("setting refused, its default is used and nothing will be killed", detail=str(refusal))
    for lack in unavailable:
        log("not available yet; it is tried again while the watch goes on", detail=str(lack))
    return Launch(
        settings=settings,
        command=given.command,
        config_errors=tuple(printable(str(error)) for error in errors),
        listen_fds={name: fds for name, fds in sockets.items() if fds},
        python=sys.executable,
        package_root=package_root(),
        engine_marker=os.urandom(16).hex() if given.command else "",
        root_start=_start_of(settings.root_pid),
    )


def _start_of(pid: int | None) -> int:
    """The start time of a process, in clock ticks since boot; 0 for none."""
    stat = Proc().stat(pid) if pid is not None else None
    return stat.start if stat is not None else 0


def _checked(loaded: Loaded) -> tuple[Settings, list[UsageError]]:
    """Hold the settings against this machine. What is refused gets its default, except where that would open a door."""
    settings = loaded.settings
    settings = replace(settings, dump_dir=os.path.abspath(settings.dump_dir))
    errors: list[UsageError] = []
    from sidecar.config import conflicts

    def refuse(name: str, why: str, **instead: Any) -> None:
        nonlocal settings
        errors.append(SettingError(loaded.where(name), getattr(settings, name), why))
        settings = replace(settings, **instead)

    if settings.root_pid is not None:
        proc = Proc()
        if why := preflight.root_pid(settings.root_pid, proc):
            refuse("root_pid", why, root_pid=None)
        proc.close()
    token_refused = any(isinstance(e, SettingError) and e.name == loaded.where("api_token_file") for e in loaded.errors)
    if settings.api_token_file is not None:
        settings = replace(settings, api_token_file=os.path.abspath(settings.api_token_file))
        if why := preflight.token_file(settings.api_token_file or ""):
            refuse("api_token_file", why, api_token_file=None)
            token_refused = True
    if token_refused:
        # A token was wanted: without it the people's port stays shut rather than open to everyone in the pod.
        settings = replace(settings, api_listen=None)
    for name, why in tuple(conflicts(settings)):
        usual = _default(name)
        refuse(name, why, **{name: max(usual, settings.stall_timeout) if name == "stall_limit" else usual})
    return settings, errors


def _default(name: str) -> Any:
    return getattr(Settings(), name)


def package_root() -> str:
    """The folder that holds the package `sidecar`."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def supervisor_argv(launch: Launch, launch_fd: int) -> list[str]:
    """The supervisor's command line. `launch_fd` is what `launch_to_fd` gave."""
    return [launch.python, "-I", "-S", "-c", _BOOT, launch.package_root, str(launch_fd)]


def execute(launch: Launch, execv: Callable[[str, list[str]], NoReturn]) -> NoReturn:
    """Become the supervisor. Raises `Refused` where even that cannot be started."""
    argv = supervisor_argv(launch, launch_to_fd(launch))
    try:
        execv(argv[0], argv)
    except OSError as error:
        raise Refused(f"{launch.python}: cannot be started: {error.strerror}", 126) from error
