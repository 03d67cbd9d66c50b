"""The page in a real browser: draws, sorts, searches, and reads at every width, light and dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acedit.files import write_text
from acedit.lm.loading import load
from acedit.report.explore import explore
from acedit.report.page import EditRow, Page, render

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: chromium)"),
    pytest.mark.filterwarnings("ignore"),
]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from acedit.editing.plan import locate
    from acedit.knowledge.facts import Edit
    from acedit.knowledge.relations import mquake

    lm = load("bundled")
    edit = Edit("Fernando Santos", mquake()["P27"], "United Kingdom", "Portugal")
    where = locate(lm, [edit], top=8)
    text = render(
        Page(
            title="Where <this> is kept",
            model="bundled",
            edits=[EditRow(edit.subject, edit.prompt, edit.old, edit.target)],
            layers=where.layers,
            plan=where.plan,
            value_neurons=where.value_neurons,
            query_neurons=where.query_neurons,
            charts=explore(lm, edit.prompt.format(edit.subject), edit.old),
        )
    )
    return write_text(tmp_path_factory.mktemp("page") / "page.html", text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, drawn; what its console complained of."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda e: errors.append(str(e)))
    tab.on("request", lambda r: errors.append(r.url) if not r.url.startswith("file:") else None)
    tab.goto(file.as_uri())
    tab.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn === 'yes')", timeout=30_000
    )
    return tab, errors


def test_it_is_one_small_file(page_file: Path) -> None:
    assert page_file.stat().st_size < 2_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_draws_and_reads(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    tab, errors = opened(browser, page_file, width, scheme)
    assert errors == []
    assert tab.locator(".chart svg").count() == 3
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = tab.evaluate(
        "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k].match(/\\d+/g).map(Number))"
    )
    light = sum(paper) > sum(ink)
    assert light == (scheme == "light")
    assert abs(sum(paper) - sum(ink)) > 400, "too little contrast"
    tab.close()


def test_neurons_sort_and_are_found(browser: Any, page_file: Path) -> None:
    tab, _ = opened(browser, page_file)
    table = tab.locator("table.neurons").first
    layers = lambda: [int(t) for t in table.locator("tbody tr td:first-child").all_inner_texts()]  # noqa: E731
    table.locator("thead button").first.focus()
    tab.keyboard.press("Enter")
    assert layers() == sorted(layers())
    assert table.locator("th").first.get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Enter")
    assert layers() == sorted(layers(), reverse=True)
    wanted = table.locator("tbody tr").nth(2).locator("td").nth(1).inner_text()
    tab.locator("input.find").first.fill(wanted)
    shown = [row for row in table.locator("tbody tr").all() if row.is_visible()]
    assert 0 < len(shown) < table.locator("tbody tr").count()
    assert all(wanted in row.inner_text() for row in shown)
    tab.close()


def test_charts_are_reached_from_the_keyboard_and_say_what_is_under_the_pointer(
    browser: Any, page_file: Path
) -> None:
    tab, _ = opened(browser, page_file)
    chart = tab.locator(".chart").first
    tab.locator("figure").first.focus()
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("By token and layer")
    chart.locator("svg path[aria-roledescription]").first.hover()
    tab.wait_for_selector("#vg-tooltip-element.visible")
    assert "top tokens" in tab.locator("#vg-tooltip-element").inner_text()
    tab.close()
