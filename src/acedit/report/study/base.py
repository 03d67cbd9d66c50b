"""What every study shares: the questions, what a study gives back, and how it is saved.

    setting = setting_of(lm, facts)                 # questions the model answers, by category
    result = studies()["layers"].run(setting)
    save(result, Path("out/study/layers"))          # data.json, and each chart as Vega-Lite, SVG and PNG

Categories are the paper's eight (section 4.1), told by relation id. Footgun: only questions that the model
answers right are studied; `Setting.asked` says how many were put to it.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acedit.attribution.atlas import Atlas, build_atlas
from acedit.attribution.spread import Spread, measure_spread
from acedit.benchmark.score import matches
from acedit.errors import UserError
from acedit.files import write_json
from acedit.knowledge.compose import asked, chain_question
from acedit.knowledge.facts import Fact
from acedit.lm.model import LanguageModel
from acedit.report.charts import save_charts

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "Nationality": ("P27",),
    "Continent": ("P30",),
    "Language": ("P1412", "P37", "P364", "P407"),
    "Capital": ("P36",),
    "Leadership": ("P35", "P6", "P488", "P169", "P1308", "P1037"),
    "Author": ("P50", "P800", "P170"),
    "Sports Team": ("P413", "P641", "P286"),
    "Company Founder": ("P112",),
}
"""The paper's categories, and MQuAKE's relations that belong to each (our reading)."""


@dataclass(frozen=True)
class Question:
    """A prompt the model answers right, its answer, and the category of its (last) relation."""

    prompt: str
    answer: str
    aliases: tuple[str, ...]
    category: str

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)

    def as_said(self, form: str) -> "Question":
        """The question with that one of its answers first: what is attributed is the form the model gives."""
        return replace(self, answer=form, aliases=tuple(a for a in self.answers if a != form))


@dataclass(frozen=True)
class Setting:
    """What a study is run on. asked: questions put to the model, by category. chains: two-hop questions that
    it answers right in one pass, of the category of their last hop."""

    lm: LanguageModel
    questions: tuple[Question, ...]
    asked: Mapping[str, int]
    chains: tuple[Question, ...] = ()
    seed: int = 0
    say: Callable[[str], None] = lambda _: None
    named: tuple[str, ...] = tuple(CATEGORIES)
    count: Callable[[int, int, str], None] = lambda *_: None

    def atlas(self) -> Atlas:
        """The model's atlas, told of while it is made (once a model)."""
        return build_atlas(self.lm, progress=lambda done, of: self.count(done, of, "layers of the atlas"))

    def spread(self) -> Spread:
        """The spread of its neurons' logits, told of while it is measured (once a model)."""
        return measure_spread(
            self.lm, progress=lambda done, of: self.count(done, of, "layers measured, once a model")
        )

    @property
    def reasoned(self) -> tuple[tuple[Question, ...], str]:
        """What multi-hop findings are measured on, and what that is: chains, or without any the questions."""
        if self.chains:
            return self.chains, f"{len(self.chains)} two-hop questions"
        return self.questions, f"{len(self.questions)} single-hop questions, for want of a chain it answers"

    def of(self, category: str) -> list[Question]:
        """The questions of a category."""
        return [q for q in self.questions if q.category == category]

    @property
    def categories(self) -> tuple[str, ...]:
        """Those with a question."""
        return tuple(c for c in self.named if self.of(c))


@dataclass(frozen=True)
class Finding:
    """A claim of the paper with its figure, ours beside it, and whether they agree (None: it has no such
    figure, or ours cannot tell)."""

    claim: str
    paper: str
    ours: str
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """Whether they agree, in words."""
        return {True: "agrees", False: "does not agree", None: "no verdict"}[self.agrees]

    def told(self) -> str:
        """All of it as running text, for a page."""
        return f"{self.claim} (paper: {self.paper}). Here: {self.ours}: {self.verdict}."


