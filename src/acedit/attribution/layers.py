"""Scores by layer over a set of prompts, and the reach of v*: what the plan is chosen from.

table = measure(lm, edits, prompts)
table.value, table.query, table.reach       # one figure a layer
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.query import query_scores
from acedit.attribution.value import Neuron, layer_scores, top_neurons
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel


@dataclass(frozen=True)
class LayerTable:
    """By layer: value score (nats, mean over prompts), query score (coefficient units), and whole-vector
    scores; by neuron: the same, summed over prompts."""

    value: tuple[float, ...]
    query: tuple[float, ...]
    ffn_vector: tuple[float, ...]
    attention_vector: tuple[float, ...]
    value_neurons: Float[Tensor, "layers n_neurons"]
    query_neurons: Float[Tensor, "layers n_neurons"]
    signs: Float[Tensor, "layers n_neurons"]


def old_answers(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt]) -> list[str]:
    """What each prompt's fact is now: the edit's old object, or what the model says."""
    unknown = [p for p in prompts if not edits[p.edit].old]
    said = dict(zip(unknown, lm.generate([p.text for p in unknown]), strict=True)) if unknown else {}
    return [edits[p.edit].old or said[p].strip(" .") or edits[p.edit].target for p in prompts]


def measure(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], *, top_k: int = 10, most: int = 16
) -> LayerTable:
    """Eq. 9 and Eq. 10 at the last token of multi-hop prompts (single-hop where there are none).

    prompts: what `Composer` made; at most `most` are scored, spread over the edits. top_k: value neurons
    that query neurons are held against, a prompt. The old fact is scored: it is where the model keeps it.
    """
    kind = "lead" if any(p.kind == "lead" for p in prompts) else "single"
    usable = [p for p in prompts if p.kind == kind]
    picked = usable[:: max(1, len(usable) // most)][:most]
    answers = old_answers(lm, edits, picked)
    texts = [p.text for p in picked]
    scores = layer_scores(lm, texts, answers)
    query = torch.zeros(lm.n_layers, lm.n_neurons, dtype=scores.neurons.dtype)
    for i, text in enumerate(texts):
        best: list[Neuron] = top_neurons(lm, scores.neurons[:, i], top_k, named=False)
        query += query_scores(lm, text, best).neurons
    n = len(picked)
    return LayerTable(
        value=tuple((scores.ffn_sum.sum(1) / n).tolist()),
        query=tuple((query.sum(1) / n).tolist()),
        ffn_vector=tuple((scores.ffn_vector.sum(1) / n).tolist()),
        attention_vector=tuple((scores.attention_vector.sum(1) / n).tolist()),
        value_neurons=scores.neurons.sum(1),
        query_neurons=query,
        signs=_signs(lm, texts),
    )


@torch.no_grad()
def _signs(lm: LanguageModel, texts: Sequence[str]) -> Tensor:
    """The sign of each neuron's mean coefficient at the last token."""
    from acedit.lm.trace import trace

    t = trace(lm, texts)
    return t.at_last(t.coefficients).float().mean(1).sign().cpu()
