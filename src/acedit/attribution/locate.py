"""Where is a fact kept? Value neurons, query neurons, layers, and the plan of an edit.

    where = locate(lm, edits, known=facts)
    where.value_neurons[0]      # Neuron(layer=6, index=211, score=1.2, tokens=(' Peru', ...))
    where.plan.value_layers

The plan needs a v* search, which is editing's; it is handed in (`reach_of`) so that this room stays below
that one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from acedit.attribution.certified import Certified
from acedit.attribution.layers import measure
from acedit.attribution.plan import Plan, Reach, choose_layers
from acedit.attribution.value import Neuron, top_tokens
from acedit.errors import UserError
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel

ReachOf = Callable[[LanguageModel, Sequence[Edit], Sequence[Prompt]], Reach]


@dataclass(frozen=True)
class LayerRow:
    """One layer: value score (nats), query score, what its FFN and attention vectors score as a whole
    (nats), and the loss of v* there on prompts it was not searched on (nats a token): at the subject's last
    token of single-hop prompts, and at the last token of prompts that lead to the subject.
    """

    layer: int
    value: float
    query: float
    ffn_vector: float
    attention_vector: float
    reach: float
    value_reach: float


@dataclass(frozen=True)
class Location:
    """Sorted neurons, best first; a row a layer; the plan; what proves the value neurons the best."""

    value_neurons: tuple[Neuron, ...]
    query_neurons: tuple[Neuron, ...]
    layers: tuple[LayerRow, ...]
    plan: Plan
    certificate: Certified


def locate_with(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], *, top: int, reach_of: ReachOf
) -> Location:
    """The location of `edits`' old facts, from prompts a `Composer` made.

    Raises UserError for a top outside 1 to all neurons.
    """
    every = lm.n_layers * lm.n_neurons
    if not 1 <= top <= every:
        raise UserError(f"top {top}: ask for 1 to {every} neurons")
    table = measure(lm, edits, prompts, top=top)
    reach = reach_of(lm, edits, prompts)
    query_reach, value_reach = reach.means()
    columns = (table.value, table.query, table.ffn_vector, table.attention_vector, query_reach, value_reach)
    rows = tuple(LayerRow(layer, *figures) for layer, figures in enumerate(zip(*columns, strict=True)))
    return Location(
        value_neurons=_named(lm, table.certificate.neurons, table.signs),
        query_neurons=_named(lm, table.query_neurons, table.signs),
        layers=rows,
        plan=choose_layers(reach, value=table.value, query=table.query).checked(lm.n_layers),
        certificate=table.certificate,
    )


def _named(
    lm: LanguageModel, neurons: Sequence[Neuron], signs: Float[Tensor, "layers n_neurons"]
) -> tuple[Neuron, ...]:
    """The neurons with their top tokens."""
    return tuple(
        replace(n, tokens=top_tokens(lm, n.layer, n.index, sign=float(signs[n.layer, n.index])))
        for n in neurons
    )
