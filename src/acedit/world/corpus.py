"""Training texts for the bundled model, drawn from the world by a seed.

    corpus = Corpus(build_world(), seed=0)
    corpus.draw("two_hop")        # Document(text=..., spans=((start, end), ...))

A document carries the character spans whose tokens are learned: objects, answers and thoughts. The
kinds of text teach what the paper needs: single hops (cloze, question, the G.2 form), latent questions of
two to four hops answered in one go, chains of two to four hops in chain-of-thought, and the last under the
verbatim few-shot prompts of appendices G.1 and G.2. A share of the thoughts begins at a stranger, a name made
up for that document: what is learned there is to read the name and say it again, not what is true of it.

`cut` breaks a document's words at random places, so that tokens that only stand inside longer ones are
learned too.

Footgun: only chains that `World.composed` allows are ever composed here; that is the train/test split.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from acedit.knowledge.compose import chain_cloze, chain_question, thoughts
from acedit.knowledge.prompts import COT_PROMPT, SINGLE_HOP_PROMPT
from acedit.knowledge.relations import Relation, held_out, mquake
from acedit.world.graph import Path, Triple, World
from acedit.world.names import MADE, Names

KINDS = ("one_hop", "two_hop", "three_hop", "four_hop", "thoughts", "few_shot", "few_shot_thoughts")
HOPS = {"two_hop": 2, "three_hop": 3, "four_hop": 4}


@dataclass(frozen=True)
class Document:
    """A text, the character spans (start, end) whose tokens count in the loss, and the places that no token
    runs across."""

    text: str
    spans: tuple[tuple[int, int], ...]
    cuts: tuple[int, ...] = ()

    def __add__(self, other: "Document") -> "Document":
        shift = len(self.text)
        moved = tuple((a + shift, b + shift) for a, b in other.spans)
        return Document(
            self.text + other.text, self.spans + moved, self.cuts + tuple(at + shift for at in other.cuts)
        )

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """The text between cuts, each with where it starts; joined they are the text."""
        ends = [0, *self.cuts, len(self.text)]
        return [(a, self.text[a:b]) for a, b in pairwise(ends)]


def cut(document: Document, rng: random.Random, rate: float) -> Document:
    """The document with a cut between two letters of a word with probability `rate`.

    After BPE dropout (Provilkov et al. 2020), which leaves out merges: a cut leaves out those that run
    across it.
    """
    text = document.text
    inside = (i for i in range(1, len(text)) if text[i - 1].isalnum() and text[i].isalnum())
    return replace(document, cuts=tuple(i for i in inside if rng.random() < rate))


def _document(prompt: str, learned: str) -> Document:
    return Document(prompt + learned, ((len(prompt), len(prompt) + len(learned)),))


def taught_wordings() -> dict[str, Relation]:
    """The relations as the model is taught them: the wordings for editing and those for scoring."""
    rows = {}
    for id, relation in mquake().items():
        more = held_out(id)
        assert more is not None
        rows[id] = Relation(
            id=id,
            prompts=relation.prompts + more.prompts,
            questions=relation.questions + more.questions,
            phrases=relation.phrases + more.phrases,
            name=relation.name,
        )
    return rows


class Corpus:
    """Draws documents; the same seed gives the same documents in the same order.

    `strangers` is the share of chains thought aloud that begin at one.
    """

    def __init__(self, world: World, seed: int, strangers: float = 0.0) -> None:
        self._rng = random.Random(seed)
        self._strangers = strangers
        self._kinds = world.kinds
        self._relations = taught_wordings()
        self._facts = world.facts
        self._chains: dict[int, Sequence[Path]] = {
            hops: [path for path in world.chains(hops) if world.composed(path)] for hops in (2, 3, 4)
        }

    def reseed(self, seed: int | str) -> None:
        """Start the draws again from `seed`; the chains stay."""
        self._rng = random.Random(seed)

    def draw(self, kind: str) -> Document:
        """One document of `kind`, one of `KINDS`."""
        if kind == "one_hop":
            return self._one_hop(self._rng.choice(self._facts))
        if kind in HOPS:
            return self._latent(self._rng.choice(self._chains[HOPS[kind]]))
        if kind == "thoughts":
            return self._thoughts()
        if kind == "few_shot":
            return self._few_shot()
        if kind == "few_shot_thoughts":
            return self._few_shot_thoughts()
        raise ValueError(f"no such kind of document: {kind!r}; known: {', '.join(KINDS)}")

    def _one_hop(self, fact: Triple) -> Document:
        relation = self._relations[fact.relation]
        form = self._rng.random()
        if form < 0.5:
            prompt = self._rng.choice(relation.prompts).format(fact.subject)
            return _document(prompt, f" {fact.object}.")
        question = self._rng.choice(relation.questions).format(fact.subject)
        if form < 0.85:
            return _document(f"Question: {question}\nAnswer:", f" {fact.object}\n")
        return _document(f"Q: {question} A:", f" {fact.object}\n")

    def _wording(self, path: Path, subject: str | None = None) -> str:
        relations = [self._relations[fact.relation] for fact in path]
        return chain_question(subject or path[0].subject, relations, self._rng)

    def _latent(self, path: Path) -> Document:
        if self._rng.random() < 0.35:
            relations = [self._relations[fact.relation] for fact in path]
            prompt = chain_cloze(path[0].subject, relations, self._rng)
            return _document(prompt, f" {path[-1].object}.")
        return _document(f"Question: {self._wording(path)}\nAnswer:", f" {path[-1].object}\n")

    def _thoughts(self) -> Document:
        if self._rng.random() < 0.15:
            path: Path = (self._rng.choice(self._facts),)
        else:
            path = self._rng.choice(self._chains[self._rng.choice((2, 3, 3, 4, 4))])
            named = self._kinds[path[0].subject] in MADE
            if self._strangers and named and self._rng.random() < self._strangers:
                return self._of_a_stranger(path)
        said = thoughts([(self._relations[f.relation], f.subject, f.object) for f in path])
        learned = f" {said}\nAnswer: {path[-1].object}\n"
        return _document(f"Question: {self._wording(path)}\nThoughts:", learned)

    def _of_a_stranger(self, path: Path) -> Document:
        first, *onward = path
        name = Names(self._rng).make(self._kinds[first.subject])
        relation = self._relations[first.relation]
        asked = Document(f"Question: {self._wording(path, name)}\nThoughts:", ())
        said = thoughts([(self._relations[f.relation], f.subject, f.object) for f in onward])
        return (
            asked
            + _document("", f" {relation.prompt.format(name)}")
            + _document(f" {first.object}.", f" {said}\nAnswer: {path[-1].object}\n")
        )

    def _short(self) -> Document:
        relation_fact = self._rng.choice(self._facts)
        question = self._rng.choice(self._relations[relation_fact.relation].questions)
        prompt = f"Q: {question.format(relation_fact.subject)} A:"
        return _document(prompt, f" {relation_fact.object}\n")

    def _few_shot(self) -> Document:
        shots = Document("", ())
        if self._rng.random() < 0.6:
            shots = Document(SINGLE_HOP_PROMPT + "\n", ())
        for _ in range(self._rng.randint(2, 8)):
            shots += self._short()
        return shots

    def _few_shot_thoughts(self) -> Document:
        shots = Document(COT_PROMPT + "\n\n", ())
        for _ in range(self._rng.randint(2, 6)):
            shots += self._thoughts() + Document("\n", ())
        return shots
