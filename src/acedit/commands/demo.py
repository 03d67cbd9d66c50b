"""`acedit demo`: the whole job on the bundled model, before and after."""

import argparse
from pathlib import Path
from typing import Any

from acedit.commands.common import Progress, check_outputs, write_result
from acedit.commands.options import Shared


def add(commands: Any, shared: Shared) -> None:
    """Add `demo` to the command line's."""
    demo = commands.add_parser(
        "demo",
        parents=[shared.common, shared.seeded],
        help="the whole job on the bundled model, in a few minutes",
    )
    demo.add_argument("--out", metavar="DIR", default="out/demo", help="default: out/demo")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from acedit.lm.loading import load
    from acedit.report.demo import run

    check_outputs(args)
    progress = Progress(args.quiet)
    progress.say("loading the bundled model")
    fields = run(load("bundled"), Path(args.out), seed=args.seed, tell=progress.say)
    write_result(args, "demo", model="bundled", seed=args.seed, **fields)
