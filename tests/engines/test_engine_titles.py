"""A process that says what it is, is believed; text that merely mentions it is not."""

from __future__ import annotations

import itertools

import engine_forms as forms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.engines.generic import ByEnvironment
from sidecar.engines.labels import rank_label
from sidecar.engines.profile import Title
from sidecar.engines.sglang import Sglang
from sidecar.engines.table import profiles
from sidecar.engines.vllm import Vllm
from sidecar.errors import SettingError
from sidecar.model import Role

SGLANG, VLLM = Sglang(), Vllm()
EVERY = (*profiles("auto", None), *profiles("generic", None))


@pytest.mark.parametrize(("text", "role", "rank"), forms.SGLANG_TITLES)
def test_sglang_titles(text, role, rank):
    assert SGLANG.title((text,), {}) == Title(role, rank, provisional=False)
    assert VLLM.title((text,), {}) is None


@pytest.mark.parametrize(("text", "role", "rank"), forms.VLLM_TITLES)
def test_vllm_titles(text, role, rank):
    """A bare worker may be renamed once its groups are there, and no other title is."""
    assert VLLM.title((text,), {}) == Title(role, rank, provisional=text == "VLLM::Worker")
    assert SGLANG.title((text,), {}) is None


@pytest.mark.parametrize("text", forms.NO_TITLES)
def test_text_around_a_title_is_no_title(text):
    assert [profile.title((text,), {}) for profile in EVERY] == [None] * len(EVERY)


@pytest.mark.parametrize("line", [*(tuple(x.split()) for x in forms.STRANGERS), *forms.STRANGERS_IN_ARGUMENTS])
def test_strangers_have_no_title(line):
    assert [profile.title(line, {}) for profile in EVERY] == [None] * len(EVERY)


@pytest.mark.parametrize("prefix", ["sglang::scheduler", "VLLM::Worker"])
def test_one_process_has_one_label_whatever_the_order_of_its_suffixes(prefix):
    labels = set()
    for order in itertools.permutations(["_DP1", "_PP0", "_TP3", "_EP7"]):
        title = (SGLANG if prefix.startswith("sglang") else VLLM).title((prefix + "".join(order),), {})
        assert title is not None
        labels.add(title.rank)
    assert labels == {"DP1_PP0_TP3_EP7"}


NAMES = st.sampled_from(["DP", "PP", "ATTN_CP", "MOE_DP", "PCP", "TP", "DCP", "EP", "FS", "X", "A_B"])


@given(st.dictionaries(NAMES, st.integers(0, 999999), max_size=6), st.randoms())
def test_labels_are_stable_and_tell_ranks_apart(numbers, random):
    """Any order gives one label, and two ranks whose numbers differ never share one."""
    items = list(numbers.items())
    random.shuffle(items)
    label = rank_label("".join(f"_{name}{number}" for name, number in items), "scheduler")
    assert label == rank_label("".join(f"_{name}{number}" for name, number in sorted(items)), "scheduler")
    assert label == "scheduler" or sorted(label.split("_")) == sorted(
        part for name, number in items for part in f"{name}{number}".split("_")
    )


FOREIGN = st.characters(exclude_categories=["L", "N", "Cs"], exclude_characters="-_.")


@given(st.sampled_from([text for text, _, _ in forms.SGLANG_TITLES + forms.VLLM_TITLES]), st.text(FOREIGN, min_size=1))
def test_a_title_inside_other_text_is_never_matched(title, text):
    """Before it, behind it, as a later argument, in a sentence: none."""
    for argv in [
        (f"{text}{title}",),
        (f"{title}{text}",),
        (text, title),
        (f"{title} {text}",),
        (f"{text} {title}",),
        ("grep", "-e", title),
    ]:
        assert [profile.title(argv, {}) for profile in EVERY] == [None] * len(EVERY)


LAUNCHED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
(GENERIC,) = profiles("generic", None)
BY_CHANCE = profiles("auto", None)[-1]


@pytest.mark.parametrize(
    "line", ["python serve.py", "/opt/venv/bin/python -u -m serve --tp 4", "./serve", "bash ./run.sh"]
)
def test_a_launchers_environment_makes_a_rank(line):
    assert GENERIC.title(line.split(), LAUNCHED) == Title(Role.WORKER, "RANK3")
    assert BY_CHANCE.title(line.split(), LAUNCHED) == Title(Role.WORKER, "RANK3")


