"""Options are read as the engines themselves read them: with argparse."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engines.command_line import Options, read_options

NAMES = {"--tp-size": "tp", "--tensor-parallel-size": "tp", "--data-parallel-size": "dp", "--dp-size": "dp",
         "--data-parallel-size-local": "local", "--nnodes": "nnodes"}  # fmt: skip
EXACT = {"-tp": "tp", "-dpl": "local"}
OTHERS = ["--model", "--model-path", "--host"]


class Refused(Exception):
    pass


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refused(message)


def parser() -> Parser:
    made = Parser(add_help=False)
    for name in ("tp", "dp", "local", "nnodes"):
        made.add_argument(*(option for option, to in (NAMES | EXACT).items() if to == name), dest=name)
    for option in OTHERS:
        made.add_argument(option)
    made.add_argument("--trust-remote-code", action="store_true")
    made.add_argument("model_tag", nargs="?")
    return made


WORDS = st.one_of(
    st.sampled_from(
        [*NAMES, *EXACT, *OTHERS, "--trust-remote-code", "m", "8", "-1", "{}", "-tp=2", "--tp=4", "--host=x"]
    ),
    st.sampled_from([*NAMES]).flatmap(lambda name: st.integers(4, len(name)).map(lambda end: name[:end])),
    st.sampled_from([*NAMES]).flatmap(lambda name: st.integers(4, len(name)).map(lambda end: f"{name[:end]}=3")),
)


@given(st.lists(WORDS, max_size=7))
def test_what_argparse_accepts_is_read_the_same(args):
    """Where an engine would have refused its command line there is no engine; everywhere else the values agree."""
    try:
        real = {name: value for name, value in vars(parser().parse_args(args)).items() if value is not None}
    except Refused:
        read_options(args, NAMES, EXACT)  # it must still not raise
        return
    found = read_options(args, NAMES, EXACT)
    assert not found.doubtful
    assert dict(found.values) == {name: real[name] for name in ("tp", "dp", "local", "nnodes") if name in real}


@pytest.mark.parametrize(
    ("args", "values", "doubtful"),
    [
        ("--data-parallel 2", {}, True),
        ("--data-parallel-size 2", {"dp": "2"}, False),
        ("--data-parallel-size-l 2", {"local": "2"}, False),
        ("--data_parallel_size_local 2", {"local": "2"}, False),
        ("--tp_size=2", {"tp": "2"}, False),
        ("--tp", {"tp": ""}, False),
        ("--t 2", {}, False),  # too short to be taken for anything
        ("--tp-sizes 2", {}, False),
        ("-- --tp-size 2", {}, False),
        ("x_y --model a_b --tp-size 2", {"tp": "2"}, False),
    ],
)
def test_words_that_may_mean_several_options_are_doubtful(args, values, doubtful):
    assert read_options(args.split(), NAMES, EXACT, underscores=True) == Options(values, doubtful)
