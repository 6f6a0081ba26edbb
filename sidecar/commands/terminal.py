"""What every command shares: refusing in one line, text from outside made harmless, a place to print to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sidecar.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

# Wider than any line of ours: what goes into a file or a pipe is never cut or folded.
_UNLIMITED = 10_000


class Refused(UsageError):
    """A request that cannot be done, shown as one line. `status` is the exit status that says so."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


def printable(text: str) -> str:
    """`text` with everything that a terminal could take for more than letters written as an escape.

    That is control characters, bidirectional overrides, line ends and lone surrogates; spaces stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def console() -> Console:
    """Standard output. Where it is no terminal: no colours, and lines of any length."""
    from rich.console import Console

    # `highlight` and `emoji` would dress up text that comes from outside.
    plain = not sys.stdout.isatty()
    return Console(highlight=False, emoji=False, markup=False, width=_UNLIMITED if plain else None)
