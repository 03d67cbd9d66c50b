"""Cases of one's own edits: honest chains through them, kept clear of what makes the edit."""

import json
from pathlib import Path

import pytest

from acedit.benchmark.leak import LeakError, check, scored_texts, starts, without_scored
from acedit.benchmark.own import own_cases
from acedit.benchmark.score import Scorer, summarise
from acedit.errors import UserError
from acedit.knowledge.compose import Composer, reserved
from acedit.knowledge.facts import Edit, Fact, cases_from, read_cases, read_edits, read_facts
from acedit.knowledge.relations import Relation, held_out, mquake
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world
from tests.conftest import Run
from tests.tiny import tiny_lm

CITIZEN, CAPITAL, HEAD = mquake()["P27"], mquake()["P36"], mquake()["P35"]
LEADS = Relation(
    "leads",
    ("{} is led by", "At the head of {} is"),
    ("Who leads {}?", "Who heads {}?"),
    ("the leader of {}",),
)
BORDERS = Relation("borders", ("{} borders",), ("What does {} border?",), ("the neighbour of {}",))
ALONE = next(name for name in "ABCDEFGH" if not reserved(name, "leads"))


@pytest.fixture(scope="module")
def known() -> list[Fact]:
    return facts_of(build_world(), [])


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return [case.edits[0] for case in cases_from(make_cases(build_world(), seed=11, n=30))]


def test_positions_take_turns_and_chains_hold(edits: list[Edit], known: list[Fact]) -> None:
    cases = cases_from(own_cases(edits, known))
    assert [case.edits[0].key for case in cases] == [edit.key for edit in edits]
    facts = {fact.key: fact.object for fact in known} | {e.key: e.old for e in edits}
    chained = [case for case in cases if case.questions]
    counts = {p: sum(c.position == p for c in chained) for p in ("explicit", "middle", "implicit")}
    assert min(counts.values()) >= 5, counts
    for case in chained:
        assert all(facts[f.key] == f.object for f in case.before.facts)
        (at,) = case.edited
        assert case.after.facts[at].object == case.edits[0].target
        assert all(facts[f.key] == f.object for j, f in enumerate(case.after.facts) if j != at)
        assert case.new_answer != case.answer
        assert len(set(case.questions)) == len(case.questions) >= 2


def test_no_prompt_is_what_scores(edits: list[Edit], known: list[Fact]) -> None:
    """With the cases at hand; without them the alarm goes off, so it is not that no prompt could."""
    cases = cases_from(own_cases(edits, known))
    kept = {"exclude": starts(cases), "avoid": scored_texts(cases)}
    check(Composer(edits, known, **kept).prompts(), cases)
    mine = [Edit("Acme", LEADS, "Ann Lee", "Bo Ray")]
    citizens = {"Bo Ray": "Peru", "Ann Lee": "Chile", "Yan": "Chile"}
    facts = [Fact(s, CITIZEN, o) for s, o in citizens.items()] + [
        Fact(f"Corp {i}", LEADS, "Yan") for i in "abcdefgh"
    ]
    own = cases_from(own_cases(mine, facts))
    with pytest.raises(LeakError):
        check(Composer(mine, facts).prompts(), own)
    kept = {"exclude": starts(own), "avoid": scored_texts(own)}
    clear = Composer([own[0].edits[0]], without_scored(facts, own), **kept).prompts()
    check(clear, own)
    assert any("Who leads" in p.text for p in clear)
    assert not any("Who heads" in p.text for p in clear), "not of anybody else either"


def test_leads_are_facts_that_no_prompt_uses(edits: list[Edit], known: list[Fact]) -> None:
    cases = cases_from(own_cases(edits, known))
    for case in cases:
        if case.questions and case.position != "explicit":
            lead = case.after.facts[0]
            others = [f for f in known if f.object == lead.object and reserved(*f.key)]
            assert reserved(*lead.key) or not others


