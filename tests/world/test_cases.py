"""Fresh cases: seeded, from their pool, worded to score, right under every edit of the draw."""

import pytest

from acedit.errors import UserError
from acedit.knowledge.facts import cases_from
from acedit.knowledge.relations import held_out, mquake
from acedit.world.cases import make_cases
from acedit.world.graph import Triple, World, build_world, mquake_cases, path_key


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


def test_the_world_holds_the_real_facts(world: World) -> None:
    for name in ("2hop", "hard"):
        for case in mquake_cases(name):
            for triple, hop, label in zip(
                case["orig"]["triples"], case["single_hops"], case["orig"]["triples_labeled"], strict=True
            ):
                assert world.objects[label[0], triple[1]] == hop["answer"]
    assert world.objects["Fernando Santos", "P27"] == "Portugal"
    assert world.objects["United Kingdom", "P35"] == "Elizabeth II"


def test_the_world_is_the_same_every_time(world: World) -> None:
    again = build_world()
    assert again.facts == world.facts
    assert build_world(seed=1).facts != world.facts


def test_real_chains_are_never_composed(world: World) -> None:
    for name in ("2hop", "hard"):
        for case in mquake_cases(name):
            orig = case["orig"]
            path = tuple(
                Triple(label[0], triple[1], label[2])
                for label, triple in zip(orig["triples_labeled"], orig["triples"], strict=True)
            )
            assert not world.composed(path)


def test_held_out_chains_are_in_no_composed_chain(world: World) -> None:
    held = {path_key(p) for p in world.chains(2) if world.pool(p) != "train"}
    composed = [p for p in world.chains(3) if world.composed(p)]
    assert composed
    for path in composed:
        assert path_key(path[:2]) not in held
        assert path_key(path[1:]) not in held


@pytest.mark.parametrize("edits", [1, 2, 3, 4])
@pytest.mark.parametrize("pool", ["dev", "test"])
def test_cases_are_consistent(world: World, edits: int, pool: str) -> None:
    items = make_cases(world, seed=5, n=20, edits=edits, pool=pool)  # type: ignore[arg-type]
    assert items == make_cases(world, seed=5, n=20, edits=edits, pool=pool)  # type: ignore[arg-type]
    cases = cases_from(items)
    everything = {**world.objects}
    for case in cases:
        assert len(case.edits) == edits == len(case.edited)
        for edit in case.edits:
            key = edit.key
            assert everything[key] == world.objects[key], "two cases edit the same fact"
            everything[key] = edit.target
    for case, item in zip(cases, items, strict=True):
        triples = tuple(Triple(f.subject, f.relation.id, f.object) for f in case.before.facts)
        assert world.pool(triples) == pool
        assert not world.composed(triples)
        subject = case.after.facts[0].subject
        for fact in case.after.facts:
            assert fact.subject == subject
            subject = everything[subject, fact.relation.id]
            assert fact.object == subject
        assert subject == case.new_answer != case.answer
        entity = case.before.facts[0].subject
        for fact in case.before.facts:
            entity = world.objects[entity, fact.relation.id]
        assert entity == case.answer
        assert item["position"] == case.position


def test_questions_are_worded_with_held_out_wordings_alone(world: World) -> None:
    for item in make_cases(world, seed=3, n=30, edits=1, pool="test"):
        last = item["orig"]["triples"][-1][1]
        scoring = held_out(last)
        assert scoring is not None
        own = mquake()[last]
        for question in item["questions"]:
            openings = {template.split("{}")[0] for template in scoring.questions}
            assert any(question.startswith(opening) for opening in openings)
            assert question not in {
                template.format(item["requested_rewrite"][0]["subject"]) for template in own.questions
            }


def test_positions_come_in_turn(world: World) -> None:
    items = make_cases(world, seed=0, n=9, edits=1, pool="dev")
    assert [item["position"] for item in items] == ["explicit", "middle", "implicit"] * 3
    wished = make_cases(world, seed=0, n=5, edits=1, pool="dev", position="middle", hops=3)
    assert {item["position"] for item in wished} == {"middle"}
    assert {len(item["single_hops"]) for item in wished} == {3}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"n": 0}, "at least one"),
        ({"edits": 5}, "1 to 4"),
        ({"edits": 3, "hops": 2}, "3 to 4 hops"),
        ({"position": "top"}, "choose explicit"),
        ({"n": 100_000}, "ask for fewer"),
    ],
)
def test_impossible_wishes_are_one_line(world: World, wish: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_cases(world, **{"seed": 0, "n": 3, "pool": "dev", **wish})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
