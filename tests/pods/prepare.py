"""Make this machine ready for the tests with real pods: podman, a base image, and the image of this tree.

    python tests/pods/prepare.py

Run by `make test`. Where that cannot be (no root, no Debian) it says so and ends well, and the tests are skipped with
the same words; with CI set in the environment it fails. What takes long is done once: packages are installed where they
are missing, the base image is kept in the cache folder, and so are the layers of ours.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from podman import BASE, ROOT, Podman, PodmanError, image_name

PACKAGES = ("podman", "runc", "catatonit", "mmdebstrap", "containernetworking-plugins", "iptables")
PROGRAMS = ("podman", "runc", "mmdebstrap", "iptables")
_MOST_BYTES = 6 << 30  # of storage; above this it is made anew
# What these need of the machine to reach what it reaches: the certificates it trusts, and pip's settings.
_MOUNTED = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
_TRIM = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")


def trouble() -> str:
    """Why there can be no pods here, "" where there can."""
    if os.geteuid() != 0:
        return "tests with real pods need root"
    if missing() and _debian() is None:
        return f"tests with real pods need {', '.join(missing())}, and only on Debian are they installed by themselves"
    return ""


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def main() -> int:
    if why := trouble():
        print(f"pods: {why}")
        return 1 if os.environ.get("CI") else 0
    began = time.monotonic()
    if missing():
        _install()
    podman = Podman()
    try:
        if podman.alone:
            _clean(podman)
        if not podman.has_image(BASE):
            _base(podman)
        if not podman.has_image(image_name()):
            _build(podman)
    finally:
        podman.close()
    print(f"pods: ready in {time.monotonic() - began:.0f} s")
    return 0


def _debian() -> str | None:
    """Debian's name for its release, `bookworm`, or None on anything else."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return None
    return release.get("VERSION_CODENAME") if release.get("ID") == "debian" else None


def _install() -> None:
    print(f"pods: installing {', '.join(PACKAGES)}", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _say_on_failure(["apt-get", "update", "-qq"], quiet)
    _say_on_failure(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], quiet)


def _clean(podman: Podman) -> None:
    """Nobody else is here: remove what a run that was killed has left, and a storage that has grown or is broken."""
    used = subprocess.run(["du", "-sb", str(podman.storage)], capture_output=True, text=True, check=False).stdout
    too_much = int(used.split()[0]) > _MOST_BYTES if used else False
    try:
        podman.run("pod", "rm", "-fa", "-t", "0")
        podman.run("rm", "-fa", "-t", "0")
        podman.run("volume", "rm", "-fa")
    except (PodmanError, subprocess.TimeoutExpired) as error:
        print(f"pods: the storage is made anew, since {str(error).splitlines()[0]}")
        too_much = True
    if too_much:
        podman.run("system", "reset", "-f", check=False, timeout=120)
        for name in ("storage", "run"):
            shutil.rmtree(podman.cache / name, ignore_errors=True)


def _base(podman: Podman) -> None:
    """Debian with its Python, as a tar in the cache folder and as an image: there is no registry to take one from."""
    release = _debian()
    tar = podman.cache / f"base-{release}-{platform.machine()}.tar"
    if not tar.exists():
        print("pods: making the base image, once", flush=True)
        half = tar.with_suffix(".half")
        half.unlink(missing_ok=True)
        command = ["mmdebstrap", "-q", "--variant=minbase", "--include=python3,python3-pip,ca-certificates"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _TRIM]
        # Debian's mark on its Python would keep pip out, and images call it `python` too.
        hook = 'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED; ln -s python3 "$1"/usr/bin/python'
        command += [f"--customize-hook={hook}", "--format=tar", str(release), str(half), *_mirror()]
        _say_on_failure(command, dict(os.environ))
        half.rename(tar)
    podman.run("import", "-q", "--change", 'CMD ["python3"]', "-", BASE, stdin=tar, timeout=300)


def _mirror() -> list[str]:
    """Where this machine takes its packages from."""
    try:
        lines = Path("/etc/apt/sources.list.d/debian.sources").read_text().splitlines()
    except OSError:
        return []
    return [line.split()[1] for line in lines if line.startswith("URIs:")][:1]


def _build(podman: Podman) -> None:
    print("pods: building the image", flush=True)
    mounts = [f"--volume={path}:{path}:ro" for path in _MOUNTED if os.path.exists(path)]
    command = ["build", "-q", f"--build-arg=BASE_IMAGE={BASE}", *mounts, "-t", image_name(), str(ROOT)]
    try:
        podman.run(*command, timeout=900)
    except PodmanError:  # it fetches packages, and a network may fail once
        podman.run(*command, timeout=900)


def _say_on_failure(command: list[str], environment: dict[str, str]) -> None:
    """Run it, and show what it said only where it fails. Raises `SystemExit` then."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        sys.exit(f"pods: {command[0]} failed\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
