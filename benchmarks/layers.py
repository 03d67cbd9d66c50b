"""Choosing layers: an exhaustive sweep of query and value ranges against what `locate` and `screen` choose.

    python benchmarks/layers.py --model bundled --n 24 --draw 302 303 --finals 300 --out results/layers.json

1. Every pair of contiguous ranges (query below value, at most --longest layers each) is written by
   `ace-closed`'s stages on fresh dev cases, all at once, and asked: the ranking.
2. The plan of `locate` and of `locate(screen=True)` (ranges of --longest too), from other cases' edits.
3. Both, and the sweep's first five, on fresh test cases: paired differences over questions. The best of the
   five is picked on one half of the cases and compared on the other, both ways.
4. How well each criterion ranks layers: Spearman with what a single written layer does.

Answers are greedy. The score is the mean of five shares: efficacy and paraphrase, direct multi-hop answers
where the edit stands first, in the middle and last (over what the unedited model follows), and what
stays (the three specificities). Interrupted, it goes on where it was.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence, Set
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

import acedit
from acedit.attribution.plan import Plan
from acedit.benchmark.leak import starts
from acedit.benchmark.score import Record, Scorer
from acedit.editing.plan import locate
from acedit.editing.screen import Trial, ranges, screened
from acedit.editing.stages import updates_in
from acedit.knowledge.facts import Case, Fact, cases_from
from acedit.lm.model import LanguageModel
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world
from attribution import spearman

GROUPS = {
    "efficacy": "edit", "paraphrase": "edit",
    "explicit": "explicit", "middle": "middle", "implicit": "implicit",
    "specificity_subject": "stays", "specificity_relation": "stays", "specificity_chain": "stays",
}  # fmt: skip


def draw(pool: str, seed: int, n: int) -> list[Case]:
    return list(cases_from(make_cases(build_world(), seed=seed, n=n, edits=1, pool=pool)))


def shares(records: Sequence[Record]) -> dict[str, float]:
    """Mean by group, and their mean as "score"."""
    marks = defaultdict(list)
    for r in records:
        if r.metric in GROUPS and r.passed:
            marks[GROUPS[r.metric]].append(r.right)
    found = {name: sum(m) / len(m) for name, m in marks.items()}
    return {**found, "score": sum(found.values()) / len(found)}


def tally(records: Sequence[Record], groups: Sequence[Set[str]]) -> np.ndarray:
    """Right and asked, by kind and by group of cases edited together: (2, n_kinds, n_groups)."""
    names = sorted(set(GROUPS.values()))
    group_of = {case: g for g, group in enumerate(groups) for case in group}
    sums = np.zeros((2, len(names), len(groups)))
    for r in records:
        if r.metric in GROUPS and r.passed:
            at = names.index(GROUPS[r.metric]), group_of[r.case]
            sums[0][at] += r.right
            sums[1][at] += 1
    return sums


def score(sums: np.ndarray) -> float:
    """Of a tally summed over its groups: the mean share of the kinds, in %."""
    return 100 * float((sums[0] / np.maximum(1, sums[1])).mean())


def against_best(
    ours: np.ndarray, results: Sequence[np.ndarray], draws: int = 2000
) -> tuple[float, float, float]:
    """By how many % points the score of `ours` differs from that of the best of `results`, with an interval.

    All are tallies. The best is picked on the other half of the groups; groups are drawn together, since
    cases of one share a patch, and the best is picked anew in every draw.
    """
    every = np.stack([ours, *results])
    halves = [np.arange(at, every.shape[-1], 2) for at in (0, 1)]
    rng = np.random.default_rng(0)

    def difference(drawn: Sequence[np.ndarray]) -> float:
        mine, best = np.zeros(every.shape[1:3]), np.zeros(every.shape[1:3])
        for here, there in (drawn, drawn[::-1]):
            leader = max(range(1, len(every)), key=lambda r: score(every[r][:, :, there].sum(-1)))
            mine += every[0][:, :, here].sum(-1)
            best += every[leader][:, :, here].sum(-1)
        return score(mine) - score(best)

    some = [difference([rng.choice(half, len(half)) for half in halves]) for _ in range(draws)]
    low, high = np.percentile(some, [2.5, 97.5])
    return difference(halves), float(low), float(high)


class Kept:
    """Results by name in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json.loads(path.read_text()) if path.exists() else {}

    def of(self, name: str, make):
        if name not in self.rows:
            began = perf_counter()
            self.rows[name] = make()
            print(f"{name}: {perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
            partial = self.path.with_suffix(".partial")
            lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in self.rows.items())
            partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            partial.replace(self.path)
        return self.rows[name]


