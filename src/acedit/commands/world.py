"""`acedit world train | show | cases`: the bundled model, and the world it was taught."""

import argparse
from pathlib import Path
from typing import Any

from acedit.commands.common import Progress, check_outputs, write_result
from acedit.commands.options import Shared, whole
from acedit.errors import UserError


def add(commands: Any, shared: Shared) -> None:
    """Add `world` and its own commands to the command line's."""
    world = commands.add_parser("world", help="the bundled model and the world it was taught")
    worlds = world.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = worlds.add_parser(
        "train", parents=[shared.common, shared.seeded], help="train the bundled model; resumes"
    )
    train.add_argument("--out", metavar="DIR", required=True)
    train.add_argument("--steps", metavar="N", type=whole(1), help="training steps (default: the shape's)")
    train.add_argument(
        "--shape",
        choices=("bundled", "further", "llama", "broad"),
        default="bundled",
        help="an hour's model from nothing (default), what one goes on to from --start, a second model of "
        "another family, depth and width, or one taught more",
    )
    train.add_argument(
        "--start", metavar="DIR", help="begin with the weights of another run of 'world train'"
    )
    train.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu (default), cuda, cuda:1, …")
    train.set_defaults(run=_train, interrupted="the same command goes on from the last checkpoint")
    shown = worlds.add_parser(
        "show", parents=[shared.common], help="what the world holds, and the model's scores"
    )
    shown.set_defaults(run=_show)
    cases = worlds.add_parser(
        "cases", parents=[shared.common, shared.seeded], help="write fresh cases to score on"
    )
    cases.add_argument("--n", metavar="N", type=whole(1), default=100, help="how many (default 100)")
    cases.add_argument(
        "--edits", metavar="K", type=whole(1, 4), default=1, help="edited facts a case, 1 to 4 (default 1)"
    )
    cases.add_argument("--out", metavar="FILE", required=True)
    cases.add_argument("--facts-out", metavar="FILE", help="write the known facts that go with them")
    cases.add_argument("--pool", choices=("dev", "test"), default="dev", help="chains drawn from (dev)")
    cases.add_argument("--position", choices=("explicit", "middle", "implicit"), help="only this position")
    cases.add_argument("--hops", type=whole(2, 4), help="only chains of so many hops")
    cases.set_defaults(run=_cases, out_is_file=True)


def _train(args: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from acedit.lm.loading import load
    from acedit.world.card import card_table, measure, write_card
    from acedit.world.graph import build_world
    from acedit.world.train import SHAPES, keep_freed_memory, recorded, train

    check_outputs(args)
    keep_freed_memory()
    settings = SHAPES[args.shape]
    settings = replace(settings, seed=settings.seed + args.seed)
    if args.steps is not None:
        settings = replace(settings, steps=args.steps)
    progress = Progress(args.quiet)
    start = None if args.start is None else Path(args.start)
    if args.shape == "further" and start is None:
        raise UserError("--shape further goes on from another run: name its folder with --start")
    folder = train(Path(args.out), settings, say=progress.say, device=args.device, start=start)
    rows = measure(load(folder), build_world(), seed=args.seed, say=progress.say)
    said = {"shape": args.shape, **recorded(settings, start)}
    write_card(folder, rows, said)
    print(f"model in {folder}\n{card_table(rows)}")
    write_result(
        args,
        "world train",
        out=str(folder),
        seed=args.seed,
        settings=said,
        card=[asdict(row) for row in rows],
    )


def _show(args: argparse.Namespace) -> None:
    from collections import Counter

    from acedit.report import text
    from acedit.world.graph import build_world

    check_outputs(args)
    world = build_world()
    kinds = Counter(world.kinds.values())
    relations = Counter(fact.relation for fact in world.facts)
    print(f"{len(world.kinds)} entities, {len(world.facts)} facts ({len(world.real)} of them real)")
    print(text.table([["type", "entities"], *([kind, str(n)] for kind, n in kinds.most_common())]))
    card = _model_card()
    if card:
        print("\nthe bundled model's card:\n" + card)
    else:
        print("\nno model is bundled; make one with 'acedit world train --out DIR'")
    write_result(
        args,
        "world show",
        entities=len(world.kinds),
        facts=len(world.facts),
        real_facts=len(world.real),
        types=dict(kinds),
        relations=dict(relations),
        card=card,
    )


def _model_card() -> str:
    """The table of the bundled model's card, "" where there is none."""
    from acedit.world import bundled_path
    from acedit.world.card import read_table

    try:
        return read_table(bundled_path())
    except UserError:
        return ""


def _cases(args: argparse.Namespace) -> None:
    from collections import Counter

    from acedit.files import json_text, write_together
    from acedit.knowledge.facts import cases_from
    from acedit.world.cases import known_facts, make_cases
    from acedit.world.graph import build_world

    check_outputs(args)
    if args.hops is not None and args.edits > args.hops:
        raise UserError(f"--edits {args.edits} does not fit in --hops {args.hops}; give fewer edits")
    world = build_world()
    rows = make_cases(
        world,
        seed=args.seed,
        n=args.n,
        edits=args.edits,
        pool=args.pool,
        position=args.position,
        hops=args.hops,
    )
    facts = known_facts(world, rows)
    files = {args.out: rows} | ({args.facts_out: facts} if args.facts_out else {})
    write_together({path: json_text(value).encode() for path, value in files.items()})
    positions = Counter(case.position for case in cases_from(rows))
    said = ", ".join(f"{n} {position}" for position, n in sorted(positions.items()))
    print(f"{len(rows)} cases ({said}) in {args.out}")
    if args.facts_out:
        print(f"{len(facts['facts'])} known facts in {args.facts_out}")
    write_result(
        args,
        "world cases",
        seed=args.seed,
        pool=args.pool,
        edits=args.edits,
        cases=len(rows),
        positions=dict(positions),
        facts=len(facts["facts"]),
        out=args.out,
        facts_out=args.facts_out,
    )
