"""`acedit ask`: ask a model, edited or not.

acedit ask bundled --patch p/ "Who is the head of state of the country ...?" --cot
"""

import argparse
from typing import Any

from acedit.commands.common import check_outputs, load_model, write_result
from acedit.commands.options import MODEL, Shared
from acedit.errors import UserError


def add(commands: Any, shared: Shared) -> None:
    """Add `ask` to the command line's."""
    ask = commands.add_parser(
        "ask", parents=[shared.common, shared.loading], help="ask a model, edited or not"
    )
    ask.add_argument("model", metavar="MODEL", help=MODEL)
    ask.add_argument("question", metavar="QUESTION", help="a question, or a text to continue")
    ask.add_argument("--patch", metavar="PATCH", action="append", default=[], help="may be repeated")
    ask.add_argument("--cot", action="store_true", help="think step by step first")
    ask.set_defaults(run=_ask)


def _ask(args: argparse.Namespace) -> None:
    from acedit.editing.patch import Patch, patches_on

    if not args.question.strip():
        raise UserError("the question is empty; give a text")
    check_outputs(args)
    patches = [Patch.load(path) for path in args.patch]
    lm = load_model(args)
    with patches_on(lm, patches):
        answer = lm.answer(args.question, cot=args.cot)
    print(answer)
    write_result(
        args,
        "ask",
        model=args.model,
        patches=list(args.patch),
        question=args.question,
        cot=args.cot,
        answer=answer,
    )
