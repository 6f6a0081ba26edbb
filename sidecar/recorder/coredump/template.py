"""What the driver calls its trigger pipe and its dump file, from the environment of the process it is in.

From NVIDIA's documentation (CUDA-GDB manual, "GPU core dump support"; driver API, "Coredump Attributes Control"):
`CUDA_ENABLE_USER_TRIGGERED_COREDUMP=1` makes the driver read a pipe; `CUDA_COREDUMP_PIPE` and `CUDA_COREDUMP_FILE` name
the pipe and the file; in both `%h` is the host name, `%p` the process id, `%t` the time; a relative path begins at the
working directory. The manual and the driver API give different default names, and drivers have been seen with a third
for the pipe (SGLang looks for it too), so without a setting each of them counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ENABLED = "CUDA_ENABLE_USER_TRIGGERED_COREDUMP"
PIPE = "CUDA_COREDUMP_PIPE"
FILE = "CUDA_COREDUMP_FILE"
FLAGS = "CUDA_COREDUMP_GENERATION_FLAGS"
VARIABLES = (ENABLED, PIPE, FILE, FLAGS)

_PIPES = ("corepipe.cuda.%h.%p", "corepipe_%h_%p")
_FILES = ("core.cuda.%h.%p", "core_%t_%h_%p.nvcudmp")
# What SGLang sets by itself, at run time, where it was given --crash-dump-folder and nobody has set anything.
_SGLANG_PIPE = "/tmp/corepipe.cuda.%h.%p"  # noqa: S108 - a name to look for, never made by us
_SGLANG_FILE = "%h/core.cuda.%t.%p"
_PLACEHOLDER = re.compile(r"%[hpt]")


@dataclass(frozen=True, slots=True)
class Names:
    """Templates of the pipe and the file, likeliest first. `enabled` is None where the environment does not say.

    `keeps_running`: the process was told to go on after a dump.
    """

    enabled: bool | None
    keeps_running: bool
    pipes: tuple[str, ...]
    files: tuple[str, ...]


def names(environ: Mapping[str, str], crash_folder: str = "") -> Names:
    """`crash_folder`: what SGLang's --crash-dump-folder says, "" where it says nothing."""
    enabled = {"1": True}.get(environ[ENABLED], False) if ENABLED in environ else (True if crash_folder else None)
    flags = {flag.strip() for flag in environ.get(FLAGS, "").split(",")}
    pipes = (environ[PIPE],) if environ.get(PIPE) else ((_SGLANG_PIPE, *_PIPES) if crash_folder else _PIPES)
    files: tuple[str, ...] = _FILES
    if environ.get(FILE):
        files = (environ[FILE],)
    elif crash_folder:
        files = (f"{crash_folder.rstrip('/')}/{_SGLANG_FILE}", *_FILES)
    return Names(enabled, "skip_abort" in flags, pipes, files)


def expand(template: str, host: str, pid: int) -> tuple[str, re.Pattern[str]]:
    """(folder, what the file's name looks like); the folder is "" where the template names none.

    A time can be any number, so the name is a pattern. In the folder part `%t` stays as it is: it then names nothing.
    """
    folder, slash, name = template.rpartition("/")
    folder = folder.replace("%h", host).replace("%p", str(pid))
    values = {"%h": re.escape(host), "%p": str(pid), "%t": r"\d+"}
    parts = _PLACEHOLDER.split(name)
    found = [values[match.group()] for match in _PLACEHOLDER.finditer(name)] + [""]
    pattern = "".join(re.escape(part) + value for part, value in zip(parts, found, strict=True))
    return folder or slash, re.compile(pattern)


def likely_file(pid: int) -> tuple[str, re.Pattern[str]]:
    """What a dump is called in the working folder where nobody knows its name: a word of its kind and the pid."""
    return "", re.compile(rf"(?i)(?=.*(?:core|cuda|nvcudmp)).*(?<![0-9]){pid}(?![0-9]).*")
