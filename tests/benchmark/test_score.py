"""Scoring: what counts as an answer, what passes the filter, and honest intervals."""

import math
from dataclasses import replace

import pytest
import torch

from acedit.benchmark.score import (
    METRICS,
    Record,
    Scorer,
    _neighbours,
    interval,
    matches,
    normalise,
    summarise,
)
from acedit.editing.patch import LayerUpdate, Patch, place_of
from acedit.errors import UserError
from acedit.knowledge.facts import cases_from
from acedit.lm.model import LanguageModel
from acedit.world.cases import make_cases
from acedit.world.graph import build_world
from tests.tiny import tiny_lm


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        (" Peru", ["Peru"], True),
        (" Peru.", ["Peru"], True),
        (" the Peru", ["Peru"], True),
        ("PERU\nQuestion: Who", ["Peru"], True),
        (" Peru. It lies by the sea", ["Peru"], True),
        (" Peru, in South America", ["Peru"], True),
        (" Peru and Chile", ["Peru"], False),
        (" Peruvian", ["Peru"], False),
        (" not Peru", ["Peru"], False),
        (" U.S.A.", ["United States", "U.S.A."], True),
        (" Washington, D.C.", ["Washington, D.C."], True),
        (" Washington, D.C. is the capital", ["Washington, D.C."], True),
        (" Malmo", ["Malmö"], False),
        (" People’s Party", ["People's Party"], True),
        (" “Peru”", ["Peru"], True),
        (" Minneapolis–Saint Paul", ["Minneapolis-Saint Paul"], True),
        (" 東京。日本の首都", ["東京"], True),
        (" Peru… and so on", ["Peru"], True),
        (" 🦊 Fox", ["🦊 Fox"], True),
        (" 🐺 Fox", ["🦊 Fox"], False),
        ("", ["Peru"], False),
        (" anything", [""], False),
        (" anything", ["!"], False),
    ],
)
def test_what_counts_as_an_answer(said: str, answers: list[str], right: bool) -> None:
    assert matches(said, answers) is right


def test_normalising_folds_case_articles_and_punctuation() -> None:
    assert normalise("  The  United States,  of a Kind! ") == "united states of kind"


def test_a_summary_is_over_what_passed() -> None:
    records = [
        Record("cot", "a", 1.0, 1 / 3),
        Record("cot", "b", 0.0, 0.0),
        Record("cot", "c", 0.0, 0.0, passed=False),
        Record("efficacy", "a", 1.0, 1.0),
    ]
    summary = summarise(records)
    assert set(summary) == set(METRICS)
    assert summary["cot"]["value"] == 0.5
    assert summary["cot"]["n"] == 2
    assert summary["cot"]["unfiltered"] == pytest.approx(1 / 3)
    assert summary["cot"]["questions"] == pytest.approx(1 / 6)
    assert math.isnan(summary["implicit"]["value"])
    assert summary["implicit"]["n"] == 0


