"""The prompts an edit is made from: true once the edits are in, and never what scores them."""

import random
from dataclasses import replace

import pytest

from acedit.knowledge.compose import (
    AGAIN,
    Amounts,
    Composer,
    Prompt,
    asked,
    belief_texts,
    chain_cloze,
    chain_question,
    known_after,
    left_out,
    reserved,
)
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.relations import held_out, mquake
from acedit.world.cases import known_facts, make_cases
from acedit.world.graph import World, build_world

R = mquake()


@pytest.fixture(scope="module")
def world() -> World:
    return build_world()


@pytest.fixture(scope="module")
def known(world: World) -> list[Fact]:
    return [Fact(f.subject, R[f.relation], f.object) for f in world.facts]


def edits_of(world: World, n: int = 6, seed: int = 0) -> list[Edit]:
    items = make_cases(world, seed=seed, n=n, edits=1, pool="dev")
    rows = [row for item in items for row in item["requested_rewrite"]]
    return [
        Edit(r["subject"], R[r["relation_id"]], r["target_new"]["str"], r["target_true"]["str"]) for r in rows
    ]


def test_questions_nest() -> None:
    rng = random.Random(0)
    question = chain_question("Ann Lee", [R["P27"], R["P36"]], rng)
    assert "Ann Lee" in question
    assert question.endswith("?")
    assert chain_cloze("iPad", [R["P178"]], random.Random(1)).count("iPad") == 1


def test_the_same_seed_gives_the_same_prompts(world: World, known: list[Fact]) -> None:
    edits = edits_of(world)
    first = Composer(edits, known, seed=3).prompts()
    assert first == Composer(edits, known, seed=3).prompts()
    assert first != Composer(edits, known, seed=4).prompts()


def test_answers_hold_under_all_edits(world: World, known: list[Fact]) -> None:
    edits = edits_of(world, 12)
    after = {f.key: f.object for f in known} | {e.key: e.target for e in edits}
    objects = set(after.values())
    for prompt in Composer(edits, known).prompts():
        assert prompt.answer in objects
        if prompt.kind in ("single", "lead"):
            assert prompt.answer == edits[prompt.edit].target
        if prompt.kind == "keep":
            assert prompt.subject == edits[prompt.edit].subject
            assert prompt.answer in {o for (s, _), o in after.items() if s == prompt.subject}
        if prompt.kind in ("ripple", "middle"):
            facts = {o for (s, _), o in after.items() if s == edits[prompt.edit].target}
            further = {o for (s, _), o in after.items() if s in facts}
            last = {o for (s, _), o in after.items() if s in further}
            assert prompt.answer in facts | further | last


def test_earlier_edits_are_known_said_again_and_held_by_none(world: World, known: list[Fact]) -> None:
    edits = edits_of(world, 24)
    earlier, new = edits[:20], edits[20:]
    before = {(f.subject, f.object) for f in known if f.key in {e.key for e in earlier}}
    amounts = Amounts(hold=12, kin=16)
    after = known_after(known, earlier)
    assert [f.key for f in after] == [f.key for f in known]
    prompts = Composer(new, after, amounts=amounts, earlier=earlier).prompts()
    again = [p for p in prompts if p.edit == -1 and p.kind != "replay"]
    assert {p.kind for p in again} == {"single", "lead", "ripple", "middle", "keep"}
    told = {(e.subject, e.target) for e in earlier}
    said = {(p.subject, p.answer) for p in again if p.kind == "single"} & told
    assert len(said) == AGAIN
    wordings = {
        (e.subject, t) for e in earlier for t in (*e.relation.prompts, *map(asked, e.relation.questions))
    }
    for prompt in prompts:
        if prompt.kind in ("hold", "replay"):
            assert (prompt.subject, prompt.template) not in wordings
    assert not before & {(p.subject, p.answer) for p in again}
    assert not [p for p in again if p.kind == "keep" and (p.subject, p.answer) in told]
    gone = [f for f in known if f.key not in {e.key for e in earlier}]
    assert sorted(f.key for f in known_after(gone, earlier)) == sorted(f.key for f in known)
    later = Composer(new, after, amounts=amounts, earlier=earlier[1:]).prompts()
    assert [p for p in later if p.kind == "replay"] != [p for p in prompts if p.kind == "replay"]
    # Edited again, a fact is what the new edit says.
    assert not [p for p in Composer(new, known, earlier=new).prompts() if p.edit < 0 and p.kind != "replay"]


