"""Query neurons, heads and layers: what raises the coefficients of value neurons above (Eq. 10).

    found = query_scores(lm, "Ann Lee is a citizen of", value_neurons, position=-1)
    each = query_scores_each(lm, prompts, [neurons of the first, ...])
    found.neurons       # (layers, n_neurons);  found.heads  (layers, n_heads)

A candidate's own contribution v (m·fc2, or a head's vector) passes the norm of the value neuron's FFN,
scale frozen, and is held against its subkey. Where FFNs are not gated the score is the paper's inner
product v·fc1_k; where they are, m_k = act(g_k·x)(u_k·x), it is the change it makes to the coefficient,
sign(m_k)·(m_k(x) − m_k(x − v)), exact. Either form can be asked for (`form`). Scores are summed over the
value neurons above the candidate's layer, heads of a value neuron's own layer included in sequential
blocks. Candidates stand at the value neurons' own position, or at an earlier one (`source`): then v is
what attention brings over of it, Σ_h a_h W_O W_V norm(v), summed over the attention layers between, patterns
and norm scales frozen, paths through a single attention only.

Footgun: the authors' notebook holds v against the down projection's column; that is not the subkey.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.value import Neuron, ffn_vectors, head_vectors, refuse_absent, through_post_norm
from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.trace import Trace, trace

Form = Literal["inner", "change", "first_order"]


@dataclass(frozen=True)
class QueryScores:
    """Eq. 10 for every neuron and head, in units of coefficient (inner: of pre-activation)."""

    neurons: Float[Tensor, "layers n_neurons"]
    heads: Float[Tensor, "layers n_heads"]

    @property
    def layers(self) -> Float[Tensor, " layers"]:
        """Sum over a layer's FFN neurons (Eq. 10, right)."""
        return self.neurons.sum(-1)


def query_scores(
    lm: LanguageModel,
    prompt: str,
    value_neurons: Sequence[Neuron],
    *,
    position: int = -1,
    source: int | None = None,
    form: Form | None = None,
) -> QueryScores:
    """Score every candidate of `prompt` against `value_neurons` at `position` (Eq. 10).

    source: where the candidates stand, `position` itself if not given; negative counts from the end.
    Raises UserError for no value neurons or such as the model has not, a position outside the prompt, a
    source after the position, a form there is not, or weights that are not finite.
    """
    if not isinstance(prompt, str):
        raise UserError("query_scores takes one text: for several there is query_scores_each")
    (scores,) = query_scores_each(lm, [prompt], [value_neurons], position=position, source=source, form=form)
    return scores


@torch.no_grad()
def query_scores_each(
    lm: LanguageModel,
    prompts: Sequence[str],
    value_neurons: Sequence[Sequence[Neuron]],
    *,
    position: int = -1,
    source: int | None = None,
    form: Form | None = None,
    batch_size: int = 16,
) -> list[QueryScores]:
    """`query_scores` of each prompt against its own value neurons; the model runs `batch_size` at once."""
    lm.refuse_broken()
    if form is not None and form not in get_args(Form):
        raise UserError(f"there is no form {form!r} of query scores: give {', '.join(get_args(Form))}")
    if len(prompts) != len(value_neurons):
        raise UserError(
            f"{len(prompts)} prompts and {len(value_neurons)} lists of value neurons: give one each"
        )
    if not all(value_neurons):
        raise UserError("query neurons are scored against value neurons: give at least one")
    for neuron in chain.from_iterable(value_neurons):
        refuse_absent(lm, neuron.layer, neuron.index)
    kind: Form = form or ("inner" if lm.gates(0) is None else "change")
    found: list[QueryScores] = []
    for start in range(0, len(prompts), batch_size):
        t = trace(lm, list(prompts[start : start + batch_size]), attention_weights=source is not None)
        for row, neurons in enumerate(value_neurons[start : start + batch_size]):
            found.append(_scored(lm, t, row, neurons, position, source, kind))
    return found


