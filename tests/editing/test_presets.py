"""Published settings: whole, of the model's shape, refused elsewhere."""

import pytest

from acedit.editing.methods import method
from acedit.editing.presets import PRESETS, preset
from acedit.errors import UserError
from tests.tiny import tiny_lm


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_presets_layers_are_the_models(name: str) -> None:
    found = preset(name)
    assert all(0 <= layer < found.n_layers for layer in (*found.query_layers, *found.value_layers))
    assert found.notes and found.source
    with pytest.raises(UserError, match="leave --preset out"):
        found.fitted(tiny_lm("gptj"), method("ace-paper"))


def test_a_preset_sets_layers_and_lambda() -> None:
    lm = tiny_lm("gptj")
    lm.n_layers, lm.n_neurons = 28, 16384
    plan, chosen = preset("gpt-j").fitted(lm, method("ace-paper"))
    assert plan.checked(28).value_layers == (25, 26, 27)
    assert chosen.lam == pytest.approx(6000 / 16384)
    for name in ("ace", "rome", "ft"):
        with pytest.raises(UserError, match="takes no layers"):
            preset("gpt-j").fitted(lm, method(name))


def test_a_preset_says_where_it_is_from_and_for_whom() -> None:
    assert "appendix F" in preset("gpt-j").said
    assert "16-18 in section 6.4" in preset("gpt-j").said
    assert [method(name).ranged for name in ("pmet", "ace-paper", "rome", "ft")] == [
        True,
        True,
        False,
        False,
    ]


def test_an_unknown_preset_is_one_line() -> None:
    with pytest.raises(UserError, match="known: gpt-j, qwen3-8b"):
        preset("gpt-5")
