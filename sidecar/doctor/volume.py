"""Whether --dump-dir can be made and written, durably, and how much room there is. May hang as long as its volume does.

Who may write which volume, as a user that is not root (seen): an emptyDir, yes; a hostPath and the folder that
`subPathExpr` makes on it, no, since the kubelet makes them as root with mode 0755.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from sidecar.checkup import Remedy, Status
from sidecar.doctor.remedies import POD, SIDECAR
from sidecar.doctor.scene import Found, Scene, Step
from sidecar.recorder.coredump.mounts import Mount, parse
from sidecar.settings import Settings
from sidecar.system.proc import Proc

# One name for all, so that what a killed check has left is overwritten by the next, and then removed.
_PROBE = ".rankguard-doctor"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EMPTY_DIR = "kubernetes.io~empty-dir"
_MIB = 1 << 20
_LITTLE = 64 * _MIB
_VOLUME = Remedy(
    POD,
    "containers:\n"
    "  - name: rankguard\n"
    "    volumeMounts:\n"
    "      - {name: rankguard-dumps, mountPath: /var/lib/rankguard}\n"
    "volumes:\n"
    "  - name: rankguard-dumps\n"
    "    emptyDir: {sizeLimit: 20Gi}",
)
_AS_ROOT = Remedy(SIDECAR, "securityContext:\n  runAsUser: 0\n  runAsNonRoot: false")


@dataclass(frozen=True, slots=True)
class _Room:
    free: int
    total: int


def check(scene: Scene, step: Step) -> tuple[Found, ...]:
    settings = scene.settings
    folder = settings.dump_dir
    step(f"write and fsync a file in {folder}")
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        _write(folder)
        volume = os.statvfs(folder)
    except OSError as error:
        written = _not_written(scene, folder, error)
        return written, Found("volume_room", Status.UNKNOWN, "the folder could not be written")
    room = _Room(volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize)
    written = Found("volume", Status.OK, f"wrote, synced and removed a file in {folder}")
    return written, _room(settings, room, _mount_of(scene.proc, folder))


def _write(folder: str) -> None:
    probe = os.path.join(folder, _PROBE)
    fd = os.open(probe, _CREATE, 0o600)
    try:
        os.write(fd, b"rankguard\n")
        os.fsync(fd)
    finally:
        os.close(fd)
        try:
            os.unlink(probe)
        except FileNotFoundError:  # another doctor's
            pass


def _not_written(scene: Scene, folder: str, error: OSError) -> Found:
    seen = f"cannot write to {folder}: {errno.errorcode.get(error.errno or 0, '?')} ({error.strerror})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Found("volume", Status.MISSING, f"{seen}: make room, or give it a larger volume")
    if error.errno in (errno.EACCES, errno.EPERM) and scene.own.uid != 0:
        mount = _mount_of(scene.proc, folder)
        made = "" if mount is None or _EMPTY_DIR in mount.shows else "a hostPath or a subPathExpr folder is root's: "
        why = f"{seen}: {made}uid {scene.own.uid} can write an emptyDir, mounted without subPathExpr"
        return Found("volume", Status.MISSING, why, (_VOLUME, _AS_ROOT))
    return Found("volume", Status.MISSING, seen, (_VOLUME,))


def _room(settings: Settings, room: _Room, mount: Mount | None) -> Found:
    left = room.free - settings.dump_free_floor
    seen = f"{_shown(room.free)} free of {_shown(room.total)}, --dump-free-floor is {_shown(settings.dump_free_floor)}"
    if mount is not None and _EMPTY_DIR in mount.shows and settings.dump_volume_limit is None:
        seen += "; it is an emptyDir: if it has a sizeLimit, set --dump-volume-limit to it"
    if left <= _LITTLE:
        return Found(
            "volume_room", Status.MISSING, f"{seen}: nothing but a few MiB of text will be written", (_VOLUME,)
        )
    if "cuda_coredump" in settings.captures and left < settings.coredump_max_bytes:
        seen += f"; less than one coredump may have (--coredump-max-bytes, {_shown(settings.coredump_max_bytes)})"
    if room.total < settings.dump_max_bytes:
        seen += f"; the whole volume has less than --dump-max-bytes ({_shown(settings.dump_max_bytes)})"
    return Found("volume_room", Status.OK, seen)


def _mount_of(proc: Proc, folder: str) -> Mount | None:
    """What the folder, or the part of its path that is there, is mounted from."""
    path = os.path.realpath(folder)
    try:
        with open(f"{proc.root}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = list(parse(file.read()))
    except OSError:
        return None
    above = [m for m in mounts if path == m.point or path.startswith(m.point.rstrip("/") + "/")]
    return max(above, key=lambda mount: (len(mount.point), mount.number), default=None)


def _shown(count: int) -> str:
    return f"{count / _MIB:,.0f} MiB" if count < 10 << 30 else f"{count / (1 << 30):,.0f} GiB"
