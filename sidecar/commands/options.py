"""`rankguard run`'s options, made from the fields of `Settings`. click takes any value as it is; `config` judges it."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator
from dataclasses import Field, fields
from typing import Any

import click

from sidecar.commands import units
from sidecar.model import Action
from sidecar.settings import Settings

_METAVARS = {
    "regex": "REGEX", "listen": "HOST:PORT", "folder": "DIR", "file": "FILE", "size": "BYTES", "name": "NAME",
    "names": "NAMES", "object": "NAMESPACE/NAME", "url": "URL", "secret": "TOKEN", "inside": "FILE",
}  # fmt: skip


def for_settings(names: Collection[str] = ()) -> list[click.Parameter]:
    """One option for each setting (of `names`, if there are any), in their order, after `--config`. An option that is
    not given is None.
    """
    config = click.Option(
        ["--config"],
        metavar="FILE",
        help="YAML file of settings: each key is an option's name. Environment: RANKGUARD_CONFIG.",
    )
    hints = typing.get_type_hints(Settings)
    return [config, *(_option(f, hints[f.name]) for f in fields(Settings) if not names or f.name in names)]


def _option(field: Field[Any], hint: Any) -> click.Option:
    name = field.name.replace("_", "-")
    text = " ".join([field.metadata["help"], *_notes(field)])
    hidden = bool(field.metadata.get("hidden"))
    if hint is bool:
        return click.Option([f"--{name}/--no-{name}"], default=None, help=text, hidden=hidden)
    return click.Option([f"--{name}"], metavar=_metavar(field, hint), help=text, hidden=hidden)


def _metavar(field: Field[Any], hint: Any) -> str:
    kind = field.metadata.get("kind", "")
    if kind in ("captures", "features"):
        return "LIST"
    if choices := field.metadata.get("choices"):
        return "|".join(choices)
    if kind in _METAVARS:
        return _METAVARS[kind]
    return "SECONDS" if hint is float or kind == "optional" else "N"


def _notes(field: Field[Any]) -> Iterator[str]:
    """What is allowed, and the default, where they are not in the text already."""
    metadata = field.metadata
    if metadata.get("kind") == "captures":
        yield f"Known: {', '.join(metadata['choices'])}."
    if "maximum" in metadata:
        yield f"{metadata['minimum']:.12g} to {metadata['maximum']:.12g}."
    default: Any = field.default
    if default is None or default is False or default in ("", ()):
        return
    if isinstance(default, Action):
        default = default.value
    elif isinstance(default, tuple):
        default = ",".join(default)
    elif metadata.get("kind") == "size":
        default = f"{default} ({units.shown_size(default)})"
    elif isinstance(default, float):
        default = f"{default:.12g}"
    yield f"[default: {default}]"
