"""Methods on cases, group by group, into a store: runs that can be killed and go on.

    run(job, cases, methods, folder="runs/a", workers=2, at_once=1)

Every item is one method on one group of cases: edit all of the group at once, ask, undo. In a `sequence`
it is one method on all cases, edited one after the other, asked at the given steps. A worker holds the
model once and keeps what the unedited model said to the group it is at; items are handed out so that a
worker stays with its group. A worker that dies costs its item's retry; an item that fails is kept as
failed, is tried again by the next run, and stops nothing. A broken leak rule stops everything.

Footgun: the number of threads a worker computes with can move a sum by a rounding and so, rarely, an
answer. It is one unless asked for otherwise, so that any number of workers makes the same table.
"""

import hashlib
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from acedit import __version__
from acedit.attribution.plan import RULE, Plan
from acedit.benchmark.evaluate import PLANNED, edit_cases, shared_plan, size_of
from acedit.benchmark.faults import Fault, audit, contradicting, counts, pack, without
from acedit.benchmark.fluency import perplexity
from acedit.benchmark.leak import LeakError, without_scored
from acedit.benchmark.pools import Died, Inline, OnRay, Pool, Processes, shared_out, visible_gpus
from acedit.benchmark.ripple import RippleCase, RippleScorer
from acedit.benchmark.score import Asked, Record, Scorer, distinct
from acedit.benchmark.store import Outcome, Store, Unit
from acedit.editing.methods import Method
from acedit.editing.patch import Patch
from acedit.editing.preserve import text_of
from acedit.editing.presets import preset
from acedit.errors import UserError
from acedit.knowledge.compose import known_after
from acedit.knowledge.facts import Case, Fact
from acedit.knowledge.prompts import COT_PROMPT
from acedit.lm.loading import load
from acedit.lm.model import LanguageModel
from acedit.waiting import Countdown

log = logging.getLogger("acedit")

AnyCase = Case | RippleCase

PROTOCOL = 7  # of what is asked and how it is counted; goes up when a stored answer would be another
TRIES = 2  # of an item whose worker dies
ASKED_IN_SEQUENCE = 100  # cases asked at a step of a sequence, spread over those edited so far


@dataclass(frozen=True)
class Job:
    """What a worker is made from. plan: of layers, for methods that need one, unless a `preset` names
    published ones; `run` makes it if not given, from `planned`, the first cases of the run. beside: all of
    its cases, whose hops are a case's neighbours where no facts are known. text: what key covariances are
    taken over, if not `text_of` what is known."""

    model: str
    dtype: str | None = None
    device_map: str | None = None
    seed: int = 0
    cot: bool = True
    threads: int = 1
    known: tuple[Fact, ...] = ()
    beside: tuple[Case, ...] = ()
    planned: tuple[AnyCase, ...] = ()
    plan: Plan | None = None
    unplanned: str = ""  # why there is no plan
    preset: str = ""
    text: tuple[str, ...] = ()
    cache_dir: Path | None = None
    scratch: Path | None = None  # where the patches of a sequence wait for its end

    @cached_property
    def known_digest(self) -> str:
        """sha256 (hex) of the known facts, with their wordings."""
        return _digest([asdict(fact) for fact in self.known])


@dataclass(frozen=True)
class Item:
    """A method on a group; one unit, or one for each step of a sequence."""

    method: Method
    cases: tuple[AnyCase, ...]
    units: tuple[Unit, ...]
    group: int


