"""The page stands alone, escapes what it is given, and leaves empty parts out."""

from html.parser import HTMLParser

import pytest

from acedit.attribution.plan import Plan
from acedit.attribution.value import Neuron
from acedit.report.charts import Chart, chart
from acedit.report.page import AnswerRow, EditRow, Page, Said, render
from tests.report.test_text import LAYERS, Row, scores

VOID = {"meta", "rect", "br", "input"}


class Checker(HTMLParser):
    """Every tag closed in order; collects tags, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def full(hostile: str = "Lima") -> Page:
    return Page(
        title=f"Edits {hostile}",
        model=hostile,
        intro=hostile,
        edits=[EditRow(hostile, "{} is a citizen of", "", hostile)],
        layers=[*LAYERS, Row(2, -0.5, 0.0)],
        plan=Plan((1,), (0,)),
        reasons=[hostile],
        value_neurons=[Neuron(1, 7, 0.25, (hostile, "\n", " "))],
        query_neurons=[Neuron(0, 3, 0.5, ())],
        answers=[
            AnswerRow(hostile, hostile, hostile, {hostile: Said(hostile, True), "ace": Said("", False)})
        ],
        scores={hostile: scores(0.5)},
        notes=[hostile],
    )


def parsed(page: Page) -> tuple[Checker, str]:
    html = render(page)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker, html


def test_stands_alone() -> None:
    checker, html = parsed(full())
    assert checker.links == []
    assert "http" not in html and "@import" not in html and "url(" not in html
    assert "prefers-color-scheme:dark" in html and "width=device-width" in html


def test_shows_every_part() -> None:
    checker, _ = parsed(full())
    said = " ".join(checker.said)
    for words in (
        "What was edited",
        "Answers",
        "Scores",
        "layer 2",
        "Top value neurons",
        "Top query neurons",
    ):
        assert words in said
    assert "nothing" in said, "an empty answer is said to be one"


def test_escapes_everything() -> None:
    hostile = "<script>alert('x')</script>\" onload=\"x & <b>"
    checker, html = parsed(full(hostile))
    assert checker.tags.count("script") == parsed(full())[0].tags.count("script")
    assert "<script>alert" not in html and 'onload="' not in html
    assert any(hostile in text for text in checker.said)


def test_a_charts_text_cannot_end_its_script() -> None:
    hostile = "</script><script>alert('x')</script>"
    spec = chart(hostile, [{"token": hostile}], "bar", x={"field": "token", "type": "nominal"})
    checker, html = parsed(Page(title="t", model="m", figures=[Chart(hostile, hostile, spec)]))
    assert checker.tags.count("script") == 2, "the bundle and the charts"
    assert "alert('x')</script>" not in html


def test_without_the_bundle_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acedit.report.page.bundle", lambda: None)
    spec = chart("t", [{"x": 1}], "bar", x={"field": "x", "type": "nominal"})
    checker, _ = parsed(Page(title="t", model="m", figures=[Chart("t", "n", spec)]))
    assert "script" not in checker.tags
    assert "vl-convert" in " ".join(checker.said)


def test_empty_parts_are_left_out() -> None:
    checker, _ = parsed(Page(title="t", model="m"))
    assert "section" not in checker.tags


def test_bars_survive_zero_scores() -> None:
    _, html = parsed(Page(title="t", model="m", layers=[Row(0, 0.0, 0.0)]))
    assert "nan" not in html.lower()
