"""The recorded cases, and what the verdict makes of one."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from sidecar.recorder.analysis.evidence import Finding
from sidecar.recorder.analysis.program import examine
from sidecar.recorder.analysis.stacks import Merged

CASES = Path(__file__).with_name("cases")


@cache
def case(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((CASES / f"{name}.json.gz").read_bytes()))


def names() -> list[str]:
    return sorted(path.name.removesuffix(".json.gz") for path in CASES.glob("*.json.gz"))


def explained(told: dict[str, Any], late: Any = ()) -> tuple[Finding, list[tuple[str, Merged]]]:
    return examine(told, told["documents"].get, late)
