"""The command line: `acedit demo | locate | edit | methods | ask | evaluate | study | patch | world`.

    acedit locate bundled edits.json --top 20
    acedit edit bundled edits.json --method ace --out p/
    acedit ask bundled --patch p/ "Who is the head of state of the country ...?"

Results go to standard output, progress and notices to standard error, and `--json FILE` writes what a
program would want (docs/json.md). Bad input ends in one line and exit code 2, Ctrl-C in exit code 130.

Footgun: nothing heavy may be imported at the top of this file; `acedit --help` should come at once.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from acedit.errors import UserError
from acedit.waiting import counted, duration

if TYPE_CHECKING:
    from acedit.attribution.locate import Location
    from acedit.editing.patch import Patch
    from acedit.knowledge.facts import Case, Fact
    from acedit.lm.model import LanguageModel


ANNOTATED = 1000  # questions at most


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        if any("\ud800" <= sign <= "\udfff" for text in argv for sign in text):
            raise UserError("an argument is not UTF-8; write it anew")
        args = _parser().parse_args(argv)
        with _notices(args.quiet):
            args.run(args)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except SystemExit as stop:  # argparse's way to end
        return int(stop.code or 0)
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted; the model and the files are as before", 130)
    except BrokenPipeError:
        # Whoever read our output has gone; leave nothing for the interpreter to flush into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", 2)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"acedit: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"acedit: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


class _Once(argparse.Action):
    """An option that others take several times, and this command does not."""

    def __call__(self, parser: Any, args: argparse.Namespace, value: Any, option: str | None = None) -> None:
        if getattr(args, self.dest) is not None:
            parser.error(f"{option} is given twice; one is scored at a time")
        setattr(args, self.dest, value)


def _parser() -> argparse.ArgumentParser:
    from acedit.cli_bench import add_bench

    common, again = _Parser(add_help=False), _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for parser in (common, again):  # again: below a command that has them too, whose values stand
        parser.add_argument("--json", metavar="FILE", help="write the result as JSON too (docs/json.md)")
        parser.add_argument("--quiet", action="store_true", help="no progress and no notices")
    seeded = _Parser(add_help=False)
    seeded.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="seed of everything drawn (default 0)"
    )
    model_help = "'bundled', a folder of Hugging Face files, or a hub name"
    loading = _Parser(add_help=False)
    loading.add_argument("--dtype", help="float32, bfloat16, ...; the checkpoint's own if not given")
    loading.add_argument("--device-map", metavar="MAP", help="as transformers takes it: cpu, cuda, auto")
    layers = _Parser(add_help=False)
    layers.add_argument(
        "--screen", action="store_true", help="choose layers by writing trial edits on all ranges (minutes)"
    )
    facts = _Parser(add_help=False)
    facts.add_argument("--facts", metavar="FILE", help="known facts, beside those in the edits' own file")

    text = _Parser(add_help=False)
    text.add_argument(
        "--text", metavar="FILE", help="paragraphs, one a line, for the key covariance; not the known facts"
    )

    parser = _Parser(
        prog="acedit",
        description="Change facts inside a language model so that the change carries through reasoning.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo", parents=[common, seeded], help="the whole job on the bundled model, in a few minutes"
    )
    demo.add_argument("--out", metavar="DIR", default="out/demo", help="default: out/demo")
    demo.set_defaults(run=_demo)

    locate = commands.add_parser(
        "locate",
        parents=[common, seeded, loading, facts, layers],
        help="which layers and neurons keep the facts",
    )
    locate.add_argument("model", metavar="MODEL", help=model_help)
    locate.add_argument("edits", metavar="EDITS", help="JSON or JSONL of edits")
    locate.add_argument("--top", metavar="K", type=whole(1), default=10, help="neurons shown (default 10)")
    locate.add_argument(
        "--report", "--page", metavar="FILE", dest="page", help="write a page to look at (HTML)"
    )
    locate.set_defaults(run=_locate)

    edit = commands.add_parser(
        "edit", parents=[common, seeded, loading, facts, text, layers], help="write edits into a patch"
    )
    edit.add_argument("model", metavar="MODEL", help=model_help)
    edit.add_argument("edits", metavar="EDITS", help="JSON or JSONL of edits")
    edit.add_argument("--method", default="ace", help="ace (default); any of `acedit methods`")
    edit.add_argument("--out", metavar="PATCH", required=True, help="folder to write the patch to")
    edit.add_argument("--preset", metavar="NAME", help="published layers and λ: gpt-j, qwen3-8b")
    edit.add_argument("--cot-prompts", action="store_true", help="prime the edit's prompts with G.1 (6.2)")
    edit.add_argument(
        "--rank",
        metavar="R",
        type=whole(1),
        help="of the patch, at most, in each layer (ace, ft)",
    )
    edit.add_argument("--skip-query", metavar="K", type=whole(0), default=0,
                      help="leave out the K most important query layers")  # fmt: skip
    edit.add_argument("--skip-value", metavar="K", type=whole(0), default=0,
                      help="leave out the K most important value layers")  # fmt: skip
    edit.add_argument(
        "--exclude", metavar="ENTITY", action="append", default=[], help="entity no prompt may start from"
    )
    edit.set_defaults(run=_edit)

    known = commands.add_parser("methods", parents=[common], help="the editing methods, and what each does")
    known.set_defaults(run=_methods)

    mend = commands.add_parser(
        "mend", parents=[common, seeded, loading], help="train the hyper-network of method mend for a model"
    )
    mend.add_argument("model", metavar="MODEL", help=model_help)
    mend.add_argument(
        "--facts", metavar="FILE", help="known facts to learn from (default: the bundled world)"
    )
    mend.add_argument("--steps", metavar="N", type=whole(1), help="training steps (default 2000)")
    mend.add_argument(
        "--out", metavar="FILE", help="where it is written (default: where 'mend' looks for it)"
    )
    mend.set_defaults(run=_mend, out_is_file=True)

    ask = commands.add_parser("ask", parents=[common, loading], help="ask a model, edited or not")
    ask.add_argument("model", metavar="MODEL", help=model_help)
    ask.add_argument("question", metavar="QUESTION", help="a question, or a text to continue")
    ask.add_argument("--patch", metavar="PATCH", action="append", default=[], help="may be repeated")
    ask.add_argument("--cot", action="store_true", help="think step by step first")
    ask.set_defaults(run=_ask)

    own = commands.add_parser(
        "cases", parents=[common, seeded, facts], help="questions about your edits, to evaluate them with"
    )
    own.add_argument("edits", metavar="EDITS", help="JSON or JSONL of edits")
    own.add_argument("--out", metavar="FILE", required=True, help="cases in MQuAKE's format")
    own.set_defaults(run=_cases, out_is_file=True)

    evaluate = commands.add_parser(
        "evaluate", parents=[common, seeded, loading, facts, text], help="score a patch or a method on cases"
    )
    evaluate.add_argument("model", metavar="MODEL", help=model_help)
    evaluate.add_argument("cases", metavar="CASES", help="cases in MQuAKE's format")
    how = evaluate.add_mutually_exclusive_group()
    how.add_argument("--patch", metavar="PATCH", action=_Once, help="score it; its edits are the cases'")
    how.add_argument("--method", metavar="M", help="edit the cases in batches and score them")
    evaluate.add_argument("--batch", metavar="N", type=whole(1), default=1, help="cases edited at once")
    evaluate.add_argument("--keep", action="store_true", help="write the scores into the patch's folder")
    evaluate.set_defaults(run=_evaluate)

    add_bench(commands, [common, seeded, loading, facts, text], again)
    study = commands.add_parser(
        "study", parents=[common, seeded, loading, facts], help="the paper's findings, measured on a model"
    )
    study.add_argument(
        "name",
        metavar="NAME",
        help="layers, domains, knockout, accumulate, query-knockout, tokens, neurons, "
        "profile, critical, or all",
    )
    study.add_argument("--model", metavar="MODEL", default="bundled", help=f"{model_help} (bundled)")
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

    harness = commands.add_parser(
        "lm-eval", parents=[common, loading], help="any lm-evaluation-harness task on a patched model"
    )
    harness.add_argument("model", metavar="MODEL", help=model_help)
    harness.add_argument("--patch", metavar="PATCH", action="append", default=[], help="may be repeated")
    harness.add_argument("--tasks", metavar="TASK", nargs="+", required=True, help="ours: mquake_direct, ...")
    harness.add_argument("--cases", metavar="FILE", help="MQuAKE's file, for our tasks")
    harness.add_argument("--limit", metavar="N", type=whole(1), help="at most so many rows a task")
    harness.add_argument(
        "--old", action="store_true", help="our own tasks: count the answers before the edits as right"
    )
    harness.set_defaults(run=_lm_eval)

    patch = commands.add_parser("patch", help="look at, apply or export a patch")
    patches = patch.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = patches.add_parser("show", parents=[common], help="what a patch says and where it came from")
    show.add_argument("patch", metavar="PATCH")
    show.set_defaults(run=_patch_show)
    put = patches.add_parser("apply", parents=[common, loading], help="save the model with the patch in it")
    put.add_argument("model", metavar="MODEL", help=model_help)
    put.add_argument("patch", metavar="PATCH")
    put.add_argument("--out", metavar="DIR", required=True, help="folder for an ordinary checkpoint")
    put.set_defaults(run=_patch_apply)
    export = patches.add_parser("export", parents=[common], help="write the patch as a LoRA adapter")
    export.add_argument("patch", metavar="PATCH")
    export.add_argument("--out", metavar="DIR", required=True, help="folder for the adapter")
    export.set_defaults(run=_patch_export)

    world = commands.add_parser("world", help="the bundled model and the world it was taught")
    worlds = world.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = worlds.add_parser("train", parents=[common, seeded], help="train the bundled model; resumes")
    train.add_argument("--out", metavar="DIR", required=True)
    train.add_argument("--steps", metavar="N", type=whole(1), help="training steps (default: the shape's)")
    train.add_argument(
        "--shape",
        choices=("bundled", "llama", "broad"),
        default="bundled",
        help="the bundled model, a second one of another family, depth and width, or one taught more",
    )
    train.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu (default), cuda, cuda:1, …")
    train.set_defaults(run=_world_train)
    shown = worlds.add_parser("show", parents=[common], help="what the world holds, and the model's scores")
    shown.set_defaults(run=_world_show)
    cases = worlds.add_parser("cases", parents=[common, seeded], help="write fresh cases to score on")
    cases.add_argument("--n", metavar="N", type=whole(1), default=100, help="how many (default 100)")
    cases.add_argument(
        "--edits", metavar="K", type=whole(1, 4), default=1, help="edited facts a case, 1 to 4 (default 1)"
    )
    cases.add_argument("--out", metavar="FILE", required=True)
    cases.add_argument("--facts-out", metavar="FILE", help="write the known facts that go with them")
    cases.add_argument("--pool", choices=("dev", "test"), default="dev", help="chains drawn from (dev)")
    cases.add_argument("--position", choices=("explicit", "middle", "implicit"), help="only this position")
    cases.add_argument("--hops", type=whole(2, 4), help="only chains of so many hops")
    cases.set_defaults(run=_world_cases, out_is_file=True)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from acedit import __version__

        print(f"acedit {__version__}")
        parser.exit()


def whole(low: int, high: int | None = None) -> Any:
    """A converter for whole numbers in a range."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            allowed = f"{low} to {high}" if high is not None else f"{low} or more"
            raise argparse.ArgumentTypeError(f"{value} is out of range; give {allowed}")
        return value

    return convert


