"""Tables 2, 3 and 4 of the paper from a run's store, its values beside ours, and tables of our own.

    rows = load(Store.read("runs/a"))
    print(markdown(table2(rows)))               # `layouts`: or latex(...), html(...)

Table 2 is accuracy under the few-shot chain-of-thought prompt over the paper's subset (B.1), by number of
edits; its average is over all cases, not over the columns (the paper's is not its columns' mean either).
Table 3's specificity is over the same subject's and the same relation's other facts. Every share of
ours carries its 95% interval and n. Values of the paper are as it prints them (GPT-J / Qwen3-8B).

Footgun: seconds are in `costs` alone; all other tables of a run are the same however often it was killed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from acedit.benchmark.layouts import Table
from acedit.benchmark.ripple import AXES
from acedit.benchmark.rows import SPECIFICITY, Rows, picked, span
from acedit.benchmark.score import Record, summarise
from acedit.editing.methods import methods, unprimed

PAPER2: Mapping[str, tuple[str, ...]] = {
    "base": ("98.42 / 99.17", "99.7 / 99.81", "95.48 / 97.46", "97.51 / 98.14", "97.23 / 97.64"),
    "ft": ("3.54 / 2.18", "4.17 / 3.14", "2.63 / 2.79", "0.00 / 0.00", "0.00 / 0.00"),
    "rome": ("35.04 / 28.79", "44.51 / 35.09", "38.93 / 32.48", "17.52 / 18.97", "5.06 / 7.08"),
    "memit": ("38.58 / 18.67", "64.30 / 29.84", "16.87 / 19.18", "17.25 / 12.91", "8.16 / 4.20"),
    "pmet": ("37.01 / 20.78", "49.26 / 28.64", "36.30 / 14.08", "24.34 / 12.56", "17.01 / 11.20"),
    "ace": ("46.45 / 58.24", "45.26 / 60.22", "50.24 / 59.48", "36.17 / 51.62", "43.29 / 47.61"),
}
"""Table 2, % (GPT-J / Qwen3-8B): average, then 1 to 4 edits."""

PAPER3: Mapping[str, tuple[str, str, str]] = {
    "ft": ("98.4 / 97.1", "74.5 / 73.2", "83.8 / 79.6"),
    "rome": ("64.2 / 51.8", "61.6 / 49.3", "66.8 / 57.2"),
    "memit": ("62.8 / 53.6", "66.2 / 61.8", "70.0 / 64.7"),
    "pmet": ("81.6 / 75.6", "65.8 / 68.9", "74.6 / 64.4"),
    "ace": ("99.8 / 99.4", "91.2 / 94.2", "79.2 / 81.8"),
}
"""Table 3, % (GPT-J / Qwen3-8B): efficacy, paraphrase, specificity."""

PAPER4: Mapping[tuple[int, int], tuple[str, str, str, str]] = {
    (1, 0): ("43.26 / 52.61", "96.2 / 96.6", "90.4 / 91.3", "77.6 / 74.3"),
    (2, 0): ("41.19 / 47.34", "94.8 / 92.4", "91.0 / 89.3", "75.2 / 72.7"),
    (3, 0): ("38.78 / 45.26", "90.6 / 91.3", "91.6 / 85.8", "74.3 / 71.5"),
    (0, 1): ("42.14 / 51.39", "91.5 / 94.8", "88.7 / 90.2", "74.9 / 73.6"),
    (0, 2): ("33.97 / 34.68", "84.6 / 71.9", "81.8 / 73.1", "70.3 / 72.3"),
}
"""Table 4, % (GPT-J / Qwen3-8B), by skipped query and value layers: average, then Table 3's three."""

IN_PAPER = {"ace-paper": "ace", "ace-paper-hops": "ace", "ace-paper-letter": "ace"}
"""What the paper calls a method, where it is another name."""

CURVES = (
    "efficacy", "paraphrase", *SPECIFICITY, "specificity_chain", "explicit", "middle", "implicit", "mixed",
    "direct", "cot", "subset", *dict.fromkeys(AXES.values()),
)  # fmt: skip
"""What is shown of a sequence, as far as it was asked."""


def _share(records: Sequence[Record], seed: int = 0) -> dict[str, float]:
    """Value, n and interval of records taken as one metric, over those that pass."""
    renamed = [Record("direct", r.case, r.right, r.mean, r.passed) for r in records]
    return summarise(renamed, seed=seed)["direct"]