class Finals:
    """Fresh test cases of one draw, `batch` of them edited at once."""

    def __init__(
        self, lm: LanguageModel, known: Sequence[Fact], kept: Kept, seed: int, n: int, batch: int
    ) -> None:
        self.seed = seed
        self._lm, self._known, self._kept = lm, known, kept
        self._cases = draw("test", seed, n)
        self._groups = [range(at, min(at + batch, n)) for at in range(0, n, batch)]
        self._trials: dict[int, Trial] = {}

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self._lm, self._cases, known=self._known, cot=False)

    def written(self, query: Sequence[int], value: Sequence[int]) -> np.ndarray:
        """The tally of what is said with the edits in these layers."""

        def make() -> list[list[object]]:
            records = []
            for g, group in enumerate(self._groups):
                if g not in self._trials:
                    some = [self._cases[i] for i in group]
                    edits = [case.edits[0] for case in some]
                    self._trials[g] = Trial(self._lm, edits, self._known, exclude=starts(some), seed=2)
                with updates_in(self._lm, self._trials[g].write(tuple(query), tuple(value))):
                    records += self._scorer.score(group)
            return [[r.metric, r.case, r.right, r.mean, r.passed] for r in records]

        name = f"final {self.seed} of {len(self._cases)} {named(query, value)}"
        records = [Record(*row) for row in self._kept.of(name, make)]
        return tally(records, [{self._cases[i].id for i in group} for group in self._groups])


