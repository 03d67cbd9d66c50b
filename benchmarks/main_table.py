"""The main table: ACE, its ablations and its rivals on fresh cases of the bundled world.

    python benchmarks/main_table.py --pool test --seeds 0 1 2 --n 100 --batch 25 --out results/batch25.json

Rows are method × seed; a row that is already in --out (same settings) is not made again, so an
interrupted run goes on where it stopped. The markdown table of means over seeds is printed at the end.
Cases are drawn one third each with the edited fact first, in the middle and last.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from readme_table import seedless

import acedit
from acedit.benchmark.evaluate import run_method
from acedit.benchmark.score import METRICS, Scorer, summarise
from acedit.editing.methods import Method, methods
from acedit.knowledge.facts import cases_from
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world


def rows_of(args: argparse.Namespace, chosen: Mapping[str, Method]) -> list[dict[str, object]]:
    out = Path(args.out)
    rows: list[dict[str, object]] = json.loads(out.read_text()) if out.exists() else []
    done = {json.dumps(row["settings"], sort_keys=True) for row in rows}
    lm = acedit.load(args.model, dtype=torch.float32)
    known = facts_of(build_world(), [])
    for seed in args.seeds:
        scorer = None
        for name, whole in chosen.items():
            method = whole.leaving_out(args.left_out)
            settings = {
                "model": lm.fingerprint,
                "method": name,
                "seed": seed,
                "n": args.n,
                "batch": args.batch,
                "pool": args.pool,
                "edits": args.edits,
                "left_out": args.left_out,
                "settings": asdict(method),
            }
            settings = json.loads(json.dumps(settings))
            if json.dumps(settings, sort_keys=True) in done:
                continue
            if scorer is None:
                rows_raw = make_cases(build_world(), seed=seed, n=args.n, edits=args.edits, pool=args.pool)
                cases = cases_from(rows_raw)
                scorer = Scorer(lm, cases, known=known)
            began = perf_counter()
            run = run_method(
                lm,
                cases,
                scorer,
                method,
                known=known,
                batch=args.batch,
                seed=seed,
                progress=lambda done, of, name=name, seed=seed: print(
                    f"\r{name} seed {seed}: {done}/{of} cases", end="", file=sys.stderr, flush=True
                ),
            )
            print(f", {perf_counter() - began:.0f} s", file=sys.stderr)
            rows.append({"settings": settings, "scores": summarise(run.records), "cost": run.cost()})
            partial = out.with_suffix(".partial")
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(rows, indent=1))
            partial.replace(out)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Means over seeds, a row a method; n is of all seeds."""
    shown = [m for m in METRICS if m not in ("mixed", "subset") and not m.endswith("_p")]
    groups: dict[str, list[dict[str, object]]] = defaultdict(list)
    for row in rows:
        groups[json.dumps(seedless(row), sort_keys=True)].append(row)
    lines = [
        "| method | at once | " + " | ".join(shown) + " | s a fact | rank | norm |",
        "|---|---|" + "---|" * (len(shown) + 3),
    ]
    for group in groups.values():
        settings = group[0]["settings"]
        cells = []
        for metric in shown:
            values = [g["scores"][metric]["value"] for g in group if g["scores"][metric]["n"]]
            n = sum(g["scores"][metric]["n"] for g in group)
            cells.append(f"{sum(values) / len(values):.2f} ({n})" if values else "–")
        cost = {k: sum(g["cost"][k] for g in group) / len(group) for k in group[0]["cost"]}
        cells += [f"{cost['seconds_per_fact']:.1f}", f"{cost['rank']:.0f}", f"{cost['norm']:.2f}"]
        lines.append(f"| {settings['method']} | {settings['batch']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--pool", default="dev", choices=("dev", "test"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--edits", type=int, default=1)
    parser.add_argument(
        "--left-out", type=float, default=0.0, help="share of second relations no prompt asks"
    )
    parser.add_argument("--out", required=True)
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", default=["pmet", "ace", "ft-same"])
    parser.add_argument("--rank", type=int, help="cut each method's update to this rank, as acedit edit does")
    args = parser.parse_args()
    chosen = [methods()[name] for name in args.methods]
    if args.rank is not None:
        chosen = [method.narrowed(args.rank) for method in chosen]
    print(table(rows_of(args, {method.name: method for method in chosen})))


if __name__ == "__main__":
    main()
