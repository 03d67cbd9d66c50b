"""Families that are unknown, or that break what their row states, get one clear line."""

from types import SimpleNamespace
from typing import Any

import pytest

from acedit.errors import UserError
from acedit.lm.families import FAMILIES, family_of
from tests.tiny import CONFIGS, tiny_config, tiny_lm

NAMED = {
    "gpt2", "gptj", "gpt_neox", "opt", "llama", "mistral",
    "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2",
}  # fmt: skip


def test_the_promised_families_are_there_and_tested() -> None:
    assert set(FAMILIES) == NAMED == set(CONFIGS)


@pytest.mark.parametrize("config", [SimpleNamespace(model_type="mamba"), SimpleNamespace()])
def test_an_unknown_family_is_one_line_that_says_how_to_add_it(config: Any) -> None:
    with pytest.raises(UserError, match="not known") as error:
        family_of(config)
    text = str(error.value)
    assert "\n" not in text and "families.py" in text
    assert all(name in text for name in NAMED)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before"),
        ({"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
    ],
)
def test_an_opt_that_breaks_its_row_is_refused(overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        family_of(tiny_config("opt", **overrides))


def test_neox_is_parallel_only_if_its_config_says_so() -> None:
    assert tiny_lm("gpt_neox").parallel
    assert not tiny_lm("gpt_neox", use_parallel_residual=False).parallel
    assert tiny_lm("gptj").parallel
    assert not tiny_lm("llama").parallel
