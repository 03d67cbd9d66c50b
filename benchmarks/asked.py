"""Chains that a prompt of `ace` asks in other words, and chains that none asks, apart.

    python benchmarks/asked.py ACE RIVALS MORE SIMPLE KN --seed 3 --n 75 --pool test

The leak rule bars the scored wordings and, in prompts that lead to an edit, the scored starts. What follows
from a new object is asked of the edited subject itself, so a scored chain that starts with the edited fact
may stand among the prompts in words of our own. Here `ace`'s prompts of every unit of the runs are composed
again, and each case is in one half: "asked", where a prompt starts where it starts and has its answer, or
"not asked". Shares are over the cases that pass, with 95% intervals; differences are paired. Fresh cases of
the bundled world and model only, which the options must draw again as the runs did.
"""

import argparse
from collections.abc import Iterable, Mapping

import torch

import acedit
from acedit.benchmark.evaluate import merged_edits
from acedit.benchmark.leak import clear_of
from acedit.benchmark.paired import paired
from acedit.benchmark.rows import Rows, joined, load
from acedit.benchmark.score import Record
from acedit.benchmark.store import Store
from acedit.benchmark.tables import cell
from acedit.editing.edit import believed, own_answers
from acedit.editing.methods import method
from acedit.knowledge.compose import Composer
from acedit.knowledge.facts import Case, cases_from
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world

METRICS = {"subset": "aloud, over the subset of B.1", "direct": "in one pass"}


def asked_by_a_prompt(rows: Rows, cases: Mapping[str, Case], seed: int) -> dict[str, bool]:
    """By case: whether a prompt of `ace`, with the edits of its unit in, asks its chain."""
    lm = acedit.load("bundled", dtype=torch.float32)
    known, amounts = facts_of(build_world(), []), method("ace").amounts
    found: dict[str, bool] = {}
    for group in sorted({unit.cases for unit, _ in rows.units}):
        some = [cases[id] for id in group]
        clear = clear_of(some, merged_edits(some), known)
        clear["known"] = believed(lm, clear["edits"], clear["known"])
        prompts = own_answers(lm, Composer(**clear, seed=seed, amounts=amounts).prompts())
        said = {(p.subject, p.answer) for p in prompts if p.kind in ("lead", "ripple", "middle")}
        for case in some:
            answers = (case.new_answer, *case.new_answer_aliases)
            found[case.id] = any((case.start, answer) in said for answer in answers)
    return found


def half(records: Iterable[Record], metric: str, asked: Mapping[str, bool], which: bool) -> list[Record]:
    return [r for r in records if r.metric == metric and asked[r.case] is which]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, required=True, help="cases of each number of edits")
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--pool", default="test")
    args = parser.parse_args()
    rows = joined({name: load(Store.read(name)) for name in args.runs})
    drawn = [
        case
        for k in args.edits
        for case in cases_from(make_cases(build_world(), seed=args.seed, n=args.n, edits=k, pool=args.pool))
    ]
    asked = asked_by_a_prompt(rows, {case.id: case for case in drawn}, args.seed)
    print(f"{sum(asked.values())} of {len(asked)} chains are asked by a prompt of ace, in other words")
    for metric, said in METRICS.items():
        print(f"\nMulti-hop accuracy (%) {said}\n")
        print("| editor | asked | not asked | ace less it, asked | ace less it, not asked |")
        print("| --- | --- | --- | --- | --- |")
        for name in rows.methods:
            if name == "base":
                continue
            cells = [cell(half(rows.of(name), metric, asked, which)) for which in (True, False)]
            for which in (True, False):
                ours, theirs = (half(rows.of(one), metric, asked, which) for one in ("ace", name))
                gap = paired(ours, theirs)
                low, high = 100 * gap["low"], 100 * gap["high"]
                cells.append("–" if name == "ace" else f"{100 * gap['value']:+.1f} [{low:+.1f}, {high:+.1f}]")
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
