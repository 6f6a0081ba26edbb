"""How a checkup looks in a terminal: one line for each right, and what would give it below where it is missing.

What was seen names processes by their titles, which may be hostile: everything is made printable, and given to rich as
`Text`, never as markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
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
_WORDS = {Status.NOT_APPLICABLE: "n/a"}


def print_page(found: Checkup) -> None:
    out = console()
    width = max((len(result.capability) for result in found.results), default=0)
    told: dict[tuple[Remedy, ...], str] = {}
    for result in found.results:
        word = _WORDS.get(result.status, result.status.value)
        line = Text(f"{word:<8} ", style=_STYLES[result.status])
        line.append(f"{result.capability:<{width}}  ", style="bold" if result.fails else "not bold")
        line.append(printable(result.seen), style="not bold")
        out.print(line)
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


def _print_remedy(out: Console, result: Result, told: dict[tuple[Remedy, ...], str]) -> None:
    """What is lost, and what gives it, once where several want the same."""
    out.print(_text(f"         {'lost' if result.status.available is False else 'without it'}: {result.lost}"))
    if not result.remedies:
        return
    if result.remedies in told:
        out.print(_text(f"         remedy: the same as for {told[result.remedies]}"))
        return
    told[result.remedies] = result.capability
    _print_ways(out, result.remedies)


def _print_ways(out: Console, remedies: Sequence[Remedy]) -> None:
    for number, remedy in enumerate(remedies):
        out.print(_text(f"         {'or' if number else 'remedy'}, in {remedy.place}:"))
        for line in remedy.yaml.split("\n"):
            out.print(_text(f"             {line}", "cyan"), soft_wrap=True)  # to be pasted: never folded


def _text(value: str, style: str = "") -> Text:
    return Text(printable(value), style=style)
