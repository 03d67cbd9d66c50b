"""`acedit study`: the paper's findings, measured on a model.

acedit study all --out out/study
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from acedit.commands.common import (
    Progress,
    check_outputs,
    given_facts,
    load_model,
    world_facts,
    write_result,
)
from acedit.commands.options import MODEL, Shared, whole
from acedit.errors import UserError

if TYPE_CHECKING:
    from acedit.benchmark.annotate import Annotator
    from acedit.knowledge.facts import Fact

ANNOTATED = 1000  # questions at most


def add(commands: Any, shared: Shared) -> None:
    """Add `study` to the command line's."""
    study = commands.add_parser(
        "study",
        parents=[shared.common, shared.seeded, shared.loading, shared.facts],
        help="the paper's findings, measured on a model",
    )
    study.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(_names())}, or all",
    )
    study.add_argument("--model", metavar="MODEL", default="bundled", help=f"{MODEL} (bundled)")
    study.add_argument(
        "--cases", metavar="FILE", help="its facts are asked; the bundled world's if not given"
    )
    study.add_argument("--per-category", metavar="N", type=whole(1), default=25, help="questions (25)")
    study.add_argument("--out", metavar="DIR", default="out/study", help="default: out/study")
    study.add_argument(
        "--annotator", metavar="WHO", help="categories by openai:MODEL or hf:MODEL under G.3, not by relation"
    )
    study.add_argument("--report", metavar="FILE", dest="page", help="the page of all (OUT/page.html)")
    study.set_defaults(run=_study)


def _names() -> list[str]:
    """The studies' names, from their files alone: `--help` loads none."""
    folder = Path(__file__).parents[1] / "report" / "study"
    return sorted(p.stem.replace("_", "-") for p in folder.glob("[!_]*.py") if p.stem != "base")


def _study(args: argparse.Namespace) -> None:
    from acedit.files import write_text
    from acedit.knowledge.facts import read_cases
    from acedit.report.charts import Chart, Table
    from acedit.report.page import Page, render
    from acedit.report.study import save, setting_of, studies

    names = list(studies()) if args.name == "all" else [args.name]
    if unknown := [name for name in names if name not in studies()]:
        raise UserError(f"no study is called {unknown[0]!r}; known: {', '.join(studies())}, all")
    cases = read_cases(args.cases) if args.cases else []
    known = [
        *(f for case in cases for f in case.before.facts),
        *given_facts(args.facts),
    ]
    known = known or world_facts()
    check_outputs(args)
    progress = Progress(args.quiet)
    annotator = None if args.annotator is None else _annotator(args)
    progress.say("loading the model")
    lm = load_model(args)
    facts = list({fact.key: fact for fact in known}.values())
    category_of = None
    if annotator is not None:
        category_of = _annotated(annotator, facts, Path(args.out), args.seed, progress)
    setting = setting_of(
        lm,
        facts,
        per_category=args.per_category,
        seed=args.seed,
        say=progress.say,
        count=progress.count,
        category_of=category_of,
    )
    found = {}
    figures: list[Chart | Table] = []
    for name in names:
        study = studies()[name]
        print(f"\n{study.title} ({study.paper})")
        began = perf_counter()
        result = study.run(setting)
        seconds = round(perf_counter() - began, 1)
        print(result.said())
        findings = [vars(f) for f in result.findings]
        found[name] = {"findings": findings, "data": dict(result.data), "seconds": seconds}
        save(result, Path(args.out) / name)
        told = f"{study.paper}. " + " ".join(finding.told() for finding in result.findings)
        figures += [Chart(study.title, told, spec) for spec in result.charts.values()]
        figures += [Table(study.title, told, caption, rows) for caption, rows in result.tables.items()]
    page = args.page or Path(args.out) / "page.html"
    write_text(page, render(Page("What was found", args.model, figures=figures)))
    print(f"\ndata and charts in {args.out}, all of it on one page: {page}")
    write_result(args, "study", model=args.model, fingerprint=lm.fingerprint, seed=args.seed, studies=found)


def _annotator(args: argparse.Namespace) -> "Annotator":
    """Whom `--annotator` names, loaded as the studied model is where it is a model."""
    from acedit.benchmark.annotate import hf, openai
    from acedit.lm.loading import load

    kind, _, name = args.annotator.partition(":")
    if kind not in ("openai", "hf") or not name:
        raise UserError(f"--annotator {args.annotator!r}: give openai:MODEL or hf:MODEL")
    return openai(name) if kind == "openai" else hf(load(name, dtype=args.dtype, device_map=args.device_map))


def _annotated(
    who: "Annotator", facts: "Sequence[Fact]", out: Path, seed: int, progress: Progress
) -> "Callable[[Fact], str | None]":
    """Main categories of a sample of the facts' questions, asked of an annotator."""
    import random

    from acedit.benchmark.annotate import annotate

    asked = {
        fact.key: fact.relation.questions[0].format(fact.subject) for fact in facts if fact.relation.questions
    }
    if len(asked) > ANNOTATED:
        picked = random.Random(f"{seed}/annotate").sample(sorted(asked), k=ANNOTATED)
        asked = {key: asked[key] for key in picked}
    labels = annotate(
        list(asked.values()),
        who,
        keep=out / "labels.jsonl",
        progress=lambda done, of: progress.count(done, of, "questions"),
    )
    if not labels:
        raise UserError(f"--annotator {who.name}: no answer was in the form 'Main|Sub'; try another model")
    return lambda fact: labels[asked[fact.key]].main if asked.get(fact.key) in labels else None
