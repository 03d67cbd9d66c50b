"""Scores by layer over a set of prompts.

table = measure(lm, edits, prompts)
table.value, table.query       # one figure a layer
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.certified import Certified, certified_layer_sums, certified_top
from acedit.attribution.query import QueryScores, query_scores
from acedit.attribution.spread import Spread, measure_spread
from acedit.attribution.value import Neuron, refuse_unlike, top_neurons, vectors_at
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.generation import greedy
from acedit.lm.model import LanguageModel
from acedit.lm.trace import Trace, trace

T = TypeVar("T")
TOLERANCE = 0.01  # nats a prompt; how well a layer's sum is known


@dataclass(frozen=True)
class LayerTable:
    """By layer: value score (nats, mean over prompts), query score (coefficient units), and whole-vector
    scores (nats); the best neurons of each sort, by their scores summed over prompts, the value neurons with
    what proves them the best."""

    value: tuple[float, ...]
    query: tuple[float, ...]
    ffn_vector: tuple[float, ...]
    attention_vector: tuple[float, ...]
    certificate: Certified
    query_neurons: tuple[Neuron, ...]
    signs: Float[Tensor, "layers n_neurons"]


def spaced(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of the items, evenly spaced over all of them."""
    return items[:: max(1, -(-len(items) // most))]


def old_answers(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt]) -> list[str]:
    """What each prompt's fact is now: the edit's old object, or what the model says."""
    unknown = [p for p in prompts if not edits[p.edit].old]
    said = dict(zip(unknown, greedy(lm, [p.text for p in unknown]), strict=True)) if unknown else {}
    return [edits[p.edit].old or said[p].strip(" .") or edits[p.edit].target for p in prompts]


def mean_sums(
    lm: LanguageModel, texts: Sequence[str], answers: Sequence[str], *, spread: Spread | None = None
) -> tuple[float, ...]:
    """Each layer's sum over its FFN neurons (Eq. 9, right), mean over prompts, to `TOLERANCE` nats."""
    n = len(texts)
    (sums,) = certified_layer_sums(lm, texts, answers, tolerance=TOLERANCE * n, spread=spread, together=True)
    return tuple(each.value / n for each in sums)


def value_and_query(
    lm: LanguageModel,
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    k: int,
    leading: int | None = None,
    spread: Spread | None = None,
) -> Iterator[tuple[Certified, QueryScores]]:
    """Of each prompt its k best value neurons (or all there are), and query scores against the `leading`
    of them (default all)."""
    k = min(k, lm.n_layers * lm.n_neurons)
    found = certified_top(lm, texts, answers, k=k, scope="model", spread=spread)
    for text, (best,) in zip(texts, found, strict=True):
        yield best, query_scores(lm, text, best.neurons[:leading])


def measure(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    *,
    top: int = 20,
    top_k: int = 10,
    most: int = 16,
) -> LayerTable:
    """Eq. 9 and Eq. 10 at the last token of multi-hop prompts (single-hop where there are none).

    prompts: what `Composer` made; at most `most` are scored, spread over the edits. top: neurons of each
    sort that are named. top_k: value neurons that query neurons are held against, a prompt. The old fact
    is scored: it is where the model keeps it.
    """
    kind = "lead" if any(p.kind == "lead" for p in prompts) else "single"
    usable = [p for p in prompts if p.kind == kind]
    picked = spaced(usable, most)
    answers = old_answers(lm, edits, picked)
    texts = [p.text for p in picked]
    n = len(picked)
    spread = measure_spread(lm)
    ((value,),) = certified_top(lm, texts, answers, k=top, scope="model", spread=spread, together=True)
    query = torch.zeros(lm.n_layers, lm.n_neurons, device=lm.device)
    for _, scores in value_and_query(lm, texts, answers, k=top_k, spread=spread):
        query += scores.neurons.to(query)
    ffn_vector, attention_vector = vector_scores(lm, texts, answers)
    return LayerTable(
        value=mean_sums(lm, texts, answers, spread=spread),
        query=tuple((query.sum(1) / n).tolist()),
        ffn_vector=ffn_vector,
        attention_vector=attention_vector,
        certificate=value,
        query_neurons=tuple(top_neurons(lm, query, top, named=False)),
        signs=signs(lm, texts),
    )


@torch.no_grad()
def token_scores(
    lm: LanguageModel, t: Trace, answer: str
) -> tuple[Float[Tensor, "layers seq"], Float[Tensor, "layers seq"]]:
    """Eq. 9 of each layer's whole FFN and attention vector at every token of a traced prompt, nats."""
    token, length = lm.answer_ids(answer)[0], int(t.encoded.lengths[0])
    each = [vectors_at(lm, t, 0, at, token) for at in range(length)]
    ffn, attention = zip(*each, strict=True)
    return torch.stack(ffn, dim=1), torch.stack(attention, dim=1)


@torch.no_grad()
def vector_scores(
    lm: LanguageModel, texts: Sequence[str], answers: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Eq. 9 of each layer's whole FFN and attention vectors, nats, mean over prompts (layer log increase).

    Raises UserError for lists of unlike length, or an answer that the model has no tokens for.
    """
    refuse_unlike(texts, answers)
    t = trace(lm, texts)
    places = enumerate(zip(t.encoded.last.tolist(), answers, strict=True))
    each = [vectors_at(lm, t, i, at, lm.answer_ids(answer)[0]) for i, (at, answer) in places]
    ffn, attention = (torch.stack(scores).double().mean(0) for scores in zip(*each, strict=True))
    return tuple(ffn.tolist()), tuple(attention.tolist())


@torch.no_grad()
def signs(lm: LanguageModel, texts: Sequence[str]) -> Float[Tensor, "layers n_neurons"]:
    """The sign of each neuron's mean coefficient at the texts' last tokens."""
    t = trace(lm, texts)
    return t.at_last(t.coefficients).float().mean(1).sign().cpu()
