"""`acedit bench`: run methods on cases into a folder, and look at what is there.

acedit bench --methods base pmet ace --edits 1,2,3,4 --n 60 --out runs/a
acedit bench show runs/a
acedit bench tables runs/a
acedit bench compare runs/a runs/b
acedit bench export runs/a --out answers.csv
"""

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from acedit.commands.common import (
    Progress,
    about,
    check_outputs,
    given_facts,
    given_text,
    known_dtype,
    write_result,
)
from acedit.commands.options import Shared, share, whole, wholes
from acedit.errors import UserError

log = logging.getLogger("acedit")

CASES = 60  # fresh ones for each number of edits

if TYPE_CHECKING:
    from acedit.benchmark.layouts import Table
    from acedit.benchmark.ripple import RippleCase
    from acedit.benchmark.rows import Rows
    from acedit.editing.methods import Method
    from acedit.knowledge.facts import Case, Fact


def add(commands: Any, shared: Shared) -> None:
    """Add `bench` and its own commands to the command line's."""
    bench = commands.add_parser(
        "bench",
        parents=[shared.common, shared.seeded, shared.loading, shared.facts, shared.text],
        help="methods on cases: the paper's tables, resumable",
    )
    bench.add_argument("--model", metavar="MODEL", default="bundled", help="as elsewhere (bundled)")
    bench.add_argument(
        "--cases", metavar="FILE", help="MQuAKE's or RippleEdits' file; fresh cases if not given"
    )
    bench.add_argument(
        "--n",
        metavar="N",
        type=whole(1),
        help="fresh cases for each number of edits (60), or the file's first (for each, with --edits)",
    )
    bench.add_argument("--pool", choices=("dev", "test"), help="where fresh cases are drawn (dev)")
    bench.add_argument(
        "--methods", metavar="M", nargs="+", default=["base", "pmet", "ace"], help="base pmet ace"
    )
    bench.add_argument(
        "--edits",
        metavar="K,K",
        type=wholes(1, 4),
        help="cases with so many edits (a file's all; fresh ones 1)",
    )
    bench.add_argument(
        "--at-once",
        metavar="N,N",
        type=_at_once,
        default=[1],
        help="cases edited together, or 'all' (1); several such numbers in turn",
    )
    bench.add_argument(
        "--sequence",
        metavar="K,K",
        type=wholes(1),
        default=[],
        help="edit one after the other, ask at these steps",
    )
    for kind in ("query", "value"):
        bench.add_argument(
            f"--skip-{kind}",
            metavar="K",
            type=whole(1),
            nargs="+",
            default=[],
            help=f"also each method without its K most important {kind} layers",
        )
    bench.add_argument(
        "--left-out",
        metavar="SHARE",
        type=share,
        default=0.0,
        help="of the relations that could follow from an edit: none of its prompts asks after them (0)",
    )
    bench.add_argument("--preset", metavar="NAME", default="", help="published layers and λ: gpt-j, qwen3-8b")
    bench.add_argument("--cot-prompts", action="store_true", help="prime every method's edit prompts (6.2)")
    bench.add_argument("--no-cot", action="store_true", help="direct answers only")
    bench.add_argument("--strict", action="store_true", help="leave out cases with a known fault")
    bench.add_argument("--workers", metavar="N", type=whole(1), default=1, help="processes or actors (1)")
    bench.add_argument("--threads", metavar="N", type=whole(1), default=1, help="CPU threads a worker (1)")
    bench.add_argument("--ray", metavar="ADDRESS", help="workers on a Ray cluster; 'local' starts one here")
    bench.add_argument("--out", metavar="RUN", help="folder of the run; the same one goes on where it was")
    bench.set_defaults(run=_run, interrupted="what is done is kept, and the same command goes on from there")
    more = bench.add_subparsers(title="commands", metavar="COMMAND")
    show = more.add_parser("show", parents=[shared.again], help="scores, costs and failures of a run")
    show.add_argument("folders", metavar="RUN", nargs="+", help="several: of other methods on the same cases")
    show.set_defaults(run=_show)
    tables = more.add_parser(
        "tables", parents=[shared.again], help="Tables 2 to 4 and by position, the paper's beside"
    )
    tables.add_argument(
        "folders", metavar="RUN", nargs="+", help="several: of other methods on the same cases"
    )
    tables.add_argument(
        "--out",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="where to write them (the first RUN's tables/)",
    )
    tables.set_defaults(run=_tables)
    compare = more.add_parser("compare", parents=[shared.again], help="differences between two runs, paired")
    compare.add_argument("folder", metavar="RUN")
    compare.add_argument("other", metavar="RUN")
    compare.set_defaults(run=_compare)
    export = more.add_parser(
        "export", parents=[shared.again], help="every prompt, answer and score as CSV or Parquet"
    )
    export.add_argument("folder", metavar="RUN")
    export.add_argument("--out", metavar="FILE", required=True, help="name ends in .csv or .parquet")
    export.set_defaults(run=_export, out_is_file=True)


