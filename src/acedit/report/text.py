"""What was found, as lines for a terminal.

    print(layer_bars(where.layers, where.plan))
    print(neuron_table(where.value_neurons[:10]))
    print(score_table({"before": scores, "ace": edited}))

Every function takes plain numbers or the objects `locate` and `evaluate` return, and gives back text
without a trailing newline.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

METRIC_NAMES = {
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "explicit": "explicit (first hop edited)",
    "middle": "middle",
    "implicit": "implicit (last hop edited)",
    "mixed": "mixed (several hops edited)",
    "direct": "all multi-hop, direct",
    "cot": "all multi-hop, chain of thought",
    "specificity_subject": "specificity: same subject",
    "specificity_relation": "specificity: same relation",
    "specificity_chain": "specificity: unrelated chains",
    "efficacy_p": "efficacy by probability",
    "paraphrase_p": "paraphrase by probability",
    "specificity_p": "specificity by probability",
}


class CertifiedLike(Protocol):
    """A proof that neurons are the best (`attribution.certified.Certified`)."""

    @property
    def neurons(self) -> Sequence[object]: ...
    @property
    def rest(self) -> float: ...
    @property
    def rescored(self) -> int: ...
    @property
    def of(self) -> int: ...
    @property
    def ties(self) -> Sequence[Sequence[tuple[int, int]]]: ...


@runtime_checkable
class NeuronLike(Protocol):
    """What a row about a neuron needs; `tokens` are its top tokens in vocabulary space."""

    @property
    def layer(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def tokens(self) -> Sequence[str]: ...


@runtime_checkable
class LayerLike(Protocol):
    """A layer's value and query scores."""

    @property
    def layer(self) -> int: ...
    @property
    def value(self) -> float: ...
    @property
    def query(self) -> float: ...


@runtime_checkable
class PlanLike(Protocol):
    """The layers an edit is written in, by stage."""

    @property
    def query_layers(self) -> tuple[int, ...]: ...
    @property
    def middle_layers(self) -> tuple[int, ...]: ...
    @property
    def value_layers(self) -> tuple[int, ...]: ...


def chosen_as(plan: PlanLike, layer: int) -> list[str]:
    """The stages that write in `layer`: of "query", "middle", "value"."""
    rows = (("query", plan.query_layers), ("middle", plan.middle_layers), ("value", plan.value_layers))
    return [name for name, layers in rows if layer in layers]


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Rows in columns; the first row is the head, underlined."""
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        return indent + "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()

    head, *body = [line(row) for row in rows]
    return "\n".join([head, indent + "-" * (sum(width) + 2 * (len(width) - 1)), *body])


def bar(value: float, largest: float, width: int = 24) -> str:
    """`value` as a bar; one that is negative is drawn with minus signs."""
    length = round(abs(value) / largest * width) if largest > 0 else 0
    return ("█" if value >= 0 else "-") * length


def layer_bars(layers: Sequence[LayerLike], plan: PlanLike) -> str:
    """One line a layer: value and query score as bars, and what the plan writes there."""
    top_value = max((abs(row.value) for row in layers), default=0.0)
    top_query = max((abs(row.query) for row in layers), default=0.0)
    rows = [["layer", "value score", "", "query score", "", "written by"]]
    for row in layers:
        rows.append(
            [
                str(row.layer),
                f"{row.value:9.3f}",
                bar(row.value, top_value),
                f"{row.query:9.3f}",
                bar(row.query, top_query),
                ", ".join(chosen_as(plan, row.layer)),
            ]
        )
    return table(rows)


def quoted(tokens: Sequence[str], most: int = 6) -> str:
    """Tokens for reading: spaces shown as they are, line ends and the like escaped."""
    return " ".join(repr(token)[1:-1] if token.strip() else repr(token) for token in tokens[:most])


def neuron_table(neurons: Sequence[NeuronLike]) -> str:
    """Layer, index, score and top tokens of each neuron."""
    rows = [["layer", "neuron", "score", "top tokens"]]
    rows += [[str(n.layer), str(n.index), f"{n.score:.4f}", quoted(n.tokens)] for n in neurons]
    return table(rows)


def certified(proof: CertifiedLike) -> str:
    """What proves neurons the best of all, in a line; another that names those that tie."""
    every = len(proof.neurons) == proof.of
    lines = [
        f"{'all' if every else 'proven of'} {proof.of:,} neurons, {proof.rescored:,} of them scored exactly"
        + ("" if every else f": no other scores more than {proof.rest:.4f}")
    ]
    if proof.ties:
        tied = ["; ".join(f"layer {layer} neuron {index}" for layer, index in tie) for tie in proof.ties]
        lines.append(f"not to be told apart: {' | '.join(tied)}")
    return "\n".join(lines)


def score_cell(row: Mapping[str, Any]) -> str:
    """A share with its 95% interval; a dash where nothing was scored."""
    if not row["n"]:
        return "–"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def score_rows(columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Metric, n, and a cell for each column; metrics that no column has scored are left out."""
    rows = [["", "n", *columns]]
    for metric, name in METRIC_NAMES.items():
        counts = [int(scores[metric]["n"]) for scores in columns.values()]
        if any(counts):
            cells = [score_cell(scores[metric]) for scores in columns.values()]
            rows.append([name, str(max(counts)), *cells])
    return rows


def score_table(columns: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Scores by metric, one column for each model ("before", "ace", ...)."""
    return table(score_rows(columns))


def unfiltered_note(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Multi-hop scores over all cases, beside those over the cases the model could answer before."""
    said = []
    for metric in ("explicit", "middle", "implicit", "mixed", "direct", "cot"):
        row = scores[metric]
        if row.get("n_unfiltered"):
            name = METRIC_NAMES[metric].split(" (")[0]
            said.append(f"{name} {row['unfiltered']:.2f} (n={row['n_unfiltered']:.0f})")
    return "unfiltered: " + ", ".join(said) if said else ""
