"""Lines for a terminal: columns line up, bars scale, unscored metrics are left out."""

from dataclasses import dataclass

from acedit.attribution.certified import Certified
from acedit.attribution.plan import Plan
from acedit.attribution.value import Neuron
from acedit.report.text import (
    METRIC_NAMES,
    bar,
    certified,
    layer_bars,
    neuron_table,
    quoted,
    score_table,
    table,
    unfiltered_note,
)


@dataclass(frozen=True)
class Row:
    layer: int
    value: float
    query: float


LAYERS = [Row(0, 0.5, 2.0), Row(1, 1.0, 1.0)]


def scores(value: float, unscored: tuple[str, ...] = ("middle",)) -> dict[str, dict[str, float]]:
    return {
        metric: {
            "value": float("nan") if metric in unscored else value,
            "n": 0 if metric in unscored else 4,
            "low": 0.1,
            "high": 0.9,
            "questions": value,
            "unfiltered": value,
            "n_unfiltered": 0 if metric in unscored else 6,
        }
        for metric in METRIC_NAMES
    }


def test_columns_line_up() -> None:
    lines = table([["a", "b"], ["long one", "x"], ["y", "z"]], indent="").splitlines()
    assert lines[0].index("b") == lines[2].index("x") == lines[3].index("z")


def test_bars_scale_to_the_largest() -> None:
    assert len(bar(1.0, 1.0, 24)) == 24 and len(bar(0.5, 1.0, 24)) == 12
    assert bar(-1.0, 1.0, 3) == "---" and bar(0.0, 0.0) == ""


def test_layers_name_the_stage_that_writes_them() -> None:
    lines = layer_bars(LAYERS, Plan((1,), (0,))).splitlines()
    assert lines[2].endswith("query") and lines[3].endswith("value")


def test_tokens_are_shown_as_they_are_but_line_ends() -> None:
    assert quoted([" Lima", "\n", "it's"]) == " Lima '\\n' it's"
    assert "Lima" in neuron_table([Neuron(1, 2, 0.5, (" Lima",))])


def test_unscored_metrics_are_left_out_unless_another_column_has_them() -> None:
    assert "middle" not in score_table({"a": scores(0.5)})
    both = score_table({"a": scores(0.5), "b": scores(0.25, unscored=())})
    (line,) = [line for line in both.splitlines() if line.strip().startswith("middle")]
    assert "–" in line and "0.25 [0.10, 0.90]" in line


def test_unfiltered_scores_stand_beside() -> None:
    note = unfiltered_note(scores(0.5))
    assert "implicit 0.50 (n=6)" in note and "middle" not in note


def test_what_proves_neurons_the_best_is_told() -> None:
    best = (Neuron(1, 2, 3.0), Neuron(0, 4, 1.0))
    proof = Certified(best, (2.9, 0.9), (3.1, 1.1), rest=0.95, rescored=5, of=1200, ties=(((0, 4), (2, 7)),))
    assert certified(proof).splitlines() == [
        "proven of 1,200 neurons, 5 of them scored exactly: no other scores more than 0.9500",
        "not to be told apart: layer 0 neuron 4; layer 2 neuron 7",
    ]
    every = Certified(best, (2.9, 0.9), (3.1, 1.1), rest=float("-inf"), rescored=2, of=2)
    assert certified(every) == "all 2 neurons, 2 of them scored exactly"
