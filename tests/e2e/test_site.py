"""The site as it is built: no link leads nowhere, nothing is loaded from elsewhere, and a phone can show it."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsers import DESK, PHONE, opened, started
from pages import ROOT
from playwright.sync_api import Browser

SMALL = 12  # pixels: the smallest text
TOGETHER = 8  # pages that are waited for at once
STICKING_OUT = """
() => [...document.querySelectorAll("article *")]
  .filter(e => !e.closest("pre, .highlight, .md-typeset__scrollwrap, .formula, math, svg, .headerlink"))
  .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))
"""
SMALLEST = """
() => Math.min(...[...document.querySelectorAll("article p, article li, article td, article code")]
  .filter(e => e.getClientRects().length).map(e => parseFloat(getComputedStyle(e).fontSize)))
"""


class Reader(HTMLParser):
    """Addresses that a page leads to, those that it loads, and the places in it that others can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" or "src" in values:
            self.loaded.append(values.get("href") or values.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Reader]:
    found = {path: Reader(path.read_text(encoding="utf-8")) for path in sorted(site.glob("**/*.html"))}
    assert len(found) > 15
    return found


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


def test_every_link_leads_to_a_place_that_is_there(pages: dict[Path, Reader]) -> None:
    broken = []
    for page, reader in pages.items():
        for link in reader.links:
            scheme, host, path, _, fragment = urlsplit(link)
            target = (page.parent / unquote(path)).resolve() if path else page
            if scheme or host or page.name == "404.html":
                continue
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or (fragment and unquote(fragment) not in pages[target].places):
                broken.append((page.name, link))
    assert broken == []


def test_pages_load_nothing_from_elsewhere(pages: dict[Path, Reader]) -> None:
    assert [(page.name, url) for page, reader in pages.items() for url in reader.loaded if urlsplit(url).netloc] == []


def test_every_page_can_be_reached_from_the_first(site: Path, pages: dict[Path, Reader]) -> None:
    reached, left = set(), {site / "index.html"}
    while left:
        page = left.pop()
        reached.add(page)
        targets = {
            (page.parent / urlsplit(link).path).resolve() for link in pages[page].links if not urlsplit(link).netloc
        }
        left |= {target for target in targets if target in pages} - reached
    assert {page.name for page in pages} - {page.name for page in reached} == {"404.html"}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "light"), (DESK, "dark")])
def test_pages_are_quiet_and_fit(
    browser: Browser, site: Path, pages: dict[Path, Reader], address: str, width: int, scheme: str
) -> None:
    paths = list(pages)
    for first in range(0, len(paths), TOGETHER):
        shown = [
            (path, *opened(browser, f"{address}/{path.relative_to(site)}", width, scheme))
            for path in paths[first : first + TOGETHER]
        ]
        for path, page, events in shown:
            page.wait_for_load_state("networkidle")
            assert [event for event in events if not event.startswith(address)] == [], path.name
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
            if page.locator("article").count():
                assert page.evaluate(STICKING_OUT) == [], path.name
                assert page.evaluate(SMALLEST) >= SMALL, path.name
            page.close()


def test_search_finds_a_key(browser: Browser, address: str) -> None:
    page, _ = opened(browser, f"{address}/index.html", DESK, "light")
    query = page.locator("[data-md-component=search-query]")
    query.click()
    query.press_sequentially("noise_reuse")
    page.locator('[data-md-component=search-result] a[href*="recipes.html"]').first.wait_for()
    page.close()


def test_formulas_are_drawn(browser: Browser, address: str) -> None:
    page, _ = opened(browser, f"{address}/how_it_works.html", PHONE, "light")
    formulas = page.locator(".formula math")
    assert formulas.count() >= 6
    for formula in formulas.all():
        box = formula.bounding_box()
        assert box is not None
        assert box["height"] > 20
        assert "\\" not in (formula.text_content() or "\\")
    page.close()
