"""Fingerprints, weights in their places, losses of answers, questions."""

import pytest
import torch

from acedit.errors import UserError
from acedit.knowledge import prompts
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm


def test_the_fingerprint_tells_models_apart_and_is_kept() -> None:
    lm = tiny_lm("gpt2")
    assert lm.fingerprint == tiny_lm("gpt2").fingerprint
    others = [tiny_lm("gpt2", seed=1), tiny_lm("gpt2", dtype=torch.bfloat16), tiny_lm("llama")]
    assert len({lm.fingerprint, *(other.fingerprint for other in others)}) == 4
    before = lm.fingerprint
    lm.down_weight(0).data.add_(1)
    assert lm.fingerprint == before
    assert LanguageModel(lm.model, lm.tokenizer).fingerprint != before


def test_subvalues_are_a_view_whatever_the_orientation(lm: LanguageModel) -> None:
    before = lm.subvalues(1)[3].clone()
    lm.subvalues(1)[3] += 1
    assert torch.equal(lm.subvalues(1)[3], before + 1)
    assert lm.subvalues(1).shape == (lm.n_neurons, lm.d_model)
    assert lm.subvalues(1).data_ptr() == lm.down_weight(1).data_ptr()


def test_an_answers_loss_is_that_of_its_tokens(lm: LanguageModel) -> None:
    texts, answers = ["The capital of Peru is", "Bo Ray"], ["Lima", "Santiago"]
    found = lm.answer_nll(texts, answers)
    for text, answer, loss in zip(texts, answers, found, strict=True):
        ids, tail = lm.encode([text]).input_ids[0].tolist(), lm.token_ids(answer)
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids + tail])).logits[0].float().log_softmax(-1)
        each = [float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(tail)]
        assert loss == pytest.approx(-sum(each) / len(each), abs=1e-4)
    with pytest.raises(UserError, match="context"):
        lm.answer_nll(["x" * (lm.context - 2)], ["Santiago de Chile"])


def test_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    asked: list[str] = []

    def generate(texts: list[str], **_: object) -> list[str]:
        asked.extend(texts)
        return [" Bo Ray is of Chile.\nAnswer: Santiago \n"]

    monkeypatch.setattr(lm, "generate", generate)
    assert lm.answer("Where is Bo Ray?", cot=True) == "Santiago"
    assert lm.answer("Where is Bo Ray?").startswith("Bo Ray is of Chile.")
    lm.answer("Bo Ray lives in ")
    assert asked == [
        prompts.COT_PROMPT + "\n\nQuestion: Where is Bo Ray?\nThoughts:",
        "Question: Where is Bo Ray?\nAnswer:",
        "Bo Ray lives in",
    ]
