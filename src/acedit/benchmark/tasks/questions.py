"""What the tasks of this folder ask, and how answers are counted; lm-evaluation-harness calls these."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from acedit.benchmark.score import matches
from acedit.errors import UserError
from acedit.knowledge.facts import Case, read_cases
from acedit.knowledge.prompts import cot_prompt, direct_prompt, parse_cot_answer


def direct(cases: str = "", old: bool = False, **_: Any) -> Mapping[str, Any]:
    """The multi-hop questions, as they are."""
    return _dataset({"prompt": direct_prompt(q), "answers": a} for q, a in _questions(cases, old))


def cot(cases: str = "", old: bool = False, **_: Any) -> Mapping[str, Any]:
    """The multi-hop questions under appendix G.1."""
    return _dataset({"prompt": cot_prompt(q), "answers": a} for q, a in _questions(cases, old))


def edit(cases: str = "", old: bool = False, **_: Any) -> Mapping[str, Any]:
    """Each edit's own prompt."""
    return _dataset(
        {
            "prompt": one.prompt.format(one.subject),
            "answers": [one.old] if old else [one.target, *one.aliases],
        }
        for case in _cases(cases)
        for one in case.edits
    )


def right_direct(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the first line is the answer."""
    return {"acc": float(matches(results[0], doc["answers"]))}


right_edit = right_direct


def right_cot(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the "Answer:" line is the answer."""
    return {"acc": float(matches(parse_cot_answer(results[0]), doc["answers"]))}


def _cases(path: str) -> list[Case]:
    if not path:
        raise UserError('the mquake tasks need cases: --cases FILE, or --metadata \'{"cases": "FILE"}\'')
    return read_cases(path)


def _questions(path: str, old: bool) -> Iterator[tuple[str, list[str]]]:
    cases = _cases(path)
    if not any(case.questions for case in cases):
        raise UserError(f"{path}: no case asks a chain; make cases with known facts (acedit cases --facts)")
    for case in cases:
        before, after = [case.answer, *case.answer_aliases], [case.new_answer, *case.new_answer_aliases]
        for question in case.questions:
            yield question, before if old else after


def _dataset(rows: Iterator[dict[str, Any]]) -> Mapping[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(list(rows))}
