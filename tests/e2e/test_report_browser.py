"""The pages in a real browser, on a phone and on a desk, in light and dark: nothing sticks out, nothing is loaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import DESK, PHONE, opened, started
from playwright.sync_api import Browser
from sample_runs import HOSTILE, write_comparison

from eggroll_rl.comparison.pages import write_report
from eggroll_rl.report.drawing import SMALL

# The least contrast of small text to what lies behind it, by WCAG 2.2 (1.4.3, level AA).
CONTRAST = 4.5
CONTRASTS = """
() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const found = [];
  const words = "h1, h2, h3, p, dt, dd, th, td, small, li, a, summary, .mark, svg text";
  for (const element of document.querySelectorAll(words)) {
    const style = getComputedStyle(element), svg = element.closest("svg");
    const a = light(svg ? style.fill : style.color), b = light(behind(svg ? svg.parentElement : element));
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
}
"""
STICKING_OUT = """
() => [...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll, svg, details") && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder)
    write_report(folder)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["report.html", "eggroll-0/report.html"])
def test_a_page_fits_is_legible_and_loads_nothing(
    browser: Browser, folder: Path, name: str, width: int, scheme: str
) -> None:
    page, events = opened(browser, (folder / name).as_uri(), width, scheme)
    assert events == [(folder / name).as_uri()]
    page.locator("details").evaluate_all("all => all.forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.evaluate(STICKING_OUT)
    assert page.evaluate(STICKING_OUT) == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [text for ratio, text in contrasts if ratio < CONTRAST] == []
    page.close()


def test_light_and_dark_differ(browser: Browser, folder: Path) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        page, _ = opened(browser, (folder / "report.html").as_uri(), DESK, scheme)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        colours.add(page.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
        page.close()
    assert len(colours) == 4


def test_charts_are_as_wide_as_their_cards_and_their_text_is_no_smaller_than_nine_pixels(
    browser: Browser, folder: Path
) -> None:
    page, _ = opened(browser, (folder / "eggroll-0" / "report.html").as_uri(), PHONE, "light")
    for chart in page.locator("figure").all():
        box, card = chart.locator("svg").bounding_box(), chart.bounding_box()
        assert box is not None and card is not None
        assert 0.85 * card["width"] < box["width"] < card["width"]
        units = chart.locator("svg").evaluate("svg => svg.viewBox.baseVal.width")
        assert SMALL * box["width"] / units >= 9.0
    page.close()


def test_what_a_model_wrote_is_shown_and_not_run(browser: Browser, folder: Path) -> None:
    page, events = opened(browser, (folder / "report.html").as_uri(), DESK, "light")
    assert page.title().startswith("EGGROLL vs GRPO")
    assert page.get_by_text(HOSTILE, exact=True).count() == 2
    assert len(events) == 1
    page.close()


def test_links_lead_to_the_pages_of_the_runs(browser: Browser, folder: Path) -> None:
    page, _ = opened(browser, (folder / "report.html").as_uri(), PHONE, "light")
    page.get_by_role("link", name="GRPO").first.click()
    page.wait_for_url("**/grpo-0/report.html")
    assert page.locator(".kind").inner_text() == "GRPO run"
    page.close()
