"""Where settings are given besides the flags: the environment, and the file of `--config`.

Both yield setting names with their raw values; what a value is worth is `sidecar.config`'s to judge. Names that are no
settings are refused here, by name. No secret is repeated: not the value of an unknown variable, not the text of a file
that is no settings file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sidecar.errors import SettingError, UsageError
from sidecar.settings import Settings

PREFIX = "RANKGUARD_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
CONFIG_FILE_LIMIT = 1 << 20  # bytes; a settings file has some hundred
_COMPLAINTS = 10  # about one file; the wrong file may have thousands of wrong keys

# The downward API's usual names, read where ours are not set.
_POD_FALLBACKS = {
    "pod_namespace": "POD_NAMESPACE",
    "pod_name": "POD_NAME",
    "pod_uid": "POD_UID",
    "node_name": "NODE_NAME",
}

# A Service named rankguard… puts variables like these into every pod of its namespace (kubelet's service links,
# kubernetes.io/docs/concepts/services-networking/service/#environment-variables). They are no settings of ours.
_SERVICE_LINK = re.compile(r"RANKGUARD_(?:.+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_.+)?)")
_SERVICE_LINK_PORT = re.compile(r"RANKGUARD_(?:.+_)?PORT")
_SERVICE_LINK_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")

_LOOKS_LIKE_A_NAME = re.compile(r"[A-Za-z][A-Za-z_]{0,39}")

_FIELDS = {field.name: field for field in fields(Settings)}


def from_environment(environ: Mapping[str, str], errors: list[UsageError]) -> dict[str, Any]:
    """Setting names and values out of RANKGUARD_* (and the pod's facts); what is no setting goes to `errors`."""
    given: dict[str, Any] = {}
    for variable in sorted(environ):
        value = environ[variable]
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE or _is_service_link(variable, value):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in _FIELDS or variable != variable.upper():
            # Its value is not repeated: nobody knows what it is, and a RANKGUARD_TOKEN is thinkable.
            errors.append(UsageError(f"{variable!r} in the environment is no setting{_suggestion(name, 'env')}"))
        elif value:
            given[name] = value
    for name, variable in _POD_FALLBACKS.items():
        value = environ.get(variable, "")
        if value and name not in given and re.fullmatch(r"[A-Za-z0-9._-]{1,253}", value):
            given[name] = value
    return given


def _is_service_link(variable: str, value: str) -> bool:
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return bool(_SERVICE_LINK_PORT.fullmatch(variable) and _SERVICE_LINK_ADDRESS.match(value))


def from_file(path: str | None, called: str, errors: list[UsageError]) -> dict[str, Any]:
    """Setting names and values out of a YAML file; what is wrong goes to `errors`, under the name `called`."""
    if path is None:
        return {}
    try:
        keys = read_keys(path)
    except ValueError as error:
        errors.append(SettingError(called, path, str(error)))
        return {}
    given: dict[str, Any] = {}
    complaints: list[str] = []
    for key, value, line in keys:
        name = key.replace("-", "_") if isinstance(key, str) else ""
        if name not in _FIELDS:
            # Only what looks like a setting's name is repeated: the wrong file may be one of secrets.
            shown = f" {key!r}" if _LOOKS_LIKE_A_NAME.fullmatch(name) else ""
            complaint = f"its key{shown} in line {line} is no setting{_suggestion(name, '')}"
        elif name in given:
            complaint = f"it gives {name} a second time in line {line}"
        else:
            given[name] = value
            continue
        complaints.append(complaint)
    if len(complaints) > _COMPLAINTS:
        complaints[_COMPLAINTS:] = [f"{len(complaints) - _COMPLAINTS} more of its keys are no settings either"]
    errors += [SettingError(called, path, complaint) for complaint in complaints]
    return given


def read_keys(path: str) -> list[tuple[Any, Any, int]]:
    """The file's keys, values and line numbers, in order. Raises `ValueError` with what is wrong, without any of the
    file's text."""
    import yaml  # only here: most have no file

    try:
        # Opening a FIFO that nobody writes to would wait for ever; reading one that has a writer, `<(…)`, must wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        with open(fd, "rb") as file:
            data = file.read(CONFIG_FILE_LIMIT + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError("it is no path") from error
    if len(data) > CONFIG_FILE_LIMIT:
        raise ValueError(f"it is larger than {CONFIG_FILE_LIMIT} bytes")
    try:
        # As nodes first: a mapping built at once would silently keep the last of two equal keys.
        node = yaml.compose(data.decode(), Loader=yaml.SafeLoader)
        build = yaml.SafeLoader("")
        if isinstance(node, yaml.MappingNode):
            return [
                (build.construct_object(k, deep=True), build.construct_object(v, deep=True), k.start_mark.line + 1)
                for k, v in node.value
            ]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"it is not valid YAML{place}") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except ValueError as error:
        raise ValueError("it holds a number or date that is none") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if node is None:
        return []
    raise ValueError("it is no mapping of settings to values")


def _suggestion(name: str, style: str) -> str:
    close = difflib.get_close_matches(name, [n for n, f in _FIELDS.items() if not f.metadata.get("hidden")], 1)
    if not close:
        return ""
    return f"; did you mean {PREFIX + close[0].upper() if style == 'env' else close[0]}?"
