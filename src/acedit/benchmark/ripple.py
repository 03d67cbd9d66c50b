"""RippleEdits (Cohen et al. 2024): its files as they are, and its six axes scored.

    cases = read_ripple("popular.json")
    scorer = RippleScorer(lm, cases)
    records = scorer.records(scorer.asked(range(len(cases))))    # by axis

A test counts where the unedited model answers each of its condition queries; it passes if any (condition
"OR") or all ("AND") of its test queries are answered. Answers are greedy continuations of the file's own
clozes, matched as everywhere here to a value or an alias.

Deviations from the authors' scripts: any one value of a query counts (theirs wants all), by the first phrase
said (theirs anywhere in the text), and tests are pooled over all edits, those that did not hold among them
(theirs: a mean over the edits that held). Read the axes beside `efficacy`: what writes nothing is specific.

Footgun: the files give labels inside sentences only. Subject and object of an edit are read out of its prompt
and the original fact's by the relation's own cloze (`CLOZES`), or by what other clozes share with it; rows
whose subject cannot be told are left out, with a notice that names the first.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acedit.benchmark.score import Asked, Record, continued, matches
from acedit.editing.patch import patches_off
from acedit.errors import UserError
from acedit.knowledge.facts import Edit
from acedit.knowledge.relations import Relation
from acedit.lm.model import LanguageModel

log = logging.getLogger("acedit")

AXES: Mapping[str, str] = {
    "Relation_Specificity": "relation_specificity",
    "Relation_Specifity": "relation_specificity",
    "Logical_Generalization": "logical_generalization",
    "Subject_Aliasing": "subject_aliasing",
    "Compositionality_I": "compositionality_1",
    "Compositionality_II": "compositionality_2",
    "Forgetfulness": "forgetfulness",
}
"""The file's names (one is spelled in two ways) and ours."""

CLOZES: Mapping[str, str] = {
    "MOTHER": "The name of the mother of {} is",
    "FATHER": "The name of the father of {} is",
    "BROTHER": "The name of the brother of {} is",
    "SISTER": "The name of the sister of {} is",
    "SIBLING": "The names of the siblings of {} are",
    "SPOUSE": "The name of the spouse of {} is",
    "UNCLE": "The name of the uncle of {} is",
    "AUNT": "The name of the aunt of {} is",
    "CHILD": "The name of the child of {} is",
    "NUMBER_OF_CHILDREN": "The number of children {} has is",
    "SEX_OR_GENDER": "The gender of {} is",
    "PLACE_OF_BIRTH": "The place of birth of {} is",
    "PLACE_OF_DEATH": "The place of death of {} is",
    "PLACE_OF_BURIAL": "The place of burial of {} is",
    "COUNTRY": "The name of the country which {} is associated with is",
    "COUNTRY_OF_CITIZENSHIP": "The name of the country of citizenship of {} is",
    "POSITION_HELD": "The name of the position held by {} is",
    "STEPFATHER": "The name of the stepfather of {} is",
    "STEPMOTHER": "The name of the stepmother of {} is",
    "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which {} is a member of is",
    "ALMA_MATER": "The name of the alma mater of {} is",
    "SEXUAL_ORIENTATION": "The sexual orientation of {} is",
    "OCCUPATION": "The occupation of {} is",
    "EMPLOYER": "The name of the employer of {} is",
    "LEAGUE": "The name of the league which {} plays in is",
    "FIELD_OF_WORK": "The name of the field of work of {} is",
    "NATIVE_LANGUAGE": "The mother tongue of {} is",
    "AWARD_RECEIVED": "The name of the award {} won is",
    "FOLLOWS": "{} follows",
    "FOLLOWED_BY": "{} is followed by",
    "ETHNIC_GROUP": "The name of the ethnic group which {} is associated with is",
    "RELIGION": "The name of the religion which {} is associated with is",
    "EYE_COLOR": "The eye color of {} is",
    "DATE_OF_BIRTH": "The date of birth of {} is",
    "DATE_OF_DEATH": "The date of death of {} is",
    "HEAD_OF_GOVERNMENT": "The name of the head of government of {} is",
    "HEAD_OF_STATE": "The name of the head of state of {} is",
    "CONTINENT": "The name of the continent which {} is part of is",
    "CAPITAL": "The name of the capital city of {} is",
    "CURRENCY": "The name of the currency in {} is",
    "OFFICIAL_LANGUAGE": "The official language of {} is",
    "ANTHEM": "The name of the anthem of {} is",
    "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in {} is",
    "CAPITAL_OF": "The name of the country which {} is the capital of is",
    "AUTHOR": "The name of the author of {} is",
    "EDITOR": "The name of the editor of {} is",
    "DIRECTOR": "The name of the director of {} is",
    "SCREENWRITER": "The name of the screenwriter of {} is",
    "CAST_MEMBER": "The names of the cast members of {} are",
    "ARCHITECT": "The name of the architect of {} is",
    "COMPOSER": "The name of the composer of {} is",
    "FOUNDER": "The name of the founder of {} is",
}
"""How the files word a relation (src/relation.py of edenbiran/RippleEdits, MIT licence)."""