def share(text: str) -> float:
    """A converter for shares of a whole."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is out of range; give 0 to 1")
    return value


@contextmanager
def _notices(quiet: bool) -> Iterator[None]:
    """Our log as lines like the rest, and transformers' chatter off unless asked for."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    log = logging.getLogger("acedit")
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [_Notices()], False
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])


class _Notices(logging.Handler):
    """Each notice once: a method that edits a hundred batches need not say a hundred times the same."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            print(f"acedit: {message}", file=sys.stderr)


class Progress:
    """Lines on standard error about long work, with the time it took and what is left."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._began = self._step = self._last = time.monotonic()

    def say(self, text: str) -> None:
        """A step begins."""
        self._step = time.monotonic()
        self._line(text)

    def count(self, done: int, total: int, what: str = "cases") -> None:
        """`done` of `total` of this step are done; at most a line every two seconds."""
        now = time.monotonic()
        if now - self._last < 2 and done < total:
            return
        self._last = now
        self._line(counted(done, total, what, now - self._step))

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)


def _load(args: argparse.Namespace) -> "LanguageModel":
    from transformers.utils import logging as chatter

    from acedit.lm.model import load

    silence: Any = chatter.disable_progress_bar
    silence()
    if args.dtype is not None:
        known_dtype(args.dtype)
    return load(args.model, dtype=args.dtype, device_map=args.device_map)


