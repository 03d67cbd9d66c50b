"""A trace has the shapes it states, leaves no hooks, and puts attention back as it was."""

import pytest
import torch

from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace
from tests.tiny import tiny_lm

TEXTS = ["Ann Lee is a citizen of", "Bo Ray is"]


def hooks(lm: LanguageModel) -> int:
    """Hooks on any module of the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def test_shapes_and_defaults(lm: LanguageModel) -> None:
    t = trace(lm, TEXTS)
    batch, seq = t.encoded.input_ids.shape
    assert t.residual.shape == (lm.n_layers + 1, batch, seq, lm.d_model)
    assert t.coefficients.shape == (lm.n_layers, batch, seq, lm.n_neurons)
    assert t.head_outputs.shape == (lm.n_layers, batch, seq, lm.n_heads, lm.head_dim)
    assert t.logits is None and t.attention_weights is None
    assert not any(x.requires_grad for x in (t.residual, t.coefficients, t.ffn))
    last = t.at_last(t.coefficients)
    assert torch.equal(last[:, 1], t.coefficients[:, 1, t.encoded.last[1]])


def test_an_encoded_batch_is_traced_as_its_texts(lm: LanguageModel) -> None:
    assert torch.equal(trace(lm, lm.encode(TEXTS)).residual, trace(lm, TEXTS).residual)


def test_patterns_are_distributions_over_the_past(lm: LanguageModel) -> None:
    before = lm.model.config._attn_implementation
    t = trace(lm, TEXTS, attention_weights=True)
    assert lm.model.config._attn_implementation == before
    assert t.attention_weights is not None
    row = t.attention_weights[:, 0]
    assert torch.allclose(row.sum(-1), torch.ones_like(row.sum(-1)), atol=1e-5)
    assert float(row.triu(1).abs().max()) == 0


def test_no_hook_outlives_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    trace(lm, TEXTS)
    assert hooks(lm) == 0

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("interrupted")

    monkeypatch.setattr(lm.model.model, "forward", broken)
    with pytest.raises(RuntimeError, match="interrupted"):
        trace(lm, TEXTS, attention_weights=True)
    assert hooks(lm) == 0
    assert lm.model.config._attn_implementation == "sdpa"
