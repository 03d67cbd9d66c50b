"""`acedit edit`: write edits into a patch; `acedit methods`: the ways there are to.

acedit edit bundled edits.json --method ace --out p/
acedit edit bundled more.json --patch p/ --out q/    # made to stand beside p/
"""

import argparse
import time
from typing import Any

from acedit.commands.common import (
    Progress,
    check_outputs,
    given_facts,
    given_text,
    load_model,
    write_result,
)
from acedit.commands.options import EDITS, MODEL, Shared, whole
from acedit.errors import UserError
from acedit.waiting import duration


def add(commands: Any, shared: Shared) -> None:
    """Add `edit` and `methods` to the command line's."""
    edit = commands.add_parser(
        "edit",
        parents=[shared.common, shared.seeded, shared.loading, shared.facts, shared.text, shared.layers],
        help="write edits into a patch",
    )
    edit.add_argument("model", metavar="MODEL", help=MODEL)
    edit.add_argument("edits", metavar="EDITS", help=EDITS)
    edit.add_argument("--method", default="ace", help="ace (default); any of `acedit methods`")
    edit.add_argument("--out", metavar="PATCH", required=True, help="folder to write the patch to")
    edit.add_argument(
        "--patch",
        metavar="PATCH",
        action="append",
        default=[],
        help="one that stays on: the edit is made beside it (may be repeated)",
    )
    edit.add_argument("--preset", metavar="NAME", help="published layers and λ: gpt-j, qwen3-8b")
    edit.add_argument("--cot-prompts", action="store_true", help="prime the edit's prompts with G.1 (6.2)")
    edit.add_argument(
        "--rank",
        metavar="R",
        type=whole(1),
        help="of the patch, at most, in each layer (ace, ft)",
    )
    for kind in ("query", "value"):
        edit.add_argument(
            f"--skip-{kind}",
            metavar="K",
            type=whole(0),
            default=0,
            help=f"leave out the K most important {kind} layers",
        )
    edit.add_argument(
        "--exclude", metavar="ENTITY", action="append", default=[], help="entity no prompt may start from"
    )
    edit.set_defaults(run=_edit)

    known = commands.add_parser(
        "methods", parents=[shared.common], help="the editing methods, and what each does"
    )
    known.set_defaults(run=_methods)


def _edit(args: argparse.Namespace) -> None:
    from acedit.files import edit_rows
    from acedit.knowledge.facts import read_edits_file

    told, text = read_edits_file(args.edits), given_text(args.text)
    edits, known = told.edits, [*told.facts, *given_facts(args.facts)]
    check_outputs(args)
    from acedit.benchmark.leak import clear_of
    from acedit.editing.methods import method
    from acedit.editing.patch import Patch, patches_on

    patches = [Patch.load(path) for path in args.patch]
    chosen = method(args.method).skipping(query=args.skip_query, value=args.skip_value)
    if args.rank is not None:
        chosen = chosen.narrowed(args.rank)
    if args.cot_prompts:
        chosen = chosen.with_cot_prompts()
    if args.screen and args.preset is not None:
        raise UserError(f"--preset {args.preset} names the layers: leave out --screen")
    if args.screen and not chosen.planned:
        raise UserError(f"--method {chosen.name} goes by no plan of layers: leave out --screen")
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = load_model(args)
    from acedit.editing.edit import edit

    for on in patches:
        on.check_model(lm)
    plan = None
    if args.preset is not None:
        from acedit.editing.presets import preset

        progress.say(preset(args.preset).said)
        plan, chosen = preset(args.preset).fitted(lm, chosen)
    if told.cases:
        progress.say("the edits come in cases: no prompt starts where one of their questions does, or is one")
    clear = clear_of(told.cases, edits, known)
    clear["exclude"].update(args.exclude)
    began = time.monotonic()
    if args.screen:
        from acedit.editing.plan import locate

        how = {"seed": args.seed, "text": text, "progress": progress.count}
        plan = locate(lm, **clear, top=1, screen=True, **how).plan
    with patches_on(lm, patches):
        patch = edit(
            lm,
            **clear,
            method=chosen,
            plan=plan,
            seed=args.seed,
            text=text,
            progress=progress.say,
        )
    spent = time.monotonic() - began
    norms = patch.norms(lm)
    patch.save(args.out)
    for layer, row in sorted(norms.items()):
        print(f"layer {layer}: rank {row['rank']:.0f}, norm {row['ratio']:.3f} of the weight's")
    print(f"{len(edits)} edits by {chosen.name} in {duration(spent)}; patch in {args.out}")
    write_result(
        args,
        "edit",
        model=args.model,
        method=chosen.name,
        seed=args.seed,
        seconds=spent,
        patches=list(args.patch),
        patch=args.out,
        id=patch.id,
        fingerprint=patch.fingerprint,
        edits=edit_rows(edits),
        plan=patch.plan,
        norms=norms,
    )


def _methods(args: argparse.Namespace) -> None:
    from acedit.editing.methods import methods

    check_outputs(args)
    rows = {name: method.summary for name, method in sorted(methods().items())}
    for name, summary in rows.items():
        print(f"{name:<15} {summary}")
    write_result(args, "methods", methods=rows)
