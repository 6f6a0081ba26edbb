"""What NCCL itself says of its ranks, from its RAS service: `nccl_ras/engine.txt`.

Every process of a job listens at NCCL_RAS_ADDR, by default localhost:28028, and speaks a text protocol: CLIENT PROTOCOL
is answered by SERVER PROTOCOL, TIMEOUT by OK, VERBOSE STATUS by the report and the end of the connection (NVIDIA's NCCL
user guide, "RAS"; NCCL's src/ras/client_support.cc). The ranks of one machine share the port (SO_REUSEPORT), so a
connection may land at one that hangs, as NCCL's own client knows too: who does not greet within a second is left, and
another connection lands elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable

from sidecar.masking import mask_text
from sidecar.model import ArtifactStatus
from sidecar.recorder.capture.base import MIB, Attempt, Ended, Piece, Scene, Target, over_limit
from sidecar.recorder.capture.inherited import inherited
from sidecar.system.proc import Proc

KIND = "nccl_ras"
_FILE = "nccl_ras/engine.txt"
_DEFAULT = "127.0.0.1:28028"
_LIMIT = 8.0
_PEERS_LIMIT = 2  # seconds that NCCL gives ranks which do not answer it, then it reports without them; its default is 5
_GREETING_LIMIT = 1.0
_MARGIN = 0.2
_CAP = 4 * MIB
_NOT_RAS = "what listens there does not speak NCCL's RAS protocol"
_NO_ANSWER = "it took the connection and said nothing"


def collect(_: Target, scene: Scene, left: float) -> Attempt | tuple[Piece, ...]:
    """The report as text, partial where it broke off. Skipped where nobody listens: no NCCL, or RAS is off."""
    limit = min(_LIMIT, left)
    return Attempt(work=lambda fd: _ask(fd, scene, limit), judge=_judge, limit=limit, cap=_CAP)


def _judge(ended: Ended) -> tuple[Piece, ...]:
    rows = ended.out.split(b"\n", 1)
    text = rows[1] if len(rows) > 1 else b""
    # The child says where it asks before it does, and how it went as the last line.
    where = mask_text(rows[0].decode("utf-8", "backslashreplace")) or _DEFAULT
    if ended.failure:
        return (Piece(KIND, ArtifactStatus.FAILED, detail=ended.failure),)
    if ended.cut or ended.wait_status is None:
        why = f"{where}: more than is kept" if ended.cut else f"{where}: {over_limit(ended)}"
        if text:
            return (Piece(KIND, ArtifactStatus.PARTIAL, _FILE, text, why),)
        return (Piece(KIND, ArtifactStatus.TIMED_OUT, detail=why),)
    text, _, last = text.rpartition(b"\n\0")
    try:
        status, why = json.loads(last)
        status = ArtifactStatus(status)
    except (ValueError, TypeError):
        return (Piece(KIND, ArtifactStatus.FAILED, detail=f"its reader ended with {ended.wait_status:#x}"),)
    return (Piece(KIND, status, _FILE if text else "", text, f"{where}: {why}" if why else f"from {where}"),)


def _ask(fd: int, scene: Scene, limit: float) -> None:
    """Runs in the child. Writes the address, the report, and how it went."""
    until = time.monotonic() + limit - min(_MARGIN, limit / 4)
    where = address(scene.proc, (target.identity.pid for target in scene.targets if target.is_rank))
    _put(fd, where.encode("utf-8", "backslashreplace") + b"\n")
    try:
        connected = connect(where, until)
    except ConnectionRefusedError:
        return _end(fd, ArtifactStatus.SKIPPED, "nobody listens: NCCL's RAS service is off, or there is no NCCL")
    except TimeoutError:
        return _end(fd, ArtifactStatus.TIMED_OUT, _NO_ANSWER)
    except (OSError, ValueError, UnicodeError) as error:
        return _end(fd, ArtifactStatus.FAILED, str(error) or type(error).__name__)
    with connected:
        return _report(fd, connected, until)


def _report(fd: int, connected: socket.socket, until: float) -> None:
    said = 0
    try:
        connected.settimeout(_GREETING_LIMIT)
        connected.sendall(b"TIMEOUT %d\n" % _PEERS_LIMIT)
        if _line(connected).strip().upper() != b"OK":
            return _end(fd, ArtifactStatus.FAILED, _NOT_RAS)
        connected.sendall(b"VERBOSE STATUS\n")
        while True:
            connected.settimeout(max(0.01, until - time.monotonic()))
            chunk = connected.recv(65536)
            if not chunk:
                break
            said += len(chunk)
            _put(fd, chunk)
            if time.monotonic() >= until:
                raise TimeoutError
    except TimeoutError:
        if said:
            return _end(fd, ArtifactStatus.PARTIAL, "no end of the report in time")
        return _end(fd, ArtifactStatus.TIMED_OUT, "it greeted, and no report came in time")
    except OSError as error:
        return _end(fd, ArtifactStatus.PARTIAL if said else ArtifactStatus.FAILED, f"broken off: {error.strerror}")
    if not said:
        return _end(fd, ArtifactStatus.FAILED, "it closed the connection without a report")
    return _end(fd, ArtifactStatus.CAPTURED, "")


def connect(where: str, until: float) -> socket.socket:
    """A connection that has greeted.

    Raises `OSError` (`TimeoutError` where nobody greets in time), and `ValueError` where the address or the greeting is
    no such thing.
    """
    host, _, port = where.rpartition(":")
    name = host.strip("[]") or "localhost"
    number = int(port)
    if not 0 < number < 1 << 16:
        raise ValueError("no such port")
    while True:
        # As bytes: a name as str goes through the idna codec, an import that must not happen after the fork.
        found = socket.getaddrinfo(name.encode("ascii"), number, type=socket.SOCK_STREAM)
        refusal: OSError = ConnectionRefusedError()
        for family, kind, protocol, _, address in found:
            connected = socket.socket(family, kind, protocol)
            try:
                connected.settimeout(max(0.01, min(_GREETING_LIMIT, until - time.monotonic())))
                connected.connect(address)
                connected.sendall(b"CLIENT PROTOCOL 2\n")
                if not _line(connected).upper().startswith(b"SERVER PROTOCOL "):
                    raise ValueError(_NOT_RAS)
            except OSError as error:
                connected.close()
                refusal = error
            except ValueError:
                connected.close()
                raise
            else:
                return connected
        if not isinstance(refusal, TimeoutError) or time.monotonic() + _GREETING_LIMIT >= until:
            raise refusal


def _line(connected: socket.socket) -> bytes:
    """The next line, without its end. Raises `TimeoutError`, and `ValueError` where it is none."""
    line = bytearray()
    until = time.monotonic() + _GREETING_LIMIT  # for the whole line, however slowly it comes
    while not line.endswith(b"\n"):
        if time.monotonic() >= until:
            raise TimeoutError
        byte = connected.recv(1)
        if not byte or len(line) > 256:
            raise ValueError(_NOT_RAS)
        line += byte
    return bytes(line[:-1])


def address(proc: Proc, ranks: Iterable[int]) -> str:
    """NCCL_RAS_ADDR of the engine's processes: the first that shows it, since a title hides the environment."""
    for pid in ranks:
        found = inherited(proc, pid, ("NCCL_RAS_ADDR",))
        if found:
            return "".join(c for c in found["NCCL_RAS_ADDR"][:256] if c.isprintable())
    return _DEFAULT


def _end(fd: int, status: ArtifactStatus, why: str) -> None:
    _put(fd, b"\n\0" + json.dumps([status.value, why]).encode())


def _put(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
