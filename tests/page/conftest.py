"""A browser, volumes with incidents, and a viewer over them. CI must have the browser; elsewhere its lack is a skip."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import places  # noqa: F401
import prepare_chromium
import pytest
from browser import Seen, chromium, open_page
from hostile_incidents import make_hostile
from playwright.sync_api import Browser, Error, Page
from real_incidents import Volume, make_many, make_volume
from view_rig import Viewer

TOKEN = "the-token-of-the-page-0123456789"
Look = Callable[..., Seen]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        item.stash[_PASSED] = report.passed


_PASSED = pytest.StashKey[bool]()


# Volumes: each is made once for all workers of a run, by the first that wants it.


@pytest.fixture(scope="session")
def volume(shared: Path) -> Volume:
    """What three real failures left."""
    made = _once(shared / "real", lambda folder: make_volume(folder / "volume").paths())
    return Volume(shared / "real" / "volume", **made)


@pytest.fixture(scope="session")
def hostile(shared: Path) -> tuple[Path, dict[str, str]]:
    """A volume of broken and hostile incidents, and their paths by what is wrong with each."""
    made = _once(shared / "hostile", lambda folder: make_hostile(folder / "volume"))
    return shared / "hostile" / "volume", made


@pytest.fixture(scope="session")
def many(shared: Path) -> Path:
    """A volume of ten thousand incidents."""

    def make(folder: Path) -> dict[str, str]:
        make_many(folder / "volume")
        return {}

    _once(shared / "many", make)
    return shared / "many" / "volume"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "page-volumes"
    folder.mkdir(exist_ok=True)
    return folder


def _once(folder: Path, make: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    """What `make` gave, called by one worker; the others wait for it. What was left half done is made anew."""
    note = folder.with_suffix(".json")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            note.write_text(json.dumps(make(folder)))
    found: dict[str, str] = json.loads(note.read_text())
    return found


# Who serves them.


@pytest.fixture(scope="module")
def viewer(volume: Volume) -> Iterator[Viewer]:
    """A viewer over the real incidents, as it is by default: no token, nothing can be changed."""
    with Viewer(volume.folder) as viewer:
        yield viewer


@pytest.fixture
def writing(volume: Volume, tmp_path: Path) -> Iterator[Viewer]:
    """A viewer with --write and a token, over a copy."""
    copy = tmp_path / "volume"
    shutil.copytree(volume.folder, copy)
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    with Viewer(copy, "--write", "--api-token-file", str(token), token=TOKEN) as viewer:
        yield viewer


# Who looks.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One a module: while it is driven an event loop runs in this thread, and tests of others want to run theirs."""
    if why := prepare_chromium.trouble():
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def look(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Look]:
    """Opens an address in a window of its own: `look(url, expected=(…), color_scheme="dark")`.

    At the end of a test that passed, every page must have been quiet but for what is `expected`; of one that failed,
    each is left as a picture. A `stranger`'s page may be as loud as it likes.
    """
    windows = _Windows(browser)
    yield windows.look
    windows.close(tmp_path, request.node.stash.get(_PASSED, False))


@pytest.fixture(scope="module")
def look_long(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """The same for a page that many tests of a module look at, and leave as they please."""
    windows = _Windows(browser)
    yield windows.look
    windows.close(tmp_path_factory.mktemp("pages"), True)


class _Windows:
    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._opened: list[tuple[Seen, tuple[str, ...] | None]] = []

    def look(self, url: str, *, expected: tuple[str, ...] = (), stranger: bool = False, **options: Any) -> Seen:
        seen = open_page(self._browser, **options)
        self._opened.append((seen, None if stranger else expected))
        seen.page.goto(url)
        return seen

    def close(self, pictures: Path, passed: bool) -> None:
        try:
            for number, (seen, expected) in enumerate(self._opened):
                if not passed:
                    picture(seen, pictures / f"page-{number}.png")
                elif expected is not None:
                    seen.assert_quiet(*expected)
        finally:
            for seen, _ in self._opened:
                seen.page.context.close()


@pytest.fixture
def pictured(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Seen], Seen]]:
    """What it is given is left as a picture where the test fails."""
    given: list[Seen] = []

    def take(seen: Seen) -> Seen:
        given.append(seen)
        return seen

    yield take
    if not request.node.stash.get(_PASSED, False):
        for number, seen in enumerate(given):
            picture(seen, tmp_path / f"shared-{number}.png")


def picture(seen: Seen, file: Path) -> None:
    with suppress(Error):  # the page may be what failed
        seen.page.screenshot(path=file, full_page=True)
    print(f"{file} shows {seen.page.url}\n", *seen.complaints, sep="\n")


def sign_in(page: Page, token: str = TOKEN) -> None:
    field = page.get_by_label("Token", exact=True)
    field.fill(token)
    field.press("Enter")