def _scored(
    lm: LanguageModel,
    t: Trace,
    row: int,
    value_neurons: Sequence[Neuron],
    position: int,
    source: int | None,
    kind: Form,
) -> QueryScores:
    at = _within(t, row, position)
    place = at if source is None else _within(t, row, source)
    if place > at:
        raise UserError(f"source {source} comes after position {position}: attention looks back only")
    t.refuse_overflow([row, row], [at, place])
    by_layer: dict[int, list[int]] = {}
    for neuron in value_neurons:
        by_layer.setdefault(neuron.layer, []).append(neuron.index)
    neurons = torch.zeros(lm.n_layers, lm.n_neurons, dtype=lm.wide)
    heads = torch.zeros(lm.n_layers, lm.n_heads, dtype=lm.wide)
    for above, indices in by_layer.items():
        reached = above if lm.parallel else above + 1  # attention layers that feed that FFN
        if place == at:
            for layer in range(above):
                vectors = ffn_vectors(lm, t, layer, row, at)
                neurons[layer] += raised(lm, t, above, indices, at, vectors, kind, row=row).cpu()
            for layer in range(reached):
                vectors = head_vectors(lm, t, layer, row, at)
                heads[layer] += raised(lm, t, above, indices, at, vectors, kind, row=row).cpu()
            continue
        over = torch.zeros(lm.d_model, lm.d_model, dtype=lm.wide, device=lm.device)
        eye = torch.eye(lm.d_model, dtype=lm.wide, device=lm.device)
        for layer in reversed(range(reached - 1)):
            over = over + carried(lm, t, layer + 1, place, at, eye, row=row)
            vectors = ffn_vectors(lm, t, layer, row, place) @ over
            neurons[layer] += raised(lm, t, above, indices, at, vectors, kind, row=row).cpu()
            vectors = head_vectors(lm, t, layer, row, place) @ over
            heads[layer] += raised(lm, t, above, indices, at, vectors, kind, row=row).cpu()
    return QueryScores(neurons, heads)


def _within(t: Trace, row: int, position: int) -> int:
    length = int(t.encoded.lengths[row])
    at = position + (length if position < 0 else 0)
    if not 0 <= at < length:
        raise UserError(f"position {position} is outside the prompt of {length} tokens")
    return at


def carried(
    lm: LanguageModel,
    t: Trace,
    layer: int,
    source: int,
    at: int,
    vectors: Float[Tensor, "n d_model"],
    *,
    row: int = 0,
) -> Float[Tensor, "n d_model"]:
    """What attention of `layer` adds at `at` for each vector in the stream at `source`, both of `row`.

    Linear: patterns and norm scales are those of the real run. Biases are nobody's.
    """
    assert t.attention_weights is not None
    pattern = t.attention_weights[layer, row, :, at, source].to(vectors)
    entering = t.residual[layer, row, source].to(vectors)
    read = lm.freeze_norm(lm.attention_norm(layer), entering).apply(vectors)
    values = torch.einsum("nd,hid,h->nhi", read, lm.attention_value_rows(layer).to(read), pattern)
    subvalues = lm.attention_subvalues(layer).to(read)
    moved = torch.einsum("nhi,hid->nd", values, subvalues)
    whole = torch.einsum("hi,hid->d", t.head_outputs[layer, row, at].to(read), subvalues)
    bias = getattr(lm.attention_out(layer), "bias", None)
    return through_post_norm(lm, moved, lm.attention_post_norm(layer), whole, bias)


def raised(
    lm: LanguageModel,
    t: Trace,
    layer: int,
    indices: Sequence[int],
    at: int,
    vectors: Float[Tensor, "n d_model"],
    form: Form,
    *,
    row: int = 0,
) -> Float[Tensor, " n"]:
    """How much each vector raises the coefficients of neurons `indices` of `layer`, summed."""
    entering = t.residual[layer, row, at]
    if not lm.parallel:
        entering = entering + t.attention[layer, row, at]
    moved = lm.freeze_norm(lm.ffn_norm(layer), entering).apply(vectors)
    x = t.ffn_inputs[layer, row, at].to(moved)
    pick = torch.tensor(list(indices))
    up = lm.subkeys(layer)[pick].to(moved)
    u = x @ up.T + _picked(lm.up_bias(layer), pick, moved)
    du = moved @ up.T
    act = lm.activation(layer)
    gates = lm.gates(layer)
    if gates is None:
        if form == "inner":
            return du.sum(-1)
        m = act(u)
        if form == "change":
            return (m.sign() * (m - act(u - du))).sum(-1)
        return (m.sign() * _slope(act, u) * du).sum(-1)
    gate = gates[pick].to(moved)
    g = x @ gate.T + _picked(lm.gate_bias(layer), pick, moved)
    dg = moved @ gate.T
    m = act(g) * u
    if form == "change":
        return (m.sign() * (m - act(g - dg) * (u - du))).sum(-1)
    if form == "inner":
        return (m.sign() * act(g) * du).sum(-1)
    return (m.sign() * (act(g) * du + _slope(act, g) * dg * u)).sum(-1)


def _picked(bias: Tensor | None, pick: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(len(pick)).to(like) if bias is None else bias[pick].to(like)


def _slope(act: object, x: Tensor) -> Tensor:
    """The activation's derivative at x."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(act(leaf).sum(), leaf)  # type: ignore[operator]
    return slope
