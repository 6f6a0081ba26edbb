"""`rankguard inject`: Kubernetes YAML in, the same with the sidecar added out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from sidecar.commands.setting_sources import read_keys
from sidecar.commands.terminal import Refused, printable
from sidecar.errors import SettingError, UsageError
from sidecar.inject import pod as injection
from sidecar.inject.options import READERS, Form, Options, Rights, VolumeKind, load_options
from sidecar.inject.templates import Template, at, may_hold_pods, templates
from sidecar.inject.words import Injection, Place

if TYPE_CHECKING:
    from sidecar.commands.yaml_stream import Piece

_LIMIT = 64 << 20  # bytes; a cluster's whole state is less
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "image_pull_policy": ("Always", "IfNotPresent", "Never"),
    "form": tuple(Form),
    "rights": tuple(Rights),
    "volume": tuple(VolumeKind),
}
_SWITCHES = ("liveness", "nvml", "engine_environment", "api_token")
_TEXTS = {
    "image": "The sidecar's image.",
    "image_pull_policy": "When the node pulls it.",
    "form": "native: an init container that goes on running, for Kubernetes 1.29 and newer. ordinary: a container.",
    "rights": "full: stacks of whoever the engine runs as. twin: as the engine is. signals: no stacks. auto: what"
    " --enforce lets in.",
    "volume": "Where the evidence goes.",
    "volume_size_limit": "The emptyDir's sizeLimit.",
    "volume_claim": "The PersistentVolumeClaim, ReadWriteMany.",
    "volume_host_path": "The node's folder.",
    "liveness": "A livenessProbe on /livez, where the engine has none.",
    "nvml": "What the GPUs' state in each incident needs. No GPU is taken.",
    "engine_environment": "Variables of the engine for CUDA coredumps, PyTorch and SGLang, where it has none.",
    "api_token": "A token for the API server, in the sidecar alone.",
    "fleet_switch": "NAMESPACE/NAME of the ConfigMap that switches the fleet to observing.",
}
_METAVARS = {"volume_size_limit": "SIZE", "volume_host_path": "DIR", "fleet_switch": "NAMESPACE/NAME"}

_HELP = """Add the sidecar to the pods of Kubernetes YAML, and write all of it to standard output.

Pod, Deployment, StatefulSet, ReplicaSet, DaemonSet, Job, CronJob, LeaderWorkerSet (both templates), JobSet, and lists
of them. What this does not touch comes out byte for byte; what it touches keeps its comments.

