"""Reading the settings: a flag beats the environment beats the file.

Every setting stands once, as a field of `sidecar.settings.Settings`; the pydantic-settings model that reads them is
made from those fields, so there is nothing to keep in step. `load` refuses what it cannot use and never stops at it:
what a refusal means (exit 2 on a command line, the default in a pod) is for the caller to say.

What counts as given: a flag, always; an environment variable, unless it is empty (templates leave empty ones behind);
a key of the file, always, and there `null` is the same as `none`.
"""

from __future__ import annotations

import functools
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field as DataclassField
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sidecar import listening
from sidecar.commands import units
from sidecar.commands.setting_sources import CONFIG_VARIABLE, PREFIX, from_environment, from_file
from sidecar.errors import SettingError, UsageError
from sidecar.masking import mask_text
from sidecar.model import Action
from sidecar.settings import Settings

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123, as Kubernetes names namespaces and containers
_SHOWN = 120  # characters of a bad value that a line repeats

_FIELDS: Mapping[str, DataclassField[Any]] = {field.name: field for field in fields(Settings)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of it. `origin` maps a setting to the words it was given in: `--engine`, `RANKGUARD_ENGINE`, ..."""

    settings: Settings
    errors: tuple[UsageError, ...]
    origin: Mapping[str, str]

    def where(self, name: str) -> str:
        return self.origin.get(name, flag(name))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Loaded:
    """Read the settings from all three places. Raises nothing: every refusal is in `errors`.

    `flags` maps setting names (and `config`, the file) to what was given, None for a flag that was not. Where there
    is any refusal, each refused setting has its default and both actions are `observe`.
    """
    errors: list[UsageError] = []
    from_flags = {name: value for name, value in flags.items() if value is not None}
    variables = from_environment(environ, errors)
    path, called = from_flags.pop("config", None), "--config"
    if path is None:
        path, called = environ.get(CONFIG_VARIABLE) or None, CONFIG_VARIABLE
    keys = from_file(path, called, errors)
    sources = [from_flags, variables, keys]
    origin = (
        {name: f"{name} in {path}" for name in keys}
        | {name: PREFIX + name.upper() for name in variables}
        | {name: flag(name) for name in from_flags}
    )
    try:
        values = _validated(sources)
    except pydantic.ValidationError as error:
        given = {name: value for source in reversed(sources) for name, value in source.items()}
        refused: dict[str, SettingError] = {}
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            refused.setdefault(name, SettingError(origin[name], _shown(name, given[name]), _complaint(name, detail)))
        errors += refused.values()
        values = _validated([{n: v for n, v in source.items() if n not in refused} for source in sources])
    settings = Settings(**values)
    if errors:
        settings = replace(settings, on_rank_death=Action.OBSERVE, on_liveness_failure=Action.OBSERVE)
    return Loaded(settings, tuple(errors), origin)


def read(given: Mapping[str, Any], called: Callable[[str], str]) -> tuple[Settings, tuple[SettingError, ...]]:
    """The settings with what was `given` by setting names, and what is wrong with it, as `run` would find it.

    For whoever checks settings that another process will read, many times: `load` makes its model anew each time.
    `called` says what an error names a setting. What is refused has its default.
    """
    values: dict[str, Any] = {}
    errors: list[SettingError] = []
    for name, value in given.items():
        try:
            values[name] = _reader(name).validate_python(value)
        except pydantic.ValidationError as error:
            complaint = _complaint(name, error.errors(include_url=False)[0])
            errors.append(SettingError(called(name), _shown(name, value), complaint))
    settings = replace(Settings(), **values)
    errors += [SettingError(called(name), getattr(settings, name), why) for name, why in conflicts(settings)]
    return settings, tuple(errors)


def conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Settings that are right by themselves and cannot be together: the one to blame, and why."""
    if settings.stall_limit < settings.stall_timeout:
        yield "stall_limit", f"it takes at least --stall-timeout, {settings.stall_timeout:g}"
    if settings.api_listen and not settings.api_token_file and not listening.parse(settings.api_listen).loopback:
        yield "api_listen", "beyond loopback it takes a token: give --api-token-file, or listen on 127.0.0.1"


def allowed(name: str) -> str:
    """What the setting takes, as words that follow "it takes"."""
    metadata = _FIELDS[name].metadata
    kind = metadata.get("kind", "")
    choices = metadata.get("choices", ())
    hint = typing.get_type_hints(Settings)[name]
    if kind in ("captures", "features"):
        return f"a comma-separated list of {', '.join(choices)}; or none"
    if choices:
        return f"one of {', '.join(choices)}"
    if hint is bool:
        return "true or false"
    if kind == "listen":
        return listening.ALLOWED
    if kind == "size":
        return f"{units.SIZE_ALLOWED}, {_range(metadata)}"
    if float in _members(hint):
        return f"seconds, a number {_range(metadata)}" + ("; or none" if kind == "optional" else "")
    if int in _members(hint):
        return f"a whole number {_range(metadata)}"
    if kind == "regex":
        return "a regular expression"
    if kind == "name":
        return "letters, digits, dots, dashes and underscores, 253 at most"
    if kind == "names":
        return "names of containers, comma-separated"
    if kind == "object":
        return "NAMESPACE/NAME"
    if kind == "url":
        return "a URL that begins with http:// or https://; auto; or none"
    if kind == "inside":
        return "an absolute path with no .. in it; or none"
    if kind == "secret":
        return "printable text without spaces, 4096 characters at most"
    return {"folder": "the path of a folder", "file": "the path of a file"}.get(kind, "text that is not empty")


def _range(metadata: Mapping[str, Any]) -> str:
    if "maximum" in metadata:
        return f"from {metadata['minimum']:.12g} to {metadata['maximum']:.12g}"
    return f"of at least {metadata['minimum']}"


# ---- from what was given to values: the model


def _validated(sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge, the first source first, and convert. Raises `pydantic.ValidationError`."""

    class Sourced(BaseSettings):
        model_config = SettingsConfigDict(extra="forbid", allow_inf_nan=False)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(_Source(settings_cls, source) for source in sources)

    hints = typing.get_type_hints(Settings)
    definitions: dict[str, Any] = {
        name: (_annotated(hints[name], field), field.default) for name, field in _FIELDS.items()
    }
    read = pydantic.create_model("Read", __base__=Sourced, **definitions)()
    return {name: getattr(read, name) for name in _FIELDS}


class _Source(PydanticBaseSettingsSource):
    """One place where settings were given, already read."""

    def __init__(self, settings_cls: type[BaseSettings], given: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._given = given

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._given.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._given


@functools.cache
def _reader(name: str) -> pydantic.TypeAdapter[Any]:
    """What reads this one setting."""
    hint = typing.get_type_hints(Settings)[name]
    return pydantic.TypeAdapter(_annotated(hint, _FIELDS[name]), config=pydantic.ConfigDict(allow_inf_nan=False))


def _annotated(hint: Any, field: DataclassField[Any]) -> Any:
    """The type that pydantic reads the field with: its own, narrowed by its metadata."""
    metadata = field.metadata
    kind = metadata.get("kind", "")
    choices = metadata.get("choices", ())
    if kind in ("captures", "features"):
        item: Any = Literal.__getitem__(choices)
        return Annotated[tuple[item, ...], pydantic.BeforeValidator(_listed)]
    if hint is Action or hint is bool:
        return hint
    if choices:
        return Literal.__getitem__(choices)
    inner: Any
    before: Callable[[Any], Any] = _no_bool
    if number := _members(hint) & {int, float}:
        inner = Annotated[number.pop(), pydantic.Field(ge=metadata["minimum"], le=metadata.get("maximum"))]
        if kind == "size":
            before = _sized
        elif kind == "optional":
            before = _switched_off_number
    else:
        shortest = 0 if kind in ("name", "names", "object") else 1
        inner = Annotated[str, pydantic.Field(min_length=shortest), pydantic.AfterValidator(_TEXTS[kind])]
        if kind in ("listen", "inside"):
            before = _switched_off
    return Annotated[inner | None if type(None) in _members(hint) else inner, pydantic.BeforeValidator(before)]


def _members(hint: Any) -> set[Any]:
    return set(typing.get_args(hint)) or {hint}


def _listed(value: Any) -> Any:
    """`a,b` and ["a", "b"] as they are meant; `none` and nothing at all are the empty list. Order and doubles go."""
    if value is None or value == "none":
        return ()
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("")
    return tuple(dict.fromkeys(item for item in items if item))


def _no_bool(value: Any) -> Any:
    # YAML reads yes and on as true, which would pass for the number 1.
    if isinstance(value, bool):
        raise ValueError("")
    return value


def _switched_off(value: Any) -> Any:
    return None if value in ("none", "") else value


def _switched_off_number(value: Any) -> Any:
    return None if value == "none" else _no_bool(value)


def _sized(value: Any) -> Any:
    return units.size(value) if isinstance(value, str) else _no_bool(value)


def _compiles(pattern: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re warns on stderr about sets that may mean more one day
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"as a regular expression it breaks at position {error.pos}: {error.msg}") from error
        except (RecursionError, OverflowError) as error:
            raise ValueError("as a regular expression it is too deep or too large") from error
    if compiled.search(""):
        raise ValueError("it matches an empty command line, so every process would be a rank")
    return pattern


def _listens(text: str) -> str:
    listening.parse(text)
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL")
    return text


def _inside(text: str) -> str:
    """A path of a file as another process sees it: absolute, and below its root whatever is in it."""
    parts = [part for part in _no_nul(text).split("/") if part not in ("", ".")]
    if not text.startswith("/") or text.endswith("/") or not parts or ".." in parts or len(text) > 1024:
        raise ValueError("")
    return text


def _named(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,253}", text):
        raise ValueError("")
    return text


def _names(text: str) -> str:
    if text and not all(re.fullmatch(_LABEL, name) for name in text.split(",")):
        raise ValueError("")
    return text


def _object(text: str) -> str:
    namespace, _, name = text.partition("/")
    if text and not (
        re.fullmatch(_LABEL, namespace) and re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name) and len(name) <= 253
    ):
        raise ValueError("")
    return text


def _is_url(text: str) -> str:
    if text in ("auto", "none"):
        return text
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that does not close
        sound = False
    if not sound or not text.isprintable() or " " in text:
        raise ValueError("")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a user or a password, which are not sent: give a URL without them")
    return text


def _secret(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,4096}", text):
        raise ValueError("")
    return text


_TEXTS: Mapping[str, Callable[[str], str]] = {
    "": _no_nul,
    "folder": _no_nul,
    "file": _no_nul,
    "inside": _inside,
    "regex": _compiles,
    "listen": _listens,
    "name": _named,
    "names": _names,
    "object": _object,
    "url": _is_url,
    "secret": _secret,
}


def _complaint(name: str, detail: ErrorDetails) -> str:
    """Why the value was refused: in our own words where a check of ours said so, else what the setting takes."""
    own = str(detail.get("ctx", {}).get("error", "")) if detail["type"] == "value_error" else ""
    return own or f"it takes {allowed(name)}"


def _shown(name: str, value: Any) -> Any:
    kind = _FIELDS[name].metadata.get("kind")
    if kind == "secret":
        return "(a secret)"
    return mask_text(value[:_SHOWN]) if kind == "url" and isinstance(value, str) else _short(value)


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return f"a {type(value).__name__}"  # a list, a mapping, a date: it may be large, and it is never right