def test_edits_of_one_subject_leave_a_way_in() -> None:
    """However many they are, questions start from one of two entities that lead to it."""
    names = [name for name in "ABCDEFGHIJ" if not reserved(name, "leads")][:2]
    facts = [Fact(name, LEADS, "Ann") for name in names]
    edits = [
        Edit("Ann", relation, f"new {i}", f"old {i}") for i, relation in enumerate((CITIZEN, CAPITAL, HEAD))
    ]
    cases = cases_from(own_cases(edits, facts))
    assert [case.position for case in cases] == ["implicit"] * 3
    assert len(starts(cases)) == 1


def test_a_lead_that_makes_no_chain_is_passed_over() -> None:
    facts = [Fact(name, LEADS, "Ann") for name in ("Chile", "Bob", "Cy", "Di")]
    found = {
        cases_from(own_cases([Edit("Ann", CITIZEN, "Peru", "Chile")], facts, seed=seed))[0].start
        for seed in range(8)
    }
    assert "Chile" not in found


def test_known_aliases_of_the_old_object_count() -> None:
    facts = [Fact("Ann", CITIZEN, "Chile", ("CL",))]
    (case,) = cases_from(own_cases([Edit("Ann", CITIZEN, "Peru", "Chile")], facts))
    assert case.hops_before[0].aliases == ("CL",)


def test_wordings_that_are_the_users_own_do_not_score() -> None:
    """MQuAKE's held-out wordings, given as the edit's: the edit keeps them, and the rest scores."""
    held = held_out("P27")
    assert held is not None
    taken = Relation("P27", held.prompts[:1], held.questions[:1], held.phrases)
    (case,) = cases_from(own_cases([Edit("Ann", taken, "Peru", "Chile")], []))
    assert case.edits[0].relation.questions == taken.questions
    assert set(case.paraphrases[0]) == {*held.prompts[1:], *held.questions[1:]}
    whole = Relation("P27", held.prompts, held.questions, held.phrases)
    (case,) = cases_from(own_cases([Edit("Ann", whole, "Peru", "Chile")], []))
    assert case.paraphrases == ((held.questions[-1],),)
    assert case.edits[0].relation.questions == held.questions[:-1]


def test_wordings_of_a_file_start_with_the_rows_prompt() -> None:
    rows = own_cases([Edit("Acme", LEADS, "Ann Lee", "Bo Ray")], [])
    rows[0]["requested_rewrite"][0]["prompt"] = "{} is run by"
    with pytest.raises(UserError, match="prompts does not start with"):
        cases_from(rows)


def test_another_seed_asks_otherwise_and_the_same_one_the_same(edits: list[Edit], known: list[Fact]) -> None:
    assert own_cases(edits, known, seed=1) == own_cases(edits, known, seed=1)
    assert own_cases(edits, known, seed=1) != own_cases(edits, known, seed=2)


def test_relations_of_ones_own_come_back_whole_but_for_the_question_that_scores(tmp_path: Path) -> None:
    edit = Edit("Acme", LEADS, "Ann Lee", "Bo Ray", aliases=("Lee",))
    known = [Fact("Bo Ray", CITIZEN, "Peru"), Fact("Ann Lee", CITIZEN, "Chile", ("CL",))]
    (tmp_path / "own.json").write_text(json.dumps(own_cases([edit], known)))
    (back,) = read_edits(tmp_path / "own.json")
    assert (back.key, back.target, back.old, back.aliases) == (edit.key, "Ann Lee", "Bo Ray", ("Lee",))
    assert (back.relation.prompts, back.relation.phrases) == (LEADS.prompts, LEADS.phrases)
    assert back.relation.questions == ("Who leads {}?",)
    (case,) = read_cases(tmp_path / "own.json")
    assert case.paraphrases == (("Who heads {}?",),)
    assert (case.position, case.answer, case.new_answer) == ("explicit", "Peru", "Chile")
    assert case.new_answer_aliases == ("CL",)
    assert all("the leader of Acme" in question for question in case.questions)
    known_wordings = held_out("P27")
    assert known_wordings is not None
    assert set(case.questions) <= {q.format("the leader of Acme") for q in known_wordings.questions}


