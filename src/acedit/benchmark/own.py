"""Cases from edits of one's own: does an edit hold, and does it carry through a chain?

    rows = own_cases(edits, known)                  # MQuAKE items, one an edit
    cases = cases_from(rows)
    patch, _ = edit_cases(lm, cases, method("ace"), known=known)
    evaluate(lm, cases, patch=patch, known=known)

A case asks for an edit's fact in the wordings held out for scoring, and for a chain through it that known
facts supply: what leads to the subject, what follows from the new object, or both, by turns over the edits.

Footguns: an edit has to be made from the cases, not from what they were made of, else its prompts may be
what scores it (`acedit edit` takes the cases' file in place of the edits'). A relation of one's own has no
wordings held out: its last question scores, if it has several, and the edit does without that one. What
the model knows is not asked here but by the Scorer, which counts only chains that it answers unedited.
"""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from acedit.benchmark.score import scoring_wordings
from acedit.knowledge.compose import reserved
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.items import asked_alone, chain_questions, item, own_wordings
from acedit.knowledge.relations import Relation, held_out

log = logging.getLogger("acedit")

POSITIONS = {"implicit": (True, False), "explicit": (False, True), "middle": (True, True)}
"""By where an edit stands: whether a hop leads to it, and whether one follows."""

Path = tuple[Fact, ...]


class Way(NamedTuple):
    """A chain through an edit, before and after it, and which hop is edited."""

    before: Path
    after: Path
    at: int


def own_cases(edits: Sequence[Edit], known: Sequence[Fact], *, seed: int = 0) -> list[dict[str, Any]]:
    """An item in MQuAKE's format for each edit.

    The kind of chain is one that fewest edits before had, of those that `known` has facts for; without any,
    or where the old object is neither given nor known (which is said), the case is of one hop, and no chain
    is asked. A chain leads to the subject over a fact that no prompt of an edit uses (`compose.reserved`);
    where there is none, over one of several, whose subject the edit must then leave alone. seed: which
    facts and wordings are drawn.
    """
    paths = _Paths(edits, known, seed)
    used: Counter[str] = Counter()
    items = []
    for i, edit in enumerate(edits):
        rng = random.Random(f"{seed}/own/{edit.subject}/{edit.relation.id}")
        old = paths.before(edit)
        if old is None:
            log.warning(
                "%r with %s is asked no chain: give the edit its 'old' object, or the fact among those known",
                edit.subject, edit.relation.name or edit.relation.id,
            )  # fmt: skip
        ways = paths.around(edit, old, rng) if old is not None else {}
        position = min(ways, key=lambda name: used[name], default="")
        used[position] += 1
        alone = Way((old or edit.fact,), (edit.fact,), 0)
        items.append(_item(f"own-{i}", edit, ways.get(position, alone), rng))
    return items


class _Paths:
    """Known facts by what they start and end in."""

    def __init__(self, edits: Sequence[Edit], known: Sequence[Fact], seed: int) -> None:
        edited = {edit.key for edit in edits}
        self._known = {fact.key: fact for fact in known}
        self._onward: Mapping[str, list[Fact]] = defaultdict(list)
        leading: Mapping[str, list[Fact]] = defaultdict(list)
        for fact in known:
            if fact.key not in edited:
                self._onward[fact.subject].append(fact)
                if _scored(fact.relation).phrases:
                    leading[fact.object].append(fact)
        self._leading = {
            name: _spared(leading[name], random.Random(f"{seed}/own/{name}"))
            for name in dict.fromkeys(edit.subject for edit in edits)
        }

    def before(self, edit: Edit) -> Fact | None:
        """The edited fact as it was; None where its object is not known, or is the new one."""
        fact = self._known.get(edit.key)
        old = edit.old or (fact.object if fact is not None else "")
        if old in ("", edit.target):
            return None
        aliases = fact.aliases if fact is not None and fact.object == old else ()
        return Fact(edit.subject, edit.relation, old, aliases)

    def around(self, edit: Edit, was: Fact, rng: random.Random) -> dict[str, Way]:
        """By where the edit stands in it, a chain that the known facts make through it."""
        leads: list[Path] = [(fact,) for fact in self._leading[edit.subject]]
        follows = self._follows(edit, was)
        rng.shuffle(follows)
        found = {}
        for position, (led, followed) in POSITIONS.items():
            ways = (
                Way((*front, was, *old), (*front, edit.fact, *new), len(front))
                for front in (leads if led else [()])
                for old, new in (follows if followed else [((), ())])
            )
            way = next((w for w in ways if _askable(w.before) and _askable(w.after)), None)
            if way is not None:
                found[position] = way
        return found

    def _follows(self, edit: Edit, was: Fact) -> list[tuple[Path, Path]]:
        """What follows by one relation from the old object and from the new one, where they differ."""
        if not _scored(edit.relation).phrases:
            return []
        old_ones = {fact.relation.id: fact for fact in self._onward[was.object]}
        return [
            ((old_ones[fact.relation.id],), (fact,))
            for fact in self._onward[edit.target]
            if fact.relation.id in old_ones and old_ones[fact.relation.id].object != fact.object
        ]


def _spared(leads: Sequence[Fact], rng: random.Random) -> list[Fact]:
    """Of what leads to a subject, what a question may start with: facts that no prompt uses, or else one of
    several, so that prompts have others to start from."""
    kept = [fact for fact in leads if reserved(*fact.key)]
    if kept:
        return rng.sample(kept, k=len(kept))
    return rng.sample(leads, k=1) if len(leads) > 1 else []


def _scored(relation: Relation) -> Relation:
    """The wordings a relation is asked in here: those held out, for one's own its last question."""
    if held_out(relation.id) is not None:
        return scoring_wordings(relation)
    return replace(relation, questions=relation.questions[-1:])


def _askable(path: Path) -> bool:
    """Whether no entity comes twice, and the last hop can be asked for."""
    names = [path[0].subject, *(fact.object for fact in path)]
    return len(set(names)) == len(names) and bool(_scored(path[-1].relation).questions)


def _item(id: str, edit: Edit, way: Way, rng: random.Random) -> dict[str, Any]:
    before, after = way.before, way.after
    wordings = [_scored(fact.relation) for fact in after]
    questions = chain_questions(after[0].subject, wordings, rng) if len(after) > 1 else []
    rewrites = [_rewrite(edit, before[way.at].object)]
    old, new = ([[f.subject, f.relation.id, f.object] for f in path] for path in (before, after))
    return {
        **item(id, before, after, rewrites=rewrites, questions=questions),
        "orig": {
            "triples": old,
            "triples_labeled": old,
            "new_triples": new,
            "new_triples_labeled": new,
        },
    }


def _rewrite(edit: Edit, old: str) -> dict[str, Any]:
    relation, held = edit.relation, held_out(edit.relation.id)
    own = {*relation.prompts, *relation.questions}
    scored = [text for text in (*held.prompts, *held.questions) if text not in own] if held else []
    written = list(relation.questions)
    if not scored and len(written) > 1:
        scored = [written.pop()]
    return {
        "prompt": relation.prompt,
        "relation_id": relation.id,
        "target_new": {"str": edit.target},
        **({"target_true": {"str": old}} if old != edit.target else {}),
        "subject": edit.subject,
        "question": asked_alone(edit.fact),
        "scored_paraphrases": scored,
        **own_wordings(replace(relation, questions=tuple(written))),
    }
