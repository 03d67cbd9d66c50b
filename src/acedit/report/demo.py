"""`acedit demo`: real MQuAKE cases on the bundled model, before, after PMET and after ACE.

    run(load("bundled"), Path("out/demo"), seed=0, tell=print)

Locates the facts, edits all cases' facts at once by each method, asks, scores, and leaves in the folder a
patch for each method and `report.html`. Standard output gets the transcript.

Footgun: what makes the edits is the world's other facts; nothing that leads to a subject starts from an
entity that a scored question starts from, and scored wordings are never used.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acedit.attribution.locate import Location
from acedit.benchmark.evaluate import merged_edits
from acedit.benchmark.leak import scored_texts, starts
from acedit.benchmark.score import Scorer, matches, summarise
from acedit.editing.edit import edit
from acedit.editing.plan import locate
from acedit.files import edit_rows, write_text
from acedit.knowledge.compose import chain_question, reserved
from acedit.knowledge.facts import Case, Edit, Fact, cases_from
from acedit.knowledge.prompts import direct_prompt
from acedit.knowledge.relations import held_out, mquake
from acedit.lm.model import LanguageModel
from acedit.report.page import AnswerRow, EditRow, Page, Said, render
from acedit.report.text import layer_bars, neuron_table, score_table, table
from acedit.world.cases import facts_of
from acedit.world.graph import World, build_world, mquake_cases

METHODS = ("pmet", "ace")
SHOWN = 2  # cases whose answers are printed one by one
BEFORE = "before"


@dataclass(frozen=True)
class _Question:
    kind: str
    text: str
    answers: tuple[str, ...]  # right once the edit is in; the first is shown
    cot: bool = False
    case: str = ""
    stays: bool = False  # not edited: one of several candidates, of which the model has to know one


def run(
    lm: LanguageModel,
    out: Path,
    *,
    seed: int = 0,
    cases: Sequence[Case] | None = None,
    tell: Callable[[str], None] = print,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Do it all; returns what `--json` writes. tell: progress; say: the transcript.

    cases: those to edit, the twelve real two-hop ones if not given. Raises UserError where `out` cannot
    be written.
    """
    world = build_world()
    chosen = apart(cases or cases_from(mquake_cases("2hop"), "mquake_2hop"))
    edits = merged_edits(chosen)
    known = facts_of(world, edits)
    say(f"{len(chosen)} real MQuAKE cases, {len(edits)} edited facts; {len(known)} known facts of the world")
    say(table([["edit", "before", "after"], *([e.prompt.format(e.subject), e.old, e.target] for e in edits)]))

    tell("asking the unedited model")
    questions = [q for case in chosen[:SHOWN] for q in _questions(case, world, known, seed)]
    questions, said_before = _known_ones(questions, _ask(lm, questions))
    said = {BEFORE: said_before}
    scorer = Scorer(lm, chosen, known=known, seed=seed)
    everything = range(len(chosen))
    scores = {BEFORE: summarise(scorer.score(everything), seed=seed)}

    tell("locating")
    where = locate(lm, edits, known=known, top=12, exclude=starts(chosen), seed=seed)
    _say_location(where, say)

    norms, patches = {}, {}
    for method in METHODS:
        tell(f"editing by {method}")
        patch = edit(
            lm,
            edits,
            known=known,
            method=method,
            exclude=starts(chosen),
            avoid=scored_texts(chosen),
            plan=where.plan,
            seed=seed,
            progress=tell,
        )
        norms[method] = patch.norms(lm)
        tell(f"asking the model edited by {method}")
        with patch.applied(lm):
            said[method] = _ask(lm, questions)
            scores[method] = summarise(scorer.score(everything), seed=seed)
        patches[method] = patch.with_scores(scores[method])

    rows = [
        AnswerRow(
            q.kind,
            q.text,
            q.answers[0],
            {name: Said(texts[i], matches(texts[i], q.answers)) for name, texts in said.items()},
        )
        for i, q in enumerate(questions)
    ]
    say("\nAnswers (greedy; * is what the edit asks for, or what was to stay)")
    say(_answer_lines(rows))
    say("\nScores over all cases")
    say(score_table(scores))
    for method, patch in patches.items():
        patch.save(out / method)
    page = write_text(out / "report.html", render(_page(chosen, edits, where, rows, scores)))
    say(f"\npatches: {', '.join(str(out / method) for method in METHODS)}\nreport:  {page}")
    return {
        "cases": [case.id for case in chosen],
        "edits": edit_rows(edits),
        "plan": where.plan.to_json(),
        "answers": [
            {
                "kind": row.kind,
                "question": row.question,
                "wanted": row.wanted,
                "said": {name: {"text": s.text, "right": s.right} for name, s in row.said.items()},
            }
            for row in rows
        ],
        "scores": scores,
        "norms": norms,
        "page": str(page),
    }


def apart(cases: Sequence[Case]) -> list[Case]:
    """The cases, in order, less those whose chains another's edits would change."""
    chosen: list[Case] = []
    for case in cases:
        mine = {edit.key: edit.target for edit in case.edits}
        if all(not _disturbs(mine, other) and not _disturbs(_targets(other), case) for other in chosen):
            chosen.append(case)
    return chosen


def _targets(case: Case) -> dict[tuple[str, str], str]:
    return {edit.key: edit.target for edit in case.edits}


def _disturbs(targets: dict[tuple[str, str], str], case: Case) -> bool:
    """Whether a chain of the case, before or after its edits, holds a fact that `targets` changes."""
    own = _targets(case)
    return any(
        fact.key in targets and targets[fact.key] != own.get(fact.key)
        for fact in (*case.before.facts, *case.after.facts)
    )