def cell(records: Sequence[Record]) -> str:
    """A share in percent with its 95% interval and n; a dash for none."""
    row = _share(records)
    if not row["n"]:
        return "–"
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{100 * row['value']:.1f} [{low:.1f}, {high:.1f}] ({row['n']:.0f})"


def in_paper(method: str) -> str:
    """What the paper calls a method. Its own edit prompts are primed (section 6.2), without a name for it."""
    return IN_PAPER.get(unprimed(method), unprimed(method))


def editors(rows: Rows) -> list[str]:
    """The run's methods without `base`: its records are of the original answers and of other cases."""
    return [method for method in rows.methods if method != "base"]


def table2(rows: Rows) -> Table:
    """Multi-hop accuracy by number of edits, as the paper's Table 2."""
    numbers = sorted({int(case["edits"]) for case in rows.cases.values()})
    body = []
    for method in rows.methods:
        records = picked(rows.of(method), ["subset"])
        paper = PAPER2.get(in_paper(method))
        cells = [cell(records)]
        for n in numbers:
            cells.append(cell([r for r in records if rows.cases[r.case]["edits"] == n]))
        beside = [paper[0], *(paper[n] if n < 5 else "–" for n in numbers)] if paper else []
        body.append((method, *cells, *(beside or ["–"] * (1 + len(numbers)))))
    head = ("editor", "avg.", *(f"{n}-edit" for n in numbers))
    return Table(
        "Table 2: multi-hop accuracy (%), few-shot chain of thought, over the subset of B.1",
        (*head, "paper avg.", *(f"paper {n}-edit" for n in numbers)),
        tuple(body),
        (
            "avg. is over all cases; the paper's values are GPT-J / Qwen3-8B on MQuAKE-3K",
            "base: the unedited model on the original answers",
            *_recall(rows),
            *rows.together,
            *rows.notes,
        ),
    )


def _recall(rows: Rows) -> list[str]:
    """What the unedited model recalls of the original single hops under G.2, where it was asked."""
    hops = [replace(r, right=r.mean) for r in picked(rows.of("base"), ["efficacy"])]
    return [f"base recalls of a case's single hops under G.2 (%): {cell(hops)}"] if hops else []


def table3(rows: Rows) -> Table:
    """Efficacy, paraphrase, specificity and their mean, as the paper's Table 3."""
    body = []
    for method in editors(rows):
        records = rows.of(method)
        each = [picked(records, names) for names in (["efficacy"], ["paraphrase"], list(SPECIFICITY))]
        values = [_share(some)["value"] for some in each]
        mean = f"{100 * sum(values) / 3:.1f}" if all(some for some in each) else "–"
        body.append((method, *map(cell, each), mean, *PAPER3.get(in_paper(method), ("–",) * 3)))
    return Table(
        "Table 3: efficacy, paraphrase, specificity (%)",
        ("editor", "efficacy", "paraphrase", "specificity", "mean of the three",
         "paper efficacy", "paper paraphrase", "paper specificity"),
        tuple(body),
        (
            "specificity: other facts of the same subject, the same relation of other subjects",
            *rows.together,
            *rows.notes,
        ),
    )  # fmt: skip


def table4(rows: Rows) -> Table:
    """What is lost without the most important query or value layers, as the paper's Table 4."""
    body = []
    for method in rows.methods:
        found = _skips(method)
        if found is None or found[0] not in rows.methods:
            continue
        whole, query, value = found
        ours = picked(rows.of(method), ["subset"])
        before, after = (_share(picked(rows.of(m), ["subset"]))["value"] for m in (whole, method))
        lost = 100 * (before - after) / before if before > 0 else 0.0
        drop = f" ({'↓' if lost > 0 else '↑'} {abs(lost):.2f}%)" if before > 0 else ""
        cells = [cell(ours) + drop]
        for names in (["efficacy"], ["paraphrase"], list(SPECIFICITY)):
            first, then = (_share(picked(rows.of(m), names))["value"] for m in (whole, method))
            arrow = "↓" if then < first else "↑" if then > first else "="
            cells.append(f"{cell(picked(rows.of(method), names))} {arrow}")
        skipped = f"{whole} without " + ", ".join(
            f"{name} #1" + (f"-{n}" if n > 1 else "") for name, n in (("query", query), ("value", value)) if n
        )
        paper = PAPER4.get((query, value)) if in_paper(whole) == "ace" else None
        body.append((skipped, *cells, *(paper or ("–",) * 4)))
    return Table(
        "Table 4: without the most important layers (%)",
        ("editor", "avg.", "efficacy", "paraphrase", "specificity",
         "paper avg.", "paper efficacy", "paper paraphrase", "paper specificity"),
        tuple(body),
        (
            "layers by the plan's score, #1 the highest; ↓ % is of the whole method's average",
            *rows.together,
            *rows.notes,
        ),
    )  # fmt: skip


