"""A real Chromium of our own, and a page in it that is watched: what it asked for, what it complained of.

The browser is started by us and not by its driver, so that each of its processes is known and ended. It knows two hosts
besides loopback: `REBOUND`, a name of somebody else's that leads to 127.0.0.1, as after DNS rebinding; all other names
lead nowhere.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import prepare_chromium
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sidecar_process import PROC, Identity, descendants, eventually, identity_of, kill_identity, running

REBOUND = "rebound.example"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
_PATIENCE = 30_000  # milliseconds until something is held to be missing: the machine may be busy
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
    # Chromium of itself keeps pages of the net from this machine. Others do not: what our own server does is the test.
    "--disable-features=BlockInsecurePrivateNetworkRequests,LocalNetworkAccessChecks",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)  # fmt: skip
# Counted in the page itself, before any script of it runs: what the policy refused.
_WITNESS = """
window.refused = [];
document.addEventListener('securitypolicyviolation',
  (e) => window.refused.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a profile in `folder`, driven; at the end none of its processes is left."""
    program = prepare_chromium.chromium()
    assert program is not None, prepare_chromium.trouble()
    process = subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        address = folder / "DevToolsActivePort"
        port = eventually(lambda: address.exists() and address.read_text().split("\n")[0], "the browser's port", 60)
        expect.set_options(timeout=_PATIENCE)
        with sync_playwright() as playwright:
            browser = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}")
            yield browser
            browser.close()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the browser: it, its children, and what of its session has left the tree."""
    ours = [identity_of(process.pid), *descendants(process.pid)] if process.poll() is None else []
    ours += [identity for identity in _session(process.pid) if identity not in ours]
    for identity in ours:
        kill_identity(identity)
    process.wait(20)
    eventually(lambda: not any(map(running, ours)), "the browser's processes gone")


def _session(sid: int) -> list[Identity]:
    stats = (PROC.stat(pid) for pid in PROC.pids())
    return [stat.identity for stat in stats if stat is not None and stat.sid == sid]


@dataclass
class Seen:
    """A page and all that it did that somebody should hear of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_quiet(self, *expected: str) -> None:
        """Nothing was asked of another host, no script failed, the policy refused nothing, no dialog came.

        `expected`: patterns of complaints that this test is about, such as an answer of 401.
        """
        hosts = {urlsplit(url).hostname for url in self.requests if not url.startswith(("data:", "blob:", "about:"))}
        assert hosts <= {"127.0.0.1", "localhost"}, hosts
        left = [line for line in self.complaints if not any(re.search(pattern, line) for pattern in expected)]
        assert left == [], left
        assert self.refused() == []

    def refused(self) -> list[str]:
        found = run(self.page, "window.refused || []")
        assert isinstance(found, list)
        return found


def open_page(browser: Browser, **options: Any) -> Seen:
    """A page in a browser window of its own. `options` are those of `Browser.new_context`."""
    context = browser.new_context(**{"viewport": DESK, "service_workers": "block", **options})
    context.add_init_script(_WITNESS)
    context.set_default_timeout(_PATIENCE)
    return watched(context.new_page())


def watched(page: Page) -> Seen:
    seen = Seen(page)

    def dialog(shown: Any) -> None:
        seen.complaints.append(f"a dialog: {shown.message}")
        shown.dismiss()

    page.context.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}")
            if message.type in ("error", "warning") else None)  # fmt: skip
    page.on("pageerror", lambda error: seen.complaints.append(f"a script failed: {error}"))
    page.on("dialog", dialog)
    return seen


def run(page: Page, expression: str) -> Any:
    """The value of an expression in the page, by the debugger: the page's own policy would refuse what else does it."""
    session = page.context.new_cdp_session(page)
    try:
        answer = session.send(
            "Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True}
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")
    finally:
        session.detach()


def findings(page: Page, within: str = "html", rules: tuple[str, ...] = ()) -> list[str]:
    """What axe finds serious or critical in a part of the page as it is, one line each; by `rules`, or by all."""
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    if not run(page, "'axe' in window"):
        run(page, files("axe_playwright_python").joinpath("axe.min.js").read_text() + "; 0")
    result = run(page, f"axe.run({within!r}, {json.dumps(options)}).then(r => r.violations)")
    return [
        f"{found['impact']}: {found['id']}: {found['help']}: {[node['target'] for node in found['nodes'][:5]]}"
        for found in result
        if found["impact"] in ("serious", "critical")
    ]


def settled(page: Page) -> Page:
    """Wait until a view is there, and all that it reads for what is in sight."""
    expect(page.locator("main h1").first).to_be_visible()
    expect(page.locator("main").get_by_text("Reading…").locator("visible=true")).to_have_count(0)
    return page


def open_all(page: Page) -> Iterator[str]:
    """Open each part of a view that begins closed, one after the other: panels behind tabs, details. Yields names."""
    settled(page)
    for tab in page.locator("main [role=tab]").all():
        tab.click()
        settled(page)
        yield f"tab {tab.inner_text()}"
    closed = page.locator("main details:not([open]) > summary").locator("visible=true")
    for _ in range(20):  # a page may hold any number, and each may open on more
        if closed.count() == 0:
            return
        name = closed.first.inner_text()[:60]
        closed.first.click()
        settled(page)
        yield f"details {name}"


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    wide = run(page, "document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert isinstance(wide, int)
    return wide