@dataclass(frozen=True)
class Query:
    """A cloze and what may complete it: any one of `answers`."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class RippleTest:
    """Queries of which any or `all` have to be right, where the unedited model has every condition right."""

    queries: tuple[Query, ...]
    conditions: tuple[Query, ...]
    all: bool


@dataclass(frozen=True)
class RippleCase:
    """One edit and its tests by axis."""

    id: str
    edits: tuple[Edit, ...]
    tests: Mapping[str, tuple[RippleTest, ...]]

    @property
    def start(self) -> str:
        """The edited subject: the files do not say where else a question starts."""
        return self.edits[0].subject

    @property
    def scored_texts(self) -> set[str]:
        """Every test's clozes."""
        return {q.prompt for tests in self.tests.values() for test in tests for q in test.queries}


def is_ripple(rows: object) -> bool:
    """Whether parsed JSON is in RippleEdits' form."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and isinstance(rows[0], dict)
        and "edit" in rows[0]
        and any(name in rows[0] for name in AXES)
    )


def read_ripple(path: str | Path) -> list[RippleCase]:
    """The cases of a RippleEdits file. Raises UserError naming file, row, field and mend."""
    try:
        rows = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    return ripple_cases(path, rows)


def ripple_cases(path: str | Path, rows: list[Any]) -> list[RippleCase]:
    """The cases of rows already parsed; `path` is named in complaints, which are as `read_ripple`'s.

    Rows whose subject cannot be told are left out, with a notice.
    """
    if not is_ripple(rows):
        raise UserError(f"{path}: these are not RippleEdits cases (no edit with its axes)")
    cases = [_case(path, i, row) for i, row in enumerate(rows)]
    lost = [i for i, case in enumerate(cases) if case is None]
    if lost:
        said = (
            f"{path}: left out {len(lost)} of {len(rows)} rows whose subject cannot be told; "
            f"the first is [{lost[0]}].edit.prompt {rows[lost[0]]['edit']['prompt']!r}"
        )
        if len(lost) == len(rows):
            raise UserError(said)
        log.warning(said)
    return [case for case in cases if case is not None]


def _case(path: str | Path, i: int, row: Mapping[str, Any]) -> RippleCase | None:
    try:
        tests = {
            AXES[name]: tuple(_test(test) for test in row[name] if test["test_queries"])
            for name in AXES
            if name in row
        }
        edit = _edit(row)
        json.dumps([row, *tests], ensure_ascii=False, default=str).encode()
    except KeyError as error:
        raise UserError(f"{path}: [{i}]: field {error} is missing; get the file again") from None
    except (TypeError, AttributeError):
        raise UserError(f"{path}: [{i}]: holds a field of another kind; get the file again") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: [{i}]: holds half of a surrogate pair; write the sign as it is") from None
    return None if edit is None else RippleCase(f"ripple-{i}", (edit,), tests)


def _test(row: Mapping[str, Any]) -> RippleTest:
    return RippleTest(
        tuple(map(_query, row["test_queries"])),
        tuple(map(_query, row.get("condition_queries") or ())),
        row.get("test_condition") == "AND",
    )


def _query(row: Mapping[str, Any]) -> Query:
    names = [str(n) for answer in row["answers"] for n in (answer["value"], *answer.get("aliases", ()))]
    if not isinstance(row["prompt"], str):
        raise TypeError("prompt")
    return Query(row["prompt"], tuple(names))


def _edit(row: Mapping[str, Any]) -> Edit | None:
    """The edit, from sentences "CLOZE OBJECT."; None where no subject is found in the cloze."""
    edit = row["edit"]
    id = str(edit["relation"])
    said, was = edit["prompt"].rstrip(" ."), ""
    before = edit.get("original_fact") or edit.get("previous_fact")  # by the version of the files
    if before is not None:
        was = before["prompt"].rstrip(" .")
    if id in CLOZES:
        template = CLOZES[id]
        subject = _filled(template, said, was)
        cloze = template.format(subject)
    else:
        cloze = _cloze(said, was)
        subject = _subject(row, edit, cloze)
        template = cloze.replace(subject, "{}") if subject else ""
    old, target = was[len(cloze) :].strip(), said[len(cloze) :].strip()
    if not subject or not target or cloze.count(subject) != 1:
        return None
    relation = Relation(f"ripple:{id}", (template,), name=id.replace("_", " ").lower())
    return Edit(subject, relation, target, "" if old == target else old)


def _filled(template: str, said: str, was: str) -> str:
    """The subject in a filled template that an object follows: the longest that both sentences have."""
    before, after = template.split("{}")
    ends = [found.start() for found in re.finditer(re.escape(f"{after} "), said)]
    subjects = [said[len(before) : end] for end in ends if said.startswith(before) and end > len(before)]
    both = [subject for subject in subjects if was.startswith(template.format(subject) + " ")]
    return both[-1] if both else next(iter(subjects), "")


def _cloze(said: str, was: str) -> str:
    """What stands before the objects, of a relation that is not in the table: it ends in "is"."""
    shared = next((n for n, (a, b) in enumerate(zip(said, was, strict=False)) if a != b), len(was))
    # Objects that start alike ("United ...") share more than the cloze.
    cut = said.rfind(" is ", 0, shared + 1) if was else -1
    return (said[:cut] if cut >= 0 else said.rpartition(" is ")[0]) + " is"


def _subject(row: Mapping[str, Any], edit: Mapping[str, Any], cloze: str) -> str:
    """What follows the relation's name in the cloze, or what other clozes of the subject share with it."""
    phrase = str(edit["relation"]).replace("_", " ").lower()
    found = re.search(re.escape(phrase) + r" of (.+) is$", cloze)
    if found:
        return found[1]
    others = (
        query["prompt"]
        for name in AXES
        for test in row.get(name, ())
        for query in test["test_queries"]
        if query.get("subject_id") == edit["subject_id"] and query.get("relation") != edit["relation"]
    )
    return next((run for other in others if (run := _shared_run(cloze, other))), "")


