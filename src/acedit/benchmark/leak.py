"""The leak rule: what makes an edit never sees what scores it.

    scored = {"exclude": starts(cases), "avoid": scored_texts(cases)}
    edit(lm, edits, known=facts, **scored, watch=lambda prompts: check(prompts, cases))

`exclude` and `avoid` keep the rule, `check` is the alarm: it raises before anything is written. A prompt
breaks the rule if it or its answer holds a scored question or wording (from the start of a sentence on), or
if it starts from an entity that a scored question starts from (the edited subjects' own prompts aside).
Facts that specificity is measured on are kept out where prompts are made (`compose.reserved`).
"""

from collections.abc import Sequence

from acedit.benchmark.ripple import RippleCase
from acedit.knowledge.compose import Prompt, holds
from acedit.knowledge.facts import Case


class LeakError(RuntimeError):
    """A prompt that makes an edit was seen to be one that scores it."""


def starts(cases: Sequence[Case | RippleCase]) -> set[str]:
    """Entities that the scored questions start from."""
    return {case.start for case in cases}


def scored_texts(cases: Sequence[Case | RippleCase]) -> set[str]:
    """Every scored question, and every scored wording of an edit, subject filled in."""
    return {text for case in cases for text in case.scored_texts}


def check(prompts: Sequence[Prompt], cases: Sequence[Case | RippleCase]) -> None:
    """Raises LeakError for the first prompt that breaks the rule."""
    scored, first = scored_texts(cases), starts(cases)
    for prompt in prompts:
        for text in scored:
            if holds(prompt.whole, text):
                raise LeakError(f"the prompt {prompt.whole!r} holds the scored wording {text!r}")
        if prompt.kind in ("lead", "middle", "replay") and prompt.subject in first:
            raise LeakError(f"the prompt {prompt.text!r} starts where a scored question starts")