@dataclass(frozen=True)
class Result:
    """A study's outcome. data: JSON types; charts: Vega-Lite specifications by name; tables: for its page,
    rows by caption."""

    study: str
    data: Mapping[str, Any]
    findings: tuple[Finding, ...]
    charts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text: str = ""
    tables: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)

    def said(self) -> str:
        """For a terminal: the text, then each finding."""
        lines = [self.text] if self.text else []
        for finding in self.findings:
            lines.append(f"{finding.claim}\n  paper: {finding.paper}\n  here:  {finding.ours}")
            lines.append(f"  {finding.verdict}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Study:
    """A study by name: what it shows, where in the paper, how it is run, and its place among the others."""

    name: str
    title: str
    paper: str
    run: Callable[[Setting], Result]
    place: int


def setting_of(
    lm: LanguageModel,
    facts: Sequence[Fact],
    *,
    per_category: int = 25,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    count: Callable[[int, int, str], None] = lambda *_: None,
    category_of: Callable[[Fact], str | None] | None = None,
) -> Setting:
    """At most `per_category` questions and as many two-hop questions a category that the model answers right.

    category_of: a fact's category, None for one that is not studied; the paper's by relation id if not
    given. count: told layers done and in all while what attribution needs once a model is made. Raises
    UserError where the model answers none, or holds weights that are not finite.
    """
    lm.refuse_broken()
    rng = random.Random(f"{seed}/study")
    own = {relation: name for name, ids in CATEGORIES.items() for relation in ids}
    by_relation = category_of or (lambda fact: own.get(fact.relation.id))
    rows: dict[str, list[Question]] = defaultdict(list)
    for fact in facts:
        name = by_relation(fact)
        if name is not None:
            rows[name].append(Question(fact.prompt.format(fact.subject), fact.object, fact.aliases, name))
    names = tuple(CATEGORIES) if category_of is None else tuple(sorted(rows))
    say("asking single-hop questions")
    kept, asked_of = _answered(lm, rows, names, per_category, rng)
    if not kept:
        raise UserError(
            "the model answers none of the questions right, so there is nothing to study: give facts it "
            "knows (--facts), of the relations in report/study/base.py"
        )
    say("asking two-hop questions")
    chains, _ = _answered(lm, _two_hops(facts, by_relation, rng), names, per_category, rng)
    return Setting(lm, kept, asked_of, chains, seed, say, names, count)


def _answered(
    lm: LanguageModel,
    rows: Mapping[str, Sequence[Question]],
    names: Sequence[str],
    most: int,
    rng: random.Random,
) -> tuple[tuple[Question, ...], dict[str, int]]:
    """Of twice as many drawn a category at most `most` that are answered right; how many were asked."""
    drawn = [
        question
        for name in names
        for question in rng.sample(rows.get(name, []), k=min(2 * most, len(rows.get(name, []))))
    ]
    said = lm.generate([q.prompt for q in drawn], max_new_tokens=24) if drawn else []
    right: dict[str, list[Question]] = defaultdict(list)
    count: dict[str, int] = defaultdict(int)
    for question, text in zip(drawn, said, strict=True):
        count[question.category] += 1
        form = next((form for form in question.answers if matches(text, (form,))), None)
        if form is not None and len(right[question.category]) < most:
            right[question.category].append(question.as_said(form))
    return tuple(q for name in names for q in right[name]), dict(count)


def _two_hops(
    facts: Sequence[Fact], category: Callable[[Fact], str | None], rng: random.Random
) -> dict[str, list[Question]]:
    """A question over each fact that another leads to, by the category of the second."""
    by_object: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.relation.phrases:
            by_object[fact.object].append(fact)
    found: dict[str, list[Question]] = defaultdict(list)
    for last in facts:
        name = category(last)
        before = [f for f in by_object[last.subject] if f.subject not in (last.subject, last.object)]
        if name is None or not before or not last.relation.questions:
            continue
        first = rng.choice(before)
        prompt = asked(chain_question(first.subject, [first.relation, last.relation], rng))
        found[name].append(Question(prompt, last.object, last.aliases, name))
    return found


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return sum(values) / len(values) if values else float("nan")


def accuracy(lm: LanguageModel, questions: Sequence[Question]) -> float:
    """Share answered right, greedily, by the model as it stands."""
    said = lm.generate([q.prompt for q in questions], max_new_tokens=24)
    return sum(matches(t, q.answers) for t, q in zip(said, questions, strict=True)) / len(questions)


def save(result: Result, folder: Path) -> list[Path]:
    """Write data.json and the charts; pictures where vl-convert is installed (extra `study`).

    Raises UserError where the folder cannot be written.
    """
    findings = [vars(f) for f in result.findings]
    written = [
        write_json(
            folder / "data.json", {"study": result.study, "findings": findings, "data": dict(result.data)}
        )
    ]
    return written + save_charts(result.charts, folder)