def test_no_scoring_wording_is_used(world: World, known: list[Fact]) -> None:
    items = make_cases(world, seed=1, n=20, edits=1, pool="test")
    scored = {q for item in items for q in item["questions"]}
    edits = edits_of(world, 20, seed=1)
    own = [wording for r in R.values() for wording in (*r.prompts, *r.questions, *r.phrases)]
    kept = [
        piece
        for id in R
        for template in held_out(id).phrases  # type: ignore[union-attr]
        for piece in [template.replace("{}", "").strip()]
        if len(piece) > 18 and not any(piece in wording for wording in own)
    ]
    assert len(kept) > 20
    for prompt in Composer(edits, known).prompts():
        assert not any(question in prompt.text for question in scored)
        assert not any(piece in prompt.template for piece in kept)


def test_nothing_leads_from_an_excluded_entity(world: World, known: list[Fact]) -> None:
    edits = edits_of(world, 8)
    free = Composer(edits, known).prompts()
    starts = {p.subject for p in free if p.kind in ("lead", "middle", "replay")}
    for prompt in Composer(edits, known, exclude=starts).prompts():
        assert prompt.kind in ("single", "ripple", "keep") or prompt.subject not in starts
        for start in starts - {prompt.subject}:
            if prompt.kind == "single" and "Thoughts" in prompt.template:
                assert f"{start} " not in prompt.template.split("Thoughts:")[1]


def test_reserved_facts_are_never_kept_or_replayed(world: World, known: list[Fact]) -> None:
    edits = edits_of(world, 8)
    kept = {(f.subject, f.object) for f in known if reserved(*f.key)} - {
        (f.subject, f.object) for f in known if not reserved(*f.key)
    }
    single_hop = {R[f.relation.id].prompts[0] for f in known}
    for prompt in Composer(edits, known, amounts=Amounts(replay=300)).prompts():
        if prompt.kind in ("keep", "replay") and prompt.template in single_hop:
            assert (prompt.subject, prompt.answer) not in kept


def test_replay_is_thought_aloud_as_far_as_asked(world: World, known: list[Fact]) -> None:
    """The share given, each hop of what is known said in turn; none of it is an edit's or reserved."""
    edits = edits_of(world, 4)
    plain = [p for p in Composer(edits, known).prompts() if p.kind == "replay"]
    assert not [p for p in plain if p.form == "thoughts"]
    amounts = Amounts(replay=150, aloud=0.5)
    replay = [p for p in Composer(edits, known, amounts=amounts).prompts() if p.kind == "replay"]
    aloud = [p for p in replay if p.form == "thoughts"]
    assert 0.35 < len(aloud) / len(replay) < 0.6
    said = {f"{f.prompt.format(f.subject)} {f.object}.": f for f in known}
    for prompt in aloud:
        assert prompt.answer.startswith(tuple(said))
        first = max((text for text in said if prompt.answer.startswith(text)), key=len)
        assert said[first].subject == prompt.subject
        assert not reserved(*said[first].key)
        assert said[first].key not in {e.key for e in edits}
    assert any(len(p.answer.split(". ")) > 1 for p in aloud)


def test_a_prompt_s_form_is_what_stands_last() -> None:
    def form(template: str) -> str:
        return Prompt(template, "Peru", "Lima", "single").form

    assert form("The capital of {} is") == "cloze"
    assert form("Question: What is the capital of {}?\nAnswer:") == "question"
    assert form("Question: What is the capital of {}?\nThoughts:") == "thoughts"
    assert form("Question: Where?\nThoughts: The capital of {} is") == "cloze"


def test_without_known_facts_the_edit_s_own_prompts_remain(world: World) -> None:
    kinds = {p.kind for p in Composer(edits_of(world, 3)).prompts()}
    assert kinds == {"single"}


def test_known_facts_of_cases_leave_the_edited_out(world: World) -> None:
    items = make_cases(world, seed=2, n=10, edits=2, pool="dev")
    edited = {(r["subject"], r["relation_id"]) for item in items for r in item["requested_rewrite"]}
    keys = {(f["subject"], f["relation"]) for f in known_facts(world, items)["facts"]}
    assert keys.isdisjoint(edited)
    assert len(keys) == len(world.facts) - len(edited & set(world.objects))


