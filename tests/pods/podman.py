"""Podman as these tests use it: with settings and a storage of its own, apart from whatever else the machine runs.

Everything lies in one cache folder (under $XDG_CACHE_HOME or ~/.cache), so that the base image and the layers of ours
are made once. Whoever uses it holds a shared lock on it; whoever gets the lock alone may clean up what a run that was
killed has left. Needs root: pods of an ordinary user have other cgroups and other rights.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/python-base"
_ULIMITS = '["nofile=4096:4096", "nproc=4096:4096"]'  # soft equal to hard: podman cannot raise them in a container


class PodmanError(RuntimeError):
    """A podman command failed; says which, and what it said."""


class Podman:
    """One user of the cache folder. `alone` is True while nobody else uses it."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or cache_folder()
        self.cache.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            self.alone = False
        self._settings()

    def share(self) -> None:
        """Let others in. There is nothing to clean up any more."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self.alone = False

    def close(self) -> None:
        os.close(self._lock)

    @property
    def storage(self) -> Path:
        return self.cache / "storage"

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "CONTAINERS_CONF": str(self.cache / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.cache / "storage.conf"),
        }
        return {**os.environ, **own}

    def _settings(self) -> None:
        # crun refuses the hybrid cgroups of many machines, hence runc.
        texts = {
            "containers.conf": f'[containers]\ndefault_ulimits = {_ULIMITS}\n[engine]\nruntime = "runc"\n',
            "storage.conf": "\n".join(
                [
                    "[storage]",
                    'driver = "overlay"',
                    f'graphroot = "{self.storage}"',
                    f'runroot = "{self.cache}/run"',
                    "",
                ]
            ),
        }
        for name, text in texts.items():
            path = self.cache / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 60.0, stdin: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A podman command to its end. Raises `PodmanError` where it fails and `check` is set."""
        with (stdin or Path("/dev/null")).open("rb") as given:
            done = subprocess.run(
                ["podman", *arguments], env=self.environment, stdin=given, capture_output=True, text=True,
                errors="backslashreplace", timeout=timeout,
            )  # fmt: skip
        if check and done.returncode:
            raise PodmanError(f"podman {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def has_image(self, name: str) -> bool:
        return self.run("image", "exists", name, check=False).returncode == 0


def cache_folder() -> Path:
    """Where everything lies that is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankguard-pods"


def image_name() -> str:
    """The image of this tree: named by what it is built of, so that two trees do not get each other's."""
    digest = hashlib.sha256()
    names = [
        "Dockerfile",
        ".dockerignore",
        "requirements.lock",
        "requirements-build.lock",
        "pyproject.toml",
        "README.md",
    ]
    files = [ROOT / name for name in names]
    files += sorted(p for p in (ROOT / "sidecar").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode & 0o777:o}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return f"localhost/rankguard:{digest.hexdigest()[:16]}"
