"""`helm` as the README calls it, played by Helm's own engine: there need be no `helm` on the machine.

    python helm_line.py install NAME CHART --namespace NAMESPACE --create-namespace --set KEY=VALUE

MORE_VALUES in the environment is JSON that is laid under what --set says. An option that is not known here ends it
with 2.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import helm_python

Values = dict[str, Any]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="helm")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("install", "upgrade", "test", "rollback", "uninstall"):
        command = commands.add_parser(name)
        command.add_argument("release")
        command.add_argument("--namespace", "-n", required=True)
        if name in ("install", "upgrade"):
            command.add_argument("chart")
            command.add_argument("--set", action="append", default=[])
        if name == "install":
            command.add_argument("--create-namespace", action="store_true")
        if name == "rollback":
            command.add_argument("revision", type=int)
    return parser.parse_args(arguments)


def values(settings: Sequence[str], below: Values | None = None) -> Values:
    """What --set says: `a.b=c`, and `a.b={c,d}` for a list. Raises `ValueError` for more than that."""
    result: Values = json.loads(json.dumps(below or {}))
    for setting in settings:
        found = re.fullmatch(r"([A-Za-z][\w.]*)=(?:\{([^{}]*)\}|([^{},]*))", setting)
        if found is None:
            raise ValueError(f"--set {setting}: only KEY=VALUE and KEY={{VALUE,VALUE}} are known here")
        *path, last = found[1].split(".")
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = [each for each in found[2].split(",") if each] if found[2] is not None else found[3]
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    import sys

    told = parsed(sys.argv[1:] if arguments is None else arguments)
    below = json.loads(os.environ.get("MORE_VALUES") or "{}")
    with helm_python.Config(namespace=told.namespace) as helm:
        if told.command == "install":
            helm.install(
                told.chart, told.release, values(told.set, below), namespace=told.namespace,
                create_namespace=told.create_namespace, timeout=300,
            )  # fmt: skip
        elif told.command == "upgrade":
            helm.upgrade(told.chart, told.release, values(told.set, below), namespace=told.namespace, timeout=300)
        elif told.command == "test":
            helm.test(told.release, timeout=300)
        elif told.command == "rollback":
            helm.rollback(told.release, version=told.revision, timeout=300)
        else:
            helm.uninstall(told.release, timeout=300)


if __name__ == "__main__":
    main()
