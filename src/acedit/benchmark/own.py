"""Cases from edits of one's own: does an edit hold, and does it carry through a chain?

    rows = own_cases(edits, known)                  # MQuAKE items, one an edit
    cases = cases_from(rows)
    patch = edit(lm, edits, known=known, exclude=starts(cases), avoid=scored_texts(cases))
    evaluate(lm, cases, patch=patch, known=known)

A case asks for an edit's fact in the wordings held out for scoring, and for a chain through it that known
facts supply: what leads to the subject, what follows from the new object, or both, by turns over the edits.

Footguns: an edit has to be made with the cases at hand, else its prompts may be what scores it (`acedit edit`
does so when it is given the cases' file). A relation of one's own has no wordings held out: its last
question scores, and the edit does without it. What the model knows is not asked here but by the Scorer,
which counts only chains that the unedited model answers.
"""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from acedit.benchmark.score import scoring_wordings
from acedit.knowledge.compose import chain_question, reserved
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.relations import mquake

log = logging.getLogger("acedit")

QUESTIONS = 3  # wordings of a chain
DRAWS = 12  # to find them

POSITIONS = {"implicit": (True, False), "explicit": (False, True), "middle": (True, True)}
"""By where an edit stands: whether a hop leads to it, and whether one follows."""

Path = tuple[Fact, ...]


class Way(NamedTuple):
    """A chain through an edit, before and after it, and which hop is edited."""

    before: Path
    after: Path
    at: int


def own_cases(edits: Sequence[Edit], known: Sequence[Fact], *, seed: int = 0) -> list[dict[str, Any]]:
    """An item in MQuAKE's format for each edit whose old object is given or known; others are left out, with
    a notice.

    The kind of chain is one that fewest edits before had, of those that `known` has facts for; without any,
    the case is of one hop, and is asked no chain. A chain leads to the subject over a fact that no prompt of
    an edit uses (`compose.reserved`); where there is none, over one of several, whose subject the edit must
    then leave alone. seed: which facts and wordings are drawn.
    """
    paths = _Paths(edits, known)
    used: Counter[str] = Counter()
    items = []
    for i, edit in enumerate(edits):
        rng = random.Random(f"{seed}/own/{edit.subject}/{edit.relation.id}")
        old = edit.old or paths.objects.get(edit.key, "")
        if not old:
            log.warning(
                "%r with %s is left out: give the edit its 'old' object, or the fact among those known",
                edit.subject, edit.relation.name or edit.relation.id,
            )  # fmt: skip
            continue
        ways = paths.around(edit, old, rng)
        position = min(ways, key=lambda name: used[name], default="")
        used[position] += 1
        alone = Way((Fact(edit.subject, edit.relation, old),), (edit.fact,), 0)
        items.append(_item(f"own-{i}", edit, ways.get(position, alone), rng))
    return items


class _Paths:
    """Known facts by what they start and end in."""

    def __init__(self, edits: Sequence[Edit], known: Sequence[Fact]) -> None:
        self.objects = {fact.key: fact.object for fact in known}
        edited = {edit.key for edit in edits}
        self._onward: Mapping[str, list[Fact]] = defaultdict(list)
        self._leading: Mapping[str, list[Fact]] = defaultdict(list)
        for fact in known:
            if fact.key not in edited:
                self._onward[fact.subject].append(fact)
                self._leading[fact.object].append(fact)

    def around(self, edit: Edit, old: str, rng: random.Random) -> dict[str, Way]:
        """By where the edit stands in it, a chain that the known facts make through it."""
        was, now = Fact(edit.subject, edit.relation, old), edit.fact
        lead, follow = self._lead(edit, rng), self._follow(edit, old, rng)
        found = {}
        for position, (led, followed) in POSITIONS.items():
            if (led and not lead) or (followed and not follow):
                continue
            front: Path = lead if led else ()
            ends: tuple[Path, Path] = follow if followed and follow else ((), ())
            before, after = (*front, was, *ends[0]), (*front, now, *ends[1])
            if _askable(before) and _askable(after):
                found[position] = Way(before, after, len(front))
        return found

    def _lead(self, edit: Edit, rng: random.Random) -> Path:
        """What leads to the subject: by a fact that no prompt uses, if need be one of several others."""
        facts = [f for f in self._leading[edit.subject] if scoring_wordings(f.relation).phrases]
        kept = [f for f in facts if reserved(*f.key)]
        usable = kept or (facts if len(facts) > 1 else [])
        return (rng.choice(usable),) if usable else ()

    def _follow(self, edit: Edit, old: str, rng: random.Random) -> tuple[Path, Path] | None:
        """What follows by one relation from the old object and from the new one, where they differ."""
        if not scoring_wordings(edit.relation).phrases:
            return None
        old_ones = {fact.relation.id: fact for fact in self._onward[old]}
        pairs = [
            ((old_ones[fact.relation.id],), (fact,))
            for fact in self._onward[edit.target]
            if fact.relation.id in old_ones
            and scoring_wordings(fact.relation).questions
            and old_ones[fact.relation.id].object != fact.object
        ]
        return rng.choice(pairs) if pairs else None


def _askable(path: Path) -> bool:
    """Whether no entity comes twice, and the last hop can be asked for."""
    names = [path[0].subject, *(fact.object for fact in path)]
    return len(set(names)) == len(names) and bool(scoring_wordings(path[-1].relation).questions)


def _item(id: str, edit: Edit, way: Way, rng: random.Random) -> dict[str, Any]:
    before, after = way.before, way.after
    wordings = [scoring_wordings(fact.relation) for fact in after]
    draws = DRAWS if len(after) > 1 else 0
    questions = dict.fromkeys(chain_question(after[0].subject, wordings, rng) for _ in range(draws))
    return {
        "case_id": id,
        "requested_rewrite": [_rewrite(edit, before[way.at].object)],
        "questions": list(questions)[:QUESTIONS],
        "answer": before[-1].object,
        "answer_alias": list(before[-1].aliases),
        "new_answer": after[-1].object,
        "new_answer_alias": list(after[-1].aliases),
        "single_hops": [_hop(fact) for fact in before],
        "new_single_hops": [_hop(fact) for fact in after],
        "orig": {
            "triples": [_triple(fact) for fact in before],
            "triples_labeled": [_triple(fact) for fact in before],
            "new_triples": [_triple(fact) for fact in after],
            "new_triples_labeled": [_triple(fact) for fact in after],
        },
    }


def _rewrite(edit: Edit, old: str) -> dict[str, Any]:
    relation = edit.relation
    row = {
        "prompt": relation.prompt,
        "relation_id": relation.id,
        "target_new": {"str": edit.target},
        "target_true": {"str": old},
        "subject": edit.subject,
        "question": _asked(edit.fact),
    }
    if mquake().get(relation.id) != relation:
        scored = relation.questions[1:][-1:]
        written = [q for q in relation.questions if q not in scored]
        phrases = list(relation.phrases)
        row["wordings"] = {"prompts": list(relation.prompts), "questions": written, "phrases": phrases}
        row["scored_paraphrases"] = list(scored)
    return row


def _asked(fact: Fact) -> str:
    return (fact.relation.questions or fact.relation.prompts)[0].format(fact.subject)


def _hop(fact: Fact) -> dict[str, Any]:
    return {
        "question": _asked(fact),
        "cloze": fact.prompt.format(fact.subject),
        "answer": fact.object,
        "answer_alias": list(fact.aliases),
    }


def _triple(fact: Fact) -> list[str]:
    return [fact.subject, fact.relation.id, fact.object]
