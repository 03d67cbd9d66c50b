"""`acedit locate`: which layers and neurons keep the facts, and a page to look at.

acedit locate bundled edits.json --top 20 --report page.html
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acedit.commands.common import Progress, check_outputs, given_facts, load_model, write_result
from acedit.commands.options import EDITS, MODEL, Shared, whole
from acedit.errors import UserError

if TYPE_CHECKING:
    from acedit.attribution.locate import Location
    from acedit.knowledge.facts import Edit
    from acedit.lm.model import LanguageModel


def add(commands: Any, shared: Shared) -> None:
    """Add `locate` to the command line's."""
    locate = commands.add_parser(
        "locate",
        parents=[shared.common, shared.seeded, shared.loading, shared.facts, shared.layers],
        help="which layers and neurons keep the facts",
    )
    locate.add_argument("model", metavar="MODEL", help=MODEL)
    locate.add_argument("edits", metavar="EDITS", help=EDITS)
    locate.add_argument("--top", metavar="K", type=whole(1), default=10, help="neurons shown (default 10)")
    locate.add_argument(
        "--report",
        "--page",
        metavar="FILE",
        dest="page",
        help="write a page to look at (HTML), its charts as pictures in a folder beside it",
    )
    locate.add_argument(
        "--draw",
        metavar="N",
        type=whole(1),
        help="edits whose facts the page draws, from the first on (default 1; some 30 KB each)",
    )
    locate.set_defaults(run=_locate)


def _locate(args: argparse.Namespace) -> None:
    from acedit.files import edit_rows
    from acedit.knowledge.facts import read_edits_file
    from acedit.report import text

    told = read_edits_file(args.edits)
    edits, known = told.edits, [*told.facts, *given_facts(args.facts)]
    check_outputs(args)
    if args.draw and not args.page:
        raise UserError("--draw is of the page: give --report, or leave it out")
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = load_model(args)
    from acedit.editing.plan import locate

    if not known:
        progress.say("no known facts given: looking with single-hop prompts only")
    progress.say(f"attributing {len(edits)} edits over {lm.n_layers} layers")
    from acedit.benchmark.leak import Clear, clear_of

    clear: Clear = {"edits": edits, "known": known, "exclude": set(), "avoid": set()}
    if args.screen and told.cases:  # trial edits are edits
        clear = clear_of(told.cases, edits, known)
    where = locate(lm, **clear, top=args.top, seed=args.seed, screen=args.screen, progress=progress.count)
    print("Layers\n" + text.layer_bars(where.layers, where.plan))
    for stage, reason in where.plan.reason.items():
        print(f"  {stage}: {reason}")
    print("\nTop value neurons\n" + text.neuron_table(where.value_neurons))
    print(text.certified(where.certificate))
    print("\nTop query neurons\n" + text.neuron_table(where.query_neurons))
    if args.page:
        _draw(args, lm, edits, where, progress)
    fields = _location_fields(where)
    write_result(args, "locate", model=args.model, seed=args.seed, edits=edit_rows(edits), **fields)


def _draw(
    args: argparse.Namespace, lm: "LanguageModel", edits: "list[Edit]", where: "Location", progress: Progress
) -> None:
    """The page of `--report`, and its charts as pictures in a folder beside it."""
    from dataclasses import replace

    from acedit.attribution.layers import old_answers
    from acedit.files import write_text
    from acedit.knowledge.compose import Prompt
    from acedit.report.charts import save_charts
    from acedit.report.explore import explore
    from acedit.report.page import EditRow, Page, render

    drawn = edits[: args.draw or 1]
    progress.say(f"drawing the facts of {len(drawn)} of {len(edits)} edits")
    asked = [Prompt(e.prompt, e.subject, e.target, "single", i) for i, e in enumerate(drawn)]
    charts, pictures = [], {}
    for i, (prompt, answer) in enumerate(zip(asked, old_answers(lm, drawn, asked), strict=True)):
        for one in explore(lm, prompt.text, answer):
            short = "-".join(one.title.lower().split()[:2])
            pictures[short if i == 0 else f"{short}-{i + 1}"] = one.spec
            charts.append(one if len(drawn) == 1 else replace(one, title=f"{prompt.subject}: {one.title}"))
        progress.count(i + 1, len(drawn), "facts")
    page = Page(
        title="Where these facts are kept",
        model=args.model,
        edits=[EditRow(e.subject, e.prompt, e.old, e.target) for e in edits],
        layers=where.layers,
        plan=where.plan,
        reasons=list(where.plan.reason.values()),
        value_neurons=where.value_neurons,
        query_neurons=where.query_neurons,
        figures=charts,
    )
    write_text(args.page, render(page))
    name = Path(args.page)
    save_charts(pictures, name.with_name(f"{name.stem}_charts"))


def _location_fields(where: "Location") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "layers": [asdict(row) for row in where.layers],
        "plan": where.plan.to_json(),
        "value_neurons": _neuron_rows(where.value_neurons),
        "certificate": {k: v for k, v in asdict(where.certificate).items() if k != "neurons"},
        "query_neurons": _neuron_rows(where.query_neurons),
    }


def _neuron_rows(neurons: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"layer": n.layer, "index": n.index, "score": n.score, "tokens": list(n.tokens)} for n in neurons]
