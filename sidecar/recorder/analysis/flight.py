"""Which ranks are behind, out of the dumps of PyTorch's Flight Recorder, without ever loading a pickle. Pure.

A dump is a pickle, and loading one runs what it says. But PyTorch writes dicts, lists, strings and numbers, and the
opcodes that make those call nothing: so opcodes are read one by one (`pickletools` only splits them), those for data
are followed, and at the first of any other sort the dump is left. Only its beginning is read: how many collectives of
each group were enqueued stands before the long list of entries.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from typing import Any

from sidecar.recorder.analysis.evidence import Behind

_MOST_OPCODES = 50_000
_MOST_GROUPS = 256
_SOURCE = "PyTorch's Flight Recorder"
_PLAIN = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARK = object()


def behind(dumps: Mapping[int, bytes]) -> tuple[Behind, ...]:
    """Those with fewer collectives than the most of their group; `dumps` by the pids of the ranks."""
    groups: dict[tuple[str, str], dict[int, int]] = {}
    for pid, data in dumps.items():
        head = head_of(data)
        config, status = head.get("pg_config"), head.get("pg_status")
        for name, one in list(status.items())[:_MOST_GROUPS] if isinstance(status, dict) else ():
            count = one.get("last_enqueued_collective") if isinstance(one, dict) else None
            about = config.get(name) if isinstance(config, dict) else None
            members = about.get("ranks") if isinstance(about, dict) else ""
            if not isinstance(name, str) or not isinstance(count, int) or isinstance(count, bool):
                continue
            if 0 <= count < 10**15:
                group = name[:64], members[:4096] if isinstance(members, str) else ""
                groups.setdefault(group, {})[pid] = count
    found: dict[int, Behind] = {}
    for counts in groups.values():
        most = max(counts.values())
        for pid, count in counts.items():
            if count < most:
                found.setdefault(pid, Behind(pid, count, most, _SOURCE))
    return tuple(found.values())


def head_of(data: bytes) -> dict[Any, Any]:
    """What the dump's dict holds before its entries; {} for what is no such dump."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for at, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            done = at >= _MOST_OPCODES or opcode.name == "STOP" or (len(stack) >= 2 and stack[-1] == "entries")
            if done or not _follow(opcode.name, argument, stack, memo):
                break
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        pass  # cut off, or nobody's dump: what was read until there is what there is
    if not stack or not isinstance(stack[0], dict):
        return {}
    rest = stack[2:] if len(stack) > 1 and stack[1] is _MARK else []
    pairs = zip(rest[::2], rest[1::2], strict=False)
    return stack[0] | {key: value for key, value in pairs if isinstance(key, str)}


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> bool:
    """One opcode. False where it makes anything but plain data."""
    if name in _PLAIN:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("SETITEMS", "APPENDS", "TUPLE"):
        items = _since_mark(stack)
        if name == "TUPLE":
            stack.append(items)
        elif name == "APPENDS":
            stack[-1].extend(items)
        else:
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        number = int(name[-1])
        stack[-number:] = [stack[-number:]]
    elif name == "APPEND":
        stack[-2].append(stack.pop())
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        stack[-1][key] = value
    else:
        return name == "PROTO"
    return True


def _since_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]