@pytest.mark.parametrize(
    "known",
    [
        [],
        [Fact("Chile", CAPITAL, "Lima"), Fact("Peru", HEAD, "Ann")],  # not the same question of both
        [Fact("Chile", CAPITAL, "Lima"), Fact("Peru", CAPITAL, "Lima")],  # nor another answer
        [Fact(ALONE, LEADS, "Acme")],  # the one way in is left to the edit
        [Fact("Chile", LEADS, "Acme"), Fact("Peru", LEADS, "Acme")],  # the chain would come back
    ],
)
def test_an_edit_without_a_chain_is_asked_alone(known: list[Fact]) -> None:
    (case,) = cases_from(own_cases([Edit("Acme", BORDERS, "Peru", "Chile")], known))
    assert (case.questions, len(case.after.facts)) == ((), 1)
    lm = tiny_lm("qwen3")
    scores = summarise(Scorer(lm, [case], cot=False).score([0]))
    assert scores["efficacy"]["n"] == 1
    assert all(scores[metric]["n_unfiltered"] == 0 for metric in ("direct", "explicit", "implicit"))


def test_old_objects_come_from_what_is_known(caplog: pytest.LogCaptureFixture) -> None:
    edits = [Edit("Ann", CITIZEN, "Peru"), Edit("Bo", CITIZEN, "Peru")]
    edits.append(Edit("Cy", CITIZEN, "Peru"))  # which is what is known already
    facts = [Fact("Ann", CITIZEN, "Chile"), Fact("Cy", CITIZEN, "Peru")]
    cases = cases_from(own_cases(edits, facts))
    assert [case.edits[0].old for case in cases] == ["Chile", "", ""]
    assert "'Bo' with" in caplog.text and "'Cy' with" in caplog.text and "'Ann'" not in caplog.text


def test_from_the_command_line(run: Run, tmp_path: Path) -> None:
    wordings = {"prompts": LEADS.prompts, "questions": LEADS.questions, "phrase": LEADS.phrases[0]}
    citizens = {"Bo Ray": "Peru", "Ann Lee": "Chile"}
    small = {
        "relations": {"leads": wordings},
        "facts": [{"subject": s, "relation": "P27", "object": o} for s, o in citizens.items()],
        "edits": [{"subject": "Acme", "relation": "leads", "target": "Ann Lee", "old": "Bo Ray"}],
    }
    (tmp_path / "edits.json").write_text(json.dumps(small))
    out = tmp_path / "own.json"
    code, said, err = run("cases", tmp_path / "edits.json", "--out", out, "--json", tmp_path / "r.json")
    assert code == 0, err
    assert "1 cases (1 explicit)" in said
    assert json.loads((tmp_path / "r.json").read_text())["positions"] == {"explicit": 1}
    assert len(read_cases(out)) == 1 and len(read_facts(tmp_path / "edits.json")) == 2
    code, _, err = run("evaluate", "bundled", tmp_path / "edits.json")
    assert code == 2 and "acedit cases" in err
    assert f"with --facts {tmp_path / 'edits.json'}" in said
    rows = json.loads(out.read_text())
    out.write_text(json.dumps([{**rows[0], "questions": []}]))
    code, _, err = run("edit", "bundled", out, "--out", tmp_path / "patch")
    assert code == 2 and "questions is missing or empty" in err and not (tmp_path / "patch").exists()


def test_mquake_cases_still_need_questions() -> None:
    rows = make_cases(build_world(), seed=0, n=1)
    with pytest.raises(UserError, match="questions is missing or empty"):
        cases_from([{**rows[0], "questions": []}])
