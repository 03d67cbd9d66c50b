"""Score a patch, or a method, on cases.

    scores = evaluate(lm, cases, patch=patch)                     # the cases' edits are in the patch
    scores = evaluate(lm, cases, method="ace", known=facts, batch=25)

With a method, one plan is made for all (where the method needs one), and the cases are edited in
batches of `batch`: all edits of a batch go in at once, its cases are scored, and the patch comes off
before the next. Prompts never start from an entity that a scored question starts from.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from acedit.attribution.plan import Plan
from acedit.benchmark.faults import audit
from acedit.benchmark.leak import check, clear_of
from acedit.benchmark.ripple import RippleCase
from acedit.benchmark.score import Record, Scorer, summarise
from acedit.editing.edit import edit
from acedit.editing.methods import Method
from acedit.editing.methods import method as named_method
from acedit.editing.patch import Patch
from acedit.editing.plan import find_plan
from acedit.errors import UserError
from acedit.knowledge.compose import Composer
from acedit.knowledge.facts import Case, Edit, Fact, distinct_edits
from acedit.lm.model import LanguageModel

log = logging.getLogger("acedit")

PLANNED = 24  # edits a shared plan is made from

Scores = dict[str, dict[str, float]]


@dataclass
class Run:
    """Records of a method over cases, and what it cost: seconds, rank and norm of each patch."""

    records: list[Record] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # a patch
    facts: list[int] = field(default_factory=list)  # edits a patch
    rank: list[int] = field(default_factory=list)  # largest over layers
    norm: list[float] = field(default_factory=list)  # ‖Δ‖/‖W‖, largest over layers

    def cost(self) -> dict[str, float]:
        """Means: seconds a fact, rank, and the largest relative norm."""
        n = max(1, len(self.seconds))
        return {
            "seconds_per_fact": sum(self.seconds) / max(1, sum(self.facts)),
            "rank": sum(self.rank) / n,
            "norm": sum(self.norm) / n,
        }


def merged_edits(cases: Sequence[Case | RippleCase]) -> list[Edit]:
    """The edits of all cases, identical ones once. Raises UserError where two contradict."""
    try:
        return distinct_edits(edit for case in cases for edit in case.edits)
    except UserError as error:
        raise UserError(f"{error}, or use a smaller --batch") from None


def refuse_contradictions(cases: Sequence[Case], batch: int) -> None:
    """Raises UserError where the edits of a batch contradict each other."""
    for at in range(0, len(cases), batch):
        merged_edits(cases[at : at + batch])


def shared_plan(
    lm: LanguageModel, cases: Sequence[Case | RippleCase], known: Sequence[Fact], seed: int
) -> Plan:
    """One plan for every batch, from the first edits of all cases (at most `PLANNED`)."""
    edits = list({edit.key: edit for case in cases for edit in case.edits}.values())[:PLANNED]
    clear = clear_of(cases, edits, known)
    return find_plan(lm, clear["edits"], Composer(**clear, seed=seed).prompts(), ranked=True)


def run_method(
    lm: LanguageModel,
    cases: Sequence[Case],
    scorer: Scorer,
    method: str | Method,
    *,
    known: Sequence[Fact],
    batch: int,
    seed: int = 0,
    plan: Plan | None = None,
    text: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Edit and score `cases` in batches of `batch`; `progress` is told cases done and in all."""
    run = Run()
    chosen = named_method(method) if isinstance(method, str) else method
    if plan is None and chosen.planned:
        plan = shared_plan(lm, cases, known, seed)
    for at in range(0, len(cases), batch):
        picked = range(at, min(at + batch, len(cases)))
        patch, seconds = edit_cases(
            lm,
            [cases[i] for i in picked],
            chosen,
            known=known,
            plan=plan,
            seed=seed,
            text=text,
            cache_dir=cache_dir,
        )
        with patch.applied(lm):
            run.records += scorer.score(picked, left_out=chosen.amounts.left_out)
        rank, norm = size_of(patch, lm)
        run.seconds.append(seconds)
        run.facts.append(len(patch.edits))
        run.rank.append(rank)
        run.norm.append(norm)
        if progress is not None:
            progress(picked.stop, len(cases))
    return run


