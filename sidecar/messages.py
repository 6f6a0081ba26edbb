"""How Rankguard's processes speak to each other: JSON over a SOCK_SEQPACKET pair, with file descriptors where needed.

A channel never blocks: a message that does not fit into the socket's buffer is refused (`send` returns False) and the
caller decides what that loses. A message of more than `INLINE_LIMIT` bytes travels in a memfd, since a packet is
bounded by the kernel's socket buffer (net.core.wmem_default, 208 KiB on most machines). Every message is a dict with
a string under "type". Anything else raises `ProtocolError`.

Who says what (each name is a "type"):

guard -> supervisor
    watch       {ranks: [RankProcess]} + one pidfd each          hand over what a new guard would need
    forget      {identities: [Identity]}
    arm         {incident: id, plan: Plan, deadline: s monotonic}    the dead man's switch
    disarm      {incident: id}                                   the plan was carried out
    journal     {incident: Incident, phase, opened_at} or {incident: null, phase, closed: id}
                                                                 what a new guard would take up again
    finished    {exit_status: int}                               it is over; the status to exit with
    livez       {failed: bool}                                   what /livez is to say while there is no web
    remember    {served: bool, found: bool, failed: bool, drains_until: s monotonic | null,
                 memory_kills: {cgroup: count}, observes: bool}  for a new guard: all ranks were there; the engine was
                                                                 found stuck or dead; its stop was announced by a hook;
                                                                 the kills for memory that were given to deaths; the
                                                                 fleet switch's last word
supervisor -> web
    guard       {} + one socket                                  the guard, or the new one after a restart
supervisor -> guard
    ranks       {ranks: [RankProcess]} + one pidfd each          before `hello`: what an earlier guard watched
    hello       {journal, fired: bool, drained: bool, engine_root: Identity | null, root_wait_status: int | null,
                 served, found, failed, drains_until, memory_kills, observes}    as an earlier guard has said it last
    recorder    {} + one socket                                  a warm recorder stands by
    web         {} + one socket
    reaped      {identity, wait_status}                          a child of ours was reaped: its status is certain
    drain       {signal}                                         a stop was asked for
    restarted   {process}                                        one of ours had to be started again
guard -> recorder
    begin       {incident: Incident, ranks: [RankProcess], frozen: bool, resume: bool,
                 seconds: s left for captures, 0 for none, twice: bool} + the termination logs of the engine's
                 containers, where it is to be killed          twice: two snapshots, to see what moves
    note        {incident: Incident}                             what is known now (more failures, more timeline)
    seal        {incident: Incident}                             the last word; write, seal, answer, exit
recorder -> guard
    standing_by {dump_bytes, free_bytes, unfinished: [Incident]}    ready; and what an earlier life left open
    opened      {id}                                             the opening record is on the volume
    captured    {kind, rank, status, seconds}                    one artifact
    captures_done {}
    told        {entry: TimelineEntry}                           the termination logs were written to, or could not be
    sealed      {id, summary, saved: int, dump_bytes, free_bytes}
    lost        {what, detail}                                   something could not be written
guard -> web
    state       {state, engine, expected, ranks: [{role, rank, up, pid, start, container, title}],
                 features: {name: bool}, incident: id | "", ready: bool, ready_detail, endpoint: Endpoint | null,
                 failed: bool, up: bool,        failed: found stuck or dead, and past its deadline; up: it has answered
                 observes: bool}                the fleet switch has it only observe
    event       {seq, epoch, name, ...}                          to be counted exactly once; see `web.counters`
web -> guard
    ack         {seq, epoch}                                     counted up to this, and kept if there is a place for it
    manual      {}                                               somebody asked for a capture
    up          {ranks: [Identity]}                              the engine has answered
    liveness    {verdict: Verdict, probe, ranks: [Identity]}     stuck or dead, or (the first time after) not any more
    hook        {hook: int, deletion: bool, certain: bool, failing: bool, running: bool, group: name}
                                                                 the preStop hook was called; with `called_at` (s
                                                                 monotonic) where the web comes to it late
    fleet       {observe: bool}                                  the fleet switch; told to each new guard again
    containers  {names: {container id: name}}                    as the pod's status has them
    deleting    {}                                               the API server says that the pod is being deleted
    after_kill  {incident: id}                                   end the container with --after-kill-exit-code, unless
                                                                 there is anything left to do
guard -> web
    hook_done   {hook: int, detail}                              it may be answered
"""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

from sidecar.errors import PeerGone, ProtocolError

INLINE_LIMIT = 60_000
FDS_PER_MESSAGE = 250  # SCM_MAX_FD is 253

Message = dict[str, Any]


class Channel:
    """One end of a pair. Not thread-safe: each process reads and writes its channels from one loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        return cls(socket.socket(fileno=fd))

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Send, or return False where the buffer is full, or no descriptor is left for a big one. Raises `PeerGone`
        where nobody is left to read it.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        overflow = -1
        if len(data) > INLINE_LIMIT:
            try:
                overflow = os.memfd_create("rankguard-message", os.MFD_CLOEXEC)
            except OSError:
                return False
            view = memoryview(data)
            while view:
                view = view[os.write(overflow, view) :]
            data = b"@"
            fds = (overflow, *fds)
        try:
            if fds:
                socket.send_fds(self.sock, [data], list(fds), socket.MSG_NOSIGNAL)
            else:
                self.sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerGone("the other end closed the channel") from error
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # too many descriptors on their way to somebody who does not read
                return False
            raise
        finally:
            if overflow >= 0:
                os.close(overflow)
        return True

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message with its descriptors (the caller's to close), or None where nothing waits.

        Raises `PeerGone` at the end of the stream and `ProtocolError` on a message that is no message.
        """
        try:
            try:
                data, fds, flags, _ = socket.recv_fds(self.sock, INLINE_LIMIT + 1, FDS_PER_MESSAGE + 2)
            except ConnectionResetError:
                # The other end closed with something of ours unread. The kernel says so first and only once; what it
                # had sent before is still there to be read.
                data, fds, flags, _ = socket.recv_fds(self.sock, INLINE_LIMIT + 1, FDS_PER_MESSAGE + 2)
        except BlockingIOError:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        if not data and not fds:
            raise PeerGone("the other end closed the channel")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close_all(fds)
            raise ProtocolError("a message was cut off")
        if data == b"@" and fds:
            body = fds.pop(0)
            try:
                data = _read_all(body)
            except OSError as error:
                _close_all(fds)
                raise ProtocolError("a big message has no body") from error
            finally:
                os.close(body)
        try:
            message = json.loads(data)
        except (ValueError, RecursionError) as error:
            _close_all(fds)
            raise ProtocolError("a message is not JSON") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            _close_all(fds)
            raise ProtocolError("a message has no type")
        return message, fds


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    chunks = []
    offset = 0
    while offset < size:
        chunk = os.pread(fd, size - offset, offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
