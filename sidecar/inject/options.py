"""The defaults of an installation: what a pod gets whose annotations say nothing else.

One table reads a value, wherever it stands: in a file, where it may have a type, or in an annotation, which is text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sidecar import config
from sidecar.errors import SettingError, UsageError
from sidecar.inject import quantities
from sidecar.settings import Settings
from sidecar.version import VERSION


class Form(StrEnum):
    NATIVE = "native"
    ORDINARY = "ordinary"


class Rights(StrEnum):
    AUTO = "auto"
    FULL = "full"
    TWIN = "twin"
    SIGNALS = "signals"


class VolumeKind(StrEnum):
    EMPTY_DIR = "empty-dir"
    CLAIM = "claim"
    HOST_PATH = "host-path"


# Injection itself says these, for each pod; the last is for tests.
OWN_SETTINGS = frozenset({"in_pod", "pod_namespace", "pod_name", "pod_uid", "node_name", "root_pid", "mask_features"})
SETTINGS = frozenset(Settings.__dataclass_fields__) - OWN_SETTINGS

_RESOURCES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "requests": MappingProxyType({"cpu": "50m", "memory": "128Mi", "ephemeral-storage": "5Gi"}),
        "limits": MappingProxyType({"memory": "192Mi"}),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    image: str = f"rankguard:{VERSION}"
    image_pull_policy: str = "IfNotPresent"
    form: Form = Form.NATIVE
    rights: Rights = Rights.AUTO
    volume: VolumeKind = VolumeKind.EMPTY_DIR
    volume_size_limit: str = "20Gi"
    volume_claim: str = ""
    volume_host_path: str = ""
    liveness: bool = False
    nvml: bool = False
    engine_environment: bool = True
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: _RESOURCES)
    api_token: bool = True
    fleet_switch: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)  # of `run`, as its environment has them


def load_options(mapping: Mapping[Any, Any]) -> Options:
    """The options in `mapping`, whose keys have hyphens or underscores. Raises `UsageError` with one line for each
    mistake.
    """
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for key, value in mapping.items():
        name = str(key).replace("-", "_")
        shown = name.replace("_", "-")
        if name in values:
            mistakes.append(f"{shown} is given twice")
        elif name == "settings":
            values[name], errors = load_settings(value)
            mistakes += errors
        elif name == "resources":
            values[name] = _said(shown, value, load_resources, mistakes)
        elif name in READERS:
            values[name] = _said(shown, value, READERS[name], mistakes)
        else:
            mistakes.append(f"{shown} is no option{suggestion(shown, [*READERS, 'settings', 'resources'])}")
    if not mistakes and (missing := lacking(Options(**values))):
        mistakes.append(missing)
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return Options(**values)


def lacking(options: Options) -> str:
    """What a volume of this kind needs and does not have, "" where all is there."""
    if options.volume is VolumeKind.CLAIM and not options.volume_claim:
        return "volume: claim needs volume-claim, the name of a PersistentVolumeClaim"
    if options.volume is VolumeKind.HOST_PATH and not options.volume_host_path:
        return "volume: host-path needs volume-host-path, a folder of the node"
    return ""


def load_settings(value: Any) -> tuple[dict[str, str], list[str]]:
    """Settings of `run` as its environment has them, by their names with underscores; and what is wrong."""
    if value is None:
        return {}, []
    if not isinstance(value, Mapping):
        return {}, ["settings: it takes a mapping of settings of `run` to their values"]
    given: dict[str, str] = {}
    mistakes: list[str] = []
    for key, raw in value.items():
        name = str(key).replace("-", "_")
        if name in given:
            mistakes.append(f"settings: {name.replace('_', '-')} is given twice")
        elif name not in SETTINGS:
            mistakes.append(f"settings: {str(key)!r} {unknown_setting(name)}")
        else:
            given[name] = _text(raw)
    _, errors = config.read(given, lambda name: f"settings: {name.replace('_', '-')}")
    return given, mistakes + [str(error) for error in errors]


def unknown_setting(name: str) -> str:
    if name in OWN_SETTINGS:
        return "is set by injection itself"
    return f"is no setting of `run`{suggestion(name.replace('_', '-'), SETTINGS)}"


def suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [each.replace("_", "-") for each in known], 1)
    return f"; did you mean {close[0]}?" if close else ""


def load_resources(value: Any) -> dict[str, dict[str, str]]:
    """Raises `ValueError` with what is allowed."""
    if not isinstance(value, Mapping) or not set(value) <= {"requests", "limits"}:
        raise ValueError("it takes a mapping with requests and limits")
    read: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for kind, amounts in value.items():
        if not isinstance(amounts or {}, Mapping):
            raise ValueError(f"{kind} takes a mapping of cpu, memory and ephemeral-storage to quantities")
        for resource, amount in (amounts or {}).items():
            if resource not in ("cpu", "memory", "ephemeral-storage") or isinstance(amount, bool):
                raise ValueError(f"{kind} takes cpu, memory and ephemeral-storage, not {resource!r}")
            text = str(amount)
            if quantities.number(text) <= 0:
                raise ValueError(f"{kind}.{resource} takes a quantity such as 50m or 128Mi, not {text!r}")
            read[kind][resource] = text
    for resource, amount in read["limits"].items():
        if quantities.number(read["requests"].get(resource, "0")) > quantities.number(amount):
            raise ValueError(f"requests.{resource} is more than limits.{resource}")
    return read


def _said(shown: str, value: Any, reader: Callable[[Any], Any], mistakes: list[str]) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        mistakes.append(str(SettingError(shown, _short(value), str(error))))
        return None


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:120]
    return value if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _text(value: Any) -> str:
    """A value as an environment variable has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ",".join(_text(item) for item in value)
    return str(value)