def test_every_consequence_is_asked_unless_left_out(world: World, known: list[Fact]) -> None:
    """One hop on from the new object; a share left out is neither asked directly nor in the middle."""
    edits = edits_of(world, 12)
    edited = {e.key for e in edits}
    amounts = Amounts(ripple=24, middle=24)
    asked = {
        (p.edit, p.answer) for p in Composer(edits, known, amounts=amounts).prompts() if p.kind == "ripple"
    }
    none = Composer(edits, known, amounts=replace(amounts, left_out=1.0)).prompts()
    assert not {p.kind for p in none} & {"ripple", "middle"}
    follows = [
        (i, fact.object)
        for i, edit in enumerate(edits)
        for fact in known
        if fact.subject == edit.target and fact.key not in edited and fact.object != edit.subject
    ]
    assert len(follows) > 12
    assert set(follows) <= asked


def test_what_is_left_out_is_not_asked_through_another_edit_either() -> None:
    """Ann's spouse is edited, and that one's country too: what follows from it is left out for the spouse."""
    spouse, citizen, capital = (mquake()[id] for id in ("P26", "P27", "P36"))
    names = [f"Bo {i}" for i in range(99)]
    first = next(name for name in names if not left_out(name, "P27", 0.3))
    second = next(name for name in names if left_out(name, "P36", 0.3))
    edits = [Edit(first, spouse, second, "Cy"), Edit(second, citizen, "Chile", "Peru")]
    facts = [Fact("Chile", capital, "Santiago"), Fact("Peru", capital, "Lima")]
    said = []
    for share in (0.0, 0.3):
        prompts = Composer(edits, facts, amounts=Amounts(ripple=24, left_out=share)).prompts()
        said.append({p.answer for p in prompts if p.edit == 0})
    assert "Santiago" in said[0] and "Santiago" not in said[1]
    assert "Chile" in said[1]


def test_middle_prompts_share_out_the_ways_on(world: World, known: list[Fact]) -> None:
    edits = edits_of(world, 12)
    prompts = Composer(edits, known, amounts=Amounts(middle=12)).prompts()
    for i, edit in enumerate(edits):
        ends = {f.object for f in known if f.subject == edit.target and f.object != edit.subject}
        ends -= {e.target for e in edits}
        middle = [p.answer for p in prompts if p.kind == "middle" and p.edit == i]
        if len(middle) == 12 and len(ends) <= 6:
            assert ends <= set(middle)


def test_beliefs_are_whole_sentences(known: list[Fact]) -> None:
    texts = belief_texts(known, chains=20)
    assert not any("{" in text for text in texts)
    assert len(texts) > len(known)
    first = next(fact for fact in known if not reserved(*fact.key))
    assert texts[0] == f"{first.prompt.format(first.subject)} {first.object}."


def test_a_subject_is_held_to_what_its_kin_are_asked(world: World, known: list[Fact]) -> None:
    edits = edits_of(world)
    composer = Composer(edits, known, amounts=Amounts(hold=20))
    held = [p for p in composer.prompts() if p.kind == "hold"]
    assert held
    assert all(p.answer == "" for p in held)
    kin = {f.subject for f in known if f.relation.id == edits[0].relation.id}
    templates = {
        template
        for f in known
        if f.subject in kin and f.key != edits[0].key and not reserved(edits[0].subject, f.relation.id)
        for template in (*f.relation.prompts, *map(asked, f.relation.questions))
    }
    mine = {p.template for p in held if p.edit == 0}
    assert mine and mine <= templates
    assert not any(p.kind == "hold" for p in Composer(edits, known, amounts=Amounts(hold=0)).prompts())


def test_kin_are_asked_in_every_wording_and_in_frames(world: World, known: list[Fact]) -> None:
    edits = edits_of(world)[:1]
    (edit,) = edits
    away = sorted({f.subject for f in known if f.relation.id == edit.relation.id} - {edit.subject})[0]
    composer = Composer(edits, known, exclude={away}, amounts=Amounts(hold=4, kin=6))
    held = [p for p in composer.prompts() if p.kind == "hold"]
    kin = {p.subject for p in held} - {edit.subject}
    assert 1 <= len(kin) <= 6 and away not in kin
    assert not any(reserved(subject, edit.relation.id) for subject in kin)
    wordings = {*edit.relation.prompts, *map(asked, edit.relation.questions)}
    for subject in kin:
        mine = {p.template for p in held if p.subject == subject}
        assert wordings < mine
        assert all(template.count("{}") == 1 for template in mine)
    shared = Composer([edit] * 1 + edits_of(world)[1:4], known, amounts=Amounts(kin=8)).prompts()
    each = {p.edit: len({q.subject for q in shared if q.kind == "hold" and q.edit == p.edit}) for p in shared}
    assert max(each.values()) <= 8
