"""How a checkup looks in a terminal: one line for each right, and what would give it below where it is missing.

What was seen names processes by their titles, which may be hostile: everything is made printable, and given to rich as
`Text`, never as markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.checkup import Checkup, Remedy, Result, Status
from sidecar.commands.terminal import console, printable

_STYLES = {
    Status.OK: "green",
    Status.MISSING: "bold red",
    Status.HUNG: "bold red",
    Status.UNKNOWN: "yellow",
    Status.NOT_APPLICABLE: "dim",
}
_WORD = 7  # columns of a status
_WORDS = {Status.NOT_APPLICABLE: "n/a"}


def print_page(found: Checkup) -> None:
    out = console()
    width = max((len(result.capability) for result in found.results), default=0)
    told: dict[tuple[Remedy, ...], str] = {}
    for result in found.results:
        word = _WORDS.get(result.status, result.status.value)
        name = _text(f"{result.capability:<{width}}", "bold" if result.fails else "")
        _print_row(out, Text(word, style=_STYLES[result.status]), name, _text(result.seen))
        # What was refused on others, before an engine is there, has its remedy too.
        if result.status.available is False or result.remedies:
            _print_remedy(out, result, told)
    out.print()
    out.print(_text(f"Tier: {found.tier or 'not known yet'} ({found.because})", "bold"))
    failing = [result.capability for result in found.results if result.fails]
    lacking = [r.capability for r in found.results if r.status.available is False and not r.fails]
    if failing:
        out.print(_text(f"Required, and missing: {', '.join(failing)}", "bold red"))
    if lacking:
        out.print(_text(f"Missing, and not required: {', '.join(lacking)}"))
    if failing or lacking:
        out.print(_text("docs/rights.md says what each is for.", "dim"))


def _print_row(out: Console, word: Text, *cells: Text) -> None:
    """A status, and what stands beside it. In a terminal what is too long goes on below itself."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=_WORD)
    for cell in cells[:-1]:
        grid.add_column(width=cell.cell_len)
    grid.add_column(overflow="fold")
    grid.add_row(word, *cells)
    out.print(grid)


def _print_remedy(out: Console, result: Result, told: dict[tuple[Remedy, ...], str]) -> None:
    """What is lost, and what gives it, once where several want the same."""
    without = "lost" if result.status.available is False else "without it"
    _print_row(out, Text(), _text(f"{without}: {result.lost}"))
    if not result.remedies:
        return
    if result.remedies in told:
        _print_row(out, Text(), _text(f"remedy: the same as for {told[result.remedies]}"))
        return
    told[result.remedies] = result.capability
    _print_ways(out, result.remedies)


def _print_ways(out: Console, remedies: Sequence[Remedy]) -> None:
    for number, remedy in enumerate(remedies):
        _print_row(out, Text(), _text(f"{'or' if number else 'remedy'}, in {remedy.place}:"))
        for line in remedy.yaml.split("\n"):
            out.print(_text(f"             {line}", "cyan"), soft_wrap=True)  # to be pasted: never folded


def _text(value: str, style: str = "") -> Text:
    return Text(printable(value), style=style)
