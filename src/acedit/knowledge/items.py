"""MQuAKE items, as they are written: what `facts.cases_from` reads.

    questions = chain_questions("Ann Lee", [citizen, capital], rng)
    row = item("case-1", before, after, rewrites=[...], questions=questions)
    row["orig"] = {"triples": ..., ...}             # the writer's own ids and labels

Relations that are not MQuAKE's, or not worded as there, carry their wordings with them.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from acedit.knowledge.compose import chain_question
from acedit.knowledge.facts import Fact
from acedit.knowledge.relations import Relation, mquake

QUESTIONS = 3  # wordings of a chain
DRAWS = 12  # to find them


def chain_questions(subject: str, relations: Sequence[Relation], rng: random.Random) -> list[str]:
    """At most `QUESTIONS` different questions after the end of the chain, of `DRAWS` drawn."""
    found: dict[str, None] = {}
    for _ in range(DRAWS):
        if len(found) < QUESTIONS:
            found[chain_question(subject, relations, rng)] = None
    return list(found)


def item(
    id: str,
    before: Sequence[Fact],
    after: Sequence[Fact],
    *,
    rewrites: Sequence[Mapping[str, Any]],
    questions: Sequence[str],
) -> dict[str, Any]:
    """An item of a chain before and after its edits, all but "orig"."""
    return {
        "case_id": id,
        "requested_rewrite": list(rewrites),
        "questions": list(questions),
        "answer": before[-1].object,
        "answer_alias": list(before[-1].aliases),
        "new_answer": after[-1].object,
        "new_answer_alias": list(after[-1].aliases),
        "single_hops": [_hop(fact) for fact in before],
        "new_single_hops": [_hop(fact) for fact in after],
    }


def asked_alone(fact: Fact) -> str:
    """A fact's own question, its cloze where the relation has none."""
    return (fact.relation.questions or fact.relation.prompts)[0].format(fact.subject)


def own_wordings(relation: Relation) -> dict[str, Any]:
    """The wordings of a relation that readers of a file do not know by its id."""
    if mquake().get(relation.id) == relation:
        return {}
    kinds = {"prompts": relation.prompts, "questions": relation.questions, "phrases": relation.phrases}
    return {"wordings": {kind: list(texts) for kind, texts in kinds.items()}}


def _hop(fact: Fact) -> dict[str, Any]:
    return {
        "question": asked_alone(fact),
        "cloze": fact.prompt.format(fact.subject),
        "answer": fact.object,
        "answer_alias": list(fact.aliases),
        **own_wordings(fact.relation),
    }
