"""Command lines as their programs read them: which program runs, and what its options say.

A program is known by what is executed, never by a word somewhere in the line: an editor, a grep, a shell with `-c` or
a launcher that mentions a server is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*[td]?")
_NUMBER = re.compile(r"[0-9]{1,5}")
_ZERO = re.compile(r"0{1,5}")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_LARGEST_PORT = 65535
_LARGEST = 65536
# CPython's options that take a value, in the same argument or in the next; two of them end the interpreter's own.
_TAKES_VALUE = "cmWX"
_SHORTEST_ABBREVIATION = 4  # "--tp"


SCRIPT, MODULE, CODE = "script", "module", "code"
_STARTS = {"c": CODE, "m": MODULE}


@dataclass(frozen=True, slots=True)
class Program:
    """What runs, and the arguments it sees.

    `kind` is SCRIPT (`name` is the path of a script or of a binary), MODULE (`python -m NAME`) or CODE (`python -c`).
    """

    kind: str
    name: str
    args: tuple[str, ...]


def program(argv: Sequence[str]) -> Program | None:
    """What `argv` executes, or None for nothing at all and for an interpreter that reads its standard input."""
    if not argv or not argv[0]:
        return None
    if not _PYTHON.fullmatch(argv[0].rpartition("/")[2]):
        return Program(SCRIPT, argv[0], tuple(argv[1:]))
    at = 1
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--check-hash-based-pycs":
            at += 1
        elif word in ("", "-") or word.startswith("--"):
            return None
        elif not word.startswith("-"):
            return Program(SCRIPT, word, tuple(argv[at:]))
        else:
            # Letters may be joined, `-um NAME`, and a value may be joined to its letter, `-Xutf8`.
            taking = next((place for place, letter in enumerate(word) if letter in _TAKES_VALUE), None)
            if taking is None:
                continue
            value = word[taking + 1 :]
            if not value:
                value = argv[at] if at < len(argv) else ""
                at += 1
            if word[taking] in _STARTS:
                return Program(_STARTS[word[taking]], value, tuple(argv[at:])) if value else None
    return None


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether the program only prints its help and leaves."""
    return any(arg in ("-h", "--help") or arg.startswith("--help=") for arg in args)


@dataclass(frozen=True, slots=True)
class Options:
    """What a command line says of some options, as Python's argparse would read it.

    `values` has the last text given for each option that is there at all. `doubtful` is set where a word could mean
    more than one of them.
    """

    values: Mapping[str, str]
    doubtful: bool = False

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def number(self, name: str, default: int) -> int | None:
        """A whole number from 1 to 65536; `default` where the option is absent, None for any other text."""
        if name not in self.values:
            return default
        return natural(self.values[name])


def natural(text: str) -> int | None:
    """A whole number from 1 to 65536 in plain digits, else None."""
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if 0 < number <= _LARGEST else None


def read_options(
    args: Sequence[str], names: Mapping[str, str], exact: Mapping[str, str], underscores: bool = False
) -> Options:
    """Look for options.

    `names` and `exact` map an option string to the name by which it is wanted; those of `names` may be abbreviated, as
    argparse allows by default. `underscores`: one in an option's name counts as a dash (vLLM's parser does that).
    """
    wanted = {**names, **exact}
    values: dict[str, str] = {}
    doubtful = False
    for at, arg in enumerate(args):
        if arg == "--":
            break
        if not arg.startswith("-"):
            continue
        word, equals, value = arg.partition("=")
        if underscores and word.startswith("--"):
            word = word.replace("_", "-")
        name = wanted.get(word)
        if name is None and word.startswith("--") and len(word) >= _SHORTEST_ABBREVIATION:
            meant = {name for option, name in names.items() if option.startswith(word)}
            doubtful |= len(meant) > 1
            name = meant.pop() if len(meant) == 1 else None
        if name is not None:
            values[name] = value if equals else next(iter(args[at + 1 : at + 2]), "")
    return Options(values, doubtful)


def listens_at(options: Options, host: str, port: int) -> tuple[str, int] | None:
    """Where to connect to a server with the options `host` and `port`, given their defaults.

    A wildcard address is the loopback one. None for what is neither a name nor an address, for a port that the system
    chooses, and where a config file (an option named `file`) may say what the command line does not.
    """
    if options.doubtful or ("file" in options and not ("host" in options and "port" in options)):
        return None
    found = options.number("port", port)
    host = options.values.get("host", host).strip().removeprefix("[").removesuffix("]")
    if not host or set(host) <= set("0."):
        host = "127.0.0.1"
    elif ":" in host and set(host) <= set("0:"):
        host = "::1"
    return (host, found) if found and found <= _LARGEST_PORT and _HOST.fullmatch(host) else None


def is_first_node(options: Options) -> bool:
    """Whether this is the node of rank 0 by the option `node_rank`, as it is without one."""
    return "node_rank" not in options or _ZERO.fullmatch(options.values["node_rank"]) is not None
