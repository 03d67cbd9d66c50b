"""`acedit evaluate`: score a patch or a method on cases; `acedit cases`: cases about one's own edits.

acedit cases edits.json --out cases.json
acedit evaluate bundled cases.json --patch p/
"""

import argparse
import sys
from typing import Any

from acedit.commands.common import (
    Progress,
    about,
    check_outputs,
    given_facts,
    given_text,
    load_model,
    write_result,
)
from acedit.commands.options import EDITS, MODEL, Once, Shared, whole
from acedit.errors import UserError


def add(commands: Any, shared: Shared) -> None:
    """Add `cases` and `evaluate` to the command line's."""
    own = commands.add_parser(
        "cases",
        parents=[shared.common, shared.seeded, shared.facts],
        help="questions about your edits, to evaluate them with",
    )
    own.add_argument("edits", metavar="EDITS", help=EDITS)
    own.add_argument("--out", metavar="FILE", required=True, help="cases in MQuAKE's format")
    own.set_defaults(run=_cases, out_is_file=True)

    evaluate = commands.add_parser(
        "evaluate",
        parents=[shared.common, shared.seeded, shared.loading, shared.facts, shared.text],
        help="score a patch or a method on cases",
    )
    evaluate.add_argument("model", metavar="MODEL", help=MODEL)
    evaluate.add_argument("cases", metavar="CASES", help="cases in MQuAKE's format")
    how = evaluate.add_mutually_exclusive_group()
    how.add_argument("--patch", metavar="PATCH", action=Once, help="score it; its edits are the cases'")
    how.add_argument("--method", metavar="M", help="edit the cases in batches and score them")
    evaluate.add_argument("--batch", metavar="N", type=whole(1), help="cases edited at once (1)")
    evaluate.add_argument("--no-cot", action="store_true", help="direct answers only")
    evaluate.add_argument("--keep", action="store_true", help="write the scores into the patch's folder")
    evaluate.set_defaults(run=_evaluate)


def _cases(args: argparse.Namespace) -> None:
    from collections import Counter

    from acedit.benchmark.own import own_cases
    from acedit.files import write_json
    from acedit.knowledge.facts import cases_from, read_edits_file

    told, beside = read_edits_file(args.edits), given_facts(args.facts)
    check_outputs(args)
    rows = own_cases(told.edits, [*told.facts, *beside], seed=args.seed)
    cases = cases_from(rows)
    positions = Counter(case.position if case.questions else "no chain" for case in cases)
    write_json(args.out, rows)
    said = ", ".join(f"{n} {position}" for position, n in sorted(positions.items()))
    print(f"{len(rows)} cases ({said}) in {args.out}")
    print("edit and evaluate with this file in place of the edits', so that no prompt is what scores them")
    if told.facts:
        print(f"and with --facts {args.edits}, since the known facts are not in it")
    write_result(
        args,
        "cases",
        seed=args.seed,
        edits=len(told.edits),
        cases=len(rows),
        positions=dict(positions),
        out=args.out,
    )


def _evaluate(args: argparse.Namespace) -> None:
    from acedit.files import check_writable
    from acedit.knowledge.facts import read_cases
    from acedit.report import text

    cases, known, prose = read_cases(args.cases), given_facts(args.facts), given_text(args.text)
    check_outputs(args)
    if args.keep and args.patch is None:
        raise UserError("--keep writes the scores into a patch: give --patch, or leave it out")
    if args.keep:
        check_writable(args.patch, folder=True)
    if prose and args.method is None:
        raise UserError("--text is for editing: give --method, or leave it out")
    if args.batch and args.method is None:
        print("--batch is for editing by --method: nothing is edited, all cases are asked", file=sys.stderr)
    batch = args.batch or 1
    from acedit.benchmark.evaluate import evaluate, refuse_contradictions
    from acedit.benchmark.score import distinct

    with about(args.cases):
        distinct(case.id for case in cases)
        if args.method is not None:
            refuse_contradictions(cases, batch)
    if args.method is not None:
        from acedit.editing.methods import method

        method(args.method)
    from acedit.editing.patch import Patch

    patch = Patch.load(args.patch) if args.patch else None
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = load_model(args)
    progress.say(f"scoring {len(cases)} cases")
    scores = evaluate(
        lm,
        cases,
        patch=patch,
        method=args.method,
        known=known,
        batch=batch,
        seed=args.seed,
        text=prose,
        cot=not args.no_cot,
        progress=progress.count,
    )
    column = args.method or ("patch" if patch else "unedited")
    print(text.score_table({column: scores}))
    note = text.unfiltered_note(scores)
    if note:
        print(note)
    if patch is not None and args.keep:
        patch.with_scores(scores).save(args.patch)
    write_result(
        args,
        "evaluate",
        model=args.model,
        cases=len(cases),
        patch=args.patch,
        method=args.method,
        batch=None if args.method is None else batch,
        seed=args.seed,
        scores=scores,
    )
