"""Whether --dump-dir can be made and written, durably, and how much room there is. May hang as long as its volume does.

Who may write which volume, as a user that is not root (seen): an emptyDir, yes; a hostPath and the folder that
`subPathExpr` makes on it, no: they are root's, with mode 0755. The kubelet gives such a folder the mode of its volume
(kubelet_pods.go), so one on an emptyDir can be written too.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass

from sidecar.checkup import Remedy, Status
from sidecar.doctor.remedies import POD, full_tier
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
        room = Found("volume_room", Status.UNKNOWN, "the folder could not be written")
        return _not_written(scene, folder, error), room
    sizes = _Room(volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize)
    written = Found("volume", Status.OK, f"wrote, synced and removed a file in {folder}")
    return written, _room(settings, sizes, _mount_of(scene.proc, folder))


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
    ways = [_volume(folder)]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Found("volume", Status.MISSING, f"{seen}: make room, or give it a larger volume")
    if error.errno in (errno.EACCES, errno.EPERM) and scene.own.uid != 0:
        mount = _mount_of(scene.proc, folder)
        seen += f": uid {scene.own.uid} can write an emptyDir"
        if mount is not None and _EMPTY_DIR not in mount.shows:
            seen += ", but no hostPath, nor a folder that subPathExpr makes on one"
        ways.append(full_tier(scene.own))
    return Found("volume", Status.MISSING, seen, tuple(ways))


def _volume(folder: str) -> Remedy:
    """A volume that everybody can write."""
    return Remedy(
        f"{POD}, a native sidecar's under initContainers",
        "containers:\n"
        "  - name: rankguard\n"
        "    env:\n"
        "      - {name: RANKGUARD_DUMP_VOLUME_LIMIT, value: 20Gi}\n"
        "    volumeMounts:\n"
        f"      - {{name: rankguard-dumps, mountPath: {json.dumps(folder)}}}\n"
        "volumes:\n"
        "  - name: rankguard-dumps\n"
        "    emptyDir: {sizeLimit: 20Gi}",
    )


def _room(settings: Settings, room: _Room, mount: Mount | None) -> Found:
    left = room.free - settings.dump_free_floor
    seen = f"{_shown(room.free)} free of {_shown(room.total)}, --dump-free-floor is {_shown(settings.dump_free_floor)}"
    if mount is not None and _EMPTY_DIR in mount.shows and settings.dump_volume_limit is None:
        seen += "; it is an emptyDir: if it has a sizeLimit, set --dump-volume-limit to it"
    if left <= _LITTLE:
        seen += ": nothing but a few MiB of text will be written"
        return Found("volume_room", Status.MISSING, seen, (_volume(settings.dump_dir),))
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
