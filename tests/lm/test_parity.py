"""Every row of the families table, proven on a tiny random model against its own forward pass.

A gap is the largest absolute difference over the largest absolute value. Tolerances by dtype:
- What is summed from the same numbers: float64 1e-12, float32 1e-5, bfloat16 0.03 (8 bits of
  mantissa, rounded at each of six additions to the stream).
- What passes norms and softmax again, in another batch shape: float64 5e-6, float32 1e-5, bfloat16
  0.05. transformers takes RMSNorms, and plain attention's softmax, in float32 whatever the dtype.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from acedit.lm.families import FAMILIES
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix
from acedit.lm.trace import Trace, trace
from tests.tiny import tiny_lm

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
NORM_TOLERANCE = {torch.float64: 5e-6, torch.float32: 1e-5, torch.bfloat16: 5e-2}

TEXTS = [
    "Ann Lee is a citizen of Peru. The capital of Peru is",
    "Bo Ray is",
    "Question: What is the capital of Chile?\nAnswer:",
]

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted(FAMILIES)),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("llama", {"mlp_bias": True, "attention_bias": True, "num_key_value_heads": 1}),
    ("llama", {"intermediate_size": 32}),
    ("gpt2", {"n_inner": 32}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("qwen3", {"tie_word_embeddings": True}),
]


def name_of(case: tuple[str, dict[str, Any]]) -> str:
    """A readable test id."""
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


@pytest.fixture(params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A family, with config overrides."""
    found: tuple[str, dict[str, Any]] = request.param
    return found


@pytest.fixture(params=list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype parity is stated for."""
    found: torch.dtype = request.param
    return found


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value, in float64."""
    a, b = found.double(), expected.double()
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def test_parity(case: tuple[str, dict[str, Any]], dtype: torch.dtype) -> None:
    lm = tiny_lm(case[0], dtype=dtype, **case[1])
    tolerance = TOLERANCE[dtype]
    t = trace(lm, TEXTS, logits=True)

    rebuilt = t.residual[0].double() + t.attention.double().sum(0) + t.ffn.double().sum(0)
    assert gap(rebuilt, t.residual[-1]) < tolerance

    for layer in range(lm.n_layers):
        m = t.coefficients[layer]
        out = m.double() @ lm.subvalues(layer).double()
        bias = lm.down_bias(layer)
        if bias is not None:
            out = out + bias.double()
        post = lm.ffn_post_norm(layer)
        added = out if post is None else post(out.to(dtype))
        assert gap(added, t.ffn[layer]) < tolerance
        assert gap(lm.coefficients_of(layer, t.ffn_inputs[layer]), m) < tolerance
        assert_reads(lm, t, layer, NORM_TOLERANCE[dtype])

    assert t.logits is not None
    last = lm.logits(TEXTS)
    for row, text in enumerate(TEXTS):
        own = lm.model(**lm.tokenizer(text, return_tensors="pt"), use_cache=False).logits[0]
        assert gap(t.logits[row, : len(own)], own) < NORM_TOLERANCE[dtype]
        assert gap(last[row], own[-1]) < NORM_TOLERANCE[dtype]


def assert_reads(lm: LanguageModel, t: Trace, layer: int, tolerance: float) -> None:
    """The FFN reads what the table says: the stream with attention in it, or beside it."""
    stream = t.residual[layer] if lm.parallel else t.residual[layer] + t.attention[layer]
    frozen = lm.freeze_norm(lm.ffn_norm(layer), stream)
    assert gap(frozen.apply(stream, bias=True), t.ffn_inputs[layer]) < tolerance


def test_attention_is_the_heads_through_their_subvalues(case: tuple[str, dict[str, Any]]) -> None:
    lm = tiny_lm(case[0], dtype=torch.float64, **case[1])
    t = trace(lm, TEXTS, attention_weights=True)
    assert t.attention_weights is not None
    for layer in range(lm.n_layers):
        out = torch.einsum("bshi,hid->bsd", t.head_outputs[layer], lm.attention_subvalues(layer))
        bias = lm.attention_out(layer).bias
        out = out if bias is None else out + bias
        post = lm.attention_post_norm(layer)
        assert gap(out if post is None else post(out), t.attention[layer]) < 1e-9

        # A head's output is its pattern over W_v's readings of the normed stream.
        norm = lm.attention_norm(layer)
        x = t.residual[layer] if norm is None else norm(t.residual[layer])
        values = torch.einsum("bsd,hid->bshi", x, lm.attention_value_rows(layer))
        value_bias = lm.attention_value_bias(layer)
        values = values if value_bias is None else values + value_bias
        heads = torch.einsum("bhqk,bkhi->bqhi", t.attention_weights[layer], values)
        # The plain attention kernel takes its softmax in float32.
        assert gap(heads, t.head_outputs[layer]) < 1e-6


def test_a_suffix_runs_as_the_whole_model(case: tuple[str, dict[str, Any]], dtype: torch.dtype) -> None:
    lm = tiny_lm(case[0], dtype=dtype, **case[1])
    encoded = lm.encode(TEXTS)
    t = trace(lm, encoded, logits=True)
    assert t.logits is not None
    real_tokens = encoded.attention_mask.bool()
    for layer in range(lm.n_layers + 1):
        suffix = Suffix(lm, encoded, layer)
        assert torch.equal(suffix.hidden, t.residual[layer])
        final = suffix.run()
        assert gap(final[real_tokens], t.residual[-1][real_tokens]) < TOLERANCE[dtype]
        assert gap(suffix.logits(final[real_tokens]), t.logits[real_tokens]) < TOLERANCE[dtype]
        rest, shown = Suffix(lm, encoded, layer, start=4), real_tokens[:, 4:]
        # The plain attention kernel takes its softmax in float32.
        near = max(TOLERANCE[dtype], 1e-6)
        for _ in range(2):
            assert gap(rest.run()[shown], final[:, 4:][shown]) < near


def test_the_final_norm_frozen_is_the_final_norm(
    case: tuple[str, dict[str, Any]], dtype: torch.dtype
) -> None:
    lm = tiny_lm(case[0], dtype=dtype, **case[1])
    t = trace(lm, TEXTS)
    x = t.residual[-1]
    frozen = lm.freeze_norm(lm.final_norm, x)
    assert gap(frozen.apply(x, bias=True), lm.final_norm(x)) < NORM_TOLERANCE[dtype]


def test_right_padding_changes_nothing(lm: LanguageModel) -> None:
    together = lm.logits(TEXTS)
    alone = torch.cat([lm.logits([text]) for text in TEXTS])
    assert gap(together, alone) < 1e-5
