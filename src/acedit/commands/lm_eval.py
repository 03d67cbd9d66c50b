"""`acedit lm-eval`: any lm-evaluation-harness task on a patched model."""

import argparse
from typing import Any

from acedit.commands.common import check_outputs, load_model, write_result
from acedit.commands.options import MODEL, Shared, whole


def add(commands: Any, shared: Shared) -> None:
    """Add `lm-eval` to the command line's."""
    harness = commands.add_parser(
        "lm-eval",
        parents=[shared.common, shared.loading],
        help="any lm-evaluation-harness task on a patched model",
    )
    harness.add_argument("model", metavar="MODEL", help=MODEL)
    harness.add_argument("--patch", metavar="PATCH", action="append", default=[], help="may be repeated")
    harness.add_argument("--tasks", metavar="TASK", nargs="+", required=True, help="ours: mquake_direct, ...")
    harness.add_argument("--cases", metavar="FILE", help="MQuAKE's file, for our tasks")
    harness.add_argument("--limit", metavar="N", type=whole(1), help="at most so many rows a task")
    harness.add_argument(
        "--old", action="store_true", help="our own tasks: count the answers before the edits as right"
    )
    harness.set_defaults(run=_lm_eval)


def _lm_eval(args: argparse.Namespace) -> None:
    from acedit.benchmark.harness import refuse_caseless, run_tasks
    from acedit.editing.patch import Patch
    from acedit.report import text

    check_outputs(args)
    refuse_caseless(args.tasks, args.cases)
    patches = [Patch.load(path) for path in args.patch]
    results = run_tasks(
        load_model(args), args.tasks, patches=patches, cases=args.cases, old=args.old, limit=args.limit
    )
    rows = [["task", "metric", "value"]]
    for task, row in results.items():
        rows += [[task, name, f"{v:.4f}"] for name, v in row.items() if isinstance(v, float)]
    print(text.table(rows))
    found = {
        task: {k: v for k, v in row.items() if isinstance(v, (int, float))} for task, row in results.items()
    }
    write_result(args, "lm-eval", model=args.model, patches=list(args.patch), old=args.old, results=found)