# ---- one reader for each option: it gives the value, or raises `ValueError` with what is allowed


def _word(kind: type[StrEnum]) -> Callable[[Any], StrEnum]:
    def read(value: Any) -> StrEnum:
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"it takes one of {', '.join(kind)}") from None

    return read


def _matching(pattern: str, allowed: str, empty: bool = False) -> Callable[[Any], str]:
    compiled = re.compile(pattern)

    def read(value: Any) -> str:
        if empty and value in ("", None):
            return ""
        if not isinstance(value, str) or len(value) > 1024 or not compiled.fullmatch(value):
            raise ValueError(f"it takes {allowed}")
        return value

    return read


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError("it takes true or false")


def _size(value: Any) -> str:
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,17}(?:[kMGT]|[KMGT]i)?", text):
        raise ValueError("it takes a quantity such as 20Gi")
    if not 2**20 <= quantities.number(text) < 2**60:
        raise ValueError("it takes at least 1Mi")
    return text


_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*"
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = (
    rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{{1,5}})?/)?{_PATH_PART}(?:/{_PATH_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)

READERS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "image": _matching(_IMAGE, "an image's name, with a tag or a digest"),
        "image_pull_policy": _matching("Always|IfNotPresent|Never", "one of Always, IfNotPresent, Never"),
        "form": _word(Form),
        "rights": _word(Rights),
        "volume": _word(VolumeKind),
        "volume_size_limit": _size,
        "volume_claim": _matching(_DNS_NAME, "the name of a PersistentVolumeClaim", empty=True),
        "volume_host_path": _matching(
            r"(?:/(?!\.\.?(?:/|$))[^/:\0]+)+", "an absolute path with no .. and no colon in it", empty=True
        ),
        "liveness": _switch,
        "nvml": _switch,
        "engine_environment": _switch,
        "api_token": _switch,
        "fleet_switch": _matching(rf"{_DNS_LABEL}/{_DNS_NAME}", "NAMESPACE/NAME of a ConfigMap", empty=True),
    }
)
