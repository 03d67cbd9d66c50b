"""Value neurons, heads and layers: what raises the answer's log-probability (Eq. 9).

    scores = neuron_scores(lm, ["Ann Lee is a citizen of"], ["Peru"])       # (layers, batch, n_neurons)
    layers = layer_scores(lm, prompts, answers)                             # sums, and whole vectors

I(v) = log p(w | v + h) − log p(w | h), where h is what the layer's sublayer added v to: h^{l-1} + A^l for
an FFN neuron (also in parallel blocks), h^{l-1} for an attention vector, and p is the softmax of the
unembedding of the final-normed vector. `norm="frozen"` (default) keeps the final norm's scale of the real
run at that position, so contributions are linear; `norm="exact"` recomputes it. w is the answer's first
token, or with `tokens="all"` the sum over its tokens by teacher forcing. Scores are in nats.

Footguns: families that cap their logits (gemma2) are scored before the cap. FFN biases are nobody's
neuron. Neurons and tokens are taken in tiles; a tile of each is the largest array made. `certified` gives the
top neurons and the layers' sums over neurons much faster, `head_scores` does without the neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded
from acedit.lm.trace import Trace, trace

Norm = Literal["frozen", "exact"]
Tokens = Literal["first", "all"]
TILE = 4096  # neurons scored at once
TOKEN_TILE = 16384  # tokens whose logits they are scored by at once


@dataclass(frozen=True)
class Neuron:
    """An FFN neuron (layer, index), its score in nats, and the top tokens of its subvalue."""

    layer: int
    index: int
    score: float
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """One place where a token is predicted: row and position of a trace, and the token."""

    row: int
    position: int
    token: int
    source: int  # index of the prompt it belongs to


def refuse_unlike(prompts: Sequence[str], answers: Sequence[str]) -> None:
    """Raises UserError for more prompts than answers, or fewer."""
    if len(prompts) != len(answers):
        raise UserError(f"{len(prompts)} prompts but {len(answers)} answers: give one answer a prompt")


def refuse_absent(lm: LanguageModel, layer: int, index: int) -> None:
    """Raises UserError for a neuron that the model has not."""
    if not (0 <= layer < lm.n_layers and 0 <= index < lm.n_neurons):
        raise UserError(
            f"no neuron {index} in layer {layer}: the model has {lm.n_layers} layers of {lm.n_neurons}"
        )


def readings(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    tokens: Tokens = "first",
    position: int | None = None,
) -> tuple[Encoded, list[Reading]]:
    """The prompts encoded (with their answers, for `tokens="all"`) and where to read what.

    position: a token index to read at instead of the prompt's last; negative counts from the last.
    Raises UserError for lists of unlike length, a position outside the prompt, an answer that the model has
    no tokens for, one that ends outside the context, or weights that are not finite.
    """
    lm.refuse_broken()
    if tokens not in get_args(Tokens):
        raise UserError(f"tokens is {tokens!r}: give one of {', '.join(get_args(Tokens))}")
    refuse_unlike(prompts, answers)
    encoded = lm.encode(prompts)
    rows, found = [], []
    for i, length in enumerate(encoded.lengths.tolist()):
        at = length - 1 if position is None else position + (length if position < 0 else 0)
        if not 0 <= at < length:
            raise UserError(f"position {position} is outside prompt {prompts[i][:40]!r} of {length} tokens")
        ids = lm.answer_ids(answers[i])
        row = encoded.input_ids[i, :length].tolist()
        if tokens == "first":
            found.append(Reading(i, at, ids[0], i))
        else:
            if position is not None:
                raise UserError('tokens="all" reads from the last token on; leave position out')
            found += [Reading(i, at + j, token, i) for j, token in enumerate(ids)]
            row += ids[:-1]
            if len(row) > lm.context:
                raise UserError(
                    f"prompt {prompts[i][:40]!r} and its answer have {len(row)} tokens, the model's context "
                    f"is {lm.context}"
                )
        rows.append(row)
    width = max(map(len, rows))
    ids_all = torch.full((len(rows), width), int(encoded.input_ids[0, 0]))
    mask = torch.zeros_like(ids_all)
    for i, row in enumerate(rows):
        ids_all[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return Encoded(ids_all.to(lm.device), mask.to(lm.device)), found


def log_increase(
    lm: LanguageModel,
    base: Float[Tensor, " d_model"],
    vectors: Float[Tensor, "n d_model"],
    final: Float[Tensor, " d_model"],
    token: int,
    *,
    norm: Norm = "frozen",
    tile: int = TILE,
) -> Float[Tensor, " n"]:
    """log p(token | v + base) − log p(token | base) for each vector (Eq. 9), nats.

    final: the final residual of the real run there, whose norm is the frozen one.
    """
    if norm not in get_args(Norm):
        raise UserError(f"norm is {norm!r}: give one of {', '.join(get_args(Norm))}")
    # The few vectors go to the unembedding, which may lie on another device.
    base, vectors, final = (_wide(x).to(lm.unembedding.device) for x in (base, vectors, final))
    frozen = lm.freeze_norm(lm.final_norm, final)
    log_p = partial(_log_p, lm, token)
    if norm == "frozen":
        start = frozen.apply(base, bias=True)
        reference = log_p(start)
        tiles = [log_p(start + frozen.apply(part)) - reference for part in vectors.split(tile)]
    else:
        reference = log_p(lm.freeze_norm(lm.final_norm, base).apply(base, bias=True))
        tiles = []
        for part in vectors.split(tile):
            moved = base + part
            tiles.append(log_p(lm.freeze_norm(lm.final_norm, moved).apply(moved, bias=True)) - reference)
    return torch.cat(tiles)


def _log_p(lm: LanguageModel, token: int, normed: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n"]:
    """log p(token) at final-normed vectors, over the vocabulary a tile at a time."""
    whole = wanted = None
    for start in range(0, len(lm.unembedding), TOKEN_TILE):
        stop = start + TOKEN_TILE
        logits = normed @ lm.unembedding[start:stop].to(normed).T
        if lm.head_bias is not None:
            logits = logits + lm.head_bias[start:stop].to(normed)
        part = logits.logsumexp(-1)
        whole = part if whole is None else torch.logaddexp(whole, part)
        if start <= token < stop:
            wanted = logits[..., token - start]
    assert whole is not None
    assert wanted is not None
    return wanted - whole


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def ffn_vectors(lm: LanguageModel, t: Trace, layer: int, row: int, at: int) -> Float[Tensor, "n d_model"]:
    """What each neuron of the layer adds to the stream: m_k·fc2_k, through the post-norm if any."""
    m = _wide(t.coefficients[layer, row, at])
    vectors = m[:, None] * lm.subvalues(layer).to(m)
    return through_post_norm(lm, vectors, lm.ffn_post_norm(layer), vectors.sum(0), lm.down_bias(layer))


def head_vectors(lm: LanguageModel, t: Trace, layer: int, row: int, at: int) -> Float[Tensor, "h d_model"]:
    """What each attention head adds to the stream."""
    return attention_subvalue_vectors(lm, t, layer, row, at).sum(1)


def attention_subvalue_vectors(
    lm: LanguageModel, t: Trace, layer: int, row: int, at: int
) -> Float[Tensor, "h head_dim d_model"]:
    """What each unit of each head adds: a column of W_o times the head's output there."""
    z = _wide(t.head_outputs[layer, row, at])
    vectors = z[..., None] * lm.attention_subvalues(layer).to(z)
    bias = getattr(lm.attention_out(layer), "bias", None)
    norm = lm.attention_post_norm(layer)
    return through_post_norm(lm, vectors, norm, vectors.sum((0, 1)), bias)


