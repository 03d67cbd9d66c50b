"""What the covariance's text is, and how readily a model reads it."""

from pathlib import Path

import pytest
import torch

from acedit.editing import preserve
from acedit.editing.covariance import covariances
from acedit.editing.preserve import RIDGE, SAMPLED, TOKENS_A_NEURON, metric_beside, surprise, text_of
from acedit.knowledge.compose import belief_texts
from acedit.knowledge.prose import prose, wikitext
from acedit.lm.model import LanguageModel
from tests.editing.test_edit import KNOWN
from tests.tiny import tiny_lm


def tokens(lm: LanguageModel, texts: list[str]) -> int:
    return sum(len(lm.token_ids(text)) for text in texts)


def test_without_facts_it_is_prose_enough_for_every_neuron() -> None:
    lm = tiny_lm("qwen3")
    found = text_of(lm, ())
    assert found[0] == prose()[0]
    assert tokens(lm, found) >= TOKENS_A_NEURON * lm.n_neurons
    assert not any(text in wikitext() for text in found)


def test_facts_stand_alone_where_the_model_reads_prose_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")
    said = belief_texts(KNOWN)
    monkeypatch.setattr(lm, "n_neurons", tokens(lm, list(dict.fromkeys(said))))
    for worse, expected in (("prose", said), ("facts", [*said, *prose()])):
        monkeypatch.setattr(
            preserve, "surprise", lambda _, texts, worse=worse: (texts == prose()) == (worse == "prose")
        )
        found = text_of(lm, KNOWN)
        assert found == expected[: len(found)]
        assert (len(found) > len(said)) == (worse == "facts")
    monkeypatch.setattr(lm, "n_neurons", 1)  # so many facts that nothing is asked
    assert text_of(lm, KNOWN) == said


def test_kin_beside_the_text_cost_a_step_along_them(tmp_path: Path) -> None:
    """P = C + ridge, and the kin's second moment at C's trace times its weight."""
    lm, texts = tiny_lm("qwen3"), ["Ann Lee is a citizen of Peru.", "Who is Bo Ray?"]
    kin = {1: torch.randn(3, lm.n_neurons)}
    c = covariances(lm, texts, [1], cache_dir=tmp_path)[1].double()
    k = kin[1].double()
    for weight in (0.0, 1.0, 10.0):
        p = c + RIDGE * c.trace() / lm.n_neurons * torch.eye(lm.n_neurons).double()
        p = p + weight * c.trace() * (k.T @ k) / k.square().sum()
        found = metric_beside(lm, texts, [1], kin, weight, tmp_path)(1)(k.T)
        torch.testing.assert_close(found, torch.linalg.solve(p, k.T), rtol=1e-6, atol=1e-9)
    alone = metric_beside(lm, texts, [1], cache_dir=tmp_path)(1)(k.T)
    assert float((k * found.T).sum()) < 0.5 * float((k * alone.T).sum())


def test_surprise_is_the_loss_of_the_next_token() -> None:
    lm = tiny_lm("llama")
    texts = ["Lima is by the sea.", "", "Ann lives there"]
    losses = []
    for text in texts:
        ids = lm.tokenizer(text)["input_ids"][:SAMPLED]
        for at in range(1, len(ids)):
            said = lm.model(torch.tensor([ids[:at]])).logits[0, -1].log_softmax(-1)
            losses.append(-float(said[ids[at]]))
    assert surprise(lm, texts) == pytest.approx(sum(losses) / len(losses), abs=1e-4)
