"""The bundled world: real MQuAKE facts, completed and surrounded by generated ones.

    world = build_world()                 # seeded: the same graph every time
    world.objects["Fernando Santos", "P27"]          # 'Portugal'
    world.chains(2)                                  # every two-hop chain, as tuples of facts
    world.pool(chain)                                # 'train', 'dev' or 'test'

Facts of `data/mquake_*.json` are real; every other fact, also about a real entity, is invented so that
chains go on. Footgun: do not read this world as knowledge.

A chain's pool decides what may be done with it. Only `train` chains are ever composed into a training
text, and a chain that contains a held-out chain is not composed either; single hops are always taught.
The chains of the real cases (pool `real`) are never composed. A two-hop chain goes to `dev` or `test` only
where both its facts are still composed with others (`COVER`): what is held out is the pairing, not a fact's
whole use in pairs.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

from acedit.world.names import Names
from acedit.world.schema import KINDS, SIGNATURES, WORDS

SEED = 20260
COVER = 2  # two-hop training chains that start (end) with each first (last) fact of a held-out one, at least


class Triple(NamedTuple):
    """One fact of the world: (subject, relation id, object)."""

    subject: str
    relation: str
    object: str


Path = tuple[Triple, ...]  # each object is the next subject


def mquake_cases(name: str) -> list[dict[str, Any]]:
    """The real MQuAKE cases in the package: `name` is "2hop" (12 cases) or "hard" (200)."""
    text = resources.files("acedit.world").joinpath(f"data/mquake_{name}.json").read_text("utf-8")
    cases: list[dict[str, Any]] = json.loads(text)
    return cases


@dataclass(frozen=True)
class World:
    """Entities by type, facts, aliases, and which chains are held out."""

    kinds: Mapping[str, str]  # entity -> type
    objects: Mapping[tuple[str, str], str]  # (subject, relation id) -> object
    aliases: Mapping[str, tuple[str, ...]]
    real: frozenset[tuple[str, str]]  # (subject, relation id) of the real facts
    withheld: frozenset[tuple[str, ...]] = field(default=frozenset())  # keys of real cases' chains

    @cached_property
    def facts(self) -> tuple[Triple, ...]:
        """Every fact, in a fixed order."""
        return tuple(Triple(s, r, o) for (s, r), o in self.objects.items())

    @cached_property
    def by_subject(self) -> Mapping[str, tuple[Triple, ...]]:
        """Facts by the entity they speak of."""
        rows: dict[str, list[Triple]] = defaultdict(list)
        for fact in self.facts:
            rows[fact.subject].append(fact)
        return {subject: tuple(facts) for subject, facts in rows.items()}

    @cached_property
    def range_of(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """The objects of a type that a relation takes in this world, each once: (relation, type) -> them."""
        rows: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for fact in self.facts:
            rows[fact.relation, self.kinds[fact.object]][fact.object] = None
        return {key: tuple(objects) for key, objects in rows.items()}

    def extend(self, path: Path) -> Iterator[Path]:
        """The chains one hop longer that revisit no entity."""
        seen = {fact.subject for fact in path} | {path[-1].object}
        for fact in self.by_subject.get(path[-1].object, ()):
            if fact.object not in seen:
                yield (*path, fact)

    def chains(self, hops: int) -> tuple[Path, ...]:
        """Every chain of `hops` facts, in a fixed order."""
        paths: list[Path] = [(fact,) for fact in self.facts if fact.subject != fact.object]
        for _ in range(hops - 1):
            paths = [longer for path in paths for longer in self.extend(path)]
        return tuple(paths)

    def pool(self, path: Path) -> str:
        """'train', 'dev', 'test' or 'real': by a hash of the chain itself, about 6 of a hundred each for
        dev and test at two hops (see `COVER`), 8 for longer chains; the real cases' chains by themselves."""
        key = path_key(path)
        if key in self.withheld:
            return "real"
        if len(path) == 2 and key not in self._held_out:
            return "train"
        return _draw(key)

    @cached_property
    def _held_out(self) -> frozenset[tuple[str, ...]]:
        """Keys of the two-hop chains in dev and test."""
        free = [path for path in self.chains(2) if path_key(path) not in self.withheld]
        first = Counter(path[0] for path in free)
        last = Counter(path[1] for path in free)
        held = set()
        for path in sorted(free, key=lambda path: _hash(path_key(path))):
            a, b = path
            if _draw(path_key(path)) != "train" and first[a] > COVER and last[b] > COVER:
                first[a] -= 1
                last[b] -= 1
                held.add(path_key(path))
        return frozenset(held)

    def composed(self, path: Path) -> bool:
        """Whether training may compose this chain: neither it nor a part of it is held out."""
        return all(
            self.pool(path[i:j]) == "train" for i in range(len(path)) for j in range(i + 2, len(path) + 1)
        )


def _hash(key: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.sha256("|".join(key).encode()).digest()[:4], "big")


def _draw(key: tuple[str, ...]) -> str:
    draw = _hash(key) % 100
    return "test" if draw < 8 else "dev" if draw < 16 else "train"


def path_key(path: Path) -> tuple[str, ...]:
    """What names a chain: its start and its relations."""
    return (path[0].subject, *(fact.relation for fact in path))