def test_the_interval_covers_and_resamples_cases() -> None:
    records = [Record("cot", str(i // 2), float(i % 4 < 2), 0.0) for i in range(200)]
    low, high = interval(records, seed=0)
    assert low < 0.5 < high
    assert interval(records, seed=0) == (low, high)
    alone = [Record("cot", str(i), float(i % 4 < 2), 0.0) for i in range(200)]
    assert interval(alone, seed=0)[1] - interval(alone, seed=0)[0] < high - low


@pytest.mark.parametrize("n", [1, 4, 100])
def test_an_interval_over_cases_that_agree_is_exact(n: int) -> None:
    """So many of a share p would all be right, or all wrong, once in forty times."""
    right = [Record("cot", str(i), 1.0, 1.0) for i in range(n)]
    low, high = interval(right, seed=0)
    assert (low**n, high) == (pytest.approx(0.025), 1.0)
    wrong = [replace(record, right=0.0) for record in right]
    assert interval(wrong, seed=0) == (0.0, pytest.approx(1 - low))
    twice = [*right, *right]
    assert interval(twice, seed=0) == (low, high)


class Oracle(LanguageModel):
    """Answers from a table; stands for a language model."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said
        self.model = torch.nn.Identity()

    def generate(self, texts: list[str], **_: object) -> list[str]:  # type: ignore[override]
        return [next((a for q, a in self.said.items() if q in t[-400:]), " nothing") for t in texts]

    def answer_nll(self, texts: list[str], answers: list[str], **_: object) -> list[float]:  # type: ignore[override]
        return [float(len(answer)) for answer in answers]


def test_only_cases_the_model_knew_count() -> None:
    world = build_world()
    items = make_cases(world, seed=0, n=6, edits=1, pool="dev", hops=2)
    cases = cases_from(items)
    said: dict[str, str] = {}
    for case in cases[:3]:
        for hop in (*case.hops_before, *(h for j, h in enumerate(case.hops_after) if j not in case.edited)):
            said[hop.question] = f" {hop.answer}"
        for question in case.questions:
            said[question] = f" {case.answer}"
    lm = Oracle(said)
    scorer = Scorer(lm, cases, cot=False)
    for case in cases:
        for question in case.questions:
            said[question] = f" {case.new_answer}"
    summary = summarise(scorer.score(range(6)))
    assert summary["direct"]["n"] == 3
    assert summary["direct"]["value"] == 1.0
    assert summary["direct"]["n_unfiltered"] == 6
    for question in cases[0].questions[1:]:
        said[question] = " nothing"
    edits = [edit for case in cases for edit in case.edits]
    shorter = sum(len(edit.target) < len(edit.old) for edit in edits) / len(edits)
    assert summary["efficacy_p"]["value"] == pytest.approx(shorter)
    again = summarise(scorer.score(range(6)))
    assert again["direct"]["value"] == 1.0
    assert again["direct"]["questions"] < 1.0


def test_without_known_facts_other_cases_are_neighbours(lm: LanguageModel) -> None:
    cases = cases_from(make_cases(build_world(), seed=0, n=24))
    alone = list(_neighbours(cases[:1], (), (), 0))
    beside = list(_neighbours(cases[:1], (), cases, 0))
    assert len(beside) > len(alone)
    known = {a for case in cases for fact in (*case.before.facts, *case.after.facts) for a in (fact.object,)}
    assert {probe.answers[0] for probe in beside} <= known


def test_no_cases_is_one_line(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="no cases"):
        Scorer(lm, [])


def test_an_id_of_two_cases_is_refused(lm: LanguageModel) -> None:
    cases = cases_from(make_cases(build_world(), seed=0, n=2, edits=1, pool="dev"))
    with pytest.raises(UserError, match=f"1 case ids stand for several cases, {cases[0].id!r}"):
        Scorer(lm, [cases[0], replace(cases[1], id=cases[0].id)])


def test_what_scores_are_filtered_by_is_said_without_patches() -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=2048)
    cases = cases_from(make_cases(build_world(), seed=0, n=2, edits=1, pool="dev"))
    update = LayerUpdate(1, torch.randn(lm.d_model, 1), torch.randn(1, lm.n_neurons))
    patch = Patch((update,), (), {}, "ace", {}, 0, lm.fingerprint, place_of(lm, [1]))
    before = Scorer(lm, cases, cot=False)
    with patch.applied(lm):
        meanwhile = Scorer(lm, cases, cot=False)
        edited = meanwhile.asked([0, 1])
    assert meanwhile.before == before.before
    assert edited != before.asked([0, 1])


def test_scoring_runs_on_a_real_model() -> None:
    lm = tiny_lm("qwen3", max_position_embeddings=2048)
    cases = cases_from(make_cases(build_world(), seed=0, n=2, edits=1, pool="dev"))
    records = Scorer(lm, cases).score([0, 1])
    assert {"efficacy", "paraphrase", "direct", "cot"} <= {r.metric for r in records}
