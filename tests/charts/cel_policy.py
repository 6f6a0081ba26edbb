"""An admission policy of the chart as the API server would evaluate it, by another implementation of CEL.

What that one lacks is put in: `dyn`, the authorizer's methods, and `JSONPatch{…}`, which becomes a map. What it does
not do is check types before it evaluates, as the API server does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cel

_OPERATION = re.compile(r"JSONPatch\{op: ('\w+'), path: ")
_VALUE = re.compile(r", value: ")


@dataclass
class Request:
    """`allowed`: what the user may do beside what the chart gives, as (verb, resource)."""

    operation: str
    object: dict[str, Any] | None = None
    old: dict[str, Any] | None = None
    namespace: str = "inference"
    username: str = "system:serviceaccount:inference:default"
    extra: Mapping[str, list[str]] | None = None
    allowed: set[tuple[str, str]] = field(default_factory=set)
    labels: Mapping[str, str] = field(default_factory=dict)  # of the namespace


class Evaluation:
    """The conditions and variables of `spec` for one request."""

    def __init__(self, spec: Mapping[str, Any], request: Request) -> None:
        self._spec = spec
        self._context = cel.Context()
        info: dict[str, Any] = {"username": request.username}
        if request.extra is not None:
            info["extra"] = dict(request.extra)
        named = request.object or request.old or {}
        for name, value in {
            "request": {
                "operation": request.operation,
                "namespace": request.namespace,
                "name": named.get("metadata", {}).get("name", ""),
                "userInfo": info,
            },
            "object": request.object,
            "oldObject": request.old,
            "namespaceObject": {"metadata": {"name": request.namespace, "labels": dict(request.labels)}},
            "authorizer": {"namespace": ""},
        }.items():
            self._context.add_variable(name, value)
        for name, function in _functions(request).items():
            self._context.add_function(name, function)

    def matches(self) -> bool:
        return all(self.value(each["expression"]) is True for each in self._spec.get("matchConditions", []))

    def variables(self) -> dict[str, Any]:
        """In their order, since one may use those before it."""
        found: dict[str, Any] = {}
        for each in self._spec.get("variables", []):
            self._context.add_variable("variables", found)
            found[each["name"]] = self.value(each["expression"])
        self._context.add_variable("variables", found)
        return found

    def value(self, expression: str) -> Any:
        if "JSONPatch{" in expression:
            expression, count = _OPERATION.subn(r"{'op': \1, 'path': ", expression)
            values = len(_VALUE.findall(expression))
            assert count == values, "a JSONPatch is written in another way than JSONPatch{op: '…', path: …, value: …}"
            expression = _VALUE.sub(", 'value': ", expression)
        return cel.evaluate(expression, self._context)


def _functions(request: Request) -> dict[str, Callable[..., Any]]:
    def allowed(check: Mapping[str, Any]) -> bool:
        assert check["group"] == ""
        assert check["namespace"] == request.namespace
        return (check["verb"], check["resource"]) in request.allowed

    return {
        "dyn": lambda value: value,
        "group": lambda check, name: {**check, "group": name},
        "resource": lambda check, name: {**check, "resource": name},
        "namespace": lambda check, name: {**check, "namespace": name},
        "check": lambda check, verb: {**check, "verb": verb},
        "allowed": allowed,
        "replace": lambda text, old, new: text.replace(old, new),
        "split": lambda text, by: text.split(by),
        "join": lambda items, by: by.join(items),
        "trim": lambda text: text.strip(),
        "upperAscii": lambda text: text.upper(),
        "min": min,
    }