def through_post_norm(
    lm: LanguageModel, vectors: Tensor, norm: torch.nn.Module | None, total: Tensor, bias: Tensor | None
) -> Tensor:
    """`vectors` through a post-norm (None: as they are), its scale frozen at total + bias."""
    if norm is None:
        return vectors
    whole = total if bias is None else total + bias.to(total)
    return lm.freeze_norm(norm, whole).apply(vectors)


@dataclass(frozen=True)
class HeadScores:
    """Eq. 9 by layer and prompt, nats: heads, and each layer's whole attention and FFN vector."""

    heads: Float[Tensor, "layers batch n_heads"]
    attention_vector: Float[Tensor, "layers batch"]
    ffn_vector: Float[Tensor, "layers batch"]


@dataclass(frozen=True)
class LayerScores:
    """Eq. 9 by layer and prompt, nats: sums over neurons (or heads), and the layer's whole vector."""

    ffn_sum: Float[Tensor, "layers batch"]
    ffn_vector: Float[Tensor, "layers batch"]
    attention_sum: Float[Tensor, "layers batch"]
    attention_vector: Float[Tensor, "layers batch"]
    neurons: Float[Tensor, "layers batch n_neurons"]
    heads: Float[Tensor, "layers batch n_heads"]


@torch.no_grad()
def layer_scores(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    tokens: Tokens = "first",
    norm: Norm = "frozen",
    position: int | None = None,
) -> LayerScores:
    """Every neuron, head and layer of every prompt, scored (Eq. 9).

    Raises UserError as `readings` does, and where a stream that is read is not finite.
    """
    t, places = _traced(lm, prompts, answers, tokens, position)
    found = _head_scores(lm, t, places, len(prompts), norm)
    neurons = torch.zeros(lm.n_layers, len(prompts), lm.n_neurons, dtype=lm.wide)
    for at in places:
        final = t.residual[-1, at.row, at.position]
        for layer in range(lm.n_layers):
            vectors = ffn_vectors(lm, t, layer, at.row, at.position)
            middle = _middle(t, layer, at.row, at.position)
            neurons[layer, at.source] += log_increase(lm, middle, vectors, final, at.token, norm=norm).cpu()
    return LayerScores(
        neurons.sum(-1),
        found.ffn_vector,
        found.heads.sum(-1),
        found.attention_vector,
        neurons,
        found.heads,
    )


