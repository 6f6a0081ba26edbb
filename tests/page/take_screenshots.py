"""Take the pictures of docs/images: the page over incidents that real runs have just left.

python tests/page/take_screenshots.py docs/images [list incident …]
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import places  # noqa: F401
from browser import PHONE, chromium, open_page, settled
from playwright.sync_api import Browser, Page
from real_incidents import Volume, await_sealed, beside, make_volume
from view_rig import Viewer

from sidecar.demo.standin import StandIn
from sidecar.system.subreaper import become_subreaper

SERVING_SECONDS = 40.0  # the plots then have a hundred points
MOST_BYTES = 250_000
WINDOW = {"width": 1280, "height": 860}
TALL = {"width": 1280, "height": 1240}
# More of them for the list: engine, ranks, pod, who is killed by what. None: a person asks for the evidence.
_MORE = (
    ("vllm", 8, "prod/qwen-72b-2", "TP5", signal.SIGSEGV),
    ("sglang", 2, "staging/llama-8b-0", "TP0", signal.SIGABRT),
    ("vllm", 2, "staging/reranker-1", "server", signal.SIGBUS),
)


def main() -> int:
    target = Path(sys.argv[1]).resolve()
    wanted = sys.argv[2:] or [*_SHOTS]
    target.mkdir(parents=True, exist_ok=True)
    become_subreaper()  # what an engine's ranks leave is collected, as a container's first process does
    with tempfile.TemporaryDirectory(prefix="rankguard-pictures-") as base:
        print(f"pictures: engines run and fail, which takes {SERVING_SECONDS + 30:.0f} s", flush=True)
        os.chdir(base)  # so that the pictures show no path of this machine
        folder = Path("incidents")
        _more(folder)
        volume = make_volume(folder, SERVING_SECONDS)
        with chromium(Path(base) / "profile") as browser, Viewer(folder) as viewer:
            for name in wanted:
                file = target / f"{name}.png"
                _SHOTS[name](browser, f"http://127.0.0.1:{viewer.api_port}/", volume, file)
                print(f"pictures: {file}: {file.stat().st_size} bytes")
    large = [name for name in wanted if (target / f"{name}.png").stat().st_size > MOST_BYTES]
    if large:
        print(f"pictures: larger than {MOST_BYTES} bytes: {', '.join(large)}")
    return 1 if large else 0


def _more(folder: Path) -> None:
    for name, ranks, pod, label, number in _MORE:
        with ExitStack() as stack:
            engine = stack.enter_context(StandIn(engine=name, tp=ranks, light=True, detokenizer=False))
            sidecar = stack.enter_context(beside(folder / pod, engine.process.pid))
            engine.wait_ready()
            sidecar.wait_serving()
            engine.kill(next(p.label for p in engine.processes if p.label.endswith(label)), number)
            await_sealed([sidecar], [engine])


def _shot(page: Page, file: Path, **more: object) -> None:
    page.screenshot(path=file, animations="disabled", caret="hide", **more)  # type: ignore[arg-type]


def _list(browser: Browser, url: str, volume: Volume, file: Path) -> None:
    page = open_page(browser, viewport=WINDOW).page
    page.goto(url)
    _shot(settled(page), file)


def _incident(browser: Browser, url: str, volume: Volume, file: Path, scheme: str = "light") -> None:
    page = open_page(browser, viewport=TALL, color_scheme=scheme).page
    page.goto(f"{url}#/incident/{volume.stall}")
    _shot(settled(page), file)


def _section(browser: Browser, url: str, volume: Volume, file: Path, tab: str) -> None:
    page = open_page(browser, viewport=WINDOW).page
    page.goto(f"{url}#/incident/{volume.stall}")
    settled(page).get_by_role("tab", name=tab).click()
    settled(page)
    page.mouse.move(0, 0)
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Stacks").evaluate("e => e.click()")
    _shot(page, file)


def _volume(browser: Browser, url: str, volume: Volume, file: Path) -> None:
    page = open_page(browser, viewport=WINDOW).page
    page.goto(f"{url}#/volume")
    _shot(settled(page), file)


def _phone(browser: Browser, url: str, volume: Volume, file: Path) -> None:
    page = open_page(browser, viewport=PHONE, is_mobile=True, has_touch=True).page
    page.goto(f"{url}#/incident/{volume.death}")
    _shot(settled(page), file)


_SHOTS: dict[str, Callable[[Browser, str, Volume, Path], None]] = {
    "list": _list,
    "incident": _incident,
    "incident-dark": lambda *given: _incident(*given, scheme="dark"),
    "stacks": lambda *given: _section(*given, tab="Tree"),
    "flame": lambda *given: _section(*given, tab="Flame graph"),
    "volume": _volume,
    "phone": _phone,
}

if __name__ == "__main__":
    sys.exit(main())
