"""The engines' own metrics: what is read from a page, and that no page can do harm."""

from __future__ import annotations

import asyncio
import gzip
from itertools import pairwise

import pytest
from engine_http import answers, hangs_up, pours, served, silent
from engine_pages import sglang_page, vllm_page
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar.policy.sightings import Scrape
from sidecar.web.liveness.scrape import Garbage, Page, scrape

PATIENT, SHORT = 30.0, 0.3
HEAD = "HTTP/1.1 200 OK\nContent-Type: text/plain; version=0.0.4"


def read(page: bytes, engine: str) -> Scrape:
    """A page that comes whole."""
    found = Page(engine)
    found.take(page)
    return found.scrape(0.0)


def fetched(handler, engine: str = "vllm", timeout: float = PATIENT) -> tuple[Scrape, bytes, list[str]]:
    """One scrape of a server with this handler, and the troubles it told of."""
    troubles: list[str] = []

    async def run() -> tuple[Scrape, bytes]:
        async with served(handler) as url:
            return await scrape(url + "/metrics", timeout, engine, on_trouble=troubles.append)

    found, lines = asyncio.run(run())
    return found, lines, troubles


@pytest.mark.parametrize(("page", "engine"), [(sglang_page(), "sglang"), (vllm_page(), "vllm")])
def test_an_idle_engine_has_numbers_and_they_are_zero(page, engine):
    assert len(page.splitlines()) > 1000
    found = read(page, engine)
    assert (found.running, found.waiting, found.moved) == (0.0, 0.0, 0.0)


def test_numbers_are_summed_over_data_parallel_engines():
    found = read(vllm_page(running=(3, 0, 0, 2), waiting=(0, 7, 0, 0), generated=100, steps=4), "vllm")
    assert (found.running, found.waiting, found.moved) == (5.0, 7.0, 104.0)
    found = read(sglang_page(running=(1, 2), waiting=(0, 4), generated=50), "sglang")
    assert (found.running, found.waiting, found.moved) == (3.0, 4.0, 50.0)


def test_a_part_of_a_number_by_priority_is_not_added_to_it():
    page = sglang_page(waiting=(0, 4), priorities=True)
    assert page.count(b'priority="1"') == 2
    assert read(page, "sglang").waiting == 4.0


@pytest.mark.parametrize(
    ("before", "after", "engine"),
    [
        (vllm_page(generated=10), vllm_page(generated=11), "vllm"),
        (vllm_page(steps=1), vllm_page(steps=2), "vllm"),
        (vllm_page(usage=0.1), vllm_page(usage=0.2), "vllm"),  # a prefill in chunks gives no token for long
        (sglang_page(generated=10), sglang_page(generated=11), "sglang"),
        (sglang_page(usage=0.1), sglang_page(usage=0.2), "sglang"),
    ],
)
def test_whatever_moves_in_an_engine_shows(before, after, engine):
    assert read(before, engine).moved != read(after, engine).moved


@pytest.mark.parametrize("name", ["time_to_first_token_seconds", "inter_token_latency_seconds"])
def test_a_long_answer_of_sglang_shows_before_its_end(name):
    """Its token counters rise when a request ends; until then there are the counts of its latencies."""
    assert read(sglang_page(observed=name), "sglang").moved == 4.0
    assert read(sglang_page(observed="e2e_request_latency_seconds"), "sglang").moved == 0.0


@pytest.mark.parametrize(
    ("before", "after", "engine"),
    [
        (vllm_page(running=(1, 0, 0, 0)), vllm_page(running=(2, 0, 0, 0)), "vllm"),
        (vllm_page(waiting=(1, 0, 0, 0)), vllm_page(waiting=(9, 0, 0, 0)), "vllm"),
        (vllm_page(aborted=1), vllm_page(aborted=2), "vllm"),  # a client that gave up is no progress
        (sglang_page(waiting=(1, 0)), sglang_page(waiting=(9, 0)), "sglang"),
    ],
)
def test_requests_that_come_or_give_up_are_no_motion(before, after, engine):
    """Clients come, wait and leave in front of an engine that hangs."""
    assert read(before, engine).moved == read(after, engine).moved


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        (b"vllm:generation_tokens 5", 5.0),  # without the ending
        (b"vllm:generation_tokens_total 5 1700000000000", 5.0),
        (b"vllm:generation_tokens_total\t5", None),  # as no engine writes it
        (b"vllm:generation_tokens_total NaN\nvllm:prompt_tokens_total 2", 2.0),
        (b"vllm:generation_tokens_total +Inf", None),
        (b"vllm:generation_tokens_created 1.7e9", None),
        (b"vllm:generation_tokens_total_bucket 3", None),
        (b"# HELP vllm:generation_tokens_total 3", None),
        (b'vllm:generation_tokens_total{model_name="a b{c} \\"d\\" 9"} 3', 3.0),
        (b"sglang:generation_tokens_total 3", None),
        (b"", None),
    ],
)
def test_forms_of_a_line(line, moved):
    assert read(line, "vllm") == Scrape(0.0, None, None, moved)


