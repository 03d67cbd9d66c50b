"""The studies on the bundled model, small: figures add up, charts draw, ignorance is told."""

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from acedit.attribution.ablate import ablated
from acedit.attribution.atlas import build_atlas
from acedit.attribution.value import Neuron, layer_scores
from acedit.commands.study import _names
from acedit.errors import UserError
from acedit.files import write_text
from acedit.knowledge.facts import Fact
from acedit.lm.loading import load
from acedit.report.charts import Chart, Table, save_charts
from acedit.report.page import Page, render
from acedit.report.study import Result, Setting, save, setting_of, studies
from acedit.report.study.accumulate import lag_correlations
from acedit.report.study.base import CATEGORIES, accuracy
from acedit.report.study.critical import _sorted
from acedit.world.cases import facts_of
from acedit.world.graph import build_world
from tests.conftest import Run
from tests.report.conftest import WIDEST, opened
from tests.tiny import tiny_lm


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return facts_of(build_world(), [])


@pytest.fixture(scope="module")
def setting(facts: list[Fact]) -> Setting:
    return setting_of(load("bundled"), facts, per_category=4)


@pytest.fixture(scope="module")
def run_once(setting: Setting) -> Callable[[str], Result]:
    """A study's result, worked out once for all tests."""
    return cache(lambda name: studies()[name].run(setting))


def test_questions_are_answered_right_and_cover_the_categories(setting: Setting) -> None:
    assert setting.categories == tuple(CATEGORIES)
    assert all(len(setting.of(c)) == 4 for c in CATEGORIES)
    assert accuracy(setting.lm, setting.questions) == 1.0


def test_chains_take_two_hops_and_are_answered_right(setting: Setting, facts: list[Fact]) -> None:
    assert len(setting.chains) > len(setting.categories)
    assert accuracy(setting.lm, setting.chains) == 1.0
    onward: defaultdict[str, set[str]] = defaultdict(set)
    for fact in facts:
        onward[fact.object].add(fact.subject)
    for question in setting.chains:
        assert question.prompt.startswith("Question: ")
        assert question.answer not in question.prompt
        # Some entity leads to the answer in two steps and is named, what stands between is not.
        between = [b for b in onward[question.answer] if b not in question.prompt]
        assert any(start in question.prompt for b in between for start in onward[b])
    assert setting.reasoned == (setting.chains, f"{len(setting.chains)} two-hop questions")
    alone, said = replace(setting, chains=()).reasoned
    assert alone == setting.questions
    assert "for want of a chain" in said


def test_the_study_of_a_command_is_one_page(run: Run, tmp_path: Path) -> None:
    code, out, err = run("study", "accumulate", "--per-category", 1, "--out", tmp_path / "s")
    assert code == 0, err
    page = (tmp_path / "s" / "page.html").read_text("utf-8")
    assert f"on one page: {tmp_path / 's' / 'page.html'}" in out
    assert "9/9 layers measured, once a model" in err
    for finding in json.loads((tmp_path / "s" / "accumulate" / "data.json").read_text())["findings"]:
        assert finding["claim"] in out
        assert finding["claim"].replace("'", "&#39;") in page.replace("&#x27;", "&#39;")
        assert "paper: " in page


def test_neurons_that_spell_are_matched_by_score(setting: Setting) -> None:
    lm, question = setting.lm, setting.questions[0]
    first = lm.answer_ids(question.answer)[0]
    atlas = build_atlas(lm)
    spells = (atlas.top[3] == first).any(-1).nonzero()[:2, 0].tolist()
    if len(spells) < 2:
        atlas.top[3][:2, 0] = first
        spells = [0, 1]
    free = [i for i in range(lm.n_neurons) if not (atlas.top[3][i] == first).any()][:3]
    ranked = (
        Neuron(3, spells[0], 9.0), Neuron(3, free[0], 8.9), Neuron(3, free[1], 8.0),
        Neuron(3, spells[1], 3.9), Neuron(3, free[2], 3.8),
    )  # fmt: skip
    sign = torch.ones(lm.n_layers, lm.n_neurons)
    spelling, others = _sorted(lm, atlas, sign, question, ranked)
    assert [n.score for n in spelling] == [9.0, 3.9]
    assert [n.score for n in others] == [8.9, 3.8]
    spelling, others = _sorted(lm, atlas, sign, question, ranked[:2] + ranked[3:4])
    assert ([n.score for n in spelling], [n.score for n in others]) == ([9.0], [8.9])


def test_a_model_that_knows_nothing_is_told(facts: list[Fact]) -> None:
    with pytest.raises(UserError, match="nothing to study"):
        setting_of(tiny_lm("qwen3"), facts[:40], per_category=2)


def test_a_study_is_known_by_its_file() -> None:
    """In the paper's order; the command line tells their names from the files alone."""
    assert [study.place for study in studies().values()] == list(range(1, 10))
    assert _names() == sorted(studies())


