"""Chains into questions, and the prompts an edit is made from.

    relations = [mquake()["P27"], mquake()["P36"]]
    chain_question("Ann Lee", relations, random.Random(0))
    # 'What is the capital of the country of citizenship of Ann Lee?'

    Composer(edits, known, exclude={"Bo Ray"}, seed=0).prompts()

Seven kinds of prompt make an edit: `single` (the fact itself), `lead` (reach the subject through other
entities, then ask), `ripple` (ask what follows from the new object), `middle` (both at once), `keep`
(what else is true of the subject), `hold` (what else can be asked of it; the answer is left to the model,
so it is "") and `replay` (facts and chains that have to stay).

Footguns: wordings are drawn by seed from what the relations carry for editing, never from
`relations.held_out`; a question composed of them may still be one of a file's own, so give those as `avoid`.
No lead, middle or replay starts from an entity of `exclude` (an edit's own subject, or an earlier one's, is
asked all the same).
One known fact in five is used by no prompt, but where it is what follows at once from a new object: they are
there to measure what an edit did to facts it was not made from (`reserved`). What follows from a new object
is all asked, unless `Amounts.left_out` keeps a share of it for measuring the same of consequences
(`left_out`). What `earlier` edits say has to be among what is known (`known_after`); prompts of no edit's
(-1) say it again, and none that is held asks it.
"""

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, TypeVar

from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.prompts import space_before
from acedit.knowledge.relations import Relation

T = TypeVar("T")

_STARTS = re.compile(r"(?:\A|(?<=[.:?!\n])) *")

PATHS = 64  # ways in of each length that are gone on with
FRAMES = ("Tell me {}.", "Can you name {}?", "{}:", "{} is called")  # around a noun phrase, to ask for it
FRAMED = 2  # of them a relation a subject is asked after
AGAIN = 16  # earlier edits that are said again beside new ones

Kind = Literal["single", "lead", "ripple", "middle", "keep", "hold", "replay"]


def nest(subject: str, relations: Sequence[Relation], rng: random.Random) -> str:
    """The noun phrase that leads from `subject` through `relations`; the subject itself for none."""
    for relation in relations:
        subject = rng.choice(relation.phrases).format(subject)
    return subject


def chain_question(subject: str, relations: Sequence[Relation], rng: random.Random) -> str:
    """A question after the end of the chain: the last hop asks, the hops before it are nested."""
    reached = nest(subject, relations[:-1], rng)
    return rng.choice(relations[-1].questions).format(reached)


def chain_cloze(subject: str, relations: Sequence[Relation], rng: random.Random) -> str:
    """A cloze that the end of the chain completes."""
    reached = nest(subject, relations[:-1], rng)
    cloze = rng.choice(relations[-1].prompts).format(reached)
    return sentence(cloze) if len(relations) > 1 else cloze


def sentence(text: str) -> str:
    """`text` with its first letter capitalised, as at the start of a sentence."""
    return text[:1].upper() + text[1:]


def thoughts(hops: Iterable[tuple[Relation, str, str]]) -> str:
    """The chain's hops (relation, subject, object) said one after the other, as in appendix G.1."""
    return " ".join(f"{relation.prompt.format(s)} {o}." for relation, s, o in hops)


def reserved(subject: str, relation: str) -> bool:
    """Whether the fact (subject, relation id) is kept for scoring: one in five, by a hash."""
    return left_out(subject, relation, 0.2)