@dataclass
class Report:
    """What a run did: units made, found made, and failed; the faults of its cases."""

    made: int = 0
    kept: int = 0
    failed: list[tuple[Unit, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class Worker:
    """A model, and what it said unedited to the group at hand."""

    def __init__(self, job: Job, lm: LanguageModel | None = None) -> None:
        if lm is None:
            torch.set_num_threads(job.threads)
            lm = load(job.model, dtype=job.dtype, device_map=job.device_map)
        self._job, self._lm = job, lm
        self._group = -1
        self._before = perplexity(lm)
        self._scorer: Scorer | RippleScorer | None = None

    def run(self, item: Item) -> list[Outcome]:
        """The outcomes of the item's units. Raises LeakError; anything else is an outcome."""
        made: list[Outcome] = []
        try:
            for outcome in self._sequence(item) if item.units[0].step else [self._one(item)]:
                made.append(outcome)
        except LeakError:
            raise
        except Exception as error:
            said = _said(error)
            done = {outcome.key for outcome in made}
            made += [Outcome(unit.key, error=said) for unit in item.units if unit.key not in done]
        return made

    def _asking(self, item: Item) -> Scorer | RippleScorer:
        if self._scorer is None or self._group != item.group:
            job = self._job
            chains = [case for case in item.cases if isinstance(case, Case)]
            ripples = [case for case in item.cases if isinstance(case, RippleCase)]
            self._scorer = (
                RippleScorer(self._lm, ripples)
                if ripples
                else Scorer(self._lm, chains, known=job.known, beside=job.beside, cot=job.cot, seed=job.seed)
            )
            self._group = item.group
        return self._scorer

    def _planned(self, method: Method) -> tuple[Plan | None, Method]:
        """The plan of a method that needs one, and the method with what a preset says of it."""
        if not method.planned:
            return None, method
        if self._job.preset and method.ranged:
            return preset(self._job.preset).fitted(self._lm, method)
        if self._job.plan is None:
            raise UserError(f"no layers were chosen: {self._job.unplanned}")
        return self._job.plan, method

    def _one(self, item: Item) -> Outcome:
        scorer = self._asking(item)
        (unit,) = item.units
        if item.method.name == "base":
            asked = scorer.before
            records = tuple(base_records(asked))
            return Outcome(unit.key, tuple(asked), records, perplexity=self._before, before=self._before)
        patch, seconds = self._edited(item, item.cases, self._job.known, self._job.text)
        with patch.applied(self._lm):
            scored = self._scored(item, unit, range(len(item.cases)))
        rank, norm = size_of(patch, self._lm)
        return replace(scored, facts=len(patch.edits), seconds=seconds, rank=rank, norm=norm)

    def _edited(
        self,
        item: Item,
        cases: Sequence[AnyCase],
        known: Sequence[Fact],
        text: Sequence[str],
    ) -> tuple[Patch, float]:
        """The edits of some of the item's cases in a patch, and the seconds it took."""
        plan, method = self._planned(item.method)
        return edit_cases(
            self._lm,
            cases,
            method,
            known=known,
            plan=plan,
            seed=self._job.seed,
            text=text,
            scored=item.cases,
            cache_dir=self._job.cache_dir,
        )

    def _scored(self, item: Item, unit: Unit, picked: Sequence[int]) -> Outcome:
        """What the model as it now stands says, without what the edit cost."""
        scorer = self._asking(item)
        asked = scorer.asked(picked)
        records = scorer.records(asked, left_out=item.method.amounts.left_out)
        now = perplexity(self._lm)
        return Outcome(unit.key, tuple(asked), tuple(records), perplexity=now, before=self._before)

    def _sequence(self, item: Item) -> Iterator[Outcome]:
        # Of the unedited model, both.
        self._asking(item)
        self._planned(item.method)
        # One text for all steps: what it gives is kept, and is of the unedited model.
        text = self._job.text or text_of(self._lm, without_scored(self._job.known, item.cases))
        by_step = {unit.step: unit for unit in item.units}
        known = list(self._job.known)
        facts, seconds, rank, norm = 0, 0.0, 0, 0.0
        ids: set[str] = set()
        with ExitStack() as on:
            for step, case in enumerate(item.cases[: max(by_step)], 1):
                patch, spent = self._step(item, step, known, text)
                # Two cases may ask for the same: a patch that is on stays on.
                if patch.id not in ids:
                    on.enter_context(patch.applied(self._lm))
                ids.add(patch.id)
                known = known_after(known, case.edits)
                size = size_of(patch, self._lm)
                facts, seconds = facts + len(patch.edits), seconds + spent
                rank, norm = max(rank, size[0]), max(norm, size[1])
                if step in by_step:
                    scored = self._scored(item, by_step[step], _spread(step))
                    yield replace(scored, facts=facts, seconds=seconds, rank=rank, norm=norm)

    def _steps(self, item: Item) -> Path:
        assert self._job.scratch is not None
        return self._job.scratch / item.units[0].key[:32]

    def _step(self, item: Item, step: int, known: Sequence[Fact], text: Sequence[str]) -> tuple[Patch, float]:
        """The patch of a step of a sequence, and the seconds it took: kept until the sequence ends, so that
        one that was killed goes on where it was."""
        if self._job.scratch is None:
            return self._edited(item, [item.cases[step - 1]], known, text)
        folder = self._steps(item) / str(step)
        try:
            patch = Patch.load(folder)
            return patch, float(patch.scores["seconds"])
        except (UserError, KeyError):
            patch, spent = self._edited(item, [item.cases[step - 1]], known, text)
            patch.with_scores({"seconds": spent}).save(folder)
            return patch, spent


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _spread(n: int) -> list[int]:
    """At most `ASKED_IN_SEQUENCE` of 0 to n - 1, evenly, the last among them."""
    count = min(n, ASKED_IN_SEQUENCE)
    return sorted({n - 1 - i * n // count for i in range(count)})


def base_records(asked: Sequence[Asked]) -> list[Record]:
    """What the unedited model knew: `efficacy` is here the recall of single hops under G.2, `direct` and
    `cot` the original questions against the old answers, over the cases that were asked (those whose hops it
    recalls in some form), `subset` over those whose hops it recalls under G.2."""
    names = {"single_hop": "efficacy", "direct": "direct", "cot": "cot"}
    marks: dict[tuple[str, str], list[float]] = defaultdict(list)
    for a in asked:
        if a.metric in names:
            marks[names[a.metric], a.case].append(float(a.right))
    records = []
    for (metric, case), each in marks.items():
        right = sum(each) / len(each) if metric == "efficacy" else max(each)
        records.append(Record(metric, case, right, sum(each) / len(each)))
        if metric == "cot":
            recalled = min(marks.get(("efficacy", case), [0.0])) == 1.0
            records.append(Record("subset", case, right, sum(each) / len(each), recalled))
    return records


def _form(value: Any) -> str:
    """A value as the digests read it."""
    return json.dumps(value, sort_keys=True, default=str)


def _digest(value: Any) -> str:
    return hashlib.sha256(_form(value).encode()).hexdigest()


def _digest_of(parts: Mapping[str, str]) -> str:
    """`_digest` of an object whose values are in form already: what many share is put into form once."""
    inside = ", ".join(f"{_form(name)}: {parts[name]}" for name in sorted(parts))
    return hashlib.sha256(f"{{{inside}}}".encode()).hexdigest()


def _reading(lm: LanguageModel) -> str:
    """A digest of how the weights are used, which the fingerprint does not tell: tokenizer, configuration."""
    passing = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    config = {k: v for k, v in lm.model.config.to_dict().items() if k not in passing}
    fast = getattr(lm.tokenizer, "backend_tokenizer", None)
    return _digest([config, fast.to_str() if fast is not None else lm.tokenizer.get_vocab()])[:16]


def _case_form(case: AnyCase) -> dict[str, Any]:
    """What a case's result depends on: its fields, less the file's own row."""
    return asdict(replace(case, raw={}) if isinstance(case, Case) else case)


def _about(case: AnyCase) -> dict[str, Any]:
    """What tables say of a case."""
    about = {"edits": len(case.edits), "digest": _digest(_case_form(case))[:16]}
    if isinstance(case, RippleCase):
        return {**about, "hops": 0, "position": "ripple"}
    return {**about, "hops": len(case.after.facts), "position": case.position}


def items_of(
    job: Job,
    fingerprint: str,
    groups: Sequence[tuple[AnyCase, ...]],
    methods: Sequence[Method],
    *,
    at_once: int | None,
    steps: Sequence[int] = (),
    first: int = 0,
    run_as: str = "",
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Item]:
    """Every item of a run, group by group, each unit keyed by all its result depends on.

    first: the number of the first group. run_as: how and where the weights with this fingerprint are used.
    tell: told groups done, and in all.
    """
    planned = _digest(job.plan.to_json() if job.plan else [RULE, *map(_case_form, job.planned)])
    beside = _digest([_case_form(case) for case in job.beside])
    text = _digest(job.text)
    states = [method.state(fingerprint) for method in methods]
    items = []
    for g, group in enumerate(groups, start=first):
        forms = _form([_case_form(case) for case in group])
        tell(g - first, len(groups))
        for method, state in zip(methods, states, strict=True):
            depends = {
                "protocol": PROTOCOL, "version": __version__, "model": f"{fingerprint}/{run_as}",
                "method": asdict(method), "state": state,
                "known": job.known_digest, "beside": beside, "seed": job.seed, "cot": job.cot,
                "threads": job.threads,
                "at_once": at_once or 0,
                "plan": ((method.ranged and job.preset) or planned) if method.planned else None,
            }  # fmt: skip
            if job.text:
                depends["text"] = text
            parts = {**{name: _form(value) for name, value in depends.items()}, "cases": forms}
            ids = tuple(case.id for case in group)
            at = [step for step in steps if step <= len(group)] or [0]
            units = tuple(
                Unit(
                    _digest_of({**parts, "step": _form(step), "sequence": _form(list(steps))}),
                    method.name,
                    ids,
                    at_once or 0,
                    step,
                )
                for step in at
            )
            items.append(Item(method, group, units, g))
    return items


def run(
    job: Job,
    cases: Sequence[Case] | Sequence[RippleCase],
    methods: Sequence[Method],
    *,
    folder: str | Path,
    at_once: int | Sequence[int | None] | None = 1,
    sequence: Sequence[int] = (),
    strict: bool = False,
    workers: int = 1,
    ray: str | None = None,
    lm: LanguageModel | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Run every method on every group of `cases` that `folder` does not hold yet.

    at_once: cases edited together (None: all that do not contradict), or several such numbers, in turn.
    sequence: steps at which cases, edited one after the other, are asked; instead of `at_once`. strict:
    leave out cases with a known fault. lm: a loaded model, for one worker in this process. Raises UserError
    for no cases, a folder in use or of another version, an unknown model, a preset of another one.
    """
    if not cases:
        raise UserError("there are no cases: give at least one")
    distinct(case.id for case in cases)
    if len({method.name for method in methods}) < len(methods):
        raise UserError("a method is named twice; name each once")
    report = Report()
    numbers = (at_once,) if at_once is None or isinstance(at_once, int) else tuple(at_once)
    chains = [replace(case, raw={}) for case in cases if isinstance(case, Case)]  # workers need no more
    cases = chains or [case for case in cases if isinstance(case, RippleCase)]
    grouped, report.faults = _alike(cases, (None,) if sequence else numbers, strict=strict)
    groups = next(iter(grouped.values()))
    if report.faults:
        said = ", ".join(f"{n} {kind}" for kind, n in counts(report.faults).items())
        say(f"faults of the cases: {said}")
    left_out = len(cases) - sum(map(len, groups))
    if strict:
        say(f"--strict leaves out {left_out} of {len(cases)} cases")
    if not groups and strict:
        raise UserError("--strict leaves no case: every one has a known fault")
    if not groups:
        raise UserError("no case can be edited: each contradicts itself; see the faults")
    if sequence:
        _refuse_short(groups, sequence)
    with Store.open(folder) as store, _threads(job.threads):
        say("loading the model")
        own = lm or load(job.model, dtype=job.dtype, device_map=job.device_map)
        own.refuse_broken()
        for method in methods:
            if job.preset and method.planned:
                if method.ranged:
                    preset(job.preset).fitted(own, method)
                    if method.skip_query or method.skip_value:
                        raise UserError(
                            f"preset {job.preset!r} ranks no layers, so none is the most important: leave "
                            "out --preset, or --skip-query and --skip-value"
                        )
                else:
                    say(f"preset {job.preset!r} names no layers for {method.name}: they are chosen")
        run_as = f"{_reading(own)}/{own.device.type}"
        shots = len(own.token_ids(COT_PROMPT)) if job.cot else 0
        misfits = {case.id: why for case in cases if (why := unaskable(own, case, shots))}
        if misfits:
            say(f"{len(misfits)} cases cannot be asked, each goes by itself: {next(iter(misfits.values()))}")
            grouped = {number: _apart(some, misfits, bool(sequence)) for number, some in grouped.items()}
            groups = next(iter(grouped.values()))
        if sequence:
            _refuse_short(groups, sequence)
            # Those that are never edited are not asked after either, and bar no prompt.
            groups = [groups[0][: max(sequence)]]
            grouped = {None: groups}
            say(f"the sequence is of the first {len(groups[0])} cases that do not contradict")
        first = [case for group in groups for case in group if case.id not in misfits][:PLANNED]
        beside = () if job.known else tuple(chains)
        scratch = Path(folder) / "sequence" if sequence else None
        job = replace(job, planned=tuple(first), beside=beside, scratch=scratch)
        items: list[Item] = []
        seen: list[list[tuple[AnyCase, ...]]] = []
        steps = sorted(set(sequence))
        for number, some in grouped.items():
            if some in seen:
                continue  # so many at once are all there are, or the other way about
            seen.append(some)
            items += items_of(
                job,
                own.fingerprint,
                some,
                methods,
                at_once=number,
                steps=steps,
                first=len(items),
                run_as=run_as,
                tell=Countdown(say, "groups of cases looked up"),
            )
        store.set_meta(
            {
                "plan": [unit.key for item in items for unit in item.units],
                "methods": [method.name for method in methods],
                "model": job.model,
                "fingerprint": own.fingerprint,
                "seed": job.seed,
                "cases": {case.id: _about(case) for group in groups for case in group},
                "faults": [asdict(fault) for fault in report.faults],
                "strict": strict,
                "left_out": left_out,
                "settings": _settings(job, methods),
            }
        )
        done = store.done()
        todo = [item for item in items if any(unit.key not in done for unit in item.units)]
        report.kept = sum(len(item.units) for item in items) - sum(len(item.units) for item in todo)
        if not todo:
            return report
        if job.plan is None and any(i.method.planned and not (job.preset and i.method.ranged) for i in todo):
            say("choosing layers")
            try:
                job = replace(job, plan=_plan_of(job, own, run_as, store))
            except Exception as error:  # what fails is what needs them, as any item does
                job = replace(job, unplanned=_said(error))
        pool = _pool(job, own, workers, ray, inline=lm is not None)
        del own
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the room is the workers'
        say("editing and asking")
        try:
            _drive(pool, todo, store, report, progress)
            # Not before every outcome is in the store, nor where one is to be tried again.
            if job.scratch is not None and not report.failed:
                shutil.rmtree(job.scratch, ignore_errors=True)
        finally:
            pool.close()
    return report


def _settings(job: Job, methods: Sequence[Method]) -> dict[str, Any]:
    """What runs must have in common to stand in one table."""
    return {
        "known facts": job.known_digest[:16],
        "text": _digest(job.text)[:16],
        "preset": job.preset,
        "cot": job.cot,
        "share of relations left out": sorted({method.amounts.left_out for method in methods}),
        "protocol": PROTOCOL,
    }


def _plan_of(job: Job, lm: LanguageModel, run_as: str, store: Store) -> Plan:
    """The layers of the run, those the store holds where they were chosen from the same."""
    forms, facts = [_case_form(case) for case in job.planned], [asdict(fact) for fact in job.known]
    of = _digest([PROTOCOL, RULE, __version__, lm.fingerprint, run_as, job.seed, job.threads, forms, facts])
    kept = store.meta("layers")
    if kept is not None and kept["of"] == of:
        return Plan.from_json(kept["plan"])
    plan = shared_plan(lm, job.planned, job.known, job.seed)
    store.set_meta({"layers": {"of": of, "plan": plan.to_json()}})
    return plan


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_short(groups: Sequence[tuple[AnyCase, ...]], sequence: Sequence[int]) -> None:
    """Raises UserError for a sequence longer than the cases there are for it."""
    there = len(groups[0]) if groups else 0
    if min(sequence) < 1 or there < max(sequence):
        raise UserError(
            f"--sequence {max(sequence)}: there are {there} cases that do not contradict and can be asked; "
            "ask for fewer"
        )


def unaskable(lm: LanguageModel, case: AnyCase, shots: int) -> str:
    """Why a case cannot be edited or asked with this model, whatever the method; "" where it can.

    shots: tokens that stand before each question.
    """
    try:
        for edit in case.edits:
            lm.find_subject(edit.prompt, edit.subject)
    except UserError as error:
        return f"case {case.id}: {error}"
    for question in case.questions if isinstance(case, Case) else ():
        if (length := shots + len(lm.token_ids(question))) >= lm.context:
            return (
                f"case {case.id}: the question {question[:40]!r} has {length} tokens as it is asked, the "
                f"model's context is {lm.context}"
            )
    return ""


def _apart(
    groups: Sequence[tuple[AnyCase, ...]], misfits: Collection[str], sequence: bool
) -> list[tuple[AnyCase, ...]]:
    """The groups with each misfit in one of its own, where it fails alone; a sequence goes on without it."""
    fitting = [tuple(case for case in group if case.id not in misfits) for group in groups]
    alone = [(case,) for group in groups for case in group if case.id in misfits]
    return [group for group in fitting if group] + ([] if sequence else alone)


def _alike(
    cases: Sequence[Case] | Sequence[RippleCase], numbers: Sequence[int | None], *, strict: bool
) -> tuple[dict[int | None, list[tuple[AnyCase, ...]]], list[Fault]]:
    """`_grouped` for each number at once, of the same cases: a fault may depend on the number."""
    faults: list[Fault] = []
    while True:
        grouped = {}
        for number in numbers:
            grouped[number], found = _grouped(cases, number, strict=strict)
            _add_new(faults, found)
        ids = [{case.id for group in groups for case in group} for groups in grouped.values()]
        common = set.intersection(*ids)
        if all(some == common for some in ids):
            return grouped, faults
        cases = [case for case in cases if case.id in common]  # type: ignore[assignment]


def _add_new(faults: list[Fault], found: Sequence[Fault]) -> None:
    """Put to `faults` what it does not hold yet."""
    held = set(faults)
    faults += [fault for fault in found if fault not in held]


def _grouped(
    cases: Sequence[Case] | Sequence[RippleCase], at_once: int | None, *, strict: bool
) -> tuple[list[tuple[AnyCase, ...]], list[Fault]]:
    """The cases in groups, and the faults of all; `strict`: in groups without the cases that have one."""
    chains = [case for case in cases if isinstance(case, Case)]
    ripples = [case for case in cases if isinstance(case, RippleCase)]
    faults: list[Fault] = []
    while True:
        packed = pack(chains, at_once)
        found = [*audit(packed, chains), *contradicting(ripples)]
        _add_new(faults, found)
        bad = [f for f in found if at_once is None or f.kind != "contradicting" or f.other == f.case]
        if not (strict and bad):
            return [*packed, *pack(ripples, at_once)], faults
        # Packed anew, cases have other neighbours, so they are looked at again.
        chains, ripples = without(chains, bad), without(ripples, bad)


def _pool(
    job: Job, lm: LanguageModel, workers: int, ray: str | None, *, inline: bool
) -> Pool[Item, list[Outcome]]:
    gpus = {p.device for p in lm.model.parameters() if p.device.type == "cuda"}
    if ray is not None:
        if job.device_map and not gpus:
            log.warning("the model lies on no GPU here, so that Ray's workers ask for none")
        job = _from_anywhere(job)
        return OnRay(partial(Worker, job), workers, ray, cpus=job.threads, gpus=float(len(gpus)))
    if workers == 1 or inline:
        return Inline(Worker(job, lm))
    shares: list[str] = []
    if gpus and ":" not in str(job.device_map):  # unless a device is named
        shares = shared_out(visible_gpus(), len(gpus), workers)
    return Processes(partial(Worker, job), workers, shares)


def _from_anywhere(job: Job) -> Job:
    """The job with whole paths: Ray's workers start in folders of their own."""
    model = Path(job.model)
    return replace(
        job,
        model=str(model.resolve()) if job.model != "bundled" and model.is_dir() else job.model,
        scratch=job.scratch and job.scratch.resolve(),
        cache_dir=job.cache_dir and job.cache_dir.resolve(),
    )


def _drive(
    pool: Pool[Item, list[Outcome]],
    todo: Sequence[Item],
    store: Store,
    report: Report,
    progress: Callable[[int, int], None],
) -> None:
    waiting = list(todo)
    at: dict[int, Item] = {}
    tries: dict[str, int] = defaultdict(int)
    group: dict[int, int] = {}
    ended, total = 0, len(todo)
    progress(0, total)

    def hand_out() -> None:
        for worker in range(pool.size):
            if worker in at or not waiting:
                continue
            # Its own group first, then one nobody is at, then any.
            mine, taken = group.get(worker), set(group.values())
            own = next((i for i, item in enumerate(waiting) if item.group == mine), None)
            fresh = next((i for i, item in enumerate(waiting) if item.group not in taken), 0)
            item = waiting.pop(fresh if own is None else own)
            at[worker], group[worker] = item, item.group
            pool.start(worker, item)

    hand_out()
    while at:
        worker, outcomes = pool.finished()
        item = at.pop(worker)
        if isinstance(outcomes, Died):
            key = item.units[0].key
            tries[key] += 1
            where = f"{item.method.name} of case {item.cases[0].id}"
            log.warning("a worker died at %s: %s", where, outcomes.why)
            if tries[key] < TRIES:
                waiting.insert(0, item)
                hand_out()
                continue
            outcomes = [
                Outcome(unit.key, error=f"the worker died, twice: {outcomes.why}") for unit in item.units
            ]
        by_key = {unit.key: unit for unit in item.units}
        for outcome in outcomes:
            store.add(by_key[outcome.key], outcome)
            if outcome.error is None:
                report.made += 1
            else:
                report.failed.append((by_key[outcome.key], outcome.error))
        ended += 1
        progress(ended, total)
        hand_out()
