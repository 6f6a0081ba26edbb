"""How often an hour something is done beyond the kill: counted on the volume, and where that cannot say, nothing is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sidecar.web.kubernetes.limit import Limit, limit_path

NOW = 1_800_000_000.0


def test_counted_on_the_volume(tmp_path: Path) -> None:
    """Whoever asks: each time it is another process, as after a restart. A clock that was set back gives no more."""

    def take(now: float, incident: str) -> str:
        return Limit(str(tmp_path), 2).take(now, incident)

    assert take(NOW, "a") == ""
    assert "for this incident before" in take(NOW + 1, "a")
    assert take(NOW + 10, "b") == ""
    assert "2 times within the hour" in take(NOW + 3599, "c")
    assert "2 times within the hour" in take(NOW - 600, "c")
    assert take(NOW + 3605, "c") == ""
    assert "2 times" in take(NOW + 3606, "d")
    assert take(NOW + 10_000, "d") == ""
    assert [entry["incident"] for entry in json.loads(Path(limit_path(str(tmp_path))).read_text())] == list("abcd")


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": 1}', "[" * 100_000, '[{"incident": "a", "at": true}]', '[{"incident": 5, "at": 1}]']
)
def test_a_broken_count(tmp_path: Path, text: str) -> None:
    """Nothing is done over it; it is set aside, so that the next time counts anew."""
    path = Path(limit_path(str(tmp_path)))
    path.write_text(text)
    limit = Limit(str(tmp_path), 1)
    assert "is broken" in limit.take(NOW, "a")
    assert path.with_suffix(".bad").read_text() == text
    assert limit.take(NOW, "a") == ""


@pytest.mark.parametrize("kind", ["link", "folder", "no volume"])
def test_a_volume_that_cannot_say(tmp_path: Path, kind: str) -> None:
    """No symbolic link is followed, and what cannot be written is not done."""
    path = Path(limit_path(str(tmp_path)))
    other = tmp_path / "other"
    other.write_text("[]")
    if kind == "link":
        path.symlink_to(other)
        assert "symbolic link" in Limit(str(tmp_path), 1).take(NOW, "a")
    elif kind == "folder":
        path.mkdir()
        assert "no regular file" in Limit(str(tmp_path), 1).take(NOW, "a")
    else:
        with pytest.raises(OSError, match="No such file"):
            Limit(os.path.join(tmp_path, "nowhere"), 1).take(NOW, "a")
    assert other.read_text() == "[]"
