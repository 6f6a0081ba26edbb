"""Have Prometheus and promtool at hand for the tests: Debian's own, unpacked and not installed.

    python tests/prometheus/prepare_prometheus.py

Run by `make test`. Nothing is installed, so no service is started and no root is needed: the package is fetched and
unpacked into a cache folder, once. Programs in the PATH are taken first. Where there can be none (no Debian, no package
index) it says so and ends well, and the tests are skipped with the same words; with CI set in the environment it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "prometheus"


@dataclass(frozen=True, slots=True)
class Programs:
    prometheus: Path
    promtool: Path


def programs() -> Programs | None:
    """Those of this machine, or those that were fetched; None where there are none."""
    for folder in (None, str(cache_folder() / "usr" / "bin")):
        found = [shutil.which(name, path=folder) for name in ("prometheus", "promtool")]
        if all(found):
            return Programs(*(Path(str(path)) for path in found))
    return None


def trouble() -> str:
    """Why there are none here, "" where there are."""
    if programs() is not None:
        return ""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "tests with Prometheus need prometheus and promtool, and only on Debian are they fetched by themselves"
    return "tests with Prometheus need prometheus and promtool: run `make prometheus`"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "rankguard-prometheus"


def main() -> int:
    why = ""
    if programs() is None and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        print("prometheus: fetching Debian's package, once", flush=True)
        why = _fetch()
    why = why or trouble()
    print(f"prometheus: {why or 'ready'}")
    return 1 if why and os.environ.get("CI") else 0


def _fetch() -> str:
    """Unpack the package beside the cache folder, and put it in its place whole. What went wrong, "" for nothing."""
    target = cache_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as work:
        download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", PACKAGE]
        why = _run(download, work)
        if why and os.geteuid() == 0:  # a fresh machine has no lists of packages yet
            why = _run(["apt-get", "update", "-qq"], work) or _run(download, work)
        packages = list(Path(work).glob("*.deb"))
        if not why and packages:
            why = _run(["dpkg-deb", "-x", str(packages[0]), "whole"], work)
        if why or not packages:
            return why or f"apt-get has no package {PACKAGE}"
        if programs() is None:  # nobody else was faster
            shutil.rmtree(target, ignore_errors=True)
            (Path(work) / "whole").rename(target)
    return ""


def _run(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    return f"{' '.join(command[:2])} failed: {done.stderr.strip()[-500:]}" if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
