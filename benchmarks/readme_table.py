"""The README's main table, from what `main_table.py` left in results/.

    python benchmarks/readme_table.py            # writes it between the README's marks
    python benchmarks/readme_table.py --check    # says whether it stands there as it should

Means over seeds, n of all seeds together; a column a method and number of cases at once. Of a method that was
run with several settings the last stand here.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
MARKS = "<!-- table -->\n", "<!-- /table -->"
COLUMNS = (
    ("batch25.json", "ace", "25 at once"),
    ("batch25.json", "ft-same", "25 at once"),
    ("batch25.json", "pmet", "25 at once"),
    ("batch25.json", "ace-value", "25 at once"),
    ("batch25.json", "ace-query", "25 at once"),
    ("batch1.json", "ace", "one at a time"),
    ("batch1.json", "pmet", "one at a time"),
)
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
COSTS = (
    ("seconds a fact, one thread", "seconds_per_fact", ".1f"),
    ("rank", "rank", ".0f"),
    ("‖Δ‖/‖W‖, largest layer", "norm", ".2f"),
)


def seedless(run: dict[str, Any]) -> dict[str, object]:
    """A run's settings but its seed."""
    return {name: value for name, value in run["settings"].items() if name != "seed"}


def table() -> str:
    columns = []
    for file, method, at_once in COLUMNS:
        runs = json.loads((HERE / "results" / file).read_text("utf-8"))
        of_method = [run for run in runs if run["settings"]["method"] == method]
        some = [run for run in of_method if seedless(run) == seedless(of_method[-1])]
        columns.append((f"{method}, {at_once}", some))
    lines = ["|  | goal, 1 / 25 at once | " + " | ".join(name for name, _ in columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for label, metric, goal in ROWS:
        cells = []
        for _, runs in columns:
            scores = [run["scores"][metric] for run in runs if run["scores"][metric]["n"]]
            value = sum(score["value"] for score in scores) / len(scores)
            cells.append(f"{value:.2f} ({sum(score['n'] for score in scores):.0f})")
        lines.append(f"| {label} | {goal} | " + " | ".join(cells) + " |")
    for label, cost, form in COSTS:
        cells = [f"{sum(run['cost'][cost] for run in runs) / len(runs):{form}}" for _, runs in columns]
        lines.append(f"| {label} |  | " + " | ".join(cells) + " |")
    cells = [f"{sum(run['settings']['n'] for run in runs)} ({len(runs)})" for _, runs in columns]
    lines.append("| cases (seeds) | | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = HERE / "README.md"
    before, rest = readme.read_text("utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    made = before + MARKS[0] + table() + MARKS[1] + after
    if args.check:
        sys.exit(0 if made == readme.read_text("utf-8") else "README's table is not what results/ hold")
    readme.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