def _at_once(text: str) -> list[int | None]:
    convert: Any = whole(1)
    return [None if part == "all" else int(convert(part)) for part in text.split(",")]


def _run(args: argparse.Namespace) -> None:
    from acedit.benchmark import runner, tables
    from acedit.benchmark.leak import LeakError
    from acedit.benchmark.rows import load
    from acedit.benchmark.score import distinct
    from acedit.benchmark.store import Store
    from acedit.editing.methods import method
    from acedit.editing.presets import preset

    if not args.out:
        raise UserError("--out is missing: name a folder for the run")
    check_outputs(args)
    if args.sequence and args.at_once != [1]:
        raise UserError("--sequence edits one case after the other: leave out --at-once")
    if args.sequence and "base" in args.methods:
        args.methods = [name for name in args.methods if name != "base"]
        if not args.methods:
            raise UserError("--sequence: base edits nothing; name other methods")
        log.warning("base edits nothing: the sequence is without it")
    if args.cases and args.pool:
        raise UserError("--pool is of fresh cases: leave it out, or --cases")
    chosen = []
    for name in args.methods:
        plain = method(name).leaving_out(args.left_out)
        if args.cot_prompts and name != "base":
            plain = plain.with_cot_prompts()
        chosen += [plain]
        if name != "base":
            chosen += _skipping(plain, [{"query": k} for k in args.skip_query])
            chosen += _skipping(plain, [{"value": k} for k in args.skip_value])
    if (args.skip_query or args.skip_value) and not any(m.skip_query or m.skip_value for m in chosen):
        raise UserError(
            "no method named has layers of that kind to leave out: leave --skip-query, --skip-value out"
        )
    if args.dtype is not None:
        known_dtype(args.dtype)
    progress = Progress(args.quiet)
    if args.preset:
        progress.say(preset(args.preset).said)
    progress.say("reading the cases")
    cases, known = _cases(args)
    if args.cases:
        with about(args.cases):
            distinct(case.id for case in cases)
    job = runner.Job(
        args.model,
        dtype=args.dtype,
        device_map=args.device_map,
        seed=args.seed,
        cot=not args.no_cot,
        threads=args.threads,
        known=tuple(known),
        preset=args.preset,
        text=tuple(given_text(args.text) or ()),
    )
    try:
        report = runner.run(
            job,
            cases,
            chosen,
            folder=args.out,
            at_once=args.at_once,
            sequence=args.sequence,
            strict=args.strict,
            workers=args.workers,
            ray=args.ray,
            say=progress.say,
            progress=lambda done, total: progress.count(done, total, "units"),
        )
    except LeakError as error:
        raise UserError(f"the run stops, its scores would not be honest: {error}") from error
    rows = load(Store.read(args.out))
    found = tables.all_tables(rows)
    for table in found.values():
        print(f"\n{table.title}\n" + _laid_out(table))
    print(f"\n{report.made} units made, {report.kept} found made, {len(report.failed)} failed; in {args.out}")
    write_result(
        args,
        "bench",
        model=args.model,
        out=args.out,
        cases=len(cases),
        made=report.made,
        kept=report.kept,
        failed=[{"method": u.method, "cases": list(u.cases), "error": e} for u, e in report.failed],
        faults=[vars(fault) for fault in report.faults],
        tables=_table_rows(found),
    )
    lost = {unit.method: error for unit, error in reversed(report.failed)}
    empty = [name for name in lost if all(unit.method != name for unit, _ in rows.units)]
    if empty:
        raise UserError(f"nothing came of {empty[0]}, each of its units failed; the first: {lost[empty[0]]}")


