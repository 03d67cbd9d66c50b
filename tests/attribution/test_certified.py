"""Certified scores against every neuron's distribution in float64: bounds hold, top-k is the same."""

import re
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acedit.attribution.atlas import build_atlas
from acedit.attribution.certified import (
    Base,
    _Board,
    _growth,
    _Readings,
    certified_counts,
    certified_layer_sums,
    certified_top,
    exact,
)
from acedit.attribution.directions import neuron_directions, rounding, whole_products
from acedit.attribution.query import query_scores
from acedit.attribution.spread import measure_spread
from acedit.attribution.value import (
    Neuron,
    Reading,
    attention_subvalue_scores,
    layer_scores,
    log_increase,
    readings,
    through_post_norm,
)
from acedit.errors import UserError
from acedit.lm.cache import save_tensors
from acedit.lm.families import FAMILIES
from acedit.lm.model import LanguageModel
from acedit.lm.trace import Trace, trace
from tests.editing.test_patch import patch_for
from tests.tiny import byte_tokenizer, tiny_lm, tiny_model

PROMPTS = ["Ann Lee is a citizen of", "Who is Bo Ray?"]
ANSWERS = ["Peru", "Chile"]


def brute(unembedding: Tensor, log_p: Tensor, vectors: Tensor, scale: Tensor, token: int) -> Tensor:
    delta = scale[:, None] * (vectors.double() @ unembedding.double().T)
    return delta[:, token] - (log_p + delta).logsumexp(1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Unembedding, log p, directions, scales, token: peaked and flat p, huge, zero and repeated neurons."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    vocab, d, n = draw(st.integers(3, 60)), draw(st.integers(2, 16)), draw(st.integers(2, 40))
    unembedding = torch.randn(vocab, d, generator=g)
    unembedding[: vocab // 3] += draw(st.sampled_from([0.0, 3.0]))
    temperature = draw(st.sampled_from([0.0, 0.3, 3.0, 60.0, 300.0, 1000.0]))
    log_p = (temperature * torch.randn(vocab, generator=g, dtype=torch.float64)).log_softmax(0)
    vectors = torch.randn(n, d, generator=g)
    vectors[n // 2 :] = vectors[: n - n // 2].clone()
    size = draw(st.sampled_from([1e-6, 0.1, 1.0, 30.0, 1e4]))
    scale = size * torch.randn(n, generator=g, dtype=torch.float64)
    scale[0] = 0.0
    scale[-1] = scale[n - 1 - n // 2]
    return unembedding, log_p, vectors, scale, draw(st.integers(0, vocab - 1))


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(1, 32))
def test_the_true_score_lies_in_its_interval(
    problem: tuple[Tensor, Tensor, Tensor, Tensor, int], heavy: int
) -> None:
    unembedding, log_p, vectors, scale, token = problem
    both, tokens = torch.stack([log_p, log_p.flip(0)]), torch.tensor([token, 0])
    base = Base.of(unembedding, both, tokens, unembedding.double().mean(0), heavy=heavy)
    logits = scale[:, None] * (vectors.double() @ unembedding.double().T)
    strays = logits - logits.mean(1, keepdim=True)
    slack = rounding(vectors.shape[1], torch.float32) * vectors.norm(dim=1) * unembedding.norm(dim=1).max()
    products = (vectors @ base.pulls.float().mT).double() * scale[:, None]
    low, high = base.bounds(
        torch.tensor([1, 0]),
        products.flip(0),
        (slack.double() * scale.abs()).expand(2, -1),
        strays.square().sum(1).expand(2, -1),
        strays.abs().amax(1).expand(2, -1),
    )
    tiny = 1e-12 * (1 + logits.abs().amax(1) + log_p.abs().max())  # what the board's doubt is for
    for i, (p, w) in enumerate([(both[1], 0), (log_p, token)]):
        true = brute(unembedding, p, vectors, scale, w)
        assert bool((low[i] <= true + tiny).all())
        assert bool((true <= high[i] + tiny).all())
    assert bool(torch.isfinite(low).all())


def test_growth_is_the_largest_there_is() -> None:
    """The two-point x that attains it, and none of many others goes beyond."""
    g = torch.Generator().manual_seed(3)
    for size in (1e-6, 1e-3, 1.0, 10.0, 300.0):
        x = size * torch.randn(500, 4, generator=g, dtype=torch.float64)
        p = torch.rand(500, 4, generator=g, dtype=torch.float64).softmax(1)
        x = x - (p * x).sum(1, keepdim=True)
        got = _growth((p * x.square()).sum(1), x.abs().amax(1))
        assert bool((got >= (p.log() + x).logsumexp(1) - 1e-12).all())
    most = torch.tensor([1e-5, 0.1, 2.0, 700.0], dtype=torch.float64)
    square = most.square() * torch.tensor([0.1, 0.5, 1.0, 0.01], dtype=torch.float64)
    share = square / (square + most.square())
    attained = torch.stack([share.log() + most, (1 - share).log() - square / most]).logsumexp(0)
    assert torch.allclose(_growth(square, most), attained, rtol=1e-9, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_exact_is_exact(problem: tuple[Tensor, Tensor, Tensor, Tensor, int]) -> None:
    unembedding, log_p, vectors, scale, token = problem
    row = torch.zeros(len(scale), dtype=torch.long)
    got = exact(unembedding, log_p[None], row, vectors.double(), scale, torch.full_like(row, token))
    true = brute(unembedding, log_p, vectors, scale, token)
    assert torch.allclose(got, true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_top_k_is_that_of_brute_force(name: str, dtype: torch.dtype) -> None:
    """Set and order, a layer and the model, in every family; brute force in float64 where it can be."""
    lm = tiny_lm(name, dtype=dtype)
    scores = layer_scores(lm, PROMPTS, ANSWERS).neurons.double()
    found = certified_top(lm, PROMPTS, ANSWERS, k=5)
    whole = certified_top(lm, PROMPTS, ANSWERS, k=7, scope="model")
    # float32 brute force orders what is nearer than its own rounding by chance.
    near = 1e-9 if dtype == torch.float64 else 2e-5
    for i in range(2):
        for layer, part in enumerate(found[i]):
            _same(scores[layer, i][None], layer, part, near)
        _same(scores[:, i], 0, whole[i][0], near)


def _same(scores: Tensor, first: int, part: object, near: float) -> None:
    values = scores.flatten().sort(descending=True).values
    for rank, neuron in enumerate(part.neurons):  # type: ignore[attr-defined]
        true = float(scores[neuron.layer - first, neuron.index])
        assert true == pytest.approx(float(values[rank]), abs=near)
        assert neuron.score == pytest.approx(true, abs=near)
        assert part.low[rank] - near <= true <= part.high[rank] + near  # type: ignore[attr-defined]
    k = len(part.neurons)  # type: ignore[attr-defined]
    assert part.rest >= float(values[k]) - near  # type: ignore[attr-defined]


def true_scores(lm: LanguageModel, t: Trace, at: Reading) -> Tensor:
    """Every neuron's score in float64, of what a trace recorded: (layers, n_neurons)."""
    true = []
    for layer in range(lm.n_layers):
        m = t.coefficients[layer, at.row, at.position].double()
        v = m[:, None] * lm.subvalues(layer).double()
        v = through_post_norm(lm, v, lm.ffn_post_norm(layer), v.sum(0), lm.down_bias(layer))
        base = t.residual[layer, at.row, at.position].double()
        base = base + t.attention[layer, at.row, at.position].double()
        last = t.residual[-1, at.row, at.position].double()
        true.append(log_increase(lm, base, v, last, at.token))
    return torch.stack(true)


def outside(lm: LanguageModel, dtype: torch.dtype | None = None) -> list[float]:
    """How far beyond its interval a neuron's true score (float64, of the same trace) lies at most, by level.

    dtype: what the board is worked out under (autocast)."""
    encoded, (at,) = readings(lm, PROMPTS[:1], ANSWERS[:1])
    t = trace(lm, encoded)
    score = true_scores(lm, t, at)
    where = _Readings(*(torch.tensor([x]) for x in (at.row, at.position, at.token, at.source)))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        board = _Board(lm, measure_spread(lm), t, where, 1)
        found = []
        for level in (0, 1, 2):
            if level:
                board.rescore(torch.arange(board.low.numel()), level)
            beyond = torch.maximum(board.low[0] - score, score - board.high[0])
            found.append(float((beyond - 1e-12 * (1 + score.abs())).max()))
    assert bool(torch.isfinite(board.low + board.high).all())
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    name=st.sampled_from(["qwen3", "gpt2", "gemma2"]),
    gain=st.sampled_from([0.01, 1.0, 20.0, 300.0]),
    size=st.sampled_from([1e-4, 1.0, 30.0]),
    repeated=st.integers(0, 24),
    silent=st.integers(0, 24),
    k=st.integers(1, 48),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_k_best_are_those_of_float64_whatever_the_weights(
    seed: int, name: str, gain: float, size: float, repeated: int, silent: int, k: int, dtype: torch.dtype
) -> None:
    """Flat and peaked p, small and huge subvalues, repeated neurons and silent ones."""
    lm = tiny_lm(name, seed=seed)
    with torch.no_grad():
        lm.final_norm.weight.mul_(gain)  # type: ignore[operator,union-attr]
        for layer in range(lm.n_layers):
            subvalues = lm.subvalues(layer)
            subvalues.mul_(size)
            read = [half for half in lm._halves(layer) if half is not None]
            bias = getattr(lm.up(layer), "bias", None)
            for rows in (subvalues, *read, *([] if bias is None else [bias])):
                rows[48 - repeated :] = rows[:repeated].clone()
            subvalues[:silent] = 0
    lm = LanguageModel(lm.model.to(dtype), lm.tokenizer)
    encoded, (at,) = readings(lm, PROMPTS[:1], ANSWERS[:1])
    true = true_scores(lm, trace(lm, encoded), at)
    (found,) = certified_top(lm, PROMPTS[:1], ANSWERS[:1], k=k)
    for layer, part in enumerate(found):
        best = true[layer].sort(descending=True)
        mine = [n.index for n in part.neurons]
        off = 1e-9 * (1 + float(best.values.abs().max()))
        assert true[layer, mine].tolist() == pytest.approx(best.values[:k].tolist(), abs=off)
        tied = {index for chain in part.ties for _, index in chain}
        assert set(mine) - tied == set(best.indices[:k].tolist()) - tied
        gaps = best.values[:-1] - best.values[1:]
        if float(gaps[:k].min() if k < 48 else gaps.min()) > 100 * off:
            assert mine == best.indices[:k].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_neuron_lies_in_its_interval(name: str, dtype: torch.dtype) -> None:
    """At every level: flat and peaked p, small and large neurons, rows with a mean, a shifted head."""
    for gain, down, common, shift in ((1, 1, 0, 0), (10, 1, 0.5, 0), (60, 1, 0, 1e6), (1, 20, 0, 0)):
        lm = tiny_lm(name)
        with torch.no_grad():
            lm.final_norm.weight.mul_(gain)  # type: ignore[operator,union-attr]
            lm.unembedding.add_(common)
            if lm.head_bias is not None:
                lm.head_bias.add_(min(shift, torch.finfo(dtype).max / 2))
            for layer in range(lm.n_layers):
                lm.down_weight(layer).mul_(down)
        assert max(outside(LanguageModel(lm.model.to(dtype), lm.tokenizer))) <= 0


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "qwen3"])
def test_intervals_hold_where_neurons_take_from_each_other(name: str) -> None:
    """Two huge opposite neurons: a post-norm's scale is of what their sum leaves."""
    lm = tiny_lm(name)
    with torch.no_grad():
        for linear in (lm.up(1), lm.block(1).mlp.gate_proj):  # type: ignore[union-attr]
            linear.weight[5] = linear.weight[4]  # type: ignore[index,union-attr]
        lm.down_weight(1)[:, 4] *= 1e6
        lm.down_weight(1)[:, 5] = -lm.down_weight(1)[:, 4]
    assert max(outside(LanguageModel(lm.model, lm.tokenizer))) <= 0


def test_intervals_hold_under_autocast_and_for_tiny_rows() -> None:
    lm = tiny_lm("llama")
    assert max(outside(lm, torch.bfloat16)) <= 0
    with torch.no_grad():
        lm.unembedding.mul_(1e-24)
        lm.final_norm.weight.mul_(1e24)  # type: ignore[operator,union-attr]
    assert max(outside(LanguageModel(lm.model, lm.tokenizer))) <= 0


def test_products_are_whole_whatever_the_process_allows() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with whole_products(torch.device("cpu")):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_overflow_is_named() -> None:
    for layer in (1, tiny_lm("qwen3").n_layers - 1):
        lm = tiny_lm("qwen3")
        with torch.no_grad():
            lm.down_weight(layer).fill_(3e38)
        with pytest.raises(UserError, match=f"layer {layer}: .* NaN or infinite"):
            certified_top(LanguageModel(lm.model, lm.tokenizer), PROMPTS, ANSWERS, k=1)


CHAIN = [(0.6, 0.8), (0.9, 1.1), (0.75, 0.95), (2.0, 2.1)]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_chains_of_overlapping_intervals_are_ties(order: tuple[int, ...]) -> None:
    """A chain is reported whole; of its neurons none is left out for one that it is proven to beat."""
    lm = tiny_lm("qwen3")
    encoded, (at,) = readings(lm, PROMPTS[:1], ANSWERS[:1])
    where = _Readings(*(torch.tensor([x]) for x in (at.row, at.position, at.token, at.source)))
    board = _Board(lm, measure_spread(lm), trace(lm, encoded), where, 1)
    board.low.fill_(-9.0)
    board.high.fill_(-9.0)
    board.level.fill_(2)
    for i, one in enumerate(order):
        board.low[0, 0, i], board.high[0, 0, i] = CHAIN[one]
    # With two asked for, the second's low, 0.9, leaves 0 out.
    chains = {k: tuple((0, i) for i, one in enumerate(order) if one not in out) for k, out in
              ((2, (0, 3)), (3, (3,)))}  # fmt: skip
    # 1 beats 0; nothing else of the three is proven, so the lowest index stands first.
    first = min(1, 2, key=order.index)
    expected = [3, first, min(0, 2, key=order.index) if first == 1 else 1]
    for k in (2, 3):
        ((found, *_),) = board.best(k, 1)
        assert [order[n.index] for n in found.neurons] == expected[:k]
        assert found.ties == (chains[k],)
        left = {0, 1, 2} - set(expected[:k])
        assert found.rest == pytest.approx(max(CHAIN[one][1] for one in left))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
def test_layer_sums_are_within_their_error(name: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(name, dtype=dtype)
    true = layer_scores(lm, PROMPTS, ANSWERS, tokens="all").ffn_sum
    for tolerance in (0.05, 1e-6):
        found = certified_layer_sums(lm, PROMPTS, ANSWERS, tokens="all", tolerance=tolerance)
        for i, sums in enumerate(found):
            for layer, each in enumerate(sums):
                near = 1e-9 if dtype == torch.float64 else 1e-4
                assert abs(each.value - float(true[layer, i])) <= each.error + near
                assert each.error <= tolerance


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("at_once", [1, 1 << 30])
def test_several_readings_of_a_prompt_add_up(
    monkeypatch: pytest.MonkeyPatch, at_once: int, together: bool
) -> None:
    """Every token of the answers read, bounds taken one reading at a time as on a CPU, or of all at once."""
    monkeypatch.setattr("acedit.attribution.certified.CPU_BOUNDS", at_once)
    lm = tiny_lm("qwen3", dtype=torch.float64)
    true = layer_scores(lm, PROMPTS, ANSWERS, tokens="all").neurons
    true = true.sum(1, keepdim=True) if together else true
    found = certified_top(lm, PROMPTS, ANSWERS, k=3, tokens="all", together=together)
    assert len(found) == true.shape[1]
    for i, layers in enumerate(found):
        for layer, part in enumerate(layers):
            best = true[layer, i].topk(3)
            assert [n.index for n in part.neurons] == best.indices.tolist()
            assert [n.score for n in part.neurons] == pytest.approx(best.values.tolist(), abs=1e-8)
            assert part.rescored < part.of


def test_repeated_neurons_are_a_tie() -> None:
    lm = tiny_lm("qwen3", dtype=torch.float32)
    layer = 1
    with torch.no_grad():
        best = int(layer_scores(lm, PROMPTS[:1], ANSWERS[:1]).neurons[layer, 0].argmax())
        other = 3 if best != 3 else 4
        for linear in (lm.up(layer), lm.block(layer).mlp.gate_proj):  # type: ignore[union-attr]
            linear.weight[other] = linear.weight[best]  # type: ignore[index,union-attr]
        lm.down_weight(layer)[:, other] = lm.down_weight(layer)[:, best]
    lm = LanguageModel(lm.model, lm.tokenizer)
    (found,) = certified_top(lm, PROMPTS[:1], ANSWERS[:1], k=1)
    assert found[layer].ties == (((layer, min(best, other)), (layer, max(best, other))),)
    assert found[layer].neurons[0].index == min(best, other)


@pytest.mark.parametrize("at_once", [1, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
def test_neurons_over_a_limit_are_counted_exactly(
    name: str, dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(name, dtype=dtype)
    monkeypatch.setattr("acedit.attribution.certified.ROOM", at_once)
    encoded, found = readings(lm, PROMPTS, ANSWERS)
    t = trace(lm, encoded)
    true = torch.stack([true_scores(lm, t, at) for at in found])
    # One of them near the best, one in the thick of it, each between two neurons.
    for rank in (3, true[0].numel() // 2):
        around = true.flatten(1).sort(descending=True).values[:, rank : rank + 2]
        limits = around.mean(1)
        counts = certified_counts(lm, PROMPTS, ANSWERS, limits.tolist())
        assert torch.equal(counts, (true >= limits[:, None, None]).sum(-1))
        assert 0 < int(counts.sum()) < true.numel()
    with pytest.raises(UserError, match="one limit a prompt"):
        certified_counts(lm, PROMPTS, ANSWERS, [0.0])


def test_few_are_scored_exactly() -> None:
    """A guard against bounds so wide that everything is rescored."""
    lm = tiny_lm("qwen3", intermediate_size=512)
    found = certified_top(lm, PROMPTS, ANSWERS, k=3)
    for parts in found:
        assert all(part.rescored < part.of / 4 for part in parts)


def test_wrong_wishes_are_one_line(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    for k in (0, lm.n_neurons + 1):
        with pytest.raises(UserError, match="ask for 1 to"):
            certified_top(lm, PROMPTS, ANSWERS, k=k)
    torch.manual_seed(5)
    with pytest.raises(UserError, match="another model"):
        certified_top(tiny_lm("gpt2"), PROMPTS, ANSWERS, spread=measure_spread(lm))
    with pytest.raises(UserError, match="another model"):
        build_atlas(lm, cache_dir=tmp_path).top_tokens(tiny_lm("gpt2"), 0, 0)


def test_an_atlas_is_what_brute_force_says_and_resumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny_lm("gpt2")
    atlas = build_atlas(lm, cache_dir=tmp_path, neuron_tile=7, token_tile=13)
    for layer in range(lm.n_layers):
        v = lm.subvalues(layer).double()
        logits = ((v - v.mean(1, keepdim=True)) * lm.final_norm.weight.double()) @ lm.unembedding.double().T  # type: ignore[operator,union-attr]
        assert bool((atlas.high[layer] >= logits.amax(1)).all())
        assert bool((atlas.low[layer] <= logits.amin(1)).all())
        assert torch.allclose(atlas.high[layer].double(), logits.amax(1), atol=1e-3)
        assert torch.equal(atlas.top[layer][:, 0].long(), logits.argmax(1))
        assert torch.equal(atlas.bottom[layer][:, 0].long(), logits.argmin(1))
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == lm.n_layers
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    caplog.clear()
    again = build_atlas(lm, cache_dir=tmp_path)
    assert torch.allclose(torch.stack(again.high), torch.stack(atlas.high), atol=1e-5)
    assert [f"{files[0]} is cut short or cannot be read: it is made again"] == caplog.messages


def test_an_atlas_of_another_model_is_said_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one of the same shape, put where this model's would be."""
    lm, other = tiny_lm("gpt2"), LanguageModel(tiny_model("gpt2", seed=3), byte_tokenizer())
    true = build_atlas(lm, cache_dir=tmp_path / "true")
    build_atlas(other, cache_dir=tmp_path)
    (theirs,) = (tmp_path / "atlas").iterdir()
    theirs.rename(theirs.with_name(theirs.name.replace(other.fingerprint[:32], lm.fingerprint[:32])))
    found = build_atlas(lm, cache_dir=tmp_path)
    assert torch.equal(torch.stack(found.high), torch.stack(true.high))
    assert len(caplog.messages) == lm.n_layers
    assert all("is not of this model" in line for line in caplog.messages)
    caplog.clear()
    build_atlas(lm, cache_dir=tmp_path)
    assert not caplog.messages


def test_an_atlas_of_other_shapes_is_said_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though it says that it is of this model."""
    lm = tiny_lm("gpt2")
    true = build_atlas(lm, cache_dir=tmp_path)
    first = min(tmp_path.rglob("*.safetensors"))
    short = {name: tensor[:3] for name, tensor in load_file(first).items()}
    save_tensors(first, short, {"of": lm.fingerprint})
    found = build_atlas(lm, cache_dir=tmp_path)
    assert torch.equal(torch.stack(found.high), torch.stack(true.high))
    assert caplog.messages == [f"{first} holds something else than it should: it is made again"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_spread_is_at_least_what_brute_force_says_and_resumes(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = tiny_lm(name, dtype=dtype)
    with torch.no_grad():
        lm.unembedding.add_(0.5)  # a mean that is not nothing beside the rows
    lm = LanguageModel(lm.model, lm.tokenizer)
    told: list[tuple[int, int]] = []
    spread = measure_spread(lm, cache_dir=tmp_path, progress=lambda *at: told.append(at))
    assert told[-1] == (lm.n_layers, lm.n_layers)
    assert spread.longest >= float(lm.unembedding.double().norm(dim=1).max())
    for layer in range(lm.n_layers):
        logits = neuron_directions(lm, layer, dtype=torch.float64) @ lm.unembedding.double().T
        strays = logits - logits.mean(1, keepdim=True)
        energy = strays.square().sum(1)
        assert bool((spread.energy[layer] >= energy).all())
        assert torch.allclose(spread.energy[layer], energy, rtol=1e-2)
        assert bool((spread.reach[layer] >= strays.abs().amax(1)).all())
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == lm.n_layers + 1
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[-1].unlink()
    again = measure_spread(lm, cache_dir=tmp_path)
    assert torch.equal(again.energy, spread.energy)
    assert torch.equal(again.mean, spread.mean)


def test_a_patched_model_is_refused() -> None:
    lm = tiny_lm("qwen3")
    with patch_for(lm).applied(lm), pytest.raises(UserError, match="remove the patch first"):
        certified_top(lm, PROMPTS, ANSWERS)


def test_silent_neurons_score_nothing() -> None:
    """OPT's ReLU leaves neurons at zero: their score is known without a look."""
    lm = tiny_lm("opt")
    (found,) = certified_top(lm, PROMPTS[:1], ANSWERS[:1], k=lm.n_neurons)
    scores = layer_scores(lm, PROMPTS[:1], ANSWERS[:1]).neurons[:, 0]
    assert (scores == 0).any()
    for layer, part in enumerate(found):
        assert part.rescored == int((scores[layer].abs() > 2e-6).sum())  # float32 noise of layer_scores
        for neuron in part.neurons:
            assert neuron.score == pytest.approx(float(scores[layer, neuron.index]), abs=2e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_broken_weights_are_named_whatever_tensor_they_are_in(name: str, bad: float, tmp_path: Path) -> None:
    for tensor, weight in tiny_lm(name).model.named_parameters():
        lm = tiny_lm(name)
        with torch.no_grad():
            lm.model.get_parameter(tensor).view(-1)[-1] = bad
        broken = LanguageModel(lm.model, lm.tokenizer)
        layer = [part for part in tensor.split(".") if part.isdigit()]
        where = f"layer {layer[0]}: " if layer else ""
        with pytest.raises(UserError, match=f"^{where}{re.escape(tensor)} holds NaN"):
            certified_top(broken, PROMPTS, ANSWERS)
        assert weight.isfinite().all()


def test_every_way_in_refuses_broken_weights(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    with torch.no_grad():
        lm.up(1).weight[0, 0] = float("nan")  # type: ignore[index,union-attr]
    broken = LanguageModel(lm.model, lm.tokenizer)
    for make in (build_atlas, measure_spread):
        with pytest.raises(UserError, match=r"layer 1: .*up_proj"):
            make(broken, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    for scores in (layer_scores, attention_subvalue_scores):
        with pytest.raises(UserError, match=r"layer 1: .*up_proj"):
            scores(broken, PROMPTS, ANSWERS)
    with pytest.raises(UserError, match=r"layer 1: .*up_proj"):
        query_scores(broken, PROMPTS[0], [Neuron(1, 0, 1.0)])


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in elements."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_no_array_of_neurons_by_tokens_is_made(tmp_path: Path) -> None:
    """With more of both than a tile holds; the atlas, the certified best and sums, and brute force alike."""
    model = tiny_model("llama", num_hidden_layers=1, hidden_size=8, intermediate_size=5000, vocab_size=20_000)
    lm = LanguageModel(model, byte_tokenizer())
    most = 5000 * 20_000
    ways: dict[str, Callable[[], object]] = {
        "atlas": lambda: build_atlas(lm, cache_dir=tmp_path),
        "best": lambda: certified_top(lm, PROMPTS, ANSWERS, k=10, scope="model", spread=spread),
        "of all": lambda: certified_top(
            lm, PROMPTS, ANSWERS, k=10, scope="model", spread=spread, together=True
        ),
        "sums": lambda: certified_layer_sums(lm, PROMPTS, ANSWERS, spread=spread),
        "brute force": lambda: layer_scores(lm, PROMPTS[:1], ANSWERS[:1]),
    }
    spread = measure_spread(lm, cache_dir=tmp_path)
    for name, way in ways.items():
        with _Largest() as seen:
            way()
        assert lm.n_neurons < seen.elements < most, name
