"""The second model (`acedit world train --shape llama`): no setting is changed for it."""

from pathlib import Path

import pytest
import torch

from acedit.benchmark.evaluate import edit_cases
from acedit.benchmark.score import Scorer, summarise
from acedit.editing.methods import method
from acedit.knowledge.facts import cases_from
from acedit.lm.loading import load
from acedit.lm.model import LanguageModel
from acedit.world.card import read_table
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world

FOLDER = Path(__file__).parents[1] / "models" / "llama"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(FOLDER)


def test_it_is_of_another_family_depth_and_width(lm: LanguageModel) -> None:
    bundled = load("bundled")
    assert lm.model.config.model_type != bundled.model.config.model_type
    assert lm.n_layers != bundled.n_layers and lm.d_model != bundled.d_model
    rows = [line.split("|") for line in read_table(FOLDER).splitlines()[2:]]
    assert float(rows[0][2]) >= 0.97 and float(rows[1][2]) >= 0.85


@pytest.mark.parametrize("name", ["pmet", "ace"])
def test_an_edit_holds_and_comes_off(name: str, lm: LanguageModel) -> None:
    known = facts_of(build_world(), [])
    cases = cases_from(make_cases(build_world(), seed=21, n=2))
    before = [lm.down_weight(layer).clone() for layer in range(lm.n_layers)]
    scorer = Scorer(lm, cases, known=known, cot=False)
    patch, _ = edit_cases(lm, cases, method(name), known=known)
    with patch.applied(lm):
        scores = summarise(scorer.score(range(2)))
    assert scores["efficacy"]["value"] >= (1.0 if name == "ace" else 0.5)
    if name == "ace":
        assert scores["paraphrase"]["value"] >= 0.8
        assert scores["specificity_relation"]["value"] >= 0.7
    assert all(torch.equal(w, lm.down_weight(layer)) for layer, w in enumerate(before))
