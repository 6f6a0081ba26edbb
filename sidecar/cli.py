"""The command line: which commands there are, and how any of them ends.

A request that cannot be done is one line on standard error and never a traceback. Exit status: 2 for a request that
is wrong, 1 for one whose object is not there, 130 after Ctrl-C; `run` and `demo` have those of what they ran.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from sidecar.commands.terminal import Refused, printable
from sidecar.errors import UsageError
from sidecar.version import VERSION

_HELP = "See an LLM inference rank die, save the evidence, kill the engine, say which rank failed first and why."


# Imported when asked for: `rankguard run` pays for nothing that only the others need.
_ELSEWHERE = {
    "doctor": "sidecar.commands.doctor",
    "incidents": "sidecar.commands.incidents",
    "inject": "sidecar.commands.inject",
    "run": "sidecar.commands.run",
    "view": "sidecar.commands.view",
    "webhook": "sidecar.commands.webhook",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return command


@click.group(
    cls=_Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(VERSION, message="rankguard %(version)s")
def rankguard() -> None:
    pass


@rankguard.command(short_help="Show the whole flow on a stand-in engine.")
@click.option(
    "--engine",
    type=click.Choice(["sglang", "vllm"]),
    default="sglang",
    show_default=True,
    help="Whose process titles the stand-in engine has.",
)
def demo(engine: str) -> int:
    """Start a stand-in engine of four ranks, kill one of them, and show what Rankguard makes of it.

    Needs no GPU and no engine. Ends by itself and leaves no process behind.
    """
    from sidecar.demo.command import demo as show

    status: int = show(engine)
    return status


@rankguard.command(short_help="Ask a running sidecar for a manual incident.")
@click.option(
    "--api",
    metavar="HOST:PORT",
    envvar="RANKGUARD_API_LISTEN",
    default="127.0.0.1:21401",
    show_default=True,
    help="Where the sidecar's port for people is (its --api-listen).",
)
@click.option(
    "--api-token-file",
    metavar="FILE",
    envvar="RANKGUARD_API_TOKEN_FILE",
    help="File with the token that this port asks for.",
)
def capture(api: str, api_token_file: str | None) -> int:
    """Ask a running sidecar to save the evidence of a running engine. Nothing is killed.

    Exit status 0: it was accepted. 1: it was refused, or no sidecar answers.
    """
    from sidecar.commands.capture import capture as ask

    return ask(api, api_token_file)


def main() -> None:
    """The `rankguard` command: runs it and exits."""
    raise SystemExit(_run(sys.argv[1:]))


def _run(args: list[str]) -> int:
    try:
        status = rankguard.main(args, prog_name="rankguard", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        return _refuse(error.format_message(), 2)
    except click.ClickException as error:
        return _refuse(error.format_message(), error.exit_code)
    except Refused as error:
        return _refuse(str(error), error.status)
    except UsageError as error:
        return _refuse(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:  # noqa: BLE001  # the outermost place: a bug of ours is one line too
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        return _refuse(
            f"a bug: {type(error).__name__}: {error} (version {VERSION}, {where.filename}:{where.lineno})", 70
        )


def _refuse(line: str, status: int) -> int:
    click.echo("rankguard: " + printable(" ".join(line.split("\n"))), err=True)
    return status
