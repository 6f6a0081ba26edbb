"""A pod's own wishes: annotations over the defaults of the installation, all checked before anything is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar import config, listening
from sidecar.errors import SettingError
from sidecar.inject.options import READERS, SETTINGS, Options, VolumeKind, lacking, unknown_setting
from sidecar.inject.words import INJECTED, LABEL, LAST_INCIDENT, PREFIX, SKIPPED, WARNINGS, Skip
from sidecar.settings import Settings

_OURS = (INJECTED, SKIPPED, WARNINGS, LAST_INCIDENT)
_OPTIONS = (
    "image", "form", "rights", "volume", "volume_size_limit", "volume_claim", "volume_host_path", "liveness", "nvml",
    "engine_environment",
)  # fmt: skip
_IMPLIES = {"volume_claim": VolumeKind.CLAIM, "volume_host_path": VolumeKind.HOST_PATH}
_PORT_ALLOWED = "it takes a port, a number from 1 to 65535"


@dataclass(frozen=True, slots=True)
class Wishes:
    """`options` with the pod's own in it. `given` are the settings of `run` that somebody chose, as its environment
    has them, and `settings` what they come to. `containers` are the target's names, () where none were named. `port`
    is 0 where none was chosen.
    """

    options: Options
    settings: Settings
    given: Mapping[str, str]
    containers: tuple[str, ...]
    port: int


def read(annotations: Mapping[str, Any], containers: tuple[str, ...], options: Options) -> Wishes:
    """Raises `Skip` with the first annotation that is wrong: nothing is replaced by a default in silence."""
    chosen: dict[str, Any] = {}
    given: dict[str, str] = {}
    named: tuple[str, ...] = ()
    port = 0
    for key, value in annotations.items():
        if not key.startswith(PREFIX) or key in _OURS:
            continue
        word = key.removeprefix(PREFIX)
        name = word.replace("-", "_")
        if key == LABEL:
            raise Skip("BadAnnotation", f"{key} is a label, not an annotation")
        if not isinstance(value, str):
            raise Skip("BadAnnotation", f"{key}: an annotation is a text: put {value!r} into quotes")
        if word == "container":
            named = _names(key, value, containers)
        elif word == "port":
            port = _port(key, value)
        elif name in _OPTIONS:
            try:
                chosen[name] = READERS[name](value)
            except ValueError as error:
                raise _bad(SettingError(key, value[:120], str(error))) from None
        elif name in SETTINGS:
            given[name] = value
        else:
            raise Skip("BadAnnotation", f"{key} {unknown_setting(name)}")
    for name, kind in _IMPLIES.items():
        if name in chosen:
            chosen.setdefault("volume", kind)
    options = dataclasses.replace(options, **chosen)
    if missing := lacking(options):
        raise Skip("BadAnnotation", PREFIX + missing)
    given = {**options.settings, **{name: value for name, value in given.items() if value}}
    settings, errors = config.read(given, lambda name: PREFIX + name.replace("_", "-"))
    if errors:
        raise _bad(errors[0])
    if not settings.dump_dir.startswith("/") or ":" in settings.dump_dir:
        raise Skip("BadAnnotation", f"{PREFIX}dump-dir: it takes an absolute path with no colon in it")
    if port and "listen" in given:
        raise Skip("BadAnnotation", f"{PREFIX}port and {PREFIX}listen say the same: leave one of them out")
    if not port and settings.listen and "listen" in given:
        port = listening.parse(settings.listen).port
    return Wishes(options, settings, given, named, port)


def _names(key: str, value: str, containers: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in containers:
            raise Skip("BadAnnotation", f"{key}: the pod has no container {name!r}, but {', '.join(containers)}")
    return names


def _port(key: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 6 and 0 < int(value) < 65536):
        raise _bad(SettingError(key, value[:120], _PORT_ALLOWED))
    return int(value)


def _bad(error: SettingError) -> Skip:
    return Skip("BadAnnotation", str(error))
