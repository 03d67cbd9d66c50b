"""Eq. 10 against the definition: take the vector off the FFN's input and look at the coefficient."""

import pytest
import torch

from acedit.attribution.query import carried, query_scores, query_scores_each, raised
from acedit.attribution.value import Neuron, ffn_vectors, head_vectors
from acedit.errors import UserError
from acedit.lm.families import FAMILIES
from acedit.lm.trace import trace
from tests.tiny import tiny_lm

PROMPT = "Ann Lee is a citizen of"
ABOVE = [Neuron(2, 3, 1.0), Neuron(2, 11, 0.5), Neuron(1, 4, 0.2)]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_change_is_what_removing_the_vector_does(name: str) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    t = trace(lm, [PROMPT])
    at = int(t.encoded.last[0])
    vectors = ffn_vectors(lm, t, 0, 0, at)
    scores = raised(lm, t, 2, [3, 11], at, vectors, "change")
    entering = t.residual[2, 0, at] if lm.parallel else t.residual[2, 0, at] + t.attention[2, 0, at]
    moved = lm.freeze_norm(lm.ffn_norm(2), entering).apply(vectors)
    x = t.ffn_inputs[2, 0, at]
    m = lm.coefficients_of(2, x)
    for i in (0, 5):
        without = lm.coefficients_of(2, x - moved[i])
        wanted = sum(float(m[k].sign() * (m[k] - without[k])) for k in (3, 11))
        assert float(scores[i]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_ungated_default_is_the_paper_s_inner_product(name: str) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    t = trace(lm, [PROMPT])
    at = int(t.encoded.last[0])
    scores = query_scores(lm, PROMPT, [Neuron(2, 3, 1.0)])
    entering = t.residual[2, 0, at] if lm.parallel else t.residual[2, 0, at] + t.attention[2, 0, at]
    v = lm.freeze_norm(lm.ffn_norm(2), entering).apply(ffn_vectors(lm, t, 1, 0, at))
    assert torch.allclose(scores.neurons[1], v @ lm.subkeys(2)[3], atol=1e-8)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
def test_first_order_meets_the_change_for_small_vectors(name: str) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    t = trace(lm, [PROMPT])
    at = int(t.encoded.last[0])
    small = 1e-5 * ffn_vectors(lm, t, 0, 0, at)
    exact = raised(lm, t, 2, [3, 11], at, small, "change")
    first = raised(lm, t, 2, [3, 11], at, small, "first_order")
    assert torch.allclose(exact, first, rtol=1e-2, atol=1e-12)
    assert exact.abs().max() > 0


@pytest.mark.parametrize("name", ["qwen3", "gptj"])
def test_only_what_comes_before_counts(name: str) -> None:
    lm = tiny_lm(name)
    scores = query_scores(lm, PROMPT, ABOVE)
    assert scores.neurons[2].abs().max() == 0
    assert scores.neurons[:2].abs().max(-1).values.min() > 0
    own_layer = scores.heads[2].abs().max()
    assert own_layer == 0 if lm.parallel else own_layer > 0
    assert torch.allclose(scores.layers, scores.neurons.sum(-1))


def test_heads_are_scored_by_their_vectors() -> None:
    lm = tiny_lm("llama", dtype=torch.float64)
    t = trace(lm, [PROMPT])
    at = int(t.encoded.last[0])
    wanted = raised(lm, t, 2, [3], at, head_vectors(lm, t, 2, 0, at), "change")
    assert torch.allclose(query_scores(lm, PROMPT, [Neuron(2, 3, 1.0)]).heads[2], wanted)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_attention_carries_adds_up_to_its_output(name: str) -> None:
    """Over all sources, with the biases: the attention's own output, in every family."""
    lm = tiny_lm(name, dtype=torch.float64)
    t = trace(lm, [PROMPT], attention_weights=True)
    at, layer = int(t.encoded.last[0]), 1
    total = sum(carried(lm, t, layer, j, at, t.residual[layer, 0, j][None])[0] for j in range(at + 1))
    nothing = torch.zeros(1, lm.d_model, dtype=torch.float64)
    # What biases give: the real output less the same with every source's stream but its bias part.
    norm = lm.attention_norm(layer)
    beta = None if norm is None else lm.freeze_norm(norm, t.residual[layer, 0, 0]).beta
    read = torch.zeros(lm.d_model, dtype=torch.float64) if beta is None else beta
    values = torch.einsum("d,hid->hi", read, lm.attention_value_rows(layer))
    bias = lm.attention_value_bias(layer)
    values = values if bias is None else values + bias
    flat = torch.einsum("hi,hid->d", values, lm.attention_subvalues(layer))
    out_bias = getattr(lm.attention_out(layer), "bias", None)
    flat = flat if out_bias is None else flat + out_bias.detach()
    post = lm.attention_post_norm(layer)
    if post is not None:
        whole = torch.einsum("hi,hid->d", t.head_outputs[layer, 0, at], lm.attention_subvalues(layer))
        flat = lm.freeze_norm(post, whole).apply(flat)
    assert torch.allclose(total + flat, t.attention[layer, 0, at], atol=1e-6)
    assert carried(lm, t, layer, 0, at, nothing).abs().max() == 0


@pytest.mark.parametrize("name", ["qwen3", "gptj"])
def test_an_earlier_position_reaches_only_through_attention(name: str) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    found = query_scores(lm, PROMPT, [Neuron(2, 3, 1.0)], source=1)
    assert found.neurons[0].abs().max() > 0
    t = trace(lm, [PROMPT], attention_weights=True)
    at = int(t.encoded.last[0])
    last = 2 if not lm.parallel else 1  # the attention layers between layer 0 and the FFN of layer 2
    vectors = ffn_vectors(lm, t, 0, 0, 1)
    over = sum(carried(lm, t, layer, 1, at, vectors) for layer in range(1, last + 1))
    form = "inner" if lm.gates(0) is None else "change"
    assert torch.allclose(found.neurons[0], raised(lm, t, 2, [3], at, over, form), atol=1e-9)
    assert found.neurons[last:].abs().max() == 0
    with pytest.raises(UserError, match="looks back only"):
        query_scores(lm, PROMPT, ABOVE, position=1, source=2)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("source", [None, 1])
def test_several_prompts_are_scored_as_each_alone(name: str, source: int | None) -> None:
    """Of unlike lengths, each against neurons of its own."""
    lm = tiny_lm(name, dtype=torch.float64)
    prompts = [PROMPT, "Bo Ray", "The capital of Peru is"]
    neurons = [ABOVE, [Neuron(2, 5, 1.0)], [Neuron(1, 1, 1.0), Neuron(2, 3, 1.0)]]
    found = query_scores_each(lm, prompts, neurons, source=source, batch_size=2)
    for prompt, wanted, scores in zip(prompts, neurons, found, strict=True):
        alone = query_scores(lm, prompt, wanted, source=source)
        assert scores.neurons.abs().max() > 0
        assert torch.allclose(scores.neurons, alone.neurons, atol=1e-9)
        assert torch.allclose(scores.heads, alone.heads, atol=1e-9)


def test_bad_input_is_one_line() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(UserError, match="2 prompts and 1 lists"):
        query_scores_each(lm, [PROMPT, PROMPT], [ABOVE])
    with pytest.raises(UserError, match="at least one"):
        query_scores(lm, PROMPT, [])
    with pytest.raises(UserError, match="outside the prompt"):
        query_scores(lm, PROMPT, ABOVE, position=50)
    for layer, index in ((lm.n_layers, 0), (0, lm.n_neurons), (-1, 0)):
        with pytest.raises(UserError, match=f"no neuron {index} in layer {layer}"):
            query_scores(lm, PROMPT, [Neuron(layer, index, 1.0)])
