"""The browser in which pages are looked at."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PHONE, DESK = 390, 1280  # pixels across
FETCHED = Path(sys.prefix) / "browser"  # by `make browser`


@contextmanager
def started() -> Iterator[Browser]:
    """Chrome or Chromium from the PATH, else the one that was fetched; a failed test where there is none."""
    path, libraries = shutil.which("chromium") or shutil.which("google-chrome"), {}
    if path is None:
        path, libraries = str(FETCHED / "chromium"), {"LD_LIBRARY_PATH": str(FETCHED / "al2023" / "lib")}
    if not Path(path).is_file():
        pytest.fail("no browser: `make browser`, or install Chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, env=libraries or None, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, address: str, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page, and what it asked for and complained of."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: events.append(dialog.message))
    page.on("request", lambda request: events.append(request.url))
    page.goto(address)
    return page, events
