"""Import this first: it makes importable what tests of other folders are made of, engines, sidecars and viewers."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(folder) for folder in (_TESTS, _TESTS / "life", _TESTS / "view") if str(folder) not in sys.path]
