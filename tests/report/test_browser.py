"""The page in a real browser: draws, sorts, searches, and reads at every width, light and dark."""

from pathlib import Path
from typing import Any

import pytest

from acedit.files import write_text
from acedit.lm.loading import load
from acedit.report.charts import Table
from acedit.report.explore import explore
from acedit.report.page import EditRow, Page, render
from tests.report.conftest import WIDEST, opened

pytestmark = pytest.mark.filterwarnings("ignore")


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
            figures=explore(lm, edit.prompt.format(edit.subject), edit.old),
        )
    )
    return write_text(tmp_path_factory.mktemp("page") / "page.html", text)


def test_it_is_one_small_file(page_file: Path) -> None:
    assert page_file.stat().st_size < 2_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_draws_and_reads(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    tab, errors = opened(browser, page_file, width, scheme)
    assert errors == []
    assert tab.locator(".chart svg").count() == 3
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(WIDEST) <= width
    ink, paper = tab.evaluate(
        "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k].match(/\\d+/g).map(Number))"
    )
    light = sum(paper) > sum(ink)
    assert light == (scheme == "light")
    assert abs(sum(paper) - sum(ink)) > 400, "too little contrast"
    tab.close()


def test_what_a_chart_shows_is_read_from_the_keyboard(browser: Any, page_file: Path) -> None:
    tab, _ = opened(browser, page_file)
    tab.locator("details summary").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#data-0 table")
    head = tab.locator("#data-0 th").all_inner_texts()
    assert head == ["token", "layer", "nats", "FFN", "attention", "top tokens"]
    assert tab.locator("#data-0 tbody tr").count() > 9
    tab.close()


def test_neurons_sort_and_are_found(browser: Any, page_file: Path) -> None:
    tab, _ = opened(browser, page_file)
    table = tab.locator("table.sortable").first
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


def test_any_column_sorts_what_is_missing_last(browser: Any, tmp_path: Path) -> None:
    """Numbers by size, several in a cell one after the other, text by its letters; also in the dark."""
    cells = [("2 1 10", "0.5", "b"), ("2 1 9", "nan", "10 a"), ("0 4 0", "-3", "9 a"), ("1 4 0", "1e1", "")]
    rows = [{"each": each, "nats": nats, "said": said} for each, nats, said in cells]
    page = Page(title="t", model="m", figures=[Table("All", "", "", rows)])
    tab, errors = opened(browser, write_text(tmp_path / "page.html", render(page)), 400, "dark")
    wanted = {
        0: (["0 4 0", "1 4 0", "2 1 9", "2 1 10"], ["2 1 10", "2 1 9", "1 4 0", "0 4 0"]),
        1: (["-3", "0.5", "1e1", "nan"], ["1e1", "0.5", "-3", "nan"]),
        2: (["9 a", "10 a", "b", ""], ["b", "10 a", "9 a", ""]),
    }
    for column, ways in wanted.items():
        for way in ways:
            tab.locator("table.sortable thead button").nth(column).press("Enter")
            found = tab.locator(f"table.sortable tbody td:nth-child({column + 1})").all_inner_texts()
            assert found == way
    assert errors == []
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