def _questions(case: Case, world: World, known: Sequence[Fact], seed: int) -> list[_Question]:
    """What is asked of one case, and what is right once its edits are in."""
    rng = random.Random(f"{seed}/demo/{case.id}")
    new = (case.new_answer, *case.new_answer_aliases)
    asked = []
    for one, wordings in zip(case.edits, case.paraphrases, strict=True):
        right = (one.target, *one.aliases)
        asked.append(_Question("single-hop", one.prompt.format(one.subject), right))
        if wordings:
            asked.append(_Question("paraphrase", rng.choice(wordings).format(one.subject), right))
    asked += [_Question("multi-hop", question, new) for question in case.questions[:2]]
    asked.append(_Question("multi-hop, thinking", case.questions[0], new, cot=True))
    return [*(replace(q, case=case.id) for q in asked), *_staying(case, world, known, rng)]


def _staying(
    case: Case, world: World, known: Sequence[Fact], rng: random.Random, candidates: int = 6
) -> Iterator[_Question]:
    """Facts and a chain the edits have nothing to do with, several of each sort."""
    subjects = {edit.subject for edit in case.edits}
    reached = {edit.target for edit in case.edits}  # what is known of them follows from the edits
    known = [fact for fact in known if fact.subject not in reached]
    relations = {edit.relation.id for edit in case.edits}
    kept = [fact for fact in known if reserved(*fact.key)]
    near = [fact for fact in kept if fact.subject in subjects]
    like = [fact for fact in kept if fact.relation.id in relations and fact.subject not in subjects]
    far = [fact for fact in kept if fact.subject not in subjects and fact.relation.id not in relations]
    for kind, facts in (("same subject", near), ("same relation", like), ("unrelated fact", far)):
        for fact in rng.sample(facts, k=min(candidates, len(facts))):
            wording = held_out(fact.relation.id) or fact.relation
            text = rng.choice(wording.questions or wording.prompts).format(fact.subject)
            yield _Question(kind, text, (fact.object, *fact.aliases), case=case.id, stays=True)
    unedited = {fact.key for fact in known}
    chains = [
        path
        for path in world.chains(2)
        if world.pool(path) == "dev" and all((f.subject, f.relation) in unedited for f in path)
    ]
    for path in rng.sample(chains, k=candidates):
        hops = [held_out(f.relation) or mquake()[f.relation] for f in path]
        answers = (path[-1].object, *world.aliases.get(path[-1].object, ()))
        text = chain_question(path[0].subject, hops, rng)
        yield _Question("unrelated chain", text, answers, case=case.id, stays=True)


def _known_ones(questions: Sequence[_Question], said: Sequence[str]) -> tuple[list[_Question], list[str]]:
    """Of the candidates for what stays, the first of each sort that the unedited model has right."""
    kept: dict[tuple[str, ...], tuple[_Question, str]] = {}
    for question, text in zip(questions, said, strict=True):
        sort = (question.case, question.kind, "" if question.stays else question.text)
        if not question.stays or (sort not in kept and matches(text, question.answers)):
            kept[sort] = question, text
    return [question for question, _ in kept.values()], [text for _, text in kept.values()]


def _ask(lm: LanguageModel, questions: Sequence[_Question]) -> list[str]:
    plain = [i for i, q in enumerate(questions) if not q.cot]
    texts = lm.generate([direct_prompt(questions[i].text) for i in plain], max_new_tokens=24)
    said = dict(zip(plain, (_first(text) for text in texts), strict=True))
    for i, q in enumerate(questions):
        if q.cot:
            said[i] = lm.answer(q.text, cot=True)
    return [said[i] for i in range(len(questions))]


def _first(text: str) -> str:
    """The first line, less the stop that ends a cloze."""
    line = text.strip().split("\n", 1)[0]
    return line[:-1] if line.endswith(".") and line.count(".") == 1 else line


def _say_location(where: Location, say: Callable[[str], None]) -> None:
    say("\nWhere the facts are kept: layers")
    say(layer_bars(where.layers, where.plan))
    say("\nTop value neurons (raise the answer's log-probability, nats)")
    say(neuron_table(where.value_neurons[:6]))
    say("\nTop query neurons (raise the coefficients of value neurons)")
    say(neuron_table(where.query_neurons[:6]))


def _answer_lines(rows: Sequence[AnswerRow]) -> str:
    lines = []
    for row in rows:
        lines.append(f"  {row.kind}: {row.question}")
        lines.append(f"    {'*':8}{row.wanted}")
        lines += [
            f"    {name:8}{said.text or '(nothing)'} {'✓' if said.right else '✗'}"
            for name, said in row.said.items()
        ]
    return "\n".join(lines)


def _page(
    cases: Sequence[Case],
    edits: Sequence[Edit],
    where: Location,
    rows: Sequence[AnswerRow],
    scores: dict[str, dict[str, dict[str, float]]],
) -> Page:
    return Page(
        title="Editing facts that are reached through others",
        model="bundled",
        intro=(
            f"{len(edits)} facts of {len(cases)} real MQuAKE cases were edited at once, by PMET and by ACE, "
            "and the model asked before and after."
        ),
        edits=[EditRow(e.subject, e.prompt, e.old, e.target) for e in edits],
        layers=where.layers,
        plan=where.plan,
        reasons=list(where.plan.reason.values()),
        value_neurons=where.value_neurons[:12],
        query_neurons=where.query_neurons[:12],
        answers=rows,
        scores=scores,
        notes=[
            "The bundled model learned a small world: real MQuAKE facts among invented ones. What it says "
            "is no knowledge about the world outside."
        ],
    )
