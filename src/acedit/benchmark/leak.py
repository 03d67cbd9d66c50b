"""The leak rule: what makes an edit never sees what scores it.

    clear = clear_of(cases, edits, facts)           # edit's edits, known, exclude and avoid
    edit(lm, **clear, watch=lambda prompts: check(prompts, cases))

`clear_of` keeps the rule, `check` is the alarm: it raises before anything is written. A prompt
breaks the rule if it or its answer holds a scored question or wording (from the start of a sentence on), or
if it starts from an entity that a scored question starts from (the edited subjects' own prompts aside).
Facts that specificity is measured on are kept out where prompts are made (`compose.reserved`).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict, TypeVar

from acedit.benchmark.ripple import RippleCase
from acedit.knowledge.compose import Prompt, Wordings
from acedit.knowledge.facts import Case, Edit, Fact
from acedit.knowledge.relations import Relation

T = TypeVar("T", Fact, Edit)


class LeakError(RuntimeError):
    """A prompt that makes an edit was seen to be one that scores it."""


def starts(cases: Sequence[Case | RippleCase], known: Sequence[Fact] = ()) -> set[str]:
    """Entities that the scored questions start from.

    RippleEdits' files do not say where a test starts: of `known` facts every subject that one names counts.
    """
    tests = _tests(cases)
    return {case.start for case in cases} | {f.subject for f in known if _named(f.subject, tests)}


def _tests(cases: Sequence[Case | RippleCase]) -> str:
    """Every test's cloze of RippleEdits' cases, a line each."""
    return "\n".join(
        sorted(text for case in cases if isinstance(case, RippleCase) for text in case.scored_texts)
    )


def _named(subject: str, tests: str) -> bool:
    """Whether one of the tests names `subject`."""
    return subject in tests and re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", tests) is not None


def scored_texts(cases: Sequence[Case | RippleCase]) -> set[str]:
    """Every scored question, and every scored wording of an edit, subject filled in."""
    return {text for case in cases for text in case.scored_texts}


def without_scored(of: Sequence[T], cases: Sequence[Case | RippleCase]) -> list[T]:
    """Facts or edits, their relations without the wordings that score an edit, whoever they are asked of.

    An edit's own relation words what leads to it and its kin, too.
    """
    scored: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if isinstance(case, Case):
            for edit, wordings in zip(case.edits, case.paraphrases, strict=True):
                scored[edit.relation.id].update(wordings)
    return [replace(one, relation=_unscored(one.relation, scored.get(one.relation.id, set()))) for one in of]


def _unscored(relation: Relation, barred: set[str]) -> Relation:
    """Without the wordings barred, but for the first prompt, which a fact is written on."""
    if not barred:
        return relation
    first, *others = relation.prompts
    return replace(
        relation,
        prompts=(first, *(p for p in others if p not in barred)),
        questions=tuple(q for q in relation.questions if q not in barred),
    )


class Clear(TypedDict):
    """What `edit` takes that keeps it clear of cases."""

    edits: list[Edit]
    known: list[Fact]
    exclude: set[str]
    avoid: set[str]


def clear_of(cases: Sequence[Case | RippleCase], edits: Sequence[Edit], known: Sequence[Fact]) -> Clear:
    """`edits`, `known` facts, excluded entities and texts to avoid, for an edit that `cases` score."""
    return {
        "edits": without_scored(edits, cases),
        "known": without_scored(known, cases),
        "exclude": starts(cases, known),
        "avoid": scored_texts(cases),
    }


def check(prompts: Sequence[Prompt], cases: Sequence[Case | RippleCase]) -> None:
    """Raises LeakError for the first prompt that breaks the rule."""
    scored, first, tests = Wordings(scored_texts(cases)), starts(cases), _tests(cases)
    for prompt in prompts:
        if text := scored.said_in(prompt.whole):
            raise LeakError(f"the prompt {prompt.whole!r} holds the scored wording {text!r}")
        if prompt.kind not in ("lead", "middle", "replay"):
            continue
        if prompt.subject in first or _named(prompt.subject, tests):
            raise LeakError(f"the prompt {prompt.text!r} starts where a scored question starts")
