"""Headless Chromium, driven as people do: by role and label, with the keyboard, on a telephone.

Whoever imports this is skipped where Playwright is not installed. With MOTET_SCREENSHOTS=DIR in the environment the
pictures of the documentation are written there.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: motet[test] has it")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: Debian's package of that name")
SCREENSHOTS = os.environ.get("MOTET_SCREENSHOTS")
SECONDS = 20
"""How long a busy machine may take to show something."""
PHONE, DESK = {"width": 360, "height": 740}, {"width": 960, "height": 900}
Tab = Callable[..., Page]


@contextmanager
def launched() -> Iterator[Browser]:
    """Debian's Chromium."""
    expect.set_options(timeout=SECONDS * 1000)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def tabs(browser: Browser) -> Iterator[Tab]:
    """`tab(**context settings)`: a page; whatever its console complains of, but a key asked for, fails the test."""
    complaints: list[str] = []
    opened = []

    def open_tab(**settings: object) -> Page:
        opened.append(browser.new_context(**{"viewport": DESK} | settings))
        page = opened[-1].new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_tab
    for context in opened:
        context.close()
    assert [line for line in complaints if "401 (Unauthorized)" not in line] == []


def picture(page: Page, name: str, *, whole: bool = False) -> None:
    """One of the documentation's, if they are to be made."""
    if SCREENSHOTS:
        page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", animations="disabled", full_page=whole)


def require_accessible(page: Page) -> None:
    """axe-core's rules, WCAG 2.2 AA and best practices: names, roles, contrast, headings, landmarks."""
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