def _real_facts() -> tuple[dict[tuple[str, str], str], dict[str, dict[str, None]]]:
    """Facts and aliases of the real cases."""
    objects: dict[tuple[str, str], str] = {}
    aliases: dict[str, dict[str, None]] = defaultdict(dict)
    cases = mquake_cases("2hop") + mquake_cases("hard")
    for case in cases:
        orig = case["orig"]
        for triple, hop in zip(orig["triples"], case["single_hops"], strict=True):
            label = orig["triples_labeled"][orig["triples"].index(triple)]
            objects.setdefault((label[0], triple[1]), hop["answer"])
        for hop in case["single_hops"] + case["new_single_hops"]:
            aliases[hop["answer"]].update(dict.fromkeys(hop["answer_alias"]))
    for case in cases:
        for rewrite in case["requested_rewrite"]:
            key = rewrite["subject"], rewrite["relation_id"]
            objects.setdefault(key, rewrite["target_true"]["str"])
    for case in mquake_cases("2hop"):
        orig = case["orig"]
        rows = zip(
            orig["new_triples"],
            orig["new_triples_labeled"],
            case["new_single_hops"],
            strict=True,
        )
        for triple, label, hop in rows:
            if triple not in orig["edit_triples"]:
                objects.setdefault((label[0], triple[1]), hop["answer"])
    return objects, aliases


def _infer_kinds(objects: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """A type for each real entity: the first relation of `SIGNATURES` that it takes part in."""
    rank = {relation: i for i, relation in enumerate(SIGNATURES)}
    best: dict[str, tuple[int, str]] = {}
    for (subject, relation), obj in objects.items():
        for entity, kind in zip((subject, obj), SIGNATURES[relation], strict=True):
            vote = rank[relation], kind
            best[entity] = min(best.get(entity, vote), vote)
    return {entity: kind for entity, (_, kind) in best.items()}


def _hubs(
    kinds: Mapping[str, str], objects: Mapping[tuple[str, str], str], rng: random.Random
) -> dict[str, list[str]]:
    """The entities that generated facts may point at, by type.

    A hop through an entity is only learned as a hop where many facts lead to it (docs/decisions.md:
    held-out two-hop questions were right 0.12 of the time with no other chain through the same second
    fact, 0.87 with more than thirty), so a few entities of each type are pointed at often: those of the
    real two-hop cases first.
    """
    first: dict[str, None] = {}
    for case in mquake_cases("2hop"):
        for triple in case["orig"]["triples_labeled"] + case["orig"]["new_triples_labeled"]:
            first[triple[0]] = first[triple[2]] = None
    members: dict[str, list[str]] = defaultdict(list)
    for kind in KINDS:
        everyone = sorted(entity for entity in kinds if kinds[entity] == kind)
        rng.shuffle(everyone)
        pointed_at = set(objects.values())
        everyone.sort(key=lambda e: (e not in first, e not in pointed_at and kind == "country"))
        members[kind] = everyone[: KINDS[kind].hubs]
    return members


def build_world(seed: int = SEED) -> World:
    """The world of `seed`: real facts first, completed for real entities, then generated ones."""
    rng = random.Random(seed)
    objects, alias_rows = _real_facts()
    real = frozenset(objects)
    edited: dict[tuple[str, str], str] = {}
    for case in mquake_cases("2hop") + mquake_cases("hard"):
        for rewrite in case["requested_rewrite"]:
            key = rewrite["subject"], rewrite["relation_id"]
            edited.setdefault((*key,), rewrite["target_new"]["str"])
    targets = {(f"\0{i}", key[1]): new for i, (key, new) in enumerate(edited.items())}
    kinds = _infer_kinds({**targets, **objects})
    kinds = {entity: kind for entity, kind in kinds.items() if not entity.startswith("\0")}
    names = Names(rng, frozenset(kinds))
    drawn: set[str] = set()
    for kind, row in KINDS.items():
        words = WORDS.get(kind)
        for i in range(row.count):
            name = words[i] if words else names.make(kind)
            kinds.setdefault(name, kind)
            drawn.add(name)
    members = _hubs(kinds, objects, rng)
    pointed_at = {entity for hubs in members.values() for entity in hubs}
    for entity in sorted(kinds):
        row = KINDS[kinds[entity]]
        for relation, (object_kind, odds) in row.relations.items():
            if rng.random() >= odds * (1.0 if entity in drawn or entity in pointed_at else row.completed):
                continue
            choices = [m for m in members[object_kind] if m != entity]
            # Every draw is made whether or not it is used, so that one fact does not move the rest.
            choice = rng.choice(choices)
            objects.setdefault((entity, relation), choice)
    withheld = set()
    for case in mquake_cases("2hop") + mquake_cases("hard"):
        labels = case["orig"]["triples_labeled"]
        relations = [triple[1] for triple in case["orig"]["triples"]]
        for i in range(len(labels)):
            for j in range(max(i + 2, i + len(labels) - 1), len(labels) + 1):
                withheld.add((labels[i][0], *relations[i:j]))
    return World(
        kinds=kinds,
        objects=objects,
        aliases={name: tuple(rows) for name, rows in alias_rows.items() if rows},
        real=real,
        withheld=frozenset(withheld),
    )