def known_dtype(name: str) -> None:
    import torch

    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise UserError(f"--dtype {name!r} is unknown; give float32, bfloat16 or float16")


def _facts(path: str, more: str | None) -> "list[Fact]":
    """The known facts in the edits' own file, if it has any, and those of `--facts`."""
    from acedit.knowledge.facts import read_facts

    return [*read_facts(path), *given_facts(more)]


def given_facts(path: str | None) -> "list[Fact]":
    """The facts of `--facts`, if given. Raises UserError for a file that holds none."""
    from acedit.knowledge.facts import read_facts

    if path is None:
        return []
    found = read_facts(path)
    if not found:
        raise UserError(f"{path}: holds no facts; give 'facts' a list of subject, relation and object")
    return found


def given_text(path: str | None) -> "list[str] | None":
    """The paragraphs of `--text`, if given."""
    from acedit.knowledge.prose import read_prose

    return None if path is None else read_prose(path)


def _world_facts() -> "list[Fact]":
    """What the bundled world holds."""
    from acedit.report.demo import facts_of
    from acedit.world.graph import build_world

    return facts_of(build_world(), [])


def _cases_of(path: str) -> "list[Case]":
    """The cases of an edits' file (read before); none if it holds edits and asks nothing."""
    from acedit.knowledge.facts import cases_in, is_mquake, read_rows

    rows = read_rows(path)
    if not is_mquake(rows) or not any("questions" in row for row in rows if isinstance(row, dict)):
        return []
    return cases_in(path, rows)


