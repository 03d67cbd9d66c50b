"""Layers chosen by writing: a few edits are really made on every range of layers, and asked after.

    trial = Trial(lm, edits, known)
    trial.score(trial.write((0, 1), (5,)))       # shares right: edit, lead, ripple, middle, kept
    screen(trial)                                # ranges of query and value layers, the best first
    screened(lm, edits, known, plan)             # the plan with the best of them: `locate(..., screen=True)`

Attribution says where a fact is read from, not where a closed form can write it (Hase et al. 2023; measured
in docs/decisions.md), and the reach of v* says where an answer can be forced, not what else is then forced.
So the edits are made, by the stages of `ace-closed` whatever method the layers are for, and scored by the
argmax under teacher forcing: the facts themselves in the wordings written, all else on prompts that were
not. Targets are searched once for each layer and stage.

Footgun: no scored question may be among `edits` or `known`'s consequences; exclude them as in `edit`.
`screened` makes edits of its own beside those given, and none of a subject in `exclude`.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from acedit.attribution.plan import Plan, middle_of, why_middle
from acedit.editing.batch import Batch, split
from acedit.editing.edit import KEPT, believed, own_answers, swept
from acedit.editing.methods import method
from acedit.editing.preserve import metric_of, text_of
from acedit.editing.stages import Stage, Update, Writing, updates_in
from acedit.editing.target import Targets, search
from acedit.errors import UserError
from acedit.knowledge.compose import Amounts, Composer, objects_of, reserved, to_another
from acedit.knowledge.facts import Edit, Fact, distinct_edits
from acedit.lm.model import LanguageModel

AMOUNTS = Amounts(lead=6, ripple=8, middle=6, keep=3, replay=16)
TRIALS = 24  # edits written on every range
LONGEST = 3  # layers of a range
NAMES = {"single": "edit", "keep": "kept", "replay": "kept"}  # other kinds by their own name

Range = tuple[int, ...]


@dataclass(frozen=True)
class Screened:
    """Ranges of layers and the shares right after they were written, by kind of prompt."""

    query: Range
    value: Range
    right: Mapping[str, float]

    @property
    def score(self) -> float:
        """The mean over kinds. Raises UserError where nothing could be asked."""
        if not self.right:
            raise UserError("layers cannot be screened: the known facts leave nothing to ask after an edit")
        return sum(self.right.values()) / len(self.right)


def ranges(layers: Sequence[int], longest: int) -> list[Range]:
    """Every contiguous range of `layers` of at most `longest`."""
    return [tuple(layers[at : at + n]) for n in range(1, longest + 1) for at in range(len(layers) - n + 1)]


class Trial:
    """Edits that can be written on any layers, and what is asked of them then; `lm` stays as it is."""

    def __init__(
        self,
        lm: LanguageModel,
        edits: Sequence[Edit],
        known: Sequence[Fact],
        *,
        exclude: Collection[str] = (),
        avoid: Collection[str] = (),
        seed: int = 0,
        amounts: Amounts = AMOUNTS,
        text: Sequence[str] | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self._lm, self._n = lm, len(edits)
        self._method = replace(method("ace-closed"), amounts=amounts)
        facts = believed(lm, edits, known)
        made, others = (
            own_answers(
                lm, Composer(edits, facts, exclude=exclude, avoid=avoid, seed=s, amounts=amounts).prompts()
            )
            for s in (seed, seed + 1)
        )
        written = [p for p in made if p.kind not in KEPT]
        self._batches = {
            stage.name: tuple(split(lm, [p for p in written if p.kind in stage.kinds]))
            for stage in self._method.stages
        }
        own = {one.subject for one in edits}  # where the edits are to be written, as in `edit`
        replay = split(lm, [p for p in made if p.kind in KEPT and p.subject not in own])
        self._metric = metric_of(
            lm, self._method, text or text_of(lm, known), range(lm.n_layers), replay, cache_dir
        )
        seen = {p.text for p in written if p.kind != "single"}
        self._held: dict[str, list[Batch]] = {}
        for name in dict.fromkeys(NAMES.get(p.kind, p.kind) for p in others):
            of_name = [p for p in others if NAMES.get(p.kind, p.kind) == name and p.text not in seen]
            batches = split(lm, list(dict.fromkeys(of_name)))
            if name == "kept":
                batches = [b.pick(self._right(b).nonzero()[:, 0]) for b in batches]
            self._held[name] = [b for b in batches if len(b)]
        self._targets: dict[tuple[str, int], Targets] = {}

    @property
    def layers(self) -> int:
        """How many the model has."""
        return self._lm.n_layers

    @torch.no_grad()
    def _right(self, batch: Batch) -> torch.Tensor:
        return batch.right(batch.logits(self._lm))

    def _writing(self, stage: Stage, layers: Range) -> Writing | None:
        batches = self._batches[stage.name]
        if not batches or not layers:
            return None
        at = (stage.name, layers[-1])
        if at not in self._targets:
            self._targets[at] = search(
                self._lm,
                batches,
                layers[-1],
                token=stage.token,
                n_edits=self._n,
                settings=stage.target,
            )
        return Writing(stage, layers, batches, self._targets[at])

    def write(self, query: Range, value: Range) -> list[Update]:
        """The updates of the stages that have layers; the middle stage lies between where both do."""
        layers = {
            "query": query,
            "value": value,
            "middle": middle_of(query, value),
        }
        writings = [self._writing(stage, layers[stage.where]) for stage in self._method.stages]
        return swept(self._lm, [w for w in writings if w is not None], self._metric, self._method)

    def score(self, updates: Sequence[Update]) -> dict[str, float]:
        """By kind of prompt: the share whose answer is the argmax; of what is kept, where it was before."""
        with updates_in(self._lm, updates):
            marks = {
                name: [self._right(b) for b in batches] for name, batches in self._held.items() if batches
            }
        return {name: float(torch.cat(some).float().mean()) for name, some in marks.items()}

    def __call__(self, query: Range, value: Range) -> Screened:
        """Write, and score."""
        return Screened(query, value, self.score(self.write(query, value)))


def screen(
    trial: Trial,
    *,
    longest: int = LONGEST,
    finalists: int = 4,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Screened]:
    """Ranges of query layers and of value layers, on their own first, then the best of both together.

    Returns the pairs, best first: query layers below value layers. A range is taken on with what it is
    right about beside what it leaves as it was; `finalists`² pairs.
    """
    alone = ranges(range(trial.layers), longest)
    total, done, best = 2 * len(alone) + finalists**2, 0, []
    for kind in ("query", "value"):
        tried = []
        for layers in alone:
            tried.append(trial(layers, ()) if kind == "query" else trial((), layers))
            done += 1
            progress(done, total)
        best.append(sorted(tried, key=lambda t: -t.score))
    pairs = [(q.query, v.value) for q in best[0] for v in best[1] if q.query[-1] < v.value[0]]
    # The best pairs by the sum of what each reached alone.
    alone_score = {**{("q", t.query): t.score for t in best[0]}, **{("v", t.value): t.score for t in best[1]}}
    pairs.sort(key=lambda pair: -alone_score["q", pair[0]] - alone_score["v", pair[1]])
    found = []
    for query, value in pairs[: finalists**2]:
        found.append(trial(query, value))
        done += 1
        progress(done, total)
    return sorted(found, key=lambda t: -t.score)


def screened(
    lm: LanguageModel,
    edits: Sequence[Edit],
    known: Sequence[Fact],
    plan: Plan,
    *,
    exclude: Collection[str] = (),
    avoid: Collection[str] = (),
    seed: int = 0,
    longest: int = LONGEST,
    text: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Plan:
    """`plan` with the ranges of layers on which `TRIALS` edits do best when they are written.

    They are `edits`, spread over the batch, and edits of known facts where those are fewer. text: for the
    covariance, as in `edit`. progress: told ranges and pairs written, and how many in all. The plan's
    `scores` leave out what the loss said, so that no method widens the ranges. Raises UserError for edits
    that contradict each other, or where no facts are known.
    """
    refuse_unscreenable(edits, known)
    n = min(TRIALS, len(edits))
    some = [edits[i * len(edits) // n] for i in range(n)]
    taken = {edit.subject for edit in edits} | set(exclude)
    more = trial_edits([fact for fact in known if fact.subject not in taken], TRIALS - n, seed)
    trial = Trial(
        lm, [*some, *more], known, exclude=exclude, avoid=avoid, seed=seed, text=text, cache_dir=cache_dir
    )
    found = screen(trial, longest=longest, progress=progress)
    given = trial(plan.query_layers, plan.value_layers)
    best = max([given, *found], key=lambda pair: pair.score)  # the given one where they are alike
    reason = (
        f"{len(some) + len(more)} trial edits written there are right about {best.score:.2f}, the mean of "
        f"{len(best.right)} sorts of questions ({given.score:.2f} in the layers of the plan before)"
    )
    middle = middle_of(best.query, best.value)
    return replace(
        plan,
        query_layers=best.query,
        value_layers=best.value,
        middle_layers=middle,
        reason={"value": reason, "query": reason, "middle": why_middle(middle)},
        scores={name: row for name, row in plan.scores.items() if name in ("value", "query")},
    )


def refuse_unscreenable(edits: Sequence[Edit], known: Sequence[Fact]) -> None:
    """Raises UserError for edits that contradict each other, or where no facts are known."""
    distinct_edits(edits)
    if not known:
        raise UserError("layers are screened by what known facts lead to: give known facts")


def trial_edits(known: Sequence[Fact], n: int, seed: int = 0) -> list[Edit]:
    """At most `n` edits of known facts to other objects of their relation, for want of the user's own.

    Of subjects that some known fact leads to, one edit a subject; reserved facts are left alone.
    """
    rng = random.Random(f"{seed}/trial")
    led_to = {fact.object for fact in known}
    objects = objects_of(known)
    usable = [
        fact
        for fact in known
        if fact.subject in led_to
        and fact.relation.phrases
        and len(objects[fact.relation.id]) > 1
        and not reserved(*fact.key)
    ]
    by_subject = {fact.subject: fact for fact in rng.sample(usable, k=len(usable))}
    return [to_another(fact, objects, rng) for fact in list(by_subject.values())[:n]]