def edit_cases(
    lm: LanguageModel,
    cases: Sequence[Case | RippleCase],
    method: Method,
    *,
    known: Sequence[Fact],
    plan: Plan | None = None,
    seed: int = 0,
    text: Sequence[str] | None = None,
    scored: Sequence[Case | RippleCase] | None = None,
    cache_dir: Path | None = None,
) -> tuple[Patch, float]:
    """All edits of `cases` in one patch, under the leak rule, and the seconds it took.

    scored: the cases that will be asked while the patch is on, if more than `cases`.
    """
    scored = cases if scored is None else scored
    began = perf_counter()
    patch = edit(
        lm,
        **clear_of(scored, merged_edits(cases), known),
        method=method,
        plan=plan,
        seed=seed,
        text=text,
        cache_dir=cache_dir,
        watch=lambda prompts: check(prompts, scored),
    )
    return patch, perf_counter() - began


def size_of(patch: Patch, lm: LanguageModel) -> tuple[int, float]:
    """Rank and ‖Δ‖/‖W‖ of a patch, the largest over its layers."""
    norms = patch.norms(lm).values()
    return (
        max((int(row["rank"]) for row in norms), default=0),
        max((row["ratio"] for row in norms), default=0.0),
    )


def _notice_contaminated(cases: Sequence[Case], batch: int) -> None:
    """Tell of cases whose answers are not those that hold under all edits that go in with theirs."""
    groups = [cases[at : at + batch] for at in range(0, len(cases), batch)]
    found = [fault for fault in audit(groups) if fault.kind == "contaminated"]
    if found:
        log.warning(
            "%d of the cases take as it was what another case of their batch edits, so that their answers do "
            "not hold: %s; edit fewer at once, or leave them out (bench --strict)",
            len({fault.case for fault in found}), found[0].detail,
        )  # fmt: skip


def evaluate(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    patch: Patch | None = None,
    method: str | Method | None = None,
    known: Sequence[Fact] = (),
    batch: int = 1,
    seed: int = 0,
    cot: bool = True,
    text: Sequence[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Scores:
    """Scores of `cases` under a patch, under a method, or (neither) of the model as it is.

    known: facts the neighbours to check are drawn from; without them the cases' own unedited hops
    serve. text: as `edit` takes it, for a method. Values are shares; every metric has value, n, low, high
    (95%), questions, unfiltered. progress: told what is done, of how many, and of what.
    Raises UserError for both a patch and a method, no cases, a batch under 1, or, before anything is done,
    for weights that are not finite, a patch of another model or one that is on, or a batch whose edits
    contradict each other. Cases that other cases of their batch bend are told of in the log.
    """
    if patch is not None and method is not None:
        raise UserError("give a patch or a method, not both")
    if batch < 1:
        raise UserError(f"batch is {batch}: edit at least one case at a time")
    lm.refuse_broken()
    if patch is not None:
        patch.check_model(lm)
        patch.refuse_twice(lm)
    if method is not None:
        refuse_contradictions(cases, batch)
    if patch is not None or method is not None:
        _notice_contaminated(cases, batch if patch is None else max(1, len(cases)))
    scorer = Scorer(lm, cases, known=known, cot=cot, seed=seed, progress=progress)
    if method is not None:
        counted = None if progress is None else lambda done, of: progress(done, of, "cases edited and asked")
        run = run_method(
            lm, cases, scorer, method, known=known, batch=batch, seed=seed, text=text, progress=counted
        )
        return summarise(run.records, seed=seed)
    everything = range(len(cases))
    if patch is None:
        return summarise(scorer.score(everything), seed=seed)
    written = {(edit.key, edit.target) for edit in patch.edits}
    missing = [e for case in cases for e in case.edits if (e.key, e.target) not in written]
    if missing:
        log.warning(
            "%d of the cases' edits are not in the patch, %r with %s among them",
            len(missing), missing[0].subject, missing[0].relation.id,
        )  # fmt: skip
    with patch.applied(lm):
        return summarise(scorer.score(everything), seed=seed)
