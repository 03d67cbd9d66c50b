"""The frozen norm is linear, and its transpose is its adjoint."""

import torch

from acedit.lm.model import LanguageModel
from acedit.lm.norms import FrozenNorm
from acedit.lm.trace import trace
from tests.tiny import tiny_lm


def frozen_final(lm: LanguageModel) -> tuple[FrozenNorm, torch.Tensor]:
    """The final norm at the last token of one prompt, and its input there."""
    x = trace(lm, ["The capital of Peru is"]).residual[-1][0, -1].double()
    return lm.freeze_norm(lm.final_norm, x), x


def test_parts_add_up_to_the_whole(lm: LanguageModel) -> None:
    frozen, x = frozen_final(lm)
    parts = torch.randn(7, lm.d_model, dtype=torch.float64)
    parts[-1] = x - parts[:-1].sum(0)
    whole = frozen.apply(x)
    assert torch.allclose(frozen.apply(parts).sum(0), whole, atol=1e-12)
    if frozen.beta is not None:
        assert torch.allclose(frozen.apply(x, bias=True), whole + frozen.beta)


def test_transpose_is_the_adjoint(lm: LanguageModel) -> None:
    frozen, _ = frozen_final(lm)
    v, w = torch.randn(2, 5, lm.d_model, dtype=torch.float64)
    there = (frozen.apply(v) * w).sum(-1)
    assert torch.allclose(there, (v * frozen.transpose(w)).sum(-1), atol=1e-12)


def test_affine_false_leaves_gamma_out(lm: LanguageModel) -> None:
    frozen, x = frozen_final(lm)
    plain = frozen.apply(x, affine=False)
    assert torch.allclose(plain * frozen.gamma, frozen.apply(x))
    assert abs(float(plain.pow(2).mean()) - 1) < 1e-4


def test_no_norm_is_the_identity() -> None:
    lm = tiny_lm("olmo2")
    assert lm.ffn_norm(0) is None
    x, v = torch.randn(2, 3, lm.d_model)
    assert torch.equal(lm.freeze_norm(None, x).apply(v), v)


def test_low_precision_is_widened() -> None:
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    x = torch.randn(4, lm.d_model, dtype=torch.bfloat16)
    assert lm.freeze_norm(lm.final_norm, x).apply(x).dtype == torch.float32
