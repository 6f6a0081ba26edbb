"""Which pods are left alone, each with its reason."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sidecar.inject.words import LABEL, SIDECAR, Place, Skip

_MIRROR = "kubernetes.io/config.mirror"
# Programs that work as PID 1 alone: https://github.com/just-containers/s6-overlay, systemd, runit, OpenRC.
_INIT = ("s6-svscan", "s6-overlay-suexec", "s6-linux-init", "systemd", "runit", "runit-init", "openrc-init")
_INIT_PATHS = ("/init", "/sbin/init", "/usr/sbin/init")
_BEFORE_A_COMMAND = ("exec", "sudo", "nohup", "setsid", "command", "env", "tini", "dumb-init", "--", "then", "do", "-c")
_ENDS = re.compile(r"&&|\|\||[;&|\n(){}`]")
_SCRIPT = re.compile(r"[\s;&|(){}`]")
_DEEPEST = 4  # scripts in scripts
LONGEST = 32 * 1024  # characters of a command: half a second's work at most, when others wait for their answers
_PROC_ONE = re.compile(r"/proc/1(?:/|\b)")
_CALL_ONE = re.compile(r"\bkill(?:pg)?\s*\(\s*-?1\s*[,)]")
_WORTH_A_LOOK = re.compile(r"kill|/proc/1|init|runit|s6-|systemd")  # splitting words takes time, and most have none
_NAMES_OF_SIGNALS = re.compile(r"-(?:[0-9]{1,2}|[A-Za-z][A-Za-z0-9+-]*)")


def refuse(pod: Mapping[str, Any], place: Place) -> None:
    """Raise `Skip` for a pod that gets no sidecar, whatever its annotations say."""
    metadata, spec = pod.get("metadata") or {}, pod["spec"]
    label = (metadata.get("labels") or {}).get(LABEL)
    containers = every_container(spec)
    if any(container["name"] == SIDECAR for container in containers):
        raise Skip("AlreadyInjected", f"the pod has a container named {SIDECAR}")
    if label == "false":
        raise Skip("OptedOut", f"the pod's label {LABEL} is false")
    if label not in (None, "true"):
        raise Skip("BadLabel", f'the pod\'s label {LABEL} is {label!r}: it takes "true" or "false"')
    if label is None and place.labelled:
        raise Skip("NoLabel", f'the pod has no label {LABEL}: "true"')
    if _MIRROR in (metadata.get("annotations") or {}):
        raise Skip("StaticPod", "it is the mirror of a static pod, which only its file on the node can change")
    if (spec.get("os") or {}).get("name") == "windows" or (spec.get("nodeSelector") or {}).get(
        "kubernetes.io/os"
    ) == "windows":
        raise Skip("Windows", "the pod is for Windows nodes")
    if spec.get("hostPID"):
        raise Skip("HostPID", "with hostPID Rankguard would see every process of the node")
    if spec.get("shareProcessNamespace") is False:
        raise Skip("ProcessesNotShared", "the pod says shareProcessNamespace: false, and Rankguard needs true")
    for container in containers:
        for where, words in _commands(container):
            _refuse_command(f"{where} of container {container['name']}", words)


def every_container(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(spec.get("initContainers") or []), *spec["containers"]]


def _commands(container: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    """Everything that the pod has run in this container, with where it says so."""
    yield "the command", [*(container.get("command") or []), *(container.get("args") or [])]
    lifecycle = container.get("lifecycle") or {}
    hooks = {f"the {name} hook": lifecycle.get(name) for name in ("preStop", "postStart")}
    probes = {f"the {name}": container.get(name) for name in ("livenessProbe", "startupProbe", "readinessProbe")}
    for where, action in (hooks | probes).items():
        yield where, ((action or {}).get("exec") or {}).get("command") or []


def _refuse_command(where: str, words: Sequence[str]) -> None:
    """In a shared namespace PID 1 is the pod's pause process: a TERM to it restarts every container, and an init that
    has to be PID 1 does not start.
    """
    if not any(_WORTH_A_LOOK.search(word) for word in words):
        return
    if sum(map(len, words)) > LONGEST:
        raise Skip(
            "CommandTooLong", f"{where} has more than {LONGEST} characters, too many to look for signals to PID 1"
        )
    for command in _simple_commands(words):
        if _kills_one(command):
            raise Skip("SignalsPidOne", f"{where} signals PID 1, which in a shared namespace is the whole pod")
        if command and (command[0].rpartition("/")[2] in _INIT or command[0] in _INIT_PATHS):
            raise Skip("InitSystem", f"{where} is {command[0]}, which has to be PID 1")
    if any(_PROC_ONE.search(word) or _CALL_ONE.search(word) for word in words):
        raise Skip("SignalsPidOne", f"{where} names PID 1, which in a shared namespace is the pod's pause process")


def _simple_commands(words: Sequence[str], depth: int = 0) -> Iterator[list[str]]:
    """The command itself, and each that a shell would find in one of its words: `sh -c "a; b"`, `trap "a" TERM`."""
    yield _stripped(list(words))
    for before, word in zip(("", *words), words, strict=False):
        script = _SCRIPT.search(word) or re.fullmatch(r"-[a-z]*c", before)
        if script and depth < _DEEPEST:
            for part in _ENDS.split(word):
                yield from _simple_commands(split(part), depth + 1)


def split(text: str) -> list[str]:
    """The words of a shell's command line, as well as can be."""
    try:
        return shlex.split(text)
    except ValueError:  # a quote that another part of the line closes
        return text.replace('"', " ").replace("'", " ").split()


def _stripped(command: list[str]) -> list[str]:
    """Without what may stand before a command: assignments and words such as `exec`."""
    return list(itertools.dropwhile(_stands_before, command))


def _stands_before(word: str) -> bool:
    return word.rpartition("/")[2] in _BEFORE_A_COMMAND or re.match(r"[A-Za-z_]\w*=", word) is not None


def _kills_one(command: Sequence[str]) -> bool:
    if not command or command[0].rpartition("/")[2] != "kill":
        return False
    operands = list(command[1:])
    if operands and operands[0] in ("-s", "-n", "--signal"):
        operands = operands[2:]
    elif operands and operands[0] != "--" and _NAMES_OF_SIGNALS.fullmatch(operands[0]):
        operands = operands[1:]
    return any(operand in ("1", "-1") for operand in operands)
