"""What the README and docs/results.md show of results/: the main table, Table 2, and the demo's transcript.

    python benchmarks/readme_table.py            # writes them between the marks
    python benchmarks/readme_table.py --check    # says whether they stand there as they should

The main table is of `main_table.py`: means over seeds, n of all seeds together, a column a method and number
of cases at once; of a method that was run with several settings the last stand here. The README has some of
its columns; docs/results.md has all, with 95% intervals (the seeds' own, joined) and what is right of all
cases, the filter aside. Table 2 is the one that `acedit bench tables` left in results/bench_alone (each case
by itself) and in results/bench_world (25 at once), without the paper's columns. The transcript is of
results/demo.txt (`acedit demo > results/demo.txt`): the first case's answers and the scores.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
SHOWN = 6  # of the demo's answers
COLUMNS = (
    ("batch25.json", "ace", "25 at once"),
    ("batch25.json", "ft-same", "25 at once"),
    ("batch25.json", "pmet", "25 at once"),
    ("batch25.json", "ace-value", "25 at once"),
    ("batch25.json", "ace-query", "25 at once"),
    ("batch1.json", "ace", "one at a time"),
    ("batch1.json", "ft-same", "one at a time"),
    ("batch1.json", "pmet", "one at a time"),
)
SUMMARY = COLUMNS[:3] + COLUMNS[5:]  # without either stage alone
ROWS = (
    ("efficacy", "efficacy", "0.99 / 0.98"),
    ("paraphrase", "paraphrase", "0.97 / 0.95"),
    ("implicit (last hop edited)", "implicit", "0.95 / 0.85"),
    ("explicit (first hop edited)", "explicit", "0.95 / 0.90"),
    ("middle", "middle", "0.85 / 0.70"),
    ("all, direct", "direct", ""),
    ("all, chain of thought", "cot", "0.90 / 0.90"),
    ("specificity: same subject", "specificity_subject", "0.97 / 0.95"),
    ("specificity: same relation", "specificity_relation", "0.97 / 0.95"),
    ("specificity: unrelated chains", "specificity_chain", "0.97 / 0.95"),
)
CHAINS = tuple(row for row in ROWS if row[1] in ("implicit", "explicit", "middle", "direct", "cot"))
"""What the filter is of."""
COSTS = (
    ("seconds a fact, one thread", "seconds_per_fact", ".1f"),
    ("rank", "rank", ".0f"),
    ("‖Δ‖/‖W‖, largest layer", "norm", ".2f"),
)


def seedless(run: dict[str, Any]) -> dict[str, object]:
    """A run's settings but its seed."""
    return {name: value for name, value in run["settings"].items() if name != "seed"}


Scores = Sequence[dict[str, float]]
"""One metric's scores of a method, a seed each."""


def mean(scores: Scores, value: str, n: str = "n") -> tuple[float, float]:
    """The mean over the seeds that have cases, and n of all."""
    some = [score for score in scores if score[n]]
    return sum(score[value] for score in some) / len(some), sum(score[n] for score in some)


def filtered(scores: Scores) -> str:
    """The share and n."""
    value, n = mean(scores, "value")
    return f"{value:.2f} ({n:.0f})"


def with_interval(scores: Scores) -> str:
    """The same with its interval: each end as far off as the seeds' own ends are, in square, together."""
    value, n = mean(scores, "value")
    some = [score for score in scores if score["n"]]
    off = [
        math.sqrt(sum((score[end] - score["value"]) ** 2 for score in some)) / len(some)
        for end in ("low", "high")
    ]
    return f"{value:.2f} [{max(0.0, value - off[0]):.2f}, {min(1.0, value + off[1]):.2f}] ({n:.0f})"


def unfiltered(scores: Scores) -> str:
    """Of all cases, also those that the unedited model does not answer."""
    value, n = mean(scores, "unfiltered", "n_unfiltered")
    return f"{value:.2f} ({n:.0f})"


def columns_of(shown: Sequence[tuple[str, str, str]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """A head and its runs for each of `shown`: a file of results/, a method in it, and what is said of it."""
    columns = []
    for file, method, at_once in shown:
        runs = json.loads((HERE / "results" / file).read_text("utf-8"))
        of_method = [run for run in runs if run["settings"]["method"] == method]
        some = [run for run in of_method if seedless(run) == seedless(of_method[-1])]
        columns.append((f"{method}, {at_once}", some))
    return columns


def scored(
    shown: Sequence[tuple[str, str, str]],
    cell: Callable[[Scores], str],
    rows: Sequence[tuple[str, str, str]] = ROWS,
) -> list[str]:
    """The lines of a table of scores, its head first."""
    columns = columns_of(shown)
    lines = ["|  | goal, 1 / 25 at once | " + " | ".join(name for name, _ in columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for label, metric, goal in rows:
        cells = [cell([run["scores"][metric] for run in runs]) for _, runs in columns]
        lines.append(f"| {label} | {goal} | " + " | ".join(cells) + " |")
    return lines


def table(shown: Sequence[tuple[str, str, str]], cell: Callable[[Scores], str] = filtered) -> str:
    """Scores, and below them what it cost."""
    lines, columns = scored(shown, cell), columns_of(shown)
    for label, cost, form in COSTS:
        cells = [f"{sum(run['cost'][cost] for run in runs) / len(runs):{form}}" for _, runs in columns]
        lines.append(f"| {label} |  | " + " | ".join(cells) + " |")
    cells = [f"{sum(run['settings']['n'] for run in runs)} ({len(runs)})" for _, runs in columns]
    lines.append("| cases (seeds) | | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table_2(run: str) -> str:
    """Multi-hop accuracy by number of edits, a row a method; not the unedited model, the paper, Table 4."""
    lines = (HERE / "results" / run / "tables.md").read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| editor"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] != "base" and "-skip-" not in cells[0]:
            rows.append("| " + " | ".join(cells[:6]) + " |")
    return "\n".join(rows) + "\n"


def demo() -> str:
    """What the demo said of its first case, and its scores."""
    lines = (HERE / "results" / "demo.txt").read_text("utf-8").splitlines()
    answers = next(i for i, line in enumerate(lines) if line.startswith("Answers ")) + 1
    kinds = [i for i in range(answers, len(lines)) if lines[i].startswith("  ") and lines[i][2] != " "]
    scores = lines.index("Scores over all cases")
    end = next(i for i in range(scores, len(lines)) if lines[i].startswith("  specificity: unrelated"))
    shown = [*lines[answers : kinds[SHOWN]], "", *lines[scores : end + 1]]
    return "```\n" + "\n".join(line.rstrip() for line in shown) + "\n```\n"


BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "demo": ("README.md", demo),
    "summary": ("README.md", lambda: table(SUMMARY)),
    "table": ("docs/results.md", lambda: table(COLUMNS, with_interval)),
    "unfiltered": ("docs/results.md", lambda: "\n".join(scored(COLUMNS, unfiltered, CHAINS)) + "\n"),
    "table 2 alone": ("docs/results.md", lambda: table_2("bench_alone")),
    "table 2": ("docs/results.md", lambda: table_2("bench_world")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name, (file, make) in BLOCKS.items():
        text = (HERE / file).read_text("utf-8")
        before, rest = text.split(f"<!-- {name} -->\n")
        made = f"{before}<!-- {name} -->\n{make()}<!-- /{name} -->" + rest.split(f"<!-- /{name} -->")[1]
        if args.check and made != text:
            sys.exit(f"{file}'s {name} is not what results/ hold: run benchmarks/readme_table.py")
        if not args.check:
            (HERE / file).write_text(made, "utf-8")


if __name__ == "__main__":
    main()
