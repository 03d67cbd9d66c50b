"""Differences between methods, paired over the cases both were asked.

    paired(rows.of("ace"), rows.of("pmet"))["low"]
    table = comparison("ace less pmet", {"pmet": rows.of("ace")}, {"pmet": rows.of("pmet")}, rows.cases)

Footgun: records that do not pass the filter do not count.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acedit.benchmark.layouts import Table
from acedit.benchmark.ripple import AXES
from acedit.benchmark.rows import SPECIFICITY, picked
from acedit.benchmark.score import Record, least_share


def paired(
    ours: Sequence[Record], theirs: Sequence[Record], *, seed: int = 0, draws: int = 2000
) -> dict[str, float]:
    """Mean difference (ours - theirs) over records that pass, and its 95% interval: a bootstrap over the
    cases both have, drawn together. n: such cases.

    Where no two of them differ a bootstrap knows nothing; then the interval is what holds if as many cases as
    can be missed in n draws (2.5% of the time) are the worst, or the best, there are.
    """
    return paired_mean([(ours, theirs)], seed=seed, draws=draws)


def paired_mean(
    parts: Sequence[tuple[Sequence[Record], Sequence[Record]]], *, seed: int = 0, draws: int = 2000
) -> dict[str, float]:
    """`paired` for the mean of several shares: each part is one share of ours and of theirs."""
    marks = [[_marks(records) for records in part] for part in parts]
    shared = [{case for case in ours if case in theirs} for ours, theirs in marks]
    cases = list(dict.fromkeys(case for ours, _ in marks for case in ours if any(case in s for s in shared)))
    if not all(shared):
        nan = float("nan")
        return {"value": nan, "low": nan, "high": nan, "n": 0}

    def counted(count: Callable[[Sequence[float]], float]) -> NDArray[np.float64]:
        rows = [
            [[count(side[c]) if c in both else 0.0 for c in cases] for side in part]
            for part, both in zip(marks, shared, strict=True)
        ]
        return np.array(rows, dtype=np.float64)

    sums, sizes = counted(sum), counted(len)
    picks = np.random.default_rng(seed).integers(0, len(cases), (draws, len(cases)))
    drawn = np.stack([np.bincount(pick, minlength=len(cases)) for pick in picks], axis=1)
    with np.errstate(invalid="ignore"):  # a draw may hold no case of a part
        drawn_shares = (sums @ drawn) / (sizes @ drawn)
    low, high = np.nanpercentile((drawn_shares[:, 0] - drawn_shares[:, 1]).mean(0), [2.5, 97.5])
    shares = sums.sum(-1) / sizes.sum(-1)
    value = float((shares[:, 0] - shares[:, 1]).mean())
    if high - low < 1e-12:
        missed = 1 - least_share(len(cases))
        low, high = value - missed * (value + 1), value + missed * (1 - value)
    return {"value": value, "low": float(low), "high": float(high), "n": len(cases)}


def _marks(records: Sequence[Record]) -> dict[str, list[float]]:
    marks: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.passed:
            marks[record.case].append(record.right)
    return marks


def comparison(
    title: str,
    ours: Mapping[str, Sequence[Record]],
    theirs: Mapping[str, Sequence[Record]],
    cases: Mapping[str, Mapping[str, Any]],
) -> Table:
    """Differences by metric (first - second, % points) for each row that both sides have.

    cases: edits by case id, as in `Rows.cases`; Table 2's columns are by them.
    """
    three = (("efficacy",), ("paraphrase",), SPECIFICITY)
    columns: dict[str, Sequence[Sequence[str]]] = {
        "efficacy": three[:1], "paraphrase": three[1:2], "specificity": three[2:], "mean of the three": three,
        **{
            metric: [[metric]]
            for metric in (*SPECIFICITY, "specificity_chain", "explicit", "middle", "implicit", "mixed",
                           "direct", "cot", "subset", *dict.fromkeys(AXES.values()))
        },
    }  # fmt: skip
    if any(r.metric == "left_out" for records in ours.values() for r in records):
        columns["left_out"] = [["left_out"]]
    numbers = sorted({int(case["edits"]) for case in cases.values()})

    def of_number(records: Sequence[Record], n: int) -> list[Record]:
        return [r for r in picked(records, ["subset"]) if cases[r.case]["edits"] == n]

    def cells(mine: Sequence[Record], yours: Sequence[Record]) -> Iterator[str]:
        for parts in columns.values():
            yield _difference([(picked(mine, names), picked(yours, names)) for names in parts])
        for n in numbers:
            yield _difference([(of_number(mine, n), of_number(yours, n))])

    body = [(name, *cells(records, theirs[name])) for name, records in ours.items() if name in theirs]
    head = ("editor", *columns, *(f"subset, {n}-edit" for n in numbers))
    asked = [i for i in range(len(head)) if i == 0 or any(row[i] != "–" for row in body)]
    return Table(
        title,
        tuple(head[i] for i in asked),
        tuple(tuple(row[i] for i in asked) for row in body),
        ("bootstrap over the cases both have, paired; their number in brackets",),
    )


def _difference(parts: Sequence[tuple[Sequence[Record], Sequence[Record]]]) -> str:
    row = paired_mean(parts)
    low, high = 100 * row["low"], 100 * row["high"]
    value = 100 * row["value"]
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}] ({row['n']:.0f})" if row["n"] else "–"
