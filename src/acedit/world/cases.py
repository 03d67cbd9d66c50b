"""Fresh MQuAKE-format cases of the bundled world, so that anyone can score on cases of their own.

    items = make_cases(build_world(), seed=7, n=100, edits=1, pool="test")

A case's original chain is one that training never composed (its pool). Its three questions, and the
wordings that score its edits (`scored_paraphrases`), are worded with held-out wordings only, which
nothing that makes an edit may use. Cases of one draw never touch one another's edited facts, so any
number of them can be edited at once and every answer still stands.

Footguns: ids are entity names. Facts about real entities are partly invented (see `graph`).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from acedit.errors import UserError
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.items import chain_questions, item
from acedit.knowledge.relations import Relation, held_out, mquake
from acedit.world.graph import Path, Triple, World

Pool = Literal["dev", "test"]
POSITIONS = ("explicit", "middle", "implicit")
PATIENCE = 2000  # draws in a row that fit nowhere, and the pool counts as empty


def make_cases(
    world: World,
    *,
    seed: int,
    n: int,
    edits: int = 1,
    pool: Pool = "dev",
    position: str | None = None,
    hops: int | None = None,
) -> list[dict[str, Any]]:
    """`n` items in MQuAKE's format, each with `edits` (1 to 4) edited facts in a chain of 2 to 4 hops.

    position: where the edited fact stands; None takes those that the lengths allow in turn for one edit,
    and whatever comes for more. hops: the chain's length, None for 2 to 4. Raises UserError for
    an impossible wish, or where the pool runs out.
    """
    if not 1 <= edits <= 4:
        raise UserError(f"--edits {edits}: a case has 1 to 4 edited facts")
    if n < 1:
        raise UserError(f"--n {n}: ask for at least one case")
    if hops is not None and not max(2, edits) <= hops <= 4:
        raise UserError(f"hops {hops}: a chain with {edits} edits has {max(2, edits)} to 4 hops")
    if position is not None and position not in (*POSITIONS, "mixed"):
        raise UserError(f"position {position!r}: choose explicit, middle, implicit or mixed")
    rng = random.Random(f"{seed}/{pool}/{edits}")
    chains = {
        length: [path for path in world.chains(length) if world.pool(path) == pool]
        for length in ((2, 3, 4) if hops is None else (hops,))
    }
    places = [p for p in POSITIONS if p != "middle" or max(chains) >= edits + 2]
    items: list[dict[str, Any]] = []
    edited: set[tuple[str, str]] = set()
    used: set[tuple[str, str]] = set()
    misses = 0
    while len(items) < n and misses < PATIENCE:
        misses += 1
        place = position or (places[len(items) % len(places)] if edits == 1 else None)
        lengths = [k for k in chains if k >= edits and (place != "middle" or k >= edits + 2)]
        if not lengths:
            raise UserError(f"no chain of the asked length has {edits} edits in position {place!r}")
        before = rng.choice(chains[rng.choice(lengths)])
        spots = rng.choice(list(combinations(range(len(before)), edits)))
        if place is not None and _position(spots, len(before)) != place:
            spots = _spots(place, len(before), edits, rng)
        after = _edited(world, before, spots, rng)
        if after is None or after[-1].object == before[-1].object:
            continue
        changed = {(after[i].subject, after[i].relation) for i in spots}
        touched = {(f.subject, f.relation) for f in (*before, *after)}
        if changed & used or touched & edited:
            continue
        misses = 0
        edited |= changed
        used |= touched
        several = f"{edits}e-" if edits > 1 else ""
        id = f"{pool}-{seed}-{several}{len(items)}"
        items.append(_item(world, id, before, after, spots, pool, rng))
    if len(items) < n:
        raise UserError(f"the {pool} pool gave only {len(items)} of {n} such cases; ask for fewer")
    return items


def _position(spots: Sequence[int], length: int) -> str:
    places = {"explicit" if i == 0 else "implicit" if i == length - 1 else "middle" for i in spots}
    return places.pop() if len(places) == 1 else "mixed"


def _spots(place: str, length: int, edits: int, rng: random.Random) -> tuple[int, ...]:
    fitting = [s for s in combinations(range(length), edits) if _position(s, length) == place]
    if not fitting:
        raise UserError(f"{edits} edits in a chain of {length} hops cannot all be {place!r}")
    return rng.choice(fitting)


def _edited(world: World, before: Path, spots: Sequence[int], rng: random.Random) -> Path | None:
    """The chain once the facts at `spots` have another object; None where it does not go on."""
    after: list[Triple] = []
    subject = before[0].subject
    for i, fact in enumerate(before):
        true = world.objects.get((subject, fact.relation))
        if true is None:
            return None
        if i in spots:
            fitting = world.range_of[fact.relation, world.kinds[true]]
            others = [o for o in fitting if o not in (true, subject)]
            if not others:
                return None
            true = rng.choice(others)
        after.append(Triple(subject, fact.relation, true))
        subject = true
    entities = [after[0].subject, *(fact.object for fact in after)]
    return tuple(after) if len(set(entities)) == len(entities) else None


def _item(
    world: World,
    id: str,
    before: Path,
    after: Path,
    spots: Sequence[int],
    pool: str,
    rng: random.Random,
) -> dict[str, Any]:
    scoring = [_held_out(fact.relation) for fact in before]
    was, now = ([_fact(world, triple) for triple in path] for path in (before, after))
    return {
        **item(
            id,
            was,
            now,
            rewrites=[_rewrite(world, after[i]) for i in spots],
            questions=chain_questions(before[0].subject, scoring, rng),
        ),
        "orig": {
            "triples": [list(fact) for fact in before],
            "triples_labeled": [_labelled(fact) for fact in before],
            "new_triples": [list(fact) for fact in after],
            "new_triples_labeled": [_labelled(fact) for fact in after],
            "edit_triples": [list(after[i]) for i in spots],
        },
        "position": _position(spots, len(before)),
        "pool": pool,
    }


def _held_out(id: str) -> Relation:
    relation = held_out(id)
    assert relation is not None, f"{id} has no held-out wordings"
    return relation


def _rewrite(world: World, fact: Triple) -> dict[str, Any]:
    relation, scoring = mquake()[fact.relation], _held_out(fact.relation)
    true = world.objects[fact.subject, fact.relation]
    return {
        "prompt": relation.prompt,
        "relation_id": fact.relation,
        "target_new": {"str": fact.object, "id": fact.object},
        "target_true": {"str": true, "id": true},
        "subject": fact.subject,
        "question": relation.questions[0].format(fact.subject),
        "scored_paraphrases": [*scoring.prompts, *scoring.questions],
    }


def _fact(world: World, triple: Triple) -> Fact:
    aliases = tuple(world.aliases.get(triple.object, ()))
    return Fact(triple.subject, mquake()[triple.relation], triple.object, aliases)


def _labelled(fact: Triple) -> list[str]:
    return [fact.subject, mquake()[fact.relation].name, fact.object]


def facts_of(world: World, edits: Sequence[Edit]) -> list[Fact]:
    """The world's facts but for those that are edited."""
    edited = {edit.key for edit in edits}
    return [
        Fact(f.subject, mquake()[f.relation], f.object, world.aliases.get(f.object, ()))
        for f in world.facts
        if (f.subject, f.relation) not in edited
    ]


def known_facts(world: World, items: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What the model knows, in the small form: every fact of the world but those the items edit."""
    edited = {
        (rewrite["subject"], rewrite["relation_id"])
        for item in items
        for rewrite in item["requested_rewrite"]
    }
    return {"facts": list(_small(world, edited))}


def _small(world: World, edited: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for fact in world.facts:
        if (fact.subject, fact.relation) not in edited:
            row: dict[str, Any] = {
                "subject": fact.subject,
                "relation": fact.relation,
                "object": fact.object,
            }
            if fact.object in world.aliases:
                row["aliases"] = list(world.aliases[fact.object])
            yield row