A pod template is injected with or without the label rankguard.dev/inject, since you asked for it, but not where that
says "false", nor where no engine is found. A template that has the sidecar stays as it is. The annotations
rankguard.dev/... of a template beat the options here. What is left alone, and what may go wrong, is said on standard
error.
"""


def _options() -> Iterator[click.Option]:
    defaults = Options()
    for name in READERS:
        flag, default = name.replace("_", "-"), getattr(defaults, name)
        if name in _SWITCHES:
            said = "on" if default else "off"
            yield click.Option([f"--{flag}/--no-{flag}"], default=None, help=f"{_TEXTS[name]} [default: {said}]")
            continue
        metavar = "|".join(_CHOICES[name]) if name in _CHOICES else _METAVARS.get(name, "NAME")
        said = f" [default: {default}]" if default else ""
        yield click.Option([f"--{flag}"], metavar=metavar, help=_TEXTS[name] + said)


@click.command(
    "inject",
    params=[
        click.Option(["-f", "--filename"], required=True, metavar="FILE", help="YAML to read; - is standard input."),
        click.Option(["--config"], metavar="FILE", help="YAML file of these options: each key is an option's name;"
                     " settings and resources are mappings. A flag beats it."),
        *_options(),
        click.Option(["--set", "settings"], multiple=True, metavar="NAME=VALUE",
                     help="A setting of `rankguard run`, such as death-deadline=5. Can be given more often."),
        click.Option(["--enforce"], type=click.Choice(["privileged", "baseline", "restricted"]),
                     default="privileged", show_default=True,
                     help="The namespace's label pod-security.kubernetes.io/enforce."),
        click.Option(["--only-labelled"], is_flag=True, help='Only templates with the label rankguard.dev/inject:'
                     ' "true".'),
    ],
    help=_HELP,
    short_help="Add the sidecar to Kubernetes YAML.",
)  # fmt: skip
def inject(
    filename: str, config: str | None, settings: tuple[str, ...], enforce: str, only_labelled: bool, **flags: Any
) -> int:
    options = _read_options(config, settings, flags)
    name = "standard input" if filename == "-" else filename
    written = "".join(_stream(_read(filename, name), name, options, enforce, only_labelled))
    sys.stdout.buffer.write(written.encode())
    return 0


def _read_options(config: str | None, settings: tuple[str, ...], flags: Mapping[str, Any]) -> Options:
    given: dict[str, Any] = {}
    if config is not None:
        try:
            for key, value, line in read_keys(config):
                if str(key).replace("-", "_") in given:
                    raise SettingError("--config", config, f"it gives {key} a second time in line {line}")
                given[str(key).replace("-", "_")] = value
        except ValueError as error:
            raise SettingError("--config", config, str(error)) from error
    given |= {name: value for name, value in flags.items() if value is not None}
    chosen: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError("--set", text, "it takes NAME=VALUE, such as death-deadline=5")
        chosen[name.replace("-", "_")] = value
    if chosen:
        inner = given.get("settings")
        before = {str(k).replace("-", "_"): v for k, v in inner.items()} if isinstance(inner, Mapping) else {}
        given["settings"] = {**before, **chosen}
    try:
        return load_options(given)
    except UsageError as error:
        lines = str(error).split("\n")
        for each in lines[:-1]:
            _say(each)
        raise UsageError(lines[-1]) from None


def _read(filename: str, name: str) -> str:
    try:
        if filename == "-":
            data = sys.stdin.buffer.read(_LIMIT + 1)
        else:
            with open(filename, "rb") as file:
                data = file.read(_LIMIT + 1)
    except OSError as error:
        raise Refused(f"{name}: it cannot be read: {error.strerror}", 2) from error
    except ValueError as error:
        raise Refused(f"{filename!r} is no path", 2) from error
    if len(data) > _LIMIT:
        raise Refused(f"{name}: it is larger than {_LIMIT} bytes", 2)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{name}: it is not UTF-8 text (byte {error.start})", 2) from error


def _stream(text: str, name: str, options: Options, enforce: str, only_labelled: bool) -> Iterator[str]:
    """What comes out, document by document. Raises `Refused` with what is no YAML."""
    import ruamel.yaml.error  # these not for --help
    import yaml

    from sidecar.commands.yaml_stream import pieces

    mark = "\ufeff" if text.startswith("\ufeff") else ""
    yield mark
    try:
        documents = list(pieces(text.removeprefix(mark)))
    except yaml.YAMLError as error:
        raise Refused(f"{name}: {_place(error, 0)}", 2) from error
    except RecursionError as error:
        raise Refused(f"{name}: it is nested too deeply", 2) from error

    def done(piece: Piece) -> str:
        if not may_hold_pods(piece.kind):
            return piece.text
        where = f"{name}: the {piece.kind} in line {piece.line}"
        if piece.trouble:
            raise Refused(f"{where}: {piece.trouble}", 2)
        try:
            return _document(piece, options, enforce, only_labelled)
        except (yaml.YAMLError, ruamel.yaml.error.YAMLError) as error:
            raise Refused(f"{where}: {_place(error, piece.line - 1 + piece.head.count(chr(10)))}", 2) from error
        except (ValueError, RecursionError) as error:
            raise Refused(f"{where}: a value in it cannot be read: {error}", 2) from error

    for piece in documents:
        yield done(piece)


def _place(error: Any, lines: int) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or "it cannot be read").split("\n")[0]
    where = f" (line {mark.line + 1 + lines}, column {mark.column + 1})" if mark is not None else ""
    return f"it is not valid YAML{where}: {problem}"


def _document(piece: Piece, options: Options, enforce: str, only_labelled: bool) -> str:
    from sidecar.commands import yaml_edit

    document = yaml_edit.read(piece.body)
    changes = []
    for template in templates(document):
        before = at(document, template.path)
        done = injection.inject(before, options, _place_of(template, enforce, only_labelled))
        _tell(template, done)
        if done.injected:
            changes.append((template.path, before, done.pod))
    if not changes:
        return piece.text
    body, kept = yaml_edit.edited(piece.body, changes, keep_nodes=not piece.aliases)
    if not kept:
        _say(f"line {piece.line}: the comments of this {piece.kind} could not be kept")
    head = piece.head if not piece.head or piece.head.endswith("\n") else piece.head + "\n"
    return f"{head}{body}{piece.tail}"


def _place_of(template: Template, enforce: str, only_labelled: bool) -> Place:
    return Place(
        namespace=template.namespace,
        enforce=enforce,
        owner_kind="" if template.kind == "Pod" else template.kind,
        group_size=template.group_size,
        labelled=only_labelled,
    )


def _tell(template: Template, done: Injection) -> None:
    if not done.injected:
        _say(f"{template.title}: left as it is: {done.reason}: {done.message}")
    for warning in done.warnings:
        _say(f"{template.title}: warning: {warning}")


def _say(line: str) -> None:
    click.echo(f"rankguard: {printable(' '.join(line.split(chr(10))))}", err=True)
