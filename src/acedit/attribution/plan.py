"""The plan: which layers an edit is written in, and why.

    plan = choose_layers(reach)
    plan.value_layers, plan.query_layers, plan.middle_layers, plan.reason

What decides is the *reach* of v*: searched at a layer and token on some prompts, what loss does it leave on
others? A query layer is where a v* at the subject's last token serves other wordings of the fact, a value
layer where one at the last token serves other chains that lead to the subject. Of layers that serve alike
the query stage takes the shallowest, the value stage the deepest two, so that each writes where the other's
tokens are least read. In sweeps of all ranges this is one and two points below the best (where
`editing.screen` finds them), and Eq. 9 and Eq. 10 are far from it (docs/decisions.md; compare Hase et al.
2023). They rank layers all the same, for those who leave out the most important (Table 4). Middle layers,
for facts with hops on both sides, lie between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from acedit.errors import UserError

SHALLOWEST, DEEPEST = 1, 2  # layers the query stage takes of those that serve alike, and the value stage
RULE = 2  # how `choose_layers` chooses; goes up when it would choose others


@dataclass(frozen=True)
class Plan:
    """Layers by stage, each ascending; `reason` says how each was chosen, `scores` holds the figures."""

    value_layers: tuple[int, ...]
    query_layers: tuple[int, ...]
    middle_layers: tuple[int, ...] = ()
    reason: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def checked(self, n_layers: int) -> "Plan":
        """The plan itself. Raises UserError for layers the model has not, none at all, or out of order."""
        for name in ("value_layers", "query_layers", "middle_layers"):
            layers: tuple[int, ...] = getattr(self, name)
            if any(not 0 <= layer < n_layers for layer in layers):
                raise UserError(f"{name} {layers}: the model has layers 0 to {n_layers - 1}")
            if list(layers) != sorted(set(layers)):
                raise UserError(f"{name} {layers}: name each layer once, ascending")
        if not self.value_layers and not self.query_layers:
            raise UserError("the plan names no layers")
        return self

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        row = asdict(self)
        return {**row, **{k: list(v) for k, v in row.items() if isinstance(v, tuple)}}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Plan":
        """What `to_json` wrote."""
        return cls(
            tuple(row["value_layers"]),
            tuple(row["query_layers"]),
            tuple(row["middle_layers"]),
            row["reason"],
            row["scores"],
        )


def middle_of(query: Sequence[int], value: Sequence[int]) -> tuple[int, ...]:
    """The layer half-way between the query layers and the value layers; none where none lies between, or
    one of the two is empty."""
    if not query or not value:
        return ()
    between = range(query[-1] + 1, value[0])
    return tuple(between[len(between) // 2 :][:1])


def why_middle(middle: Sequence[int]) -> str:
    """What a plan says of its middle layers."""
    return "half-way between query and value layers" if middle else "no layer lies between"


@dataclass(frozen=True)
class Reach:
    """Losses (nats a token) of v* on prompts it was not searched on: a row a layer, a column an edit.

    query: at the subject's last token of single-hop prompts. value: at the last token of prompts that lead
    to the subject (of single-hop ones where there are none). enough: below it one is as good as another.
    """

    query: Sequence[Sequence[float]]
    value: Sequence[Sequence[float]]
    enough: float = 0.0

    def means(self) -> tuple[list[float], list[float]]:
        """By layer: the mean of each."""
        query, value = ([sum(row) / len(row) for row in rows] for rows in (self.query, self.value))
        return query, value


def alike(losses: Sequence[Sequence[float]], among: Sequence[int], enough: float = 0.0) -> tuple[int, ...]:
    """The run of layers of `among` around the one of least mean loss that do as well: the mean difference
    to it, paired over edits, is within its standard error, or the mean no more than `enough`."""
    means = {layer: sum(losses[layer]) / len(losses[layer]) for layer in among}
    best = min(among, key=lambda layer: means[layer])

    def as_good(layer: int) -> bool:
        differences = [a - b for a, b in zip(losses[layer], losses[best], strict=True)]
        n, mean = len(differences), means[layer] - means[best]
        spread = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else 0.0
        return bool(mean <= (spread / n) ** 0.5 or means[layer] <= enough)

    first = last = list(among).index(best)
    while first > 0 and as_good(among[first - 1]):
        first -= 1
    while last + 1 < len(among) and as_good(among[last + 1]):
        last += 1
    return tuple(among[first : last + 1])


def choose_layers(reach: Reach, *, value: Sequence[float] = (), query: Sequence[float] = ()) -> Plan:
    """A plan from the reach of v* in each layer: of those that serve best the shallowest for the query stage,
    the deepest two for the value stage.

    Value layers lie above query layers. value, query: scores of Eq. 9 and Eq. 10 by layer, kept in the plan.
    """
    n = len(reach.query)
    run = alike(reach.query, range(max(1, n - 1)), reach.enough)
    query_layers = run[:SHALLOWEST]
    above = alike(reach.value, range(query_layers[-1] + 1, n) or range(n), reach.enough)
    value_layers = above[-DEEPEST:]
    means = reach.means()
    middle = middle_of(query_layers, value_layers)

    def said(layers: Sequence[int], chosen: Sequence[int], losses: Sequence[float], where: str) -> str:
        others = "no layer beside it serves as well"
        if len(layers) > 1:
            others = f"layers {layers[0]} to {layers[-1]} serve alike"
        left = f"leaves {losses[chosen[-1]]:.2f} nats on prompts not searched on"
        return f"v* at {where} of layer {chosen[-1]} {left}; {others}"

    ranks = {name: list(row) for name, row in (("value", value), ("query", query)) if row}
    return Plan(
        value_layers,
        query_layers,
        middle,
        {
            "value": said(above, value_layers, means[1], "the last token"),
            "query": said(run, query_layers, means[0], "the subject's last token"),
            "middle": why_middle(middle),
        },
        {**ranks, "reach": means[0], "value_reach": means[1]},
    )