def test_without_vl_convert_charts_are_data_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("acedit.report.charts.find_spec", lambda _: None)
    written = save_charts({"curve": {"mark": "line"}}, tmp_path)
    assert [p.name for p in written] == ["curve.vl.json"]
    assert caplog.messages == [f"{tmp_path}: no pictures without vl-convert: pip install 'acedit[study]'"]


@pytest.mark.parametrize("name", sorted(studies()))
def test_every_study_runs_and_draws(name: str, run_once: Callable[[str], Result], tmp_path: Path) -> None:
    result = run_once(name)
    assert result.study == name
    assert result.findings
    assert result.said()
    files = {p.name for p in save(result, tmp_path)}
    data = json.loads((tmp_path / "data.json").read_text())
    assert data["study"] == name
    for chart in result.charts:
        assert {f"{chart}.vl.json", f"{chart}.svg", f"{chart}.png"} <= files
        marks = ET.fromstring((tmp_path / f"{chart}.svg").read_text()).iter()
        drawn = [m for m in marks if "graphics-symbol" in m.get("aria-roledescription", "") or m.get("d")]
        assert len(drawn) > 8, "axes alone"
        assert (tmp_path / f"{chart}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [1280, 400])
def test_every_studys_page_reads(
    browser: Any, run_once: Callable[[str], Result], tmp_path: Path, width: int
) -> None:
    """No chart is cut off, and each stands with its caption, its table, and the study's own tables."""
    figures: list[Chart | Table] = []
    for name in studies():
        result = run_once(name)
        assert result.charts or result.tables
        figures += [Chart(name, "n", spec) for spec in result.charts.values()]
        figures += [Table(name, "n", caption, rows) for caption, rows in result.tables.items()]
    page = write_text(tmp_path / "page.html", render(Page("What was found", "bundled", figures=figures)))
    assert page.stat().st_size < 2_000_000
    tab, errors = opened(browser, page, width)
    assert errors == []
    assert tab.evaluate(WIDEST) <= width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    captions = tab.locator("figcaption").all_inner_texts()
    for figure in figures:
        caption = figure.spec["title"] if isinstance(figure, Chart) else figure.caption
        assert caption in (captions if isinstance(figure, Chart) else tab.inner_text("main"))
    assert tab.locator("table.sortable").count() == sum(isinstance(f, Table) for f in figures)
    empty = [c for c in tab.locator(".chart svg").all() if not c.locator("[aria-roledescription]").count()]
    assert empty == []
    tab.close()


def test_layers_are_ranked_by_their_scores(setting: Setting, run_once: Callable[[str], Result]) -> None:
    result = run_once("layers")
    some = setting.of("Capital")
    scores = layer_scores(setting.lm, [q.prompt for q in some], [q.answer for q in some]).ffn_sum.mean(1)
    assert result.data["ranked"]["Capital"]["ffn"] == scores.argsort(descending=True)[:4].tolist()


def test_neurons_by_layer_add_up_to_those_counted(run_once: Callable[[str], Result]) -> None:
    data = run_once("neurons").data
    for kind in ("value", "query"):
        total = sum(row["neurons"] for row in data["by_layer"] if row["kind"] == kind)
        assert total >= len(data["neurons"][kind])
        assert 0 <= data["interpretable"][kind] <= 1
    assert {n["layer"] for n in data["neurons"]["value"]} <= {
        r["layer"] for r in data["by_layer"] if r["neurons"]
    }


def test_knockout_of_everything_would_show() -> None:
    """The measure can fall: with a whole layer at zero the model answers less."""
    setting = setting_of(load("bundled"), facts_of(build_world(), []), per_category=2)
    with ablated(setting.lm, [Neuron(0, i, 0.0) for i in range(setting.lm.n_neurons)]):
        assert accuracy(setting.lm, setting.questions) < 0.5


def test_the_lag_is_found_where_it_was_put() -> None:
    query = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    lags = lag_correlations(query, query.roll(2))
    assert max(lags, key=lambda lag: lags[lag]) == 2
    assert lags[2] == pytest.approx(1.0)
    assert set(lags) == set(range(-3, 4))
    back = lag_correlations(query.roll(2), query)
    assert max(back, key=lambda lag: back[lag]) == -2


def test_neurons_that_spell_the_answer_have_partners_of_like_score(run_once: Callable[[str], Result]) -> None:
    data = run_once("critical").data
    for row in data["rows"]:
        assert 0 <= row["neurons"] <= 27
        assert all(0 <= row[name] <= 1 for name in ("intact", "spelling", "others"))
        assert (row["intact"] == row["spelling"]) == (row["neurons"] == 0)
    assert any(row["neurons"] for row in data["rows"])
    assert data["share"]["intact"] > 0.9


def test_query_knockout_counts_only_layers_above(setting: Setting, run_once: Callable[[str], Result]) -> None:
    data = run_once("query-knockout").data
    for row in data["rows"]:
        assert len(row["above"]) == setting.lm.n_layers - 1 - row["layer"]
        assert sum(row["above"]) <= 100 + 1e-6