def left_out(subject: str, relation: str, share: float) -> bool:
    """Whether, of an edit of `subject`, the second relation is among the `share` that no prompt asks."""
    digest = hashlib.sha256(f"{subject}|{relation}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


class Wordings:
    """Texts that are looked for at the starts of sentences, all of them at once.

    A text is said where it stands at the beginning, or behind the end of a sentence and its spaces.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._of_length: dict[int, set[str]] = defaultdict(set)
        for text in texts:
            if text:
                self._of_length[len(text)].add(text)

    def said_in(self, text: str) -> str | None:
        """One of them that `text` says, None where it says none."""
        for start in _STARTS.finditer(text):
            for at in range(start.start(), start.end() + 1):
                for length, some in self._of_length.items():
                    if (found := text[at : at + length]) in some:
                        return found
        return None


def objects_of(facts: Iterable[Fact]) -> dict[str, list[str]]:
    """The objects that facts of each relation have, by its id, sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        found[fact.relation.id].add(fact.object)
    return {id: sorted(objects) for id, objects in found.items()}


def to_another(fact: Fact, objects: Mapping[str, Sequence[str]], rng: random.Random) -> Edit:
    """An edit of a known fact to another of its relation's `objects`, which must hold one."""
    others = [one for one in objects[fact.relation.id] if one != fact.object]
    return Edit(fact.subject, fact.relation, rng.choice(others), fact.object)


def _in_turn(*several: Sequence[T]) -> Iterator[T]:
    """The first of each, the second of each, and so on."""
    for row in zip_longest(*several):
        yield from (item for item in row if item is not None)


@dataclass(frozen=True)
class Prompt:
    """A text for the model to continue, and what it should say.

    `template` holds one `{}` where `subject` goes; `edit` is the index of the edit it serves, -1 for
    `replay` and for what earlier edits say. The edited token of a subject-token stage is the last token of
    that subject. `end` is the id of the token that is to follow the answer, if that is to be learned too.
    """

    template: str
    subject: str
    answer: str
    kind: Kind
    edit: int = -1
    end: int | None = None

    @property
    def text(self) -> str:
        """The filled template."""
        return self.template.replace("{}", self.subject)

    @property
    def whole(self) -> str:
        """The filled template and the answer."""
        return f"{self.text}{space_before(self.answer)}{self.answer}"

    @property
    def form(self) -> Literal["cloze", "question", "thoughts"]:
        """How it asks, by what stands last: a sentence to complete, "Answer:" or "Thoughts:"."""
        if self.template.endswith("\nAnswer:"):
            return "question"
        return "thoughts" if self.template.endswith("\nThoughts:") else "cloze"


def asked(question: str) -> str:
    """A question in the direct form."""
    return f"Question: {question}\nAnswer:"


@dataclass(frozen=True)
class Amounts:
    """How many prompts of each kind are made for an edit, at most.

    hold: relations of the subject's kin that it is asked after, each as cloze and question. kin: subjects of
    the same relation that are asked after it in all its wordings and in some frames around its noun phrases,
    so many for one edit and for each of n a share, one at least. aloud: the share of replay that is thought
    aloud, whole chains said hop by hop. left_out: the share of second relations
    (what follows from the new object) that no prompt asks, 0 but for measuring how far an edit carries
    beyond its own prompts.
    """

    lead: int = 8
    ripple: int = 8
    middle: int = 6
    keep: int = 6
    replay: int = 40  # twice that for one edit; for n, so many times 1 + n // 3; beside others twice as many
    hold: int = 0
    kin: int = 0
    aloud: float = 0.0
    left_out: float = 0.0


def known_after(known: Sequence[Fact], earlier: Sequence[Edit]) -> list[Fact]:
    """`known` facts once `earlier` edits are in, each in the place of the fact it changed, new ones last."""
    said = {edit.key: edit.fact for edit in earlier}
    left, after = dict(said), []
    for fact in known:
        if fact.key not in said:
            after.append(fact)
        elif fact.key in left:
            after.append(left.pop(fact.key))
    return [*after, *left.values()]


class Composer:
    """The prompts for a batch of edits; the same arguments give the same prompts in the same order.

    earlier: edits that the model has taken already, beside which these go in.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        known: Sequence[Fact] = (),
        *,
        exclude: Collection[str] = (),
        avoid: Collection[str] = (),
        seed: int = 0,
        amounts: Amounts | None = None,
        earlier: Sequence[Edit] = (),
    ) -> None:
        self.edits = tuple(edits)
        self.amounts = amounts or Amounts()
        self._exclude = frozenset(exclude)
        self._avoid = Wordings(avoid)
        self._seed = seed
        self._edited = {edit.key: edit for edit in edits}
        self._earlier = {edit.key: edit for edit in earlier if edit.key not in self._edited}
        self._before = len(earlier)
        facts = [fact for fact in known if fact.key not in self._edited]
        self._known = facts
        # What will be true once the edits are in.
        self._after: dict[str, list[Fact]] = defaultdict(list)
        self._leads: dict[str, list[Fact]] = defaultdict(list)
        self._same: dict[str, list[Fact]] = defaultdict(list)
        for fact in [*facts, *(edit.fact for edit in edits)]:
            self._after[fact.subject].append(fact)
        for fact in facts:
            if fact.subject not in self._exclude:
                self._leads[fact.object].append(fact)
            self._same[fact.relation.id].append(fact)

    def prompts(self) -> list[Prompt]:
        """Every prompt, edit by edit, then the replay; but for those that hold a text of `avoid`."""
        made: list[Prompt] = []
        for i, edit in enumerate(self.edits):
            rng = random.Random(f"{self._seed}/{edit.subject}/{edit.relation.id}")
            for part in (
                self._single,
                self._lead,
                self._ripple,
                self._middle,
                self._keep,
                self._hold,
                self._kin,
            ):
                made.extend(dict.fromkeys(part(i, edit, rng)))
        # Each edit of a sequence replays something else.
        drawn = f"{self._seed}/{self._before}" if self._before else f"{self._seed}"
        made.extend(dict.fromkeys(self._again(random.Random(f"{drawn}/again"))))
        made.extend(dict.fromkeys(self._replay(random.Random(f"{drawn}/replay"))))
        return [p for p in made if not self._avoid.said_in(p.whole)]

    def _single(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        for template in edit.relation.prompts:
            yield Prompt(template, edit.subject, edit.target, "single", i)
        for question in edit.relation.questions:
            yield Prompt(asked(question), edit.subject, edit.target, "single", i)
            thought = f"{asked_thoughts(question.format(edit.subject))} {edit.prompt}"
            yield Prompt(thought, edit.subject, edit.target, "single", i)

    def _again(self, rng: random.Random) -> Iterator[Prompt]:
        """What earlier edits say: of some of them, a few prompts of each kind."""
        earlier = list(self._earlier.values())
        counts = {self._single: 4, self._lead: 3, self._ripple: 3, self._middle: 3, self._keep: 2}
        for edit in rng.sample(earlier, k=min(AGAIN, len(earlier))):
            for part, count in counts.items():
                made = list(dict.fromkeys(part(-1, edit, rng)))
                yield from rng.sample(made, k=min(count, len(made)))

    def _paths_to(self, subject: str, rng: random.Random) -> list[tuple[Fact, ...]]:
        """Known chains of one to three hops that end at `subject`, in turn."""
        by_length: list[list[tuple[Fact, ...]]] = []
        paths: list[tuple[Fact, ...]] = [()]
        for _ in range(3):
            paths = [
                (before, *path)
                for path in paths
                for before in self._leads[path[0].subject if path else subject]
                if before.relation.phrases
                and not reserved(*before.key)
                and before.subject not in {subject, *(f.subject for f in path)}
            ]
            paths = rng.sample(paths, k=min(PATHS, len(paths)))
            by_length.append(paths)
        return list(_in_turn(*by_length))

    def _asks(
        self,
        start: str,
        hops: Sequence[Relation],
        answer: str,
        kind: Kind,
        i: int,
        rng: random.Random,
    ) -> Iterator[Prompt]:
        if hops[-1].questions:
            yield Prompt(asked(chain_question("{}", hops, rng)), start, answer, kind, i)
        yield Prompt(chain_cloze("{}", hops, rng), start, answer, kind, i)

    def _ask(
        self, start: str, hops: Sequence[Relation], answer: str, kind: Kind, i: int, rng: random.Random
    ) -> Prompt:
        """One form of `_asks`: another chain teaches more than another form of the same."""
        return rng.choice(list(self._asks(start, hops, answer, kind, i, rng)))

    def _lead(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        for n, path in enumerate(self._paths_to(edit.subject, rng)[: self.amounts.lead]):
            hops = [*(fact.relation for fact in path), edit.relation]
            yield self._ask(path[0].subject, hops, edit.target, "lead", i, rng)
            if n < self.amounts.lead // 2 and len(path) == 1 and edit.relation.questions:
                question = chain_question(path[0].subject, hops, rng)
                said = thoughts([(path[0].relation, path[0].subject, edit.subject)])
                text = f"{asked_thoughts(question)} {said} {edit.prompt}"
                yield Prompt(text, edit.subject, edit.target, "single", i)

    def _onward(self, edit: Edit, rng: random.Random) -> list[tuple[Fact, ...]]:
        """Chains of one to three hops on from the new object: all of one, then two and three in turn."""
        first = [
            fact
            for fact in self._after[edit.target]
            if fact.object != edit.subject and not self._left_out(edit.subject, fact)
        ]
        by_length: list[list[tuple[Fact, ...]]] = [[(fact,) for fact in first]]
        for _ in range(2):
            longer = [
                (*path, fact)
                for path in by_length[-1]
                for fact in self._after[path[-1].object]
                if fact.object not in {edit.subject, edit.target, *(f.object for f in path)}
                and (fact.key in self._edited or not reserved(*fact.key))
                and not (self._told(path[-1].key) and self._left_out(path[-1].subject, fact))
            ]
            by_length.append(longer)
        for paths in by_length:
            rng.shuffle(paths)
        return [*by_length[0], *_in_turn(*by_length[1:])]

    def _told(self, key: tuple[str, str]) -> bool:
        """Whether an edit says the fact with this key, one of these or an earlier one."""
        return key in self._edited or key in self._earlier

    def _left_out(self, subject: str, follows: Fact) -> bool:
        """Whether no prompt may ask for what `follows` from an edit of `subject`."""
        return left_out(subject, follows.relation.id, self.amounts.left_out)

    def _ripple(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        if not edit.relation.phrases:
            return
        for path in self._onward(edit, rng)[: self.amounts.ripple]:
            hops = [edit.relation, *(fact.relation for fact in path)]
            yield self._ask(edit.subject, hops, path[-1].object, "ripple", i, rng)

    def _middle(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        if not edit.relation.phrases:
            return
        before_all = self._paths_to(edit.subject, rng)
        by_end = []
        for on in self._onward(edit, rng):
            fitting = [
                (before, on)
                for before in before_all
                if len(before) + len(on) <= 3 and before[0].subject != on[-1].object
            ]
            by_end.append(rng.sample(fitting, k=len(fitting)))
        # Every way on gets its share of the ways in; the shortest chains come first.
        pairs = sorted(_in_turn(*by_end), key=lambda pair: len(pair[0]) + len(pair[1]) > 2)
        for before, on in pairs[: self.amounts.middle]:
            hops = [*(fact.relation for fact in before), edit.relation, *(fact.relation for fact in on)]
            yield self._ask(before[0].subject, hops, on[-1].object, "middle", i, rng)

    def _keep(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        others = [
            fact
            for fact in self._after[edit.subject]
            if fact.key not in self._edited and fact.key != edit.key and not reserved(*fact.key)
        ]
        rng.shuffle(others)
        for fact in others[: self.amounts.keep]:
            yield from self._asks(edit.subject, [fact.relation], fact.object, "keep", i, rng)

    def _of_kin(self, edit: Edit) -> dict[str, Relation]:
        """What subjects of the edit's relation have, by id: what the edited one might be asked after."""
        kin = sorted({fact.subject for fact in self._same[edit.relation.id]})
        return {fact.relation.id: fact.relation for subject in kin for fact in self._after[subject]}

    def _hold(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        """The subject asked after what others of its kind have, at most `Amounts.hold` relations.

        Others of its kind: subjects of the same relation. There need be no such fact of this one.
        """
        relations = {
            id: relation
            for id, relation in self._of_kin(edit).items()
            if not self._told((edit.subject, id)) and not reserved(edit.subject, id)
        }
        for id in rng.sample(sorted(relations), k=min(self.amounts.hold, len(relations))):
            yield from self._asks(edit.subject, [relations[id]], "", "hold", i, rng)
            yield from self._framed(edit.subject, relations[id], i, rng, FRAMED if self.amounts.kin else 0)

    def _framed(
        self, subject: str, relation: Relation, i: int, rng: random.Random, count: int
    ) -> Iterator[Prompt]:
        """`count` ways of asking for a relation's noun phrase, to be held."""
        framed = [sentence(f.format(phrase)) for f in FRAMES for phrase in relation.phrases]
        for text in rng.sample(framed, k=min(count, len(framed))):
            yield Prompt(text if text[-1] not in ".?" else asked(text), subject, "", "hold", i)

    def _kin(self, i: int, edit: Edit, rng: random.Random) -> Iterator[Prompt]:
        """Others of the edit's relation, asked after it: what a new object must not be said of."""
        usable = self._others(edit)
        share = -(-self.amounts.kin // len(self.edits))
        for subject in rng.sample(usable, k=min(share, len(usable))):
            for template in (*edit.relation.prompts, *map(asked, edit.relation.questions)):
                yield Prompt(template, subject, "", "hold", i)
            yield from self._framed(subject, edit.relation, i, rng, 2 * FRAMED)

    def _others(self, edit: Edit) -> list[str]:
        """Subjects that have the edit's relation too, are not edited, and may be asked; sorted."""
        same = self._same[edit.relation.id]
        others = {f.subject for f in same if not reserved(*f.key) and not self._told(f.key)}
        return sorted(others - self._exclude - {edit.subject for edit in self.edits})

    def _replay(self, rng: random.Random) -> Iterator[Prompt]:
        usable = [fact for fact in self._known if not reserved(*fact.key)]
        if not usable:
            return
        near = [
            fact
            for edit in self.edits
            for fact in rng.sample(self._same[edit.relation.id], k=min(8, len(self._same[edit.relation.id])))
            if not reserved(*fact.key)
        ]
        count = self.amounts.replay * (2 if len(self.edits) == 1 else 1 + len(self.edits) // 3)
        count *= 2 if self._before else 1
        for draw in range(count):
            fact = rng.choice(near) if near and draw % 3 == 0 else rng.choice(usable)
            path = [fact]
            for _ in range(rng.choice((0, 0, 1, 1, 2))):
                on = [
                    after
                    for after in self._after[path[-1].object]
                    if after.object not in {f.subject for f in path} and not reserved(*after.key)
                ]
                if not on or not path[-1].relation.phrases:
                    break
                path.append(rng.choice(on))
            if any(self._told(f.key) for f in path) or path[0].subject in self._exclude:
                continue
            hops = [f.relation for f in path]
            if self.amounts.aloud and hops[-1].questions and rng.random() < self.amounts.aloud:
                said = thoughts((f.relation, f.subject, f.object) for f in path)
                text = asked_thoughts(chain_question("{}", hops, rng))
                yield Prompt(text, fact.subject, said, "replay", -1)
                continue
            form = list(self._asks(fact.subject, hops, path[-1].object, "replay", -1, rng))
            yield rng.choice(form)


def belief_texts(known: Sequence[Fact], *, seed: int = 0, chains: int = 1500) -> list[str]:
    """What is known, said in full: each fact as cloze and question, and chains of two and three hops.

    The same for every edit over the same facts, so what is worked out from it can be kept. Reserved
    facts are left out.
    """
    usable = [fact for fact in known if not reserved(*fact.key)]
    onward: dict[str, list[Fact]] = defaultdict(list)
    for fact in usable:
        onward[fact.subject].append(fact)
    texts = [f"{fact.prompt.format(fact.subject)} {fact.object}." for fact in usable]
    rng = random.Random(f"{seed}/beliefs")
    for fact in usable:
        if fact.relation.questions:
            question = rng.choice(fact.relation.questions).format(fact.subject)
            texts.append(f"{asked(question)} {fact.object}")
    for _ in range(chains if usable else 0):
        path = [rng.choice(usable)]
        for _ in range(rng.choice((1, 1, 2))):
            on = [f for f in onward[path[-1].object] if f.object not in {g.subject for g in path}]
            if not on or not path[-1].relation.phrases:
                break
            path.append(rng.choice(on))
        hops = [fact.relation for fact in path]
        if len(path) > 1 and hops[-1].questions:
            question = chain_question(path[0].subject, hops, rng)
            texts.append(f"{asked(question)} {path[-1].object}")
    return texts


def asked_thoughts(question: str) -> str:
    """A question in the chain-of-thought form, up to its thoughts."""
    return f"Question: {question}\nThoughts:"