def test_any_other_engine_is_read_by_either_ones_names():
    page = b"sglang:num_running_reqs 1\nvllm:num_requests_waiting 2\nother_total 3\n"
    assert read(page, "generic") == Scrape(0.0, 1.0, 2.0, None)
    assert read(b"other_total 3\n", "generic") == Scrape(0.0)
    assert read(page, "sglang") == Scrape(0.0, 1.0, None, None)


@pytest.mark.parametrize(("page", "engine"), [(sglang_page(), "sglang"), (vllm_page(), "vllm")])
@given(cuts=st.lists(st.integers(0, 60_000), max_size=8))
def test_pieces_make_the_same_page(page, engine, cuts):
    found = Page(engine)
    places = [0, *sorted(cuts), len(page)]
    for start, end in pairwise(places):
        found.take(page[start:end])
    assert found.scrape(0.0) == read(page, engine)


def test_what_is_kept_is_a_small_page_of_what_was_there():
    page = vllm_page(running=(1, 0, 0, 0), generated=5)
    found, lines, troubles = fetched(answers(f"{HEAD}\nContent-Length: {len(page)}", page))
    assert (found.running, found.moved, troubles) == (1.0, 5.0, [])
    assert set(lines.splitlines()) < set(page.splitlines())
    assert len(lines) < len(page) / 10
    assert {family.name for family in text_string_to_metric_families(lines.decode())} > {
        "vllm:num_requests_running",
        "vllm:iteration_tokens_total_count",
    }


def test_the_page_is_asked_for_unpacked_and_as_text():
    seen: list[str] = []
    fetched(answers(f"{HEAD}\nContent-Length: 0", seen=seen))
    assert seen[0].startswith("GET /metrics HTTP/1.1\r\n")
    assert "Accept: text/plain" in seen[0]
    assert "encoding" not in seen[0].lower()


GOOD = b"vllm:num_requests_running 1\n"
PACKED = gzip.compress(GOOD)
CHUNKED = f"{HEAD}\nTransfer-Encoding: chunked\n\n"


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answers("HTTP/1.1 404 Not Found\nContent-Length: 0"), "404"),
        (answers("HTTP/1.1 307 Gone\nLocation: /metrics/\nContent-Length: 0"), "307"),
        (answers(f"{HEAD}\nContent-Encoding: gzip\nContent-Length: {len(PACKED)}", PACKED), "gzip"),
        (answers(f"{HEAD}\nContent-Length: 1000", GOOD), "no HTTP answer"),  # it ends too early
        (answers(HEAD, b"vllm:num_requests_running one\n"), "cannot be read"),
        (answers(HEAD, b"vllm:num_requests_running{ 1\n"), "cannot be read"),
        (answers(HEAD, b'vllm:num_requests_running{a="\xff"} 1\n'), "cannot be read"),
        (answers(HEAD, b"vllm:num_requests_running " + b"9" * 4000), "cannot be read"),
        (answers(HEAD, b"x" * 10_000), "a line of more than"),
        (answers(HEAD, b"vllm:num_requests_running{" + b"\\" * 5000 + b"} 1\n"), "more than any engine has"),
        (answers(HEAD, GOOD * 10_000), "more than any engine has"),
        (pours(f"{HEAD}\n\n", b"other 1\n" * 8192), "bytes"),
        (pours(CHUNKED, b"1\r\n\n\r\n" * 1000), "pieces"),
        (hangs_up, "no HTTP answer"),
    ],
)
def test_what_is_no_page_costs_a_line_and_gives_no_numbers(handler, words):
    found, lines, troubles = fetched(handler)
    assert found == Scrape(found.at)
    assert lines == b""
    assert len(troubles) == 1
    assert words in troubles[0]
    assert len(troubles[0]) < 400


@pytest.mark.parametrize("handler", [silent, pours(CHUNKED, b"1c\r\n" + GOOD + b"\r\n", 0.005)])
def test_a_page_that_does_not_end_has_one_time_limit(handler):
    found, lines, troubles = fetched(handler, timeout=SHORT)
    assert (found, lines, troubles) == (Scrape(found.at), b"", ["no answer in 0.3 s"])


def test_nobody_listens():
    found, lines = asyncio.run(scrape("http://127.0.0.1:1/metrics", PATIENT, "vllm"))
    assert (found, lines) == (Scrape(found.at), b"")


PREFIX = st.sampled_from([b"vllm:num_requests_running", b"vllm:prompt_tokens_total{", b"sglang:token_usage ", b""])
TEXT = st.text(alphabet='ab{}",=\\ #\t\r1.eE+-_x\x0b\u2028\u00e9', max_size=30).map(str.encode) | st.binary(max_size=30)


@given(st.lists(st.tuples(PREFIX, TEXT).map(b"".join), max_size=5))
def test_no_page_does_more_than_make_no_sense(lines):
    try:
        found = read(b"\n".join(lines), "generic")
    except Garbage:
        return
    assert all(number is None or isinstance(number, float) for number in (found.running, found.waiting, found.moved))
