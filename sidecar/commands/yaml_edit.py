"""Changing a YAML document and keeping its comments, as far as ruamel.yaml keeps them.

What comes out is read again and held against what it is to say: where it differs, it is written anew, without comments.
"""

from __future__ import annotations

import io
import re
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from sidecar.inject.templates import Path, at

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A text that is one to every reader of YAML, old and new, without quotes.
_PLAIN = re.compile(r"[A-Za-z/$][A-Za-z0-9_./$()%-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_SEQUENCE = re.compile(r"^( *)(?:- )?[^\s#-][^\n]*:[ \t]*\r?\n( *)- ", re.MULTILINE)
_MAPPING = re.compile(r"^[^\s#-][^\n]*:[ \t]*\r?\n( +)[^\s#-]", re.MULTILINE)


def read(text: str) -> Any:
    """The document as kubectl reads it, YAML 1.1. Raises `yaml.YAMLError`, `ValueError`."""
    return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader, of C where there is one


def edited(text: str, changes: list[tuple[Path, Any, Any]], keep_nodes: bool) -> tuple[str, bool]:
    """The document `text` with each (path, before, after) done; and whether its comments were kept.

    `keep_nodes`: what is changed is changed in place; else it is written anew, which a document with aliases needs,
    where one node may stand in several places. Raises `yaml.YAMLError` (of either library) where it is not YAML.
    """
    meant = read(text)
    for path, _, after in changes:
        meant = _put(meant, path, after)
    tool = _tool(text)
    try:
        vessel = tool.load(text)
        for path, before, after in changes:
            if keep_nodes:
                _graft(at(vessel, path), before, after)
            else:
                vessel = _put(vessel, path, _styled(after))
        out = io.StringIO()
        tool.dump(vessel, out)
        written = out.getvalue()
        if read(written) == meant:
            return written, True
    except DuplicateKeyError:
        raise  # kubectl refuses it too, and which of the two is meant nobody knows
    except (YAMLError, ValueError, LookupError, AttributeError, TypeError, NotImplementedError):
        pass  # something that one library takes and the other does not: a tag, a number, a date
    return yaml.dump(meant, Dumper=_Dumper, sort_keys=False, width=4096, allow_unicode=True), False


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _tool(text: str) -> YAML:
    tool = YAML(pure=True)
    tool.preserve_quotes = True
    tool.width = 1 << 20
    tool.allow_duplicate_keys = False
    mapping = len(found[1]) if (found := _MAPPING.search(text)) else 2
    offset = max(0, len(found[2]) - len(found[1])) if (found := _SEQUENCE.search(text)) else 0
    tool.indent(mapping=mapping, sequence=offset + 2, offset=offset)
    return tool


def _put(document: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    at(document, path[:-1])[path[-1]] = value
    return document


def _graft(vessel: Any, before: Any, after: Any) -> None:
    """Make `vessel`, which says `before`, say `after`."""
    if isinstance(after, dict):
        for key in before.keys() - after.keys():
            del vessel[key]
        for key, value in after.items():
            if key not in before:
                # Not last: a comment below the last key is taken for its own, and would end up in the middle.
                vessel.insert(max(len(vessel) - 1, 0), key, _styled(value))
            else:
                _graft_in(vessel, key, before[key], value)
        return
    ahead = len(after) - len(before) if before and _name(after[0]) != _name(before[0]) else 0
    for index, value in enumerate(before):
        _graft_in(vessel, index, value, after[index + ahead])
    for value in after[ahead + len(before) :]:
        vessel.append(_styled(value))
    for value in reversed(after[:ahead]):
        vessel.insert(0, _styled(value))


def _graft_in(vessel: Any, key: Any, before: Any, after: Any) -> None:
    if before == after:
        return
    alike = type(before) is type(after) and isinstance(after, (dict, list)) and len(after) >= len(before) > 0
    if alike:
        _graft(vessel[key], before, after)
    else:
        vessel[key] = _styled(after)


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else value


def _styled(value: Any) -> Any:
    """A new value: in lines of its own, and with quotes where an older reader would take a text for something else."""
    if isinstance(value, dict):
        return CommentedMap((_styled(key), _styled(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return CommentedSeq(_styled(inner) for inner in value)
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _WORDS):
        return DoubleQuotedScalarString(value)
    return value