def _skipping(plain: "Method", kinds: Sequence[Mapping[str, int]]) -> "list[Method]":
    """`plain` without so many layers of each kind; none, with a notice, where it has no such layers."""
    found = []
    for kind in kinds:
        try:
            found.append(plain.skipping(**kind))
        except UserError as error:
            log.warning("%s", error)
    return found


def _cases(args: argparse.Namespace) -> "tuple[list[Case] | list[RippleCase], list[Fact]]":
    """The cases of a file, or fresh ones of the world for each number of edits; what is known beside them."""
    from acedit.benchmark.ripple import is_ripple, ripple_cases
    from acedit.knowledge.facts import cases_from, cases_in, read_rows

    known = given_facts(args.facts)
    if args.cases:
        ripple = is_ripple(read_rows(args.cases, 1))
        items = read_rows(args.cases, None if args.edits or ripple else args.n)
        if ripple:
            if args.edits:
                raise UserError("--edits is of MQuAKE's cases: RippleEdits' have one edit each; leave it out")
            return ripple_cases(args.cases, items)[: args.n], known
        cases = [
            case for case in cases_in(args.cases, items) if not args.edits or len(case.edits) in args.edits
        ]
        if not cases:
            raise UserError(f"{args.cases}: no case has {args.edits} edits; leave out --edits")
        return _first_of_each(cases, args.n) if args.edits else cases[: args.n], known
    from acedit.world.cases import facts_of, make_cases
    from acedit.world.graph import build_world

    world = build_world()
    pool: Literal["dev", "test"] = args.pool or "dev"
    cases = []
    for k in args.edits or [1]:
        cases += cases_from(make_cases(world, seed=args.seed, n=args.n or CASES, edits=k, pool=pool))
    return cases, known or facts_of(world, [])


def _first_of_each(cases: "Sequence[Case]", n: int | None) -> "list[Case]":
    """The first `n` cases (None: all) with each number of edits, in order."""
    seen: Counter[int] = Counter()
    found = []
    for case in cases:
        seen[len(case.edits)] += 1
        if n is None or seen[len(case.edits)] <= n:
            found.append(case)
    return found


def _laid_out(table: "Table") -> str:
    from acedit.report import text

    lines = [text.table([list(table.head), *map(list, table.rows)])]
    return "\n".join([*lines, *(f"  {note}" for note in table.notes)])


def _table_rows(found: "Mapping[str, Table]") -> dict[str, Any]:
    return {
        name: {"title": t.title, "head": list(t.head), "rows": [list(row) for row in t.rows]}
        for name, t in found.items()
    }


def _rows(folders: "Sequence[str]") -> "Rows":
    from acedit.benchmark.rows import joined, load
    from acedit.benchmark.store import Store

    return joined({folder: load(Store.read(folder)) for folder in folders})


def _show(args: argparse.Namespace) -> None:
    from acedit.benchmark import tables
    from acedit.benchmark.paired import comparison
    from acedit.editing.methods import unprimed

    check_outputs(args)
    rows = _rows(args.folders)
    found = {**tables.all_tables(rows), "costs": tables.costs(rows.fewest)}
    best = [m for m in tables.editors(rows) if "-skip-" not in m]
    best.sort(key=lambda m: unprimed(m) == "ace")
    if len(best) > 1 and not rows.steps:
        against = {f"{best[-1]} - {m}": m for m in best[:-1]}
        table = comparison(
            f"Differences (% points): {best[-1]} less each other method",
            {name: rows.fewest.of(best[-1]) for name in against},
            {name: rows.fewest.of(m) for name, m in against.items()},
            rows.cases,
        )
        found["paired"] = replace(table, notes=(*table.notes, *rows.fewest.together))
    for table in found.values():
        print(f"\n{table.title}\n" + _laid_out(table))
    faults = _say_faults(args.folders[0])
    write_result(args, "bench show", runs=args.folders, faults=faults, tables=_table_rows(found))


