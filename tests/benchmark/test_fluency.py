"""Fluency is the perplexity that a model's own logits give."""

import math

import pytest
import torch

from acedit.benchmark.fluency import TOKENS, perplexity
from acedit.knowledge.prose import wikitext
from acedit.lm.model import LanguageModel
from tests.tiny import byte_tokenizer, tiny_lm, tiny_model


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "mistral"])
def test_perplexity_is_the_models_own(family: str) -> None:
    lm = tiny_lm(family)
    text = "Bo Ray is a citizen of Peru and Ann Lee of Chile."
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = lm.model(input_ids=ids, labels=ids).loss
    assert perplexity(lm, text) == pytest.approx(math.exp(float(loss)), rel=1e-4)
    assert math.isnan(perplexity(lm, ""))


def test_wikitext_is_there_and_windows_stand_alone() -> None:
    lm = tiny_lm("qwen3")
    assert "lobster" in wikitext()
    ids = torch.tensor(lm.tokenizer(wikitext())["input_ids"][: 2 * TOKENS]).reshape(2, 1, TOKENS)
    with torch.no_grad():
        each = [float(lm.model(input_ids=window, labels=window).loss) for window in ids]
    assert each[0] != each[1]
    assert perplexity(lm, windows=2) == pytest.approx(math.exp(sum(each) / 2), rel=1e-4)


def test_every_window_starts_as_the_tokenizer_starts_a_text() -> None:
    lm = LanguageModel(tiny_model("llama"), byte_tokenizer(bos=True))
    ids = lm.tokenizer(wikitext())["input_ids"]
    assert ids[0] == lm.tokenizer.bos_token_id
    each = []
    for window in (ids[1:TOKENS], ids[TOKENS : 2 * TOKENS - 1]):
        row = torch.tensor([ids[:1] + window])
        with torch.no_grad():
            each.append(float(lm.model(input_ids=row, labels=row).loss))
    assert perplexity(lm, windows=2) == pytest.approx(math.exp(sum(each) / 2), rel=1e-4)