def _skips(name: str) -> tuple[str, int, int] | None:
    """The whole method, and how many query and value layers `Method.skipping` named `name` leaves out."""
    whole, mark, said = name.partition("-skip-")
    if not mark or unprimed(whole) not in methods():
        return None
    count = {part[0]: int(part[1:]) for part in said.split("-")}
    return whole, count.get("q", 0), count.get("v", 0)


def positions(rows: Rows) -> Table:
    """Accuracy by where the edited fact stands, which the paper never prints."""
    columns = ["explicit", "middle", "implicit", "mixed", "direct", "cot"]
    notes = ["over cases whose hops, continuation and question the unedited model answers as asked"]
    if any(picked(rows.of(method), ["left_out"]) for method in rows.methods):
        columns.append("left_out")
        notes.append("left_out: direct, where what follows from an edit is asked by no prompt of the edit")
    body = [(method, *(cell(picked(rows.of(method), [c])) for c in columns)) for method in editors(rows)]
    return Table(
        "By position (%): direct answers by where the edit stands; all of them, direct and in thought",
        ("editor", *columns),
        tuple(body),
        (*notes, *rows.together, *rows.notes),
    )


def probabilities(rows: Rows) -> Table:
    """Efficacy, paraphrase and specificity by probability: is the right object the likelier one?"""
    columns = ("efficacy_p", "paraphrase_p", "specificity_p")
    body = [
        (method, *(cell(picked(rows.of(method), [c])) for c in columns))
        for method in editors(rows)
        if picked(rows.of(method), columns)
    ]
    return Table(
        "By probability (%): ES, PS, NS of Meng et al. 2022",
        ("editor", "efficacy", "paraphrase", "specificity"),
        tuple(body),
        (
            "new against old object, by mean log p a token; greedy answers are what the other tables hold",
            *rows.together,
        ),
    )


def whole_and_filtered(rows: Rows) -> Table:
    """Accuracy without the filter, and over questions instead of cases."""
    body = []
    for method in editors(rows):
        cells = []
        for metric in ("direct", "cot", "subset"):
            records = picked(rows.of(method), [metric])
            cells.append(cell([replace(r, right=r.mean) for r in records]))
            if metric != "subset":
                cells.append(cell([replace(r, passed=True) for r in records]))
        body.append((method, *cells))
    return Table(
        "Over questions, and over all cases (%)",
        (
            "editor", "direct, of questions", "direct, all cases", "thought, of questions",
            "thought, all cases", "subset of B.1, of questions",
        ),
        tuple(body),
        (
            "of questions: the share of a case's three answered right; all cases: also those the unedited "
            "model did not answer", *rows.together, *rows.notes,
        ),
    )  # fmt: skip


def fluency(rows: Rows) -> Table:
    """Perplexity over Wikitext, as the model was and with the edits in."""
    body = []
    for method in rows.methods:
        some = [o for unit, o in rows.units if unit.method == method and not math.isnan(o.before)]
        if some:
            before, after = (
                sum(values) / len(some)
                for values in zip(*((o.before, o.perplexity) for o in some), strict=True)
            )
            worst = max(o.perplexity / o.before for o in some)
            body.append((method, f"{before:.2f}", f"{after:.2f}", f"{after / before:.3f}", f"{worst:.3f}"))
    return Table(
        "Fluency: perplexity of a token over Wikitext-2",
        ("editor", "unedited", "edited", "ratio", "worst ratio"),
        tuple(body),
        (
            "a mean over the groups of cases edited together; where the unedited model's is beyond its "
            "vocabulary, as the bundled one's, it never read such text and the ratio says nothing of fluency",
            *rows.together,
            *rows.notes,
        ),
    )