@torch.no_grad()
def head_scores(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    tokens: Tokens = "first",
    norm: Norm = "frozen",
    position: int | None = None,
) -> HeadScores:
    """Every head, and every layer as a whole, of every prompt, scored (Eq. 9). Raises as `layer_scores`."""
    t, places = _traced(lm, prompts, answers, tokens, position)
    return _head_scores(lm, t, places, len(prompts), norm)


def _traced(
    lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str], tokens: Tokens, position: int | None
) -> tuple[Trace, list[Reading]]:
    """The prompts' trace, and where it is read. Raises UserError as `readings` does, and where a stream there
    is not finite."""
    encoded, places = readings(lm, prompts, answers, tokens=tokens, position=position)
    t = trace(lm, encoded)
    t.refuse_overflow([at.row for at in places], [at.position for at in places])
    return t, places


def _head_scores(
    lm: LanguageModel, t: Trace, places: Sequence[Reading], batch: int, norm: Norm
) -> HeadScores:
    shape = (lm.n_layers, batch)
    heads = torch.zeros(*shape, lm.n_heads, dtype=lm.wide)
    ffn_vector, attention_vector = torch.zeros(shape, dtype=lm.wide), torch.zeros(shape, dtype=lm.wide)
    for at in places:
        final = t.residual[-1, at.row, at.position]
        for layer in range(lm.n_layers):
            vectors = head_vectors(lm, t, layer, at.row, at.position)
            below = t.residual[layer, at.row, at.position]
            heads[layer, at.source] += log_increase(lm, below, vectors, final, at.token, norm=norm).cpu()
        ffn, attention = vectors_at(lm, t, at.row, at.position, at.token, norm=norm)
        ffn_vector[:, at.source] += ffn
        attention_vector[:, at.source] += attention
    return HeadScores(heads, attention_vector, ffn_vector)


