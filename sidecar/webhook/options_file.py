"""The file with an installation's defaults for injection, and the thread that looks at files that may change.

A ConfigMap's volume takes up to a minute to change, and then swaps a symbolic link. Bytes are compared, not dates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from sidecar.errors import SettingError, UsageError
from sidecar.inject.options import Options, load_options
from sidecar.log import Log
from sidecar.webhook.metrics import Metrics

LOOK_AGAIN = 1.0  # seconds
_MOST_BYTES = 1 << 20


class _NoDuplicates(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; here they are a mistake to be told."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (name := key.value) in seen:
                raise UsageError(f"it gives {str(name)[:60]!r} a second time in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read(path: str) -> bytes:
    """Raises `SettingError`."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingError("--config", path, f"it cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise SettingError("--config", path, f"it is larger than {_MOST_BYTES} bytes")
    return data


def parse(data: bytes, path: str) -> Options:
    """Raises `UsageError` with what is wrong in it."""
    try:
        found = yaml.load(data, _NoDuplicates)  # noqa: S506 - a SafeLoader
        if found is None:
            found = {}
        if not isinstance(found, dict):
            raise SettingError("--config", path, "it is no mapping of options to values")
        return load_options(found)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SettingError("--config", path, f"it is not valid YAML{place}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a date that is none, a list for a key
        raise SettingError("--config", path, "it holds a value that cannot be read") from error
    except SettingError:
        raise
    except UsageError as error:
        raise UsageError(f"--config: {path}: {error}") from error


class OptionsFile:
    """`current` stands until a new file can be read whole. `look` is called from one thread."""

    def __init__(self, path: str | None, metrics: Metrics, log: Log) -> None:
        """Raises `UsageError`."""
        self._path = path
        self._metrics = metrics
        self._log = log
        self._data = read(path) if path else b""
        self._trouble = ""
        self.current = parse(self._data, path) if path else load_options({})

    def look(self) -> None:
        if self._path is None:
            return
        try:
            data = read(self._path)
            if data != self._data:
                self.current, self._data = parse(data, self._path), data
                self._log("the options were read again", path=self._path)
            self._trouble = ""
            self._metrics.config_errors.set(0)
        except UsageError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._metrics.config_errors.set(1)
                self._log("the new options cannot be used; the old ones stay", because=error)


def keep_looking(looks: Sequence[Callable[[], None]], log: Log) -> None:
    """Call them again and again on a daemon thread: a volume that hangs holds up nothing else."""
    pause = threading.Event()

    def run() -> None:
        while not pause.wait(LOOK_AGAIN):
            for look in looks:
                try:
                    look()
                except Exception as error:  # noqa: BLE001 - the thread's outermost loop
                    log("a bug", what="files", error=f"{type(error).__name__}: {error}")

    threading.Thread(target=run, name="files", daemon=True).start()
