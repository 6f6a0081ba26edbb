"""schemathesis against a port of ours, over HTTP: requests made of its OpenAPI document, good ones and bad ones, always
the same. It runs as a process of its own, which is heavy to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dump_folders import incident, put, rewrite

from sidecar.model import Reason

SECONDS = 500  # on a machine that is busy with other things; it takes 15


def odd_folder(folder: Path) -> Path:
    """Good incidents, one that is open, one whose record says nonsense, half of one, and a link."""
    for number in range(12):
        put(folder, incident(10 + number, f"TP{number}"))
    put(folder, incident(4, "TP1", Reason.ENGINE_STALLED), sealed=False)
    odd = put(folder, incident(6, "TP6"))
    rewrite(odd, summary={"a": 1}, path="../../secret", bytes="many", pod=None, engine=[1], reason=7)
    (folder / incident(7).id).symlink_to(odd)
    (folder / incident(8).id).mkdir()
    return folder


def fuzz(tmp_path: Path, document: dict[str, Any], port: int, paths: list[str], *more: str) -> None:
    """`paths` are incidents that are there: what would be made of a pattern is hardly ever one. Raises
    `AssertionError` with what was found."""
    there = {"incident": [*paths, "20261120T235959.123Z-gone"], "path": ["pyspy/TP0.json", "incident.json", "gone"]}
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["in"] == "path" and parameter["name"] in there:
                    parameter["schema"] = {"enum": there[parameter["name"]]}
                    parameter["example"] = there[parameter["name"]][0]
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    argv = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", str(file),
        "--url", f"http://127.0.0.1:{port}", "--checks", "all", "--phases", "coverage,fuzzing",
        "--exclude-path", "/api/v1/events",  # it never ends
        "--exclude-method", "HEAD",  # the same answers without a body, at twice the time
        "--max-examples", "4", "--generation-deterministic", "--continue-on-failure", "--no-color", *more,
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