def _shared_run(one: str, other: str) -> str:
    """The longest run of words both have, less the words every cloze has."""
    a, b = one.split(), other.split()
    best: list[str] = []
    for i in range(len(a)):
        for j in range(len(b)):
            n = 0
            while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
                n += 1
            run = a[i : i + n]
            while run and run[0] in ("The", "the", "of", "name", "is", "which"):
                run = run[1:]
            while run and run[-1] in ("is", "of", "are", "has", "which"):
                run = run[:-1]
            if len(run) > len(best):
                best = run
    return " ".join(best)


class RippleScorer:
    """The tests of some cases that the unedited model meets the conditions of.

    before: what it was asked for that, and said.
    """

    before: list[Asked]

    def __init__(self, lm: LanguageModel, cases: Sequence[RippleCase], *, batch_size: int = 64) -> None:
        if not cases:
            raise UserError("there are no cases to score")
        self._lm, self._cases, self._batch = lm, tuple(cases), batch_size
        conditions = [
            (case.id, query)
            for case in cases
            for tests in case.tests.values()
            for test in tests
            for query in test.conditions
        ]
        with patches_off(lm):
            self.before = self._ask("condition", conditions)
        said = {a.prompt: a.said for a in self.before}
        self._met = {
            case.id: {
                axis: [t for t in tests if all(matches(said[q.prompt], q.answers) for q in t.conditions)]
                for axis, tests in case.tests.items()
            }
            for case in cases
        }

    def _ask(self, metric: str, queries: Sequence[tuple[str, Query]]) -> list[Asked]:
        said = continued(self._lm, [query.prompt for _, query in queries], batch_size=self._batch)
        return [
            Asked(metric, id, q.prompt, said[q.prompt], matches(said[q.prompt], q.answers))
            for id, q in queries
        ]

    def asked(self, picked: Iterable[int]) -> list[Asked]:
        """Ask the model as it now stands: each edit's own prompt, and every test whose conditions are met."""
        chosen = [self._cases[i] for i in picked]
        own = [
            (case.id, Query(edit.prompt.format(edit.subject), (edit.target, *edit.aliases)))
            for case in chosen
            for edit in case.edits
        ]
        asked = self._ask("efficacy", own)
        for axis in dict.fromkeys(AXES.values()):
            queries = [
                (case.id, query)
                for case in chosen
                for test in self._met[case.id].get(axis, ())
                for query in test.queries
            ]
            asked += self._ask(axis, queries)
        return asked

    def records(self, asked: Sequence[Asked], *, left_out: float = 0.0) -> list[Record]:
        """A record a test, `mean` the share of its queries that are right, and one an edit."""
        records = [
            Record("efficacy", a.case, float(a.right), float(a.right))
            for a in asked
            if a.metric == "efficacy"
        ]
        # By what was said: two tests may want different answers to one prompt.
        marks: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for a in asked:
            marks[a.metric, a.case][a.prompt] = a.said
        for (axis, id), said in marks.items():
            for test in self._met.get(id, {}).get(axis, ()):
                each = [matches(said[query.prompt], query.answers) for query in test.queries]
                passed = all(each) if test.all else any(each)
                records.append(Record(axis, id, float(passed), sum(each) / len(each)))
        return records
