"""`acedit patch show | apply | export | merge`: look at a patch, bake it into a checkpoint, ship it as an
adapter, make one of several."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acedit.commands.common import check_outputs, load_model, write_result
from acedit.commands.options import MODEL, Shared
from acedit.errors import UserError

if TYPE_CHECKING:
    from acedit.editing.patch import Patch


def add(commands: Any, shared: Shared) -> None:
    """Add `patch` and its own commands to the command line's."""
    patch = commands.add_parser("patch", help="look at, apply or export a patch")
    patches = patch.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = patches.add_parser(
        "show", parents=[shared.common], help="what a patch says and where it came from"
    )
    show.add_argument("patch", metavar="PATCH")
    show.set_defaults(run=_show)
    put = patches.add_parser(
        "apply", parents=[shared.common, shared.loading], help="save the model with the patch in it"
    )
    put.add_argument("model", metavar="MODEL", help=MODEL)
    put.add_argument("patch", metavar="PATCH")
    put.add_argument("--out", metavar="DIR", required=True, help="folder for an ordinary checkpoint")
    put.set_defaults(run=_apply)
    export = patches.add_parser("export", parents=[shared.common], help="write the patch as a LoRA adapter")
    export.add_argument("patch", metavar="PATCH")
    export.add_argument("--out", metavar="DIR", required=True, help="folder for the adapter")
    export.set_defaults(run=_export)
    merge = patches.add_parser("merge", parents=[shared.common], help="make one patch of several")
    merge.add_argument("patch", metavar="PATCH", nargs="+")
    merge.add_argument("--out", metavar="PATCH", required=True, help="folder to write the patch to")
    merge.set_defaults(run=_merge)


def _show(args: argparse.Namespace) -> None:
    from acedit.editing.patch import Patch
    from acedit.report import text

    check_outputs(args)
    patch = Patch.load(args.patch)
    print(f"patch {patch.id[:12]}, by {patch.method}, seed {patch.seed}")
    print(f"for the model with fingerprint {patch.fingerprint[:12]}")
    for update in patch.updates:
        size = float(update.delta().norm())
        print(f"  layer {update.layer}: rank {update.left.shape[1]}, norm {size:.3f}")
    print(f"{len(patch.edits)} edits")
    for edit in patch.edits:
        old = f" (was {edit.old})" if edit.old else ""
        print(f"  {edit.prompt.format(edit.subject)} {edit.target}{old}")
    if patch.scores:
        print(text.score_table({"scores": patch.scores}))
    write_result(args, "patch show", patch=args.patch, **_fields(patch))


def _fields(patch: "Patch") -> dict[str, Any]:
    from acedit.files import edit_rows

    return {
        "id": patch.id,
        "method": patch.method,
        "seed": patch.seed,
        "fingerprint": patch.fingerprint,
        "edits": edit_rows(patch.edits),
        "layers": [{"layer": u.layer, "rank": u.left.shape[1]} for u in patch.updates],
        "plan": patch.plan,
        "settings": patch.settings,
        "scores": patch.scores,
    }


def _apply(args: argparse.Namespace) -> None:
    import shutil
    import tempfile

    from acedit.editing.patch import Patch
    from acedit.files import saving

    check_outputs(args)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; choose another --out")
    patch = Patch.load(args.patch)
    patch.refuse_memory("a checkpoint would be the old one")
    lm = load_model(args)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with patch.applied(lm), saving(out):
            lm.model.save_pretrained(partial)
            lm.tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"model with patch {patch.id[:12]} in {out}")
    write_result(args, "patch apply", model=args.model, patch=args.patch, id=patch.id, out=args.out)


def _export(args: argparse.Namespace) -> None:
    from acedit.editing.patch import Patch

    check_outputs(args)
    patch = Patch.load(args.patch)
    patch.to_lora(args.out)
    print(f"LoRA adapter of patch {patch.id[:12]} in {args.out}")
    write_result(args, "patch export", patch=args.patch, id=patch.id, out=args.out)


def _merge(args: argparse.Namespace) -> None:
    from acedit.editing.merge import merged
    from acedit.editing.patch import Patch
    from acedit.files import edit_rows

    check_outputs(args)
    patch = merged([Patch.load(path) for path in args.patch])
    patch.save(args.out)
    print(f"{len(args.patch)} patches, {len(patch.edits)} edits, in {args.out}")
    write_result(
        args,
        "patch merge",
        patches=list(args.patch),
        id=patch.id,
        edits=edit_rows(patch.edits),
        out=args.out,
    )