def check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError where an output cannot be written, or would fall on another or on an input."""
    from acedit.report.files import check_writable

    taken = {
        Path(getattr(args, name)).resolve(): name
        for name in ("edits", "cases", "facts", "text")
        if isinstance(getattr(args, name, None), str)
    }
    for name in ("out", "json", "page", "facts_out"):
        path = getattr(args, name, None)
        if path is None:
            continue
        check_writable(path, folder=name == "out" and not getattr(args, "out_is_file", False))
        other = taken.setdefault(Path(path).resolve(), name)
        if other != name:
            raise UserError(
                f"{path}: is named for --{name.replace('_', '-')} and for {other}; name another file"
            )


def write_result(args: argparse.Namespace, command: str, **fields: Any) -> None:
    from acedit.report.files import record, write_json

    if args.json:
        write_json(args.json, record(command, **fields))


def _neuron_rows(neurons: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"layer": n.layer, "index": n.index, "score": n.score, "tokens": list(n.tokens)} for n in neurons]


def _location_fields(where: "Location") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "layers": [asdict(row) for row in where.layers],
        "plan": where.plan.to_json(),
        "value_neurons": _neuron_rows(where.value_neurons),
        "query_neurons": _neuron_rows(where.query_neurons),
    }


def _demo(args: argparse.Namespace) -> None:
    from acedit.lm.model import load
    from acedit.report.demo import run

    check_outputs(args)
    progress = Progress(args.quiet)
    progress.say("loading the bundled model")
    fields = run(load("bundled"), Path(args.out), seed=args.seed, tell=progress.say)
    write_result(args, "demo", model="bundled", seed=args.seed, **fields)


def _locate(args: argparse.Namespace) -> None:
    from acedit.knowledge.facts import read_edits
    from acedit.report import text
    from acedit.report.files import edit_rows

    edits, known = read_edits(args.edits), _facts(args.edits, args.facts)
    check_outputs(args)
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = _load(args)
    from acedit.editing.plan import locate

    if not known:
        progress.say("no known facts given: looking with single-hop prompts only")
    progress.say(f"attributing {len(edits)} edits over {lm.n_layers} layers")
    from acedit.benchmark.leak import Clear, clear_of

    clear: Clear = {"known": known, "exclude": set(), "avoid": set()}
    if args.screen and (cases := _cases_of(args.edits)):  # trial edits are edits
        clear = clear_of(cases, known)
    where = locate(
        lm, edits, **clear, top=args.top, seed=args.seed, screen=args.screen, progress=progress.count
    )
    print("Layers\n" + text.layer_bars(where.layers, where.plan))
    for stage, reason in where.plan.reason.items():
        print(f"  {stage}: {reason}")
    print("\nTop value neurons\n" + text.neuron_table(where.value_neurons))
    print("\nTop query neurons\n" + text.neuron_table(where.query_neurons))
    if args.page:
        from acedit.attribution.layers import old_answers
        from acedit.knowledge.compose import Prompt
        from acedit.report.charts import save_charts
        from acedit.report.explore import explore
        from acedit.report.files import write_text
        from acedit.report.page import EditRow, Page, render

        progress.say("drawing the first edit's fact")
        first = Prompt(edits[0].prompt, edits[0].subject, edits[0].target, "single", 0)
        charts = explore(lm, first.text, old_answers(lm, edits, [first])[0])
        page = Page(
            title="Where these facts are kept",
            model=args.model,
            edits=[EditRow(e.subject, e.prompt, e.old, e.target) for e in edits],
            layers=where.layers,
            plan=where.plan,
            reasons=list(where.plan.reason.values()),
            value_neurons=where.value_neurons,
            query_neurons=where.query_neurons,
            charts=charts,
        )
        write_text(args.page, render(page))
        name = Path(args.page)
        save_charts(
            {"-".join(one.title.lower().split()[:2]): one.spec for one in charts},
            name.with_name(f"{name.stem}_charts"),
        )
    fields = _location_fields(where)
    write_result(args, "locate", model=args.model, seed=args.seed, edits=edit_rows(edits), **fields)


def _study(args: argparse.Namespace) -> None:
    from acedit.knowledge.facts import read_cases
    from acedit.report.charts import Chart
    from acedit.report.files import write_text
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
    known = known or _world_facts()
    check_outputs(args)
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = _load(args)
    facts = list({fact.key: fact for fact in known}.values())
    category_of = None
    if args.annotator is not None:
        category_of = _annotated(args.annotator, facts, Path(args.out), args.seed, progress)
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
    pictures: list[Chart] = []
    for name in names:
        study = studies()[name]
        print(f"\n{study.title} ({study.paper})")
        result = study.run(setting)
        print(result.said())
        found[name] = {"findings": [vars(f) for f in result.findings], "data": dict(result.data)}
        save(result, Path(args.out) / name)
        told = f"{study.paper}. " + " ".join(finding.told() for finding in result.findings)
        pictures += [Chart(study.title, told, spec) for spec in result.charts.values()]
    page = args.page or Path(args.out) / "page.html"
    write_text(page, render(Page("What was found", args.model, charts=pictures)))
    print(f"\ndata and charts in {args.out}, all of it on one page: {page}")
    write_result(args, "study", model=args.model, seed=args.seed, studies=found)


def _annotated(
    who: str, facts: "Sequence[Fact]", out: Path, seed: int, progress: Progress
) -> "Callable[[Fact], str | None]":
    """Main categories of a sample of the facts' questions, asked of an annotator."""
    import random

    from acedit.benchmark.annotate import annotate, hf, openai
    from acedit.lm.model import load

    kind, _, name = who.partition(":")
    if kind not in ("openai", "hf") or not name:
        raise UserError(f"--annotator {who!r}: give openai:MODEL or hf:MODEL")
    annotator = openai(name) if kind == "openai" else hf(load(name))
    asked = {
        fact.key: fact.relation.questions[0].format(fact.subject) for fact in facts if fact.relation.questions
    }
    if len(asked) > ANNOTATED:
        picked = random.Random(f"{seed}/annotate").sample(sorted(asked), k=ANNOTATED)
        asked = {key: asked[key] for key in picked}
    labels = annotate(
        list(asked.values()),
        annotator,
        keep=out / "labels.jsonl",
        progress=lambda done, of: progress.count(done, of, "questions"),
    )
    if not labels:
        raise UserError(f"--annotator {who}: no answer was in the form 'Main|Sub'; try another model")
    return lambda fact: labels[asked[fact.key]].main if asked.get(fact.key) in labels else None