def named(query: Sequence[int], value: Sequence[int]) -> str:
    return f"q{','.join(map(str, query))} v{','.join(map(str, value))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--longest", type=int, default=3)
    parser.add_argument("--n", type=int, default=16, help="cases of the sweep, edited at once")
    parser.add_argument(
        "--finals", type=int, default=100, help="test cases of a draw, of the last comparison"
    )
    parser.add_argument("--draw", type=int, nargs="+", default=[300], help="seeds of the test cases' draws")
    parser.add_argument("--batch", type=int, default=20, help="of them edited at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.finals <= args.batch:
        raise SystemExit(
            "--finals: ask for more than one --batch, since the best is picked on the other half"
        )
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = Kept(out)
    lm = acedit.load(args.model, dtype=torch.float32)
    known = facts_of(build_world(), [])
    asked = {name: value for name, value in vars(args).items() if name not in ("out", "finals", "draw")}
    now = {**asked, "fingerprint": lm.fingerprint, "layers": lm.n_layers}
    if kept.of("settings", lambda: now) != now:
        raise SystemExit(
            f"{out} holds results of other settings ({kept.rows['settings']}): give another --out"
        )

    cases = draw("dev", 100 + args.seed, args.n)
    edits = [case.edits[0] for case in cases]
    trial = Trial(lm, edits, known, exclude=starts(cases), seed=args.seed)
    scorer = Scorer(lm, cases, known=known, cot=False)

    def written(query: Sequence[int], value: Sequence[int]):
        def make() -> dict[str, float]:
            with updates_in(lm, trial.write(tuple(query), tuple(value))):
                return shares(scorer.score(range(len(cases))))

        return kept.of(f"sweep {named(query, value)}", make)

    every = ranges(range(lm.n_layers), args.longest)
    alone = {("query", r): written(r, ()) for r in every}
    alone |= {("value", r): written((), r) for r in every}
    pairs = {(q, v): written(q, v)["score"] for q in every for v in every if q[-1] < v[0]}
    best = sorted(pairs, key=lambda pair: -pairs[pair])

    others = draw("dev", 200 + args.seed, args.n)
    elsewhere = [case.edits[0] for case in others]

    def located() -> dict[str, object]:
        where = locate(lm, elsewhere, known=known, exclude=starts(others))
        plan = where.plan
        return {
            "query": list(plan.query_layers),
            "value": list(plan.value_layers),
            "scores": {name: list(row) for name, row in plan.scores.items()},
            "ffn_vector": [row.ffn_vector for row in where.layers],
        }

    def by_screening() -> dict[str, object]:
        plan = kept.of("located", located)
        given = Plan(tuple(plan["value"]), tuple(plan["query"]))
        found = screened(lm, elsewhere, known, given, exclude=starts(others), seed=1, longest=args.longest)
        return {"query": list(found.query_layers), "value": list(found.value_layers)}

    plans = {
        "located": kept.of("located", located),
        "screened": kept.of("screened", by_screening),
    }

    drawn = [Finals(lm, known, kept, seed, args.finals, args.batch) for seed in args.draw]

    def final(query: Sequence[int], value: Sequence[int], of: Sequence[Finals]) -> np.ndarray:
        return np.concatenate([one.written(query, value) for one in of], axis=-1)

    top = best[:5]
    print(f"\nsweep: {len(pairs)} pairs, the best first")
    for q, v in best:
        row = kept.rows[f"sweep {named(q, v)}"]
        print(f"  {named(q, v):16}", "  ".join(f"{k} {x:.2f}" for k, x in row.items()))
    for some in [drawn, *([one] for one in drawn if len(drawn) > 1)]:
        results = {named(q, v): final(q, v, some) for q, v in top}
        leader = max(results, key=lambda name: score(results[name].sum(-1)))
        seeds = ", ".join(str(one.seed) for one in some)
        print(f"\n{len(some) * args.finals} test cases (draw {seeds}); differences (% points) to the best of")
        print(
            f"the sweep's five, picked on the other half of them; in brackets to {leader}, the best over all"
        )
        for name, result in results.items():
            print(f"  sweep {name:16} {score(result.sum(-1)):.1f}")
        for name, plan in plans.items():
            ours = final(plan["query"], plan["value"], some)
            elsewhere_best, here_best = (
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*against_best(ours, five))
                for five in (list(results.values()), [results[leader]])
            )
            own = pairs.get((tuple(plan["query"]), tuple(plan["value"])))
            place = (
                "not"
                if own is None
                else f"{1 + sum(other > own for other in pairs.values())} of {len(pairs)}"
            )
            print(
                f"  {name:12} {named(plan['query'], plan['value']):16} {score(ours.sum(-1)):.1f}"
                f"  {elsewhere_best} ({here_best}), {ours[1].sum():.0f} questions; {place} in the sweep"
            )
    figures = plans["located"]
    single = range(lm.n_layers)
    print("\nSpearman over layers, each written alone")
    for kind, metric in (
        ("value", "implicit"),
        ("value", "score"),
        ("query", "edit"),
        ("query", "explicit"),
        ("query", "score"),
    ):
        reached = torch.tensor([alone[kind, (layer,)][metric] for layer in single])
        rows = {**figures["scores"], "ffn_vector": figures["ffn_vector"]}
        for loss in ("reach", "value_reach"):
            rows[loss] = [-x for x in rows[loss]]
        print(
            f"  {kind} stage, {metric}:",
            "  ".join(f"{name} {spearman(torch.tensor(row), reached):+.2f}" for name, row in rows.items()),
        )


if __name__ == "__main__":
    main()
