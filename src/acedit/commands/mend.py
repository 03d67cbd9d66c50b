"""`acedit mend`: train the hyper-network of method mend for a model."""

import argparse
from pathlib import Path
from typing import Any

from acedit.commands.common import (
    Progress,
    check_outputs,
    given_facts,
    load_model,
    world_facts,
    write_result,
)
from acedit.commands.options import MODEL, Shared, whole


def add(commands: Any, shared: Shared) -> None:
    """Add `mend` to the command line's."""
    mend = commands.add_parser(
        "mend",
        parents=[shared.common, shared.seeded, shared.loading],
        help="train the hyper-network of method mend for a model",
    )
    mend.add_argument("model", metavar="MODEL", help=MODEL)
    mend.add_argument(
        "--facts", metavar="FILE", help="known facts to learn from (default: the bundled world)"
    )
    mend.add_argument("--steps", metavar="N", type=whole(1), help="training steps (default 2000)")
    mend.add_argument(
        "--out", metavar="FILE", help="a file of your own (default: where method mend looks, and only there)"
    )
    mend.set_defaults(run=_mend, out_is_file=True)


def _mend(args: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from acedit.editing import hyper
    from acedit.lm.loading import load

    known = given_facts(args.facts) or world_facts()
    check_outputs(args)
    settings = hyper.HyperSettings(seed=args.seed)
    if args.steps is not None:
        settings = replace(settings, steps=args.steps)
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = load_model(args)
    editor = hyper.train(lm, known, settings, say=progress.say)
    own = lm.fingerprint
    out = Path(args.out) if args.out else hyper.cached(own)
    hyper.save(editor, out, [own])
    # A checkpoint is another model in another dtype, its hyper-network the same.
    del lm
    kinds = (None, "float32", "bfloat16")
    others = {load(args.model, dtype=kind, device_map=args.device_map).fingerprint for kind in kinds}
    hyper.save(editor, out, sorted({own, *others}))
    print(f"hyper-network in {out}")
    write_result(args, "mend", model=args.model, out=str(out), settings=asdict(settings))
