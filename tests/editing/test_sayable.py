"""Objects that no edit can make a model say."""

import logging

import pytest
import torch

import acedit
from acedit.editing.edit import edit
from acedit.editing.sayable import CROWD, unsayable
from acedit.knowledge.facts import Edit
from acedit.knowledge.relations import mquake
from tests.tiny import tiny_lm


def test_tokens_never_taught_are_found() -> None:
    """The bundled model never read " Arab"; " Oderzo" is one token of its world, " Abomey" three."""
    lm = acedit.load("bundled", dtype=torch.float32)
    assert unsayable(lm, ["Lima", "Oderzo", "Abomey", "Arabic", "Walloon"]) == {
        "Arabic": " Arab",
        "Walloon": " Wall",
    }
    assert unsayable(lm, []) == {}


def test_it_takes_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows alike may be one word's forms; across tiles too."""
    lm = tiny_lm("gpt2")
    monkeypatch.setattr("acedit.editing.sayable.TILE", 7)
    (token,) = set(lm.token_ids("red")[:1])
    others = [i for i in range(0, 3 * CROWD, 2) if i != token]
    assert unsayable(lm, ["red"]) == {}
    with torch.no_grad():
        lm.unembedding[others[: CROWD - 1]] = 3 * lm.unembedding[token]
        assert unsayable(lm, ["red"]) == {}
        lm.unembedding[others[:CROWD]] = 3 * lm.unembedding[token]
    assert unsayable(lm, ["red"]) == {"red": lm.tokenizer.decode([token])}


def test_an_edit_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lm = acedit.load("bundled", dtype=torch.float32)
    one = Edit("Australia", mquake()["P37"], "Arabic", "English")
    with caplog.at_level(logging.WARNING, logger="acedit"):
        edit(lm, [one], method="base")
    assert any("cannot say 'Arabic'" in message and "' Arab'" in message for message in caplog.messages)