def vectors_at(
    lm: LanguageModel, t: Trace, row: int, at: int, token: int, *, norm: Norm = "frozen"
) -> tuple[Float[Tensor, " layers"], Float[Tensor, " layers"]]:
    """Eq. 9 of each layer's whole FFN and attention vector at one token, nats."""
    ffn, attention = [], []
    final = t.residual[-1, row, at]
    for layer in range(lm.n_layers):
        read, wrote = t.attention[layer, row, at][None], t.ffn[layer, row, at][None]
        attention.append(log_increase(lm, t.residual[layer, row, at], read, final, token, norm=norm))
        ffn.append(log_increase(lm, _middle(t, layer, row, at), wrote, final, token, norm=norm))
    return torch.cat(ffn).cpu(), torch.cat(attention).cpu()


def _middle(t: Trace, layer: int, row: int, at: int) -> Float[Tensor, " d_model"]:
    """The stream that the layer's FFN adds to, h^{l-1} + A^l."""
    return _wide(t.residual[layer, row, at]) + _wide(t.attention[layer, row, at])


def neuron_scores(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    tokens: Tokens = "first",
    norm: Norm = "frozen",
    position: int | None = None,
) -> Float[Tensor, "layers batch n_neurons"]:
    """Eq. 9 for every FFN neuron, nats. Raises as `layer_scores`."""
    return layer_scores(lm, prompts, answers, tokens=tokens, norm=norm, position=position).neurons


@torch.no_grad()
def attention_subvalue_scores(
    lm: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    tokens: Tokens = "first",
    norm: Norm = "frozen",
    position: int | None = None,
) -> Float[Tensor, "layers batch n_heads head_dim"]:
    """Eq. 9 for every attention subvalue, nats. Raises as `layer_scores`."""
    t, places = _traced(lm, prompts, answers, tokens, position)
    out = torch.zeros(lm.n_layers, len(prompts), lm.n_heads, lm.head_dim, dtype=lm.wide)
    for at in places:
        final = t.residual[-1, at.row, at.position]
        for layer in range(lm.n_layers):
            vectors = attention_subvalue_vectors(lm, t, layer, at.row, at.position)
            base = t.residual[layer, at.row, at.position]
            flat = vectors.reshape(-1, lm.d_model)
            scores = log_increase(lm, base, flat, final, at.token, norm=norm).cpu()
            out[layer, at.source] += scores.reshape(lm.n_heads, lm.head_dim)
    return out


@torch.no_grad()
def top_tokens(
    lm: LanguageModel, layer: int, index: int, *, sign: float = 1.0, k: int = 8
) -> tuple[str, ...]:
    """The tokens a neuron's subvalue points at, through the final norm's γ (times `sign`).

    sign: the sign of the neuron's coefficient, since a negative one turns the subvalue round. Raises
    UserError for a neuron that the model has not.
    """
    refuse_absent(lm, layer, index)
    v = _wide(lm.subvalues(layer)[index]) * (1.0 if sign >= 0 else -1.0)
    norm = lm.ffn_post_norm(layer)
    if norm is not None:
        v = lm.freeze_norm(norm, v).apply(v)
    v = lm.freeze_norm(lm.final_norm, v).apply(v)
    v = v.to(lm.unembedding.device)
    ids = (lm.unembedding.to(v) @ v).topk(min(k, len(lm.unembedding))).indices.tolist()
    return tuple(str(lm.tokenizer.decode([i])) for i in ids)


def top_neurons(
    lm: LanguageModel, scores: Float[Tensor, "layers n_neurons"], k: int, *, named: bool = True
) -> list[Neuron]:
    """The k highest-scoring neurons, best first, with the top tokens of their subvalues.

    Raises UserError for k outside 1 to all of them.
    """
    if not 1 <= k <= scores.numel():
        raise UserError(f"k is {k}: ask for 1 to {scores.numel()} neurons")
    values, flat = scores.flatten().topk(k)
    found = []
    for value, i in zip(values.tolist(), flat.tolist(), strict=True):
        layer, index = divmod(i, scores.shape[1])
        found.append(Neuron(layer, index, value, top_tokens(lm, layer, index) if named else ()))
    return found
