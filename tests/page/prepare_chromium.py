"""Have Chromium at hand for the tests of the page: Debian's own.

    python tests/page/prepare_chromium.py

Run by `make test`. A browser in the PATH is taken as it is; on Debian it is installed where it is missing, which needs
root. Where there can be none it says so and ends well, and the tests are skipped with the same words; with CI set in
the environment it fails.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

PACKAGES = ("chromium", "fonts-dejavu-core")
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser of this machine, None where there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def trouble() -> str:
    """Why there is none here, "" where there is."""
    if chromium() is not None:
        return ""
    if not _debian():
        return "tests of the page need chromium in the PATH, and only on Debian is it installed by itself"
    if os.geteuid() != 0:
        return "tests of the page need chromium: install it, or run `make chromium` as root"
    return "tests of the page need chromium: run `make chromium`"


def main() -> int:
    why = ""
    if chromium() is None and _debian() and os.geteuid() == 0:
        print(f"chromium: installing {', '.join(PACKAGES)}", flush=True)
        why = _install()
    why = why or trouble()
    print(f"chromium: {why or 'ready'}")
    return 1 if why and os.environ.get("CI") else 0


def _debian() -> bool:
    try:
        return platform.freedesktop_os_release().get("ID") == "debian" and shutil.which("apt-get") is not None
    except OSError:
        return False


def _install() -> str:
    """What went wrong, "" for nothing. A fresh machine has no lists of packages yet."""
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    return _run(install) and (_run(["apt-get", "update", "-qq"]) or _run(install))


def _run(command: list[str]) -> str:
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False, timeout=900)
    return f"{' '.join(command[:2])} failed: {done.stderr.strip()[-500:]}" if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