def _edit(args: argparse.Namespace) -> None:
    from acedit.knowledge.facts import read_edits
    from acedit.report.files import edit_rows

    edits, known, text = read_edits(args.edits), _facts(args.edits, args.facts), given_text(args.text)
    cases = _cases_of(args.edits)
    check_outputs(args)
    from acedit.benchmark.leak import clear_of
    from acedit.editing.methods import method

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
    lm = _load(args)
    from acedit.editing.edit import edit

    plan = None
    if args.preset is not None:
        from acedit.editing.presets import preset

        progress.say(preset(args.preset).said)
        plan, chosen = preset(args.preset).fitted(lm, chosen)
    if cases:
        progress.say("the edits come in cases: no prompt starts where one of their questions does, or is one")
    clear = clear_of(cases, known)
    clear["exclude"].update(args.exclude)
    began = time.monotonic()
    if args.screen:
        from acedit.editing.plan import locate

        how = {"seed": args.seed, "text": text, "progress": progress.count}
        plan = locate(lm, edits, **clear, top=1, screen=True, **how).plan
    patch = edit(
        lm,
        edits,
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


def _mend(args: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from acedit.editing import hyper
    from acedit.lm.model import load

    known = given_facts(args.facts) or _world_facts()
    check_outputs(args)
    settings = hyper.HyperSettings(seed=args.seed)
    if args.steps is not None:
        settings = replace(settings, steps=args.steps)
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = _load(args)
    editor = hyper.train(lm, known, settings, say=progress.say)
    own = lm.fingerprint
    out = Path(args.out) if args.out else hyper.cached(own)
    hyper.save(editor, out, [own])
    # A checkpoint is another model in another dtype, its hyper-network the same.
    del lm
    others = {load(args.model, dtype=dtype).fingerprint for dtype in (None, "float32", "bfloat16")}
    hyper.save(editor, out, sorted({own, *others}))
    print(f"hyper-network in {out}")
    write_result(args, "mend", model=args.model, out=str(out), settings=asdict(settings))


def _ask(args: argparse.Namespace) -> None:
    from contextlib import ExitStack

    from acedit.editing.patch import Patch

    if not args.question.strip():
        raise UserError("the question is empty; give a text")
    check_outputs(args)
    patches = [Patch.load(path) for path in args.patch]
    lm = _load(args)
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch.applied(lm))
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


def _lm_eval(args: argparse.Namespace) -> None:
    from acedit.benchmark.harness import run_tasks
    from acedit.editing.patch import Patch
    from acedit.report import text

    check_outputs(args)
    patches = [Patch.load(path) for path in args.patch]
    results = run_tasks(
        _load(args), args.tasks, patches=patches, cases=args.cases, old=args.old, limit=args.limit
    )
    rows = [["task", "metric", "value"]]
    for task, row in results.items():
        rows += [[task, name, f"{v:.4f}"] for name, v in row.items() if isinstance(v, float)]
    print(text.table(rows))
    found = {
        task: {k: v for k, v in row.items() if isinstance(v, (int, float))} for task, row in results.items()
    }
    write_result(args, "lm-eval", model=args.model, patches=list(args.patch), old=args.old, results=found)


def _cases(args: argparse.Namespace) -> None:
    from collections import Counter

    from acedit.benchmark.own import own_cases
    from acedit.knowledge.facts import cases_from, read_edits, read_facts
    from acedit.report.files import write_json

    edits, inside, beside = read_edits(args.edits), read_facts(args.edits), given_facts(args.facts)
    check_outputs(args)
    rows = own_cases(edits, [*inside, *beside], seed=args.seed)
    cases = cases_from(rows)
    positions = Counter(case.position if case.questions else "no chain" for case in cases)
    write_json(args.out, rows)
    said = ", ".join(f"{n} {position}" for position, n in sorted(positions.items()))
    print(f"{len(rows)} cases ({said}) in {args.out}")
    print("edit and evaluate with this file in place of the edits', so that no prompt is what scores them")
    if inside:
        print(f"and with --facts {args.edits}, since the known facts are not in it")
    write_result(
        args,
        "cases",
        seed=args.seed,
        edits=len(edits),
        cases=len(rows),
        positions=dict(positions),
        out=args.out,
    )


def _evaluate(args: argparse.Namespace) -> None:
    from acedit.knowledge.facts import read_cases
    from acedit.report import text
    from acedit.report.files import check_writable

    cases, known, prose = read_cases(args.cases), given_facts(args.facts), given_text(args.text)
    check_outputs(args)
    if args.keep and args.patch is None:
        raise UserError("--keep writes the scores into a patch: give --patch, or leave it out")
    if args.keep:
        check_writable(args.patch, folder=True)
    if prose and args.method is None:
        raise UserError("--text is for editing: give --method, or leave it out")
    if args.method is not None:
        from acedit.editing.methods import method

        method(args.method)
    from acedit.editing.patch import Patch

    patch = Patch.load(args.patch) if args.patch else None
    progress = Progress(args.quiet)
    progress.say("loading the model")
    lm = _load(args)
    from acedit.benchmark.evaluate import evaluate

    progress.say(f"scoring {len(cases)} cases")
    scores = evaluate(
        lm,
        cases,
        patch=patch,
        method=args.method,
        known=known,
        batch=args.batch,
        seed=args.seed,
        text=prose,
        progress=progress.count,
    )
    column = args.method or ("patch" if patch else "unedited")
    print(text.score_table({column: scores}))
    note = text.unfiltered_note(scores)
    if note:
        print(note)
    if patch is not None and args.keep:
        patch.with_scores(scores).save(args.patch)
    write_result(
        args,
        "evaluate",
        model=args.model,
        cases=len(cases),
        patch=args.patch,
        method=args.method,
        batch=args.batch,
        seed=args.seed,
        scores=scores,
    )


def _patch_fields(patch: "Patch") -> dict[str, Any]:
    from acedit.report.files import edit_rows

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


def _patch_show(args: argparse.Namespace) -> None:
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
    write_result(args, "patch show", patch=args.patch, **_patch_fields(patch))


def _patch_apply(args: argparse.Namespace) -> None:
    import shutil
    import tempfile

    from safetensors import SafetensorError

    from acedit.editing.patch import Patch

    check_outputs(args)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; choose another --out")
    patch = Patch.load(args.patch)
    patch.refuse_memory("a checkpoint would be the old one")
    lm = _load(args)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        with patch.applied(lm):
            lm.model.save_pretrained(partial)
            lm.tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        partial.replace(out)
    except SafetensorError as error:
        raise UserError(f"{out}: cannot be written: {error}; free room or choose another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"model with patch {patch.id[:12]} in {out}")
    write_result(args, "patch apply", model=args.model, patch=args.patch, id=patch.id, out=args.out)


def _patch_export(args: argparse.Namespace) -> None:
    from acedit.editing.patch import Patch

    check_outputs(args)
    patch = Patch.load(args.patch)
    patch.to_lora(args.out)
    print(f"LoRA adapter of patch {patch.id[:12]} in {args.out}")
    write_result(args, "patch export", patch=args.patch, id=patch.id, out=args.out)


def _world_train(args: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from acedit.lm.model import load
    from acedit.world.card import card_table, measure, write_card
    from acedit.world.graph import build_world
    from acedit.world.train import SHAPES, keep_freed_memory, train

    check_outputs(args)
    keep_freed_memory()
    settings = replace(SHAPES[args.shape], seed=args.seed)
    if args.steps is not None:
        settings = replace(settings, steps=args.steps)
    progress = Progress(args.quiet)
    folder = train(Path(args.out), settings, say=progress.say, device=args.device)
    rows = measure(load(folder), build_world(), seed=args.seed, say=progress.say)
    write_card(folder, rows, asdict(settings))
    print(f"model in {folder}\n{card_table(rows)}")
    write_result(
        args,
        "world train",
        out=str(folder),
        seed=args.seed,
        settings=asdict(settings),
        card=[asdict(row) for row in rows],
    )


def _world_show(args: argparse.Namespace) -> None:
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


def _world_cases(args: argparse.Namespace) -> None:
    from collections import Counter

    from acedit.knowledge.facts import cases_from
    from acedit.report.files import write_json
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
    write_json(args.out, rows)
    if args.facts_out:
        write_json(args.facts_out, facts)
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


if __name__ == "__main__":
    sys.exit(main())