def ripple(rows: Rows) -> Table:
    """RippleEdits' axes."""
    columns = ("efficacy", *dict.fromkeys(AXES.values()))
    body = [(method, *(cell(picked(rows.of(method), [c])) for c in columns)) for method in editors(rows)]
    return Table(
        "RippleEdits (%): tests whose conditions the unedited model meets",
        ("editor", *(name.replace("_", " ") for name in columns)),
        tuple(body),
        rows.notes,
    )


def costs(rows: Rows) -> Table:
    """What an edit costs: seconds a fact, rank, and norm of the change."""
    body = []
    last = max(rows.steps, default=0)  # the costs of a sequence's steps are of all edits so far
    for method in rows.methods:
        some = [o for unit, o in rows.units if unit.method == method and unit.step == last and o.facts]
        if some:
            facts = sum(o.facts for o in some)
            body.append(
                (
                    method,
                    f"{sum(o.seconds for o in some) / facts:.2f}",
                    str(max(o.rank for o in some)),
                    f"{sum(o.norm for o in some) / len(some):.3f}",
                )
            )
    return Table(
        "Cost",
        ("editor", "seconds a fact", "rank", "‖Δ‖/‖W‖"),
        tuple(body),
        (
            "rank: the largest of a patch; ‖Δ‖/‖W‖: of a patch's layers the largest"
            + (", and the largest of a sequence's patches" if last else ", mean over patches"),
            *rows.together,
        ),
    )


def _growing(rows: Rows) -> list[tuple[str, float, Rows]]:
    """Rows by how many cases are in the model, said and as a mean: the steps of a sequence, or cases edited
    at once, which may be fewer in some groups than were asked for."""
    if rows.steps:
        return [
            (str(step), step, replace(rows, units=tuple(p for p in rows.units if p[0].step == step)))
            for step in rows.steps
        ]
    if len(rows.at_once) < 2:
        return []
    growing = []
    for n in rows.at_once:
        some = rows.at(n)
        sizes = [len(unit.cases) for unit, _ in some.units]
        growing.append((span(sizes), sum(sizes) / len(sizes), some))
    return growing


def degradation(rows: Rows) -> list[dict[str, Any]]:
    """Of a sequence, or of several numbers of cases at once: method, cases edited, metric and value, for a
    table and a plot."""
    found, growing = [], _growing(rows)
    for method in editors(rows):
        for _, cases, some in growing:
            records = some.of(method)
            for metric in CURVES:
                row = _share(picked(records, [metric]))
                if row["n"]:
                    found.append({"method": method, "cases": cases, "metric": metric, **row})
    return found


def sequence(rows: Rows) -> Table:
    """Scores after so many cases edited one after the other."""
    return _by_cases(rows, "In sequence (%)", "cases edited")


def at_once(rows: Rows) -> Table:
    """Scores with the edits of so many cases in at once, the same cases asked."""
    return _by_cases(rows, "By number of cases edited at once (%)", "cases at once")


def _by_cases(rows: Rows, title: str, what: str) -> Table:
    growing = _growing(rows)
    scored = [(m, said, some.of(m), some) for m in editors(rows) for said, _, some in growing]
    asked = {record.metric for _, _, records, _ in scored for record in records}
    columns = [metric for metric in CURVES if metric in asked]
    body = [
        (m, said, *(cell(picked(records, [c])) for c in columns), _ratio(some, m))
        for m, said, records, some in scored
    ]
    return Table(title, ("editor", what, *columns, "perplexity, ratio"), tuple(body), rows.notes)


def _ratio(rows: Rows, method: str) -> str:
    """Perplexity after the edits by that before, mean over units."""
    of = [o.perplexity / o.before for unit, o in rows.units if unit.method == method]
    known = [ratio for ratio in of if not math.isnan(ratio)]
    return f"{sum(known) / len(known):.3f}" if known else "–"


def all_tables(rows: Rows) -> dict[str, Table]:
    """Every table that the run has rows for, by name, but `costs`; of several numbers of cases at once the
    paper's are of the fewest."""
    makers: Sequence[Callable[[Rows], Table]] = (
        table2, table3, table4, positions, probabilities, whole_and_filtered, fluency,
    )  # fmt: skip
    if rows.steps:
        makers = (sequence,)
    elif any(case["position"] == "ripple" for case in rows.cases.values()):
        makers = (ripple, fluency)
    made = {maker.__name__: maker(rows.fewest) for maker in makers}
    if len(rows.at_once) > 1:
        made["at_once"] = at_once(rows)
    return {name: table for name, table in made.items() if table.rows}
