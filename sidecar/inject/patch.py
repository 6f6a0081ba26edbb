"""From one pod to another as a JSON patch (RFC 6902): adds, removes and replaces.

Our own, since a request has no time for more: what is equal, nearly all of a pod, is compared once and skipped. A
general library takes some 3 ms for the same, more than all the rest of an answer (seen).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def json_patch(before: Any, after: Any) -> list[dict[str, Any]]:
    """The operations that make `after` of `before`, in order; none where they are equal.

    Equal as Python has it: 1, 1.0 and true are. Nothing here makes one of the other.
    """
    return list(_changes(before, after, ""))


def _changes(before: Any, after: Any, path: str) -> Iterator[dict[str, Any]]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() - after.keys():
            yield {"op": "remove", "path": _below(path, key)}
        for key, value in after.items():
            if key in before:
                yield from _changes(before[key], value, _below(path, key))
            else:
                yield {"op": "add", "path": _below(path, key), "value": value}
    elif isinstance(before, list) and isinstance(after, list):
        yield from _list_changes(before, after, path)
    else:
        yield {"op": "replace", "path": path, "value": after}


def _list_changes(before: list[Any], after: list[Any], path: str) -> Iterator[dict[str, Any]]:
    """What both begin and end with stays; between them pairs are compared, and the rest is added or removed."""
    shorter = min(len(before), len(after))
    begin = 0
    while begin < shorter and before[begin] == after[begin]:
        begin += 1
    end = 0
    while end < shorter - begin and before[-1 - end] == after[-1 - end]:
        end += 1
    pairs = shorter - begin - end
    for at in range(begin, begin + pairs):
        yield from _changes(before[at], after[at], f"{path}/{at}")
    for at in range(begin + pairs, len(after) - end):
        yield {"op": "add", "path": f"{path}/{at}", "value": after[at]}
    for at in reversed(range(begin + pairs, len(before) - end)):
        yield {"op": "remove", "path": f"{path}/{at}"}


def _below(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
