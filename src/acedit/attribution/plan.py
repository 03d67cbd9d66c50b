"""The plan: which layers an edit is written in, and why.

    plan = choose_layers(value, query, reach)
    plan.value_layers, plan.query_layers, plan.middle_layers, plan.reason

Value layers are the fewest FFN layers that hold `share` of the value score (Eq. 9) over multi-hop
prompts at the last token. Query layers lie below them: those among which a v* at the subject's last
token can still say the new object (the *reach*), deepest first by query score (Eq. 10). Middle layers,
for facts with hops on both sides, lie between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from acedit.errors import UserError


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
    """The layer half-way between the query layers and the value layers; none where none lies between."""
    between = range(query[-1] + 1, value[0])
    return tuple(between[len(between) // 2 :][:1])


def choose_layers(
    value: Sequence[float],
    query: Sequence[float],
    reach: Sequence[float],
    *,
    share: float = 0.5,
    slack: float = 0.5,
) -> Plan:
    """A plan from scores by layer.

    value, query: summed scores (nats, coefficient units), at least one layer each; reach: loss (nats a
    token) that v* attains at the subject's last token of each layer, lower is better. share: of the
    positive value score that the value layers hold. slack: a layer is within reach if its loss is at
    most `slack` of the way from the best to the worst.
    """
    n = len(value)
    positive = [max(0.0, v) for v in value]
    total = sum(positive)
    ranked = sorted(range(n), key=lambda layer: -value[layer])
    chosen: list[int] = []
    for layer in ranked:
        chosen.append(layer)
        if sum(positive[c] for c in chosen) >= share * total:
            break
    value_layers = tuple(sorted(chosen))
    best, worst = min(reach), max(reach)
    limit = best + slack * (worst - best)
    reached = [layer for layer in range(n) if reach[layer] <= limit and layer < value_layers[-1]]
    reached = reached or [0]
    # The write is at the subject's token: the last of a run that starts at the bottom is as deep as
    # the subject's name still decides what is said of it.
    run = [layer for i, layer in enumerate(reached) if layer == reached[0] + i]
    by_query = sorted(run, key=lambda layer: -query[layer])[: max(1, min(2, len(run)))]
    query_layers = tuple(sorted(by_query))
    middle_layers = middle_of(query_layers, value_layers)
    held = sum(positive[c] for c in chosen) / total if total else 0.0
    return Plan(
        value_layers,
        query_layers,
        middle_layers,
        {
            "value": f"layers {value_layers} hold {held:.0%} of the value score (Eq. 9) at the last token",
            "query": (
                f"layers {query_layers} have the highest query score (Eq. 10) of the run of layers from "
                f"{reached[0]} up where v* at the subject's last token reaches {limit:.2f} nats"
            ),
            "middle": "half-way between query and value layers" if middle_layers else "no layer lies between",
        },
        {"value": list(value), "query": list(query), "reach": list(reach)},
    )
