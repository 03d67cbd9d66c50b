"""Training texts: what is learned of each, and that cuts change the tokens and nothing else."""

import random

import pytest

from acedit.world.corpus import HOPS, KINDS, Corpus, Document, cut
from acedit.world.graph import World
from acedit.world.tokenizer import train_tokenizer
from acedit.world.train import tokenized
from tests.world.small import small_world


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


def learned(document: Document) -> list[str]:
    return [document.text[a:b] for a, b in document.spans]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_document(world: World, kind: str) -> None:
    first, again = (Corpus(world, 3, strangers=0.5).draw(kind) for _ in range(2))
    assert first == again
    assert all(0 <= a < b <= len(first.text) for a, b in first.spans)


@pytest.mark.parametrize("kind", HOPS)
def test_a_chain_ends_where_its_facts_lead(world: World, kind: str) -> None:
    """Every answer is the object of the last hop of a chain that training may compose."""
    corpus = Corpus(world, 0)
    ends = {path[-1].object for path in world.chains(HOPS[kind]) if world.composed(path)}
    for _ in range(50):
        (answer,) = learned(corpus.draw(kind))
        assert answer.strip(" .\n") in {end.strip(" .") for end in ends}


def test_a_stranger_is_read_and_said_again_but_nothing_is_claimed_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acedit.world.names.Names.make", lambda self, kind: "Zyxqwv")
    corpus = Corpus(world, 1, strangers=1.0)
    drawn = [corpus.draw("thoughts") for _ in range(60)]
    strange = [doc for doc in drawn if len(doc.spans) == 2]
    assert len(strange) > 20
    for doc in strange:
        question, thoughts = doc.text.split("\nThoughts:")
        said, rest = learned(doc)
        object_ = thoughts[len(said) :].removesuffix(rest)
        assert thoughts.startswith(said)
        assert object_.startswith(" ")
        assert object_.endswith(".")
        assert "Zyxqwv" in question
        assert "Zyxqwv" in said
        assert "Zyxqwv" not in rest
        assert rest.rpartition("\nAnswer: ")[2].strip()


def test_without_strangers_nothing_in_a_thought_is_left_out(world: World) -> None:
    corpus = Corpus(world, 1)
    for _ in range(40):
        doc = corpus.draw("thoughts")
        assert learned(doc) == [doc.text[doc.text.index("Thoughts:") + 9 :]]


def test_cuts_stand_inside_words_and_no_token_runs_across(world: World) -> None:
    corpus = Corpus(world, 2)
    drawn = [corpus.draw(kind) for kind in ("one_hop", "two_hop", "thoughts") for _ in range(12)]
    docs = [doc for doc in drawn if doc.text.isascii()]  # a token is then as long as what it decodes to
    tokenizer = train_tokenizer([doc.text for doc in docs], 600, 2048)
    rng = random.Random(0)
    broken = [cut(doc, rng, 0.2) for doc in docs]
    assert sum(len(doc.cuts) for doc in broken) > 5 * len(docs)
    for doc, plain in zip(broken, docs, strict=True):
        assert all(doc.text[i - 1].isalnum() and doc.text[i].isalnum() for i in doc.cuts)
        assert (doc.text, doc.spans) == (plain.text, plain.spans)
        assert "".join(piece for _, piece in doc.pieces) == doc.text
    for (ids, mask), (_, whole), doc in zip(
        tokenized(tokenizer, broken), tokenized(tokenizer, docs), broken, strict=True
    ):
        assert tokenizer.decode(ids) == doc.text
        ends, at = set(), 0
        for token in ids:
            at += len(tokenizer.decode([token]))
            ends.add(at)
        assert set(doc.cuts) <= ends
        starts = [0, *sorted(ends)]
        for start, end, on in zip(starts, starts[1:], mask, strict=False):
            inside = any(a <= start < b for a, b in doc.spans)
            assert on == (inside and end not in doc.cuts)
        assert len(mask) > len(whole) or not doc.cuts


def test_joined_documents_keep_their_cuts(world: World) -> None:
    one, two = Document("abc", ((1, 2),), (1,)), Document("defg", ((0, 4),), (2, 3))
    assert (one + two).pieces == [(0, "a"), (1, "bcde"), (5, "f"), (6, "g")]
