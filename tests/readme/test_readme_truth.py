"""What the README names is there: files, headings, settings, metrics, alerts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from readme_blocks import README, ROOT, blocks, prose

from sidecar.model import Reason
from sidecar.settings import Settings

PAGES = [
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tests" / "e2e" / "README.md",
    ROOT / "manifests" / "README.md",
]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each file is there, and each heading that is linked to."""
    for link in _LINK.findall(prose(page.read_text())):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """The headings as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_blocks_say_what_they_are() -> None:
    known = {"sh": {"host", "cluster", "dev", "build"}, "yaml": {"pod"}, "text": set()}
    for block in blocks():
        assert block.language in known, block.line
        assert not known[block.language] or set(block.words) & known[block.language], block.line


def test_settings_are_settings() -> None:
    """Every `--setting` of `run` in the text and its tables."""
    text = prose(README.read_text())
    table = text[text.index("## Settings") : text.index("**To keep all sidecars")]
    named = set(re.findall(r"^\| `(--[a-z-]+)", table, re.MULTILINE))
    named |= set(re.findall(r"`(--(?:on|stall|probe|liveness|death|dump|after)-[a-z-]+)", text))
    assert len(named) > 15
    for name in named:
        assert name[2:].replace("-", "_") in Settings.__dataclass_fields__, name


def test_reasons_are_reasons() -> None:
    text = README.read_text()
    table = text[text.index("| `reason` |") :].split("\n\n", 1)[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) - {"reason"} == {reason.value for reason in Reason}


def test_alerts_are_alerts() -> None:
    """Every alert in the table is a rule of the chart."""
    rules = yaml.safe_load((ROOT / "charts" / "rankguard" / "files" / "monitoring" / "rules.yaml").read_text())
    there = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    text = README.read_text()
    named = set(re.findall(r"`(Rankguard[A-Z]\w+)`", text))
    assert named
    assert named <= there
    assert (ROOT / "docs" / "runbooks" / "README.md").exists()
