"""Eq. 9 against brute force: one neuron at a time, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from acedit.attribution.value import (
    attention_subvalue_scores,
    layer_scores,
    neuron_scores,
    readings,
    top_neurons,
    top_tokens,
)
from acedit.errors import UserError
from acedit.lm.families import FAMILIES
from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace
from tests.tiny import byte_tokenizer, metaspace_tokenizer, tiny_lm, tiny_model

PROMPTS = ["Ann Lee is a citizen of", "Who is Bo Ray?"]
ANSWERS = ["Peru", "Chile"]


def brute(lm: LanguageModel, base: Tensor, vector: Tensor, final: Tensor, token: int, norm: str) -> float:
    """log p(w | v + h) − log p(w | h), written out from the weights alone."""
    kind = lm.family.norm
    module: Any = lm.final_norm
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None)
    weight = torch.ones(lm.d_model, dtype=torch.float64) if module.weight is None else module.weight.double()
    gamma = weight + 1 if kind == "rms+1" else weight
    beta = getattr(module, "bias", None)

    def log_p(x: Tensor) -> float:
        scale_of = final if norm == "frozen" else x
        if kind == "layer":
            spread = scale_of - scale_of.mean()
            y = (x - x.mean()) / torch.sqrt((spread**2).mean() + eps) * gamma
            y = y if beta is None else y + beta.double()
        else:
            y = x / torch.sqrt((scale_of**2).mean() + eps) * gamma
        logits = lm.unembedding.double() @ y
        logits = logits if lm.head_bias is None else logits + lm.head_bias.double()
        return float(logits[token] - torch.logsumexp(logits, 0))

    return log_p(base + vector) - log_p(base)


def post(lm: LanguageModel, norm: Any, vector: Tensor, whole: Tensor) -> Tensor:
    """A neuron's vector through the family's post-norm, its scale frozen at the whole output."""
    if norm is None:
        return vector
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None)
    gamma = norm.weight.double() + (1 if lm.family.norm == "rms+1" else 0)
    return vector / torch.sqrt((whole**2).mean() + eps) * gamma


@pytest.mark.parametrize("norm", ["frozen", "exact"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_neurons_agree_with_brute_force(name: str, norm: Any) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    scores = neuron_scores(lm, PROMPTS, ANSWERS, norm=norm)
    t = trace(lm, PROMPTS)
    for row in range(2):
        at = int(t.encoded.last[row])
        token = lm.token_ids(ANSWERS[row])[0]
        final = t.residual[-1, row, at]
        for layer in (0, lm.n_layers - 1):
            base = t.residual[layer, row, at] + t.attention[layer, row, at]
            m = t.coefficients[layer, row, at]
            whole = m @ lm.subvalues(layer)
            bias = lm.down_bias(layer)
            whole = whole if bias is None else whole + bias
            for k in (0, 7, lm.n_neurons - 1):
                vector = post(lm, lm.ffn_post_norm(layer), m[k] * lm.subvalues(layer)[k], whole)
                wanted = brute(lm, base, vector, final, token, norm)
                assert float(scores[layer, row, k]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_attention_agrees_with_brute_force(name: str) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    scores = attention_subvalue_scores(lm, PROMPTS, ANSWERS)
    heads = layer_scores(lm, PROMPTS, ANSWERS).heads
    t = trace(lm, PROMPTS)
    row, layer = 0, 1
    at = int(t.encoded.last[row])
    token = lm.token_ids(ANSWERS[row])[0]
    final, base = t.residual[-1, row, at], t.residual[layer, row, at]
    z = t.head_outputs[layer, row, at]
    vectors = z[..., None] * lm.attention_subvalues(layer)
    whole = vectors.sum((0, 1))
    bias = getattr(lm.attention_out(layer), "bias", None)
    whole = whole if bias is None else whole + bias.double()
    norm = lm.attention_post_norm(layer)
    for h, i in ((0, 0), (lm.n_heads - 1, lm.head_dim - 1)):
        wanted = brute(lm, base, post(lm, norm, vectors[h, i], whole), final, token, "frozen")
        assert float(scores[layer, row, h, i]) == pytest.approx(wanted, abs=1e-6)
        wanted = brute(lm, base, post(lm, norm, vectors[h].sum(0), whole), final, token, "frozen")
        assert float(heads[layer, row, h]) == pytest.approx(wanted, abs=1e-6)


def test_layers_sum_their_neurons_and_score_their_vector() -> None:
    lm = tiny_lm("qwen3", dtype=torch.float64)
    scores = layer_scores(lm, PROMPTS, ANSWERS)
    assert torch.allclose(scores.ffn_sum, scores.neurons.sum(-1))
    t = trace(lm, PROMPTS)
    at = int(t.encoded.last[0])
    base = t.residual[2, 0, at] + t.attention[2, 0, at]
    wanted = brute(lm, base, t.ffn[2, 0, at], t.residual[-1, 0, at], lm.token_ids("Peru")[0], "frozen")
    assert float(scores.ffn_vector[2, 0]) == pytest.approx(wanted, abs=1e-6)


def test_a_whole_answer_is_the_sum_over_its_tokens() -> None:
    lm = tiny_lm("llama", dtype=torch.float64)
    answer = "Republic of Chile"
    ids = lm.token_ids(answer)
    assert len(ids) > 1
    whole = neuron_scores(lm, PROMPTS[:1], [answer], tokens="all")
    t_encoded, places = readings(lm, PROMPTS[:1], [answer], tokens="all")
    t = trace(lm, t_encoded)
    total = 0.0
    for place in places:
        final = t.residual[-1, 0, place.position]
        base = t.residual[1, 0, place.position] + t.attention[1, 0, place.position]
        vector = t.coefficients[1, 0, place.position, 3] * lm.subvalues(1)[3]
        total += brute(lm, base, vector, final, place.token, "frozen")
    assert float(whole[1, 0, 3]) == pytest.approx(total, abs=1e-6)


def test_another_position_is_another_reading() -> None:
    lm = tiny_lm("gpt2", dtype=torch.float64)
    first = neuron_scores(lm, PROMPTS[:1], ["Peru"], position=1)
    same = neuron_scores(lm, PROMPTS[:1], ["Peru"], position=1 - int(lm.encode(PROMPTS[:1]).lengths[0]))
    last = neuron_scores(lm, PROMPTS[:1], ["Peru"])
    assert torch.equal(first, same)
    assert not torch.allclose(first, last)


def test_top_neurons_are_sorted_and_named() -> None:
    lm = tiny_lm("qwen3")
    scores = neuron_scores(lm, PROMPTS, ANSWERS).sum(1)
    best = top_neurons(lm, scores, 5)
    assert [n.score for n in best] == sorted((float(s) for s in scores.flatten()), reverse=True)[:5]
    for neuron in best:
        assert float(scores[neuron.layer, neuron.index]) == neuron.score
        assert neuron.tokens == top_tokens(lm, neuron.layer, neuron.index)


@pytest.mark.parametrize("norm", ["frozen", "exact"])
@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_tiles_of_the_vocabulary_change_nothing(
    name: str, norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(name, dtype=torch.float64)
    whole = layer_scores(lm, PROMPTS, ANSWERS, norm=norm)
    monkeypatch.setattr("acedit.attribution.value.TOKEN_TILE", 100)
    tiled = layer_scores(lm, PROMPTS, ANSWERS, norm=norm)
    torch.testing.assert_close(tiled.neurons, whole.neurons)
    torch.testing.assert_close(tiled.heads, whole.heads)


def test_more_neurons_than_there_are_is_one_line() -> None:
    lm = tiny_lm("qwen3")
    scores = neuron_scores(lm, PROMPTS, ANSWERS).sum(1)
    for k in (0, scores.numel() + 1):
        with pytest.raises(UserError, match=f"k is {k}: ask for 1 to {scores.numel()} neurons"):
            top_neurons(lm, scores, k)


def test_an_answer_that_is_not_one_of_the_model_s_tokens_is_one_line() -> None:
    """Unknown to the tokenizer, or known to it and not to the model."""
    model = tiny_model("llama")
    unknown = LanguageModel(model, metaspace_tokenizer(unigram=True))
    with pytest.raises(UserError, match="answer 'ж' is not one of the model's tokens: token 3 is unknown"):
        neuron_scores(unknown, ["a"], ["ж"])
    larger = LanguageModel(tiny_model("llama", vocab_size=300), byte_tokenizer())
    with pytest.raises(UserError, match="answer 'Santiago' is not one of the model's tokens: token 3"):
        neuron_scores(larger, ["x"], ["Santiago"])


def test_a_whole_answer_past_the_context_is_one_line() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(UserError, match=r"and its answer have .* tokens, the model's context is 128"):
        neuron_scores(lm, ["x " * 60], ["y " * 60], tokens="all")


@pytest.mark.parametrize(
    ("prompts", "answers", "position", "message"),
    [
        (["a b"], ["x", "y"], None, "give one answer a prompt"),
        (["a b"], ["x"], 99, "outside prompt"),
        (["a b"], ["x"], -99, "outside prompt"),
        (["a b"], [""], None, "empty"),
        ([""], ["x"], None, "empty"),
    ],
)
def test_bad_input_is_one_line(
    prompts: list[str], answers: list[str], position: int | None, message: str
) -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(UserError, match=message) as error:
        neuron_scores(lm, prompts, answers, position=position)
    assert "\n" not in str(error.value)