@pytest.mark.parametrize(
    "line",
    [
        *(tuple(x.split()) for x in (*forms.TORCHRUN, *forms.SGLANG_SERVERS[:-1], *forms.VLLM_SERVERS)),
        ("python", "-c", forms.SPAWN, "--multiprocessing-fork"),
        ("python", "-c", forms.TRACKER),
        ("python", "-c", forms.FORKSERVER),
        ("python", "/venv/lib/torch/_inductor/compile_worker/__main__.py", "--pickler=x", "--parent=7"),
        (),
    ],
)
def test_what_inherits_that_environment_and_is_no_rank(line):
    """The agent, another engine's server (a pod may set these for all), and what a rank starts for itself."""
    assert GENERIC.title(line, LAUNCHED) is None
    assert BY_CHANCE.title(line, LAUNCHED) is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "0"},
        {"WORLD_SIZE": "4"},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "x", "WORLD_SIZE": "4"},
        {"RANK": "0", "WORLD_SIZE": "0"},
        {"RANK": "0", "WORLD_SIZE": "4.0"},
        {"RANK": "٣", "WORLD_SIZE": "4"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "1" * 5000, "WORLD_SIZE": "9" * 5000},
    ],
)
def test_an_environment_that_makes_no_rank(environ):
    assert GENERIC.title(("python", "serve.py"), environ) is None


def test_a_pods_own_environment_makes_ranks_only_where_the_engine_is_told_to_be_generic():
    """A training operator gives RANK and WORLD_SIZE to a person's shell too."""
    pod = {"RANK": "0", "WORLD_SIZE": "2"}
    assert BY_CHANCE.title(("python", "serve.py"), pod) is None
    assert GENERIC.title(("python", "serve.py"), pod) == Title(Role.WORKER, "RANK0")


@pytest.mark.parametrize(
    ("pattern", "line", "rank"),
    [
        (r"serve\.py --rank (?P<TP>\d+)", "python serve.py --rank 3", "TP3"),
        (r"--dp (?P<DP>\d+) --tp (?P<TP>\d+)", "serve --dp 1 --tp 3 --x", "DP1_TP3"),
        (r"--tp (?P<TP>\d+) --dp (?P<DP>\d+)", "serve --tp 3 --dp 1", "TP3_DP1"),
        (r"--tp (?P<TP>\d+)(?: --dp (?P<DP>\d+))?", "serve --tp 3", "TP3"),
        (r"rank(\d+)of(\d+)", "serve rank3of8", "3_8"),
        (r"(a)?rank(\d+)", "rank3", "3"),
        (r"^worker", "worker --x", "worker"),
        (r"name=(?P<N>.*)", "serve name=../../x\ny z", "N.._.._x"),
        (r"name=(?P<N>\S*)", "serve name=", "worker"),
        (r"name=(?P<N>\S*)", "serve name=" + "a" * 500, "N" + "a" * 63),
    ],
)
def test_a_pattern_finds_ranks_and_its_groups_are_the_label(pattern, line, rank):
    (generic,) = profiles("generic", pattern)
    assert generic.title(line.split(" "), LAUNCHED) == Title(Role.WORKER, rank)


def test_with_a_pattern_nothing_else_counts():
    (generic,) = profiles("generic", "worker")
    assert generic.title(("python", "serve.py"), LAUNCHED) is None
    assert generic.is_server(("torchrun", "worker.py")) is False
    assert generic.expected(("worker",), LAUNCHED) is None
    assert generic.environment == ()
    assert profiles("auto", "worker")[-1] == generic


def test_the_table():
    assert [p.name for p in profiles("auto", None)] == ["sglang", "vllm", "generic"]
    assert profiles("sglang", "x") == (Sglang(),)
    assert profiles("vllm", None) == (Vllm(),)
    assert profiles("generic", None) == (ByEnvironment(servers=(Sglang(), Vllm())),)
    assert {"RANK", "WORLD_SIZE"} <= set(GENERIC.environment)


@pytest.mark.parametrize(("engine", "pattern"), [("trt", None), ("", None), ("generic", "("), ("auto", "(?P<1>x)")])
def test_bad_settings_are_the_callers_fault(engine, pattern):
    with pytest.raises(SettingError):
        profiles(engine, pattern)