def _say_faults(folder: str) -> list[dict[str, Any]]:
    """Print what is wrong with a run's cases, and how many were left out for it; the faults."""
    from acedit.benchmark.faults import Fault, counts
    from acedit.benchmark.store import Store

    store = Store.read(folder)
    faults: list[dict[str, Any]] = store.meta("faults") or []
    if faults:
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts([Fault(**f) for f in faults]).items())
        left = store.meta("left_out") or 0
        said = f"; --strict left out {left} cases" if store.meta("strict") else ""
        print(f"\nfaults of the cases: {kinds}{said}; the first: {faults[0]['detail']}")
    return faults


def _tables(args: argparse.Namespace) -> None:
    from acedit.benchmark import layouts, tables
    from acedit.files import write_text
    from acedit.report.charts import chart, save_charts

    check_outputs(args)
    rows = _rows(args.folders)
    out = Path(args.out or Path(args.folders[0]) / "tables")
    found = tables.all_tables(rows)
    if not found:
        raise UserError(f"{args.folders[0]}: holds no finished unit yet; run 'acedit bench' again")
    for suffix, form in (("md", layouts.markdown), ("tex", layouts.latex), ("html", layouts.html)):
        write_text(out / f"tables.{suffix}", "\n".join(map(form, found.values())))
    curve = tables.degradation(rows)
    if curve:
        spec = chart(
            "Scores by the number of cases edited",
            curve,
            {"type": "line", "point": True},
            x={"field": "cases", "type": "quantitative"},
            y={"field": "value", "type": "quantitative"},
            color={"field": "method", "type": "nominal"},
            facet={"field": "metric", "type": "nominal", "columns": 3},
        )
        save_charts({"degradation": spec}, out)
    print("\n".join(map(layouts.markdown, found.values())))
    _say_faults(args.folders[0])
    print(f"tables in {out}")
    write_result(
        args, "bench tables", runs=args.folders, out=str(out), tables=_table_rows(found), degradation=curve
    )


def _compare(args: argparse.Namespace) -> None:
    from acedit.benchmark.paired import comparison
    from acedit.benchmark.rows import load
    from acedit.benchmark.store import Store

    check_outputs(args)
    one, two = (load(Store.read(folder)) for folder in (args.folder, args.other))
    alike = {
        id for id, case in one.cases.items() if two.cases.get(id, {}).get("digest") == case.get("digest")
    }
    steps = [step for step in one.steps if step in two.steps]
    if not steps and (one.steps or two.steps):
        raise UserError(
            f"{args.folder} and {args.other} share no step of a sequence; nothing can be compared"
        )
    step = steps[-1] if steps else None
    number = next((n for n in one.at_once if n in two.at_once), None)
    if number is None:
        raise UserError(
            f"{args.folder} and {args.other} edit no number of cases at once alike; nothing can be compared"
        )
    several = len({*one.at_once, *two.at_once}) > 1
    one, two = one.at(number), two.at(number)
    shared = [m for m in one.methods if m in two.methods]
    if not shared or not alike:
        raise UserError(
            f"{args.folder} and {args.other} share no method, or no case; nothing can be compared"
        )
    alone = f", {number or 'all'} cases at once" if several else ""
    alone += f", {step} cases edited" if step else ""
    table = comparison(
        f"{args.folder} less {args.other} (% points{alone})",
        {m: [r for r in one.of(m, step) if r.case in alike] for m in shared},
        {m: [r for r in two.of(m, step) if r.case in alike] for m in shared},
        one.cases,
    )
    print(table.title + "\n" + _laid_out(table))
    write_result(
        args, "bench compare", runs=[args.folder, args.other], tables=_table_rows({"compare": table})
    )


def _export(args: argparse.Namespace) -> None:
    from acedit.benchmark.export import export
    from acedit.benchmark.store import Store

    check_outputs(args)
    count = export(Store.read(args.folder), args.out)
    print(f"{count} answers in {args.out}")
    write_result(args, "bench export", run=args.folder, rows=count, out=args.out)
