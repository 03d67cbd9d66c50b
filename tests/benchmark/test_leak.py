"""The leak rule holds for what the composer makes, and a broken one is seen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acedit.benchmark.evaluate import merged_edits, shared_plan
from acedit.benchmark.leak import LeakError, check, clear_of, scored_texts, starts
from acedit.benchmark.ripple import Query, RippleCase, RippleTest
from acedit.editing.methods import method
from acedit.knowledge.compose import Composer, Prompt, Wordings
from acedit.knowledge.facts import Case, Edit, Fact, cases_from
from acedit.knowledge.relations import mquake
from acedit.world.cases import make_cases
from acedit.world.graph import build_world, mquake_cases


@pytest.fixture(scope="module")
def known() -> list[Fact]:
    return [Fact(f.subject, mquake()[f.relation], f.object) for f in build_world().facts]


def _prompts(cases: list[Case], known: list[Fact]) -> list[Prompt]:
    return Composer(merged_edits(cases), known, exclude=starts(cases), avoid=scored_texts(cases)).prompts()


@pytest.mark.parametrize("pool", ["dev", "test"])
def test_composed_prompts_never_score(known: list[Fact], pool: str) -> None:
    cases = cases_from(make_cases(build_world(), seed=5, n=12, pool=pool))  # type: ignore[arg-type]
    prompts = _prompts(cases, known)
    assert {p.kind for p in prompts} == {"single", "lead", "ripple", "middle", "keep", "replay"}
    check(prompts, cases)
    ways = {"exclude": starts(cases), "avoid": scored_texts(cases), "amounts": method("ace").amounts}
    prompts = Composer(merged_edits(cases), known, **ways).prompts()
    assert {p.kind for p in prompts if p.form == "thoughts"} == {"replay"}
    check(prompts, cases)


def test_real_cases_keep_the_rule(known: list[Fact]) -> None:
    """Also where a composed question would be a case's own, word for word."""
    cases = cases_from(mquake_cases("2hop"), "mquake_2hop")
    edits, ways = merged_edits(cases), {"exclude": starts(cases), "amounts": method("ace").amounts}
    broken = 0
    for seed in (3, 5):  # the demo at seed 5 would have met one
        check(Composer(edits, known, avoid=scored_texts(cases), seed=seed, **ways).prompts(), cases)
        try:
            check(Composer(edits, known, seed=seed, **ways).prompts(), cases)
        except LeakError:
            broken += 1
    assert broken


def test_a_wording_is_held_from_the_start_of_a_sentence_on() -> None:
    wording = "Who leads Peru?"
    barred = Wordings([wording, "Fate of the Furious follows", "Fate follows", ""])
    for text in (wording, f"Question: {wording}\nAnswer:", f"So it is. {wording}", f"Aha\n{wording}"):
        assert barred.said_in(text) == wording
    assert barred.said_in("A Fate follows. Fate follows") == "Fate follows"
    for text in ("The Fate of the Furious follows", "Tell me who leads Peru.", "anything", ""):
        assert barred.said_in(text) is None


@given(st.text("ab .?\n", max_size=20), st.lists(st.text("ab .?", max_size=4), max_size=4))
def test_wordings_are_found_as_by_looking_for_each(text: str, wordings: list[str]) -> None:
    """Behind nothing, or behind the end of a sentence and spaces."""

    def said(wording: str) -> bool:
        starts = [at for at in range(len(text)) if text.startswith(wording, at)]
        return any(not (before := text[:at].rstrip(" ")) or before[-1] in ".:?!\n" for at in starts)

    expected = {wording for wording in wordings if wording and said(wording)}
    found = Wordings(wordings).said_in(text)
    assert (found in expected) if expected else found is None


def test_whoever_a_ripple_test_names_starts_no_prompt() -> None:
    """The files do not say where a test starts, so a known subject that one names counts."""
    relation = mquake()["P26"]
    edit = Edit("Bo Ray", mquake()["P27"], "Chile")
    told = RippleTest(
        (Query("The country of citizenship of the spouse of Ann Lee is", ("Chile",)),), (), False
    )
    case = RippleCase("r", (edit,), {"compositionality_2": (told,)})
    facts = [Fact(name, relation, "Bo Ray") for name in ("Ann Lee", "Ann", "Eve Fox", "nn Lee")]
    assert starts([case], facts) == {"Bo Ray", "Ann Lee", "Ann"}
    lead = Prompt("Question: Where is the spouse of {} from?\nAnswer:", "Ann Lee", "Chile", "lead", 0)
    with pytest.raises(LeakError, match="starts where a scored question starts"):
        check([lead], [case])
    check([replace(lead, subject="Eve Fox")], [case])


def test_a_shared_plan_is_made_of_no_scored_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the known facts' own relation has the question that scores the edit."""
    seen: list[Prompt] = []
    monkeypatch.setattr(
        "acedit.benchmark.evaluate.find_plan", lambda _, __, prompts, **___: seen.extend(prompts)
    )
    (case,) = cases_from(make_cases(build_world(), seed=5, n=1, pool="dev"))
    edit = case.edits[0]
    scored = "Of which land does {} hold the passport?"
    asked = replace(edit.relation, questions=(scored, *edit.relation.questions))
    case = replace(case, edits=(replace(edit, relation=asked),), paraphrases=((scored,),))
    known = [Fact(f"Person {i}", asked, ("Peru", "Chile")[i % 2]) for i in range(8)]
    shared_plan(object(), [case], known, seed=0)  # type: ignore[arg-type]
    assert any("Person" in p.text for p in seen)
    assert not any("hold the passport" in p.text for p in seen)


def test_a_scored_wording_is_in_no_relation() -> None:
    """Neither the known facts' nor the edit's own, which words what leads to it and its kin."""
    (case,) = cases_from(make_cases(build_world(), seed=5, n=1, pool="dev"))
    edit = case.edits[0]
    cloze, question = "The passport of {} is of", "Of which land does {} hold the passport?"
    worded = replace(
        edit.relation,
        prompts=(*edit.relation.prompts, cloze),
        questions=(question, *edit.relation.questions),
    )
    edit = replace(edit, relation=worded)
    case = replace(case, edits=(edit,), paraphrases=((cloze, question, edit.prompt),))
    known = [Fact("Person 1", worded, "Peru")]
    clear = clear_of([case], [edit], known)
    for relation in (clear["edits"][0].relation, clear["known"][0].relation):
        assert cloze not in relation.prompts and question not in relation.questions
        assert relation.prompt == edit.prompt  # what it is written on stays
        assert relation.questions


def test_a_leak_is_seen(known: list[Fact]) -> None:
    cases = cases_from(make_cases(build_world(), seed=5, n=6))
    prompts = _prompts(cases, known)
    asks = Prompt(f"Question: {cases[0].questions[0]}\nAnswer:", "", "x", "replay")
    with pytest.raises(LeakError, match="scored wording"):
        check([*prompts, asks], cases)
    wording = next(iter(scored_texts(cases)))
    with pytest.raises(LeakError, match="scored wording"):
        check([Prompt("Question: {}?\nThoughts:", "Peru", f"So it is. {wording}", "ripple")], cases)
    lead = next(p for p in prompts if p.kind == "lead")
    with pytest.raises(LeakError, match="starts where"):
        check([replace(lead, subject=next(iter(starts(cases))))], cases)
    # Without `exclude` the composer does break it: the rule is not empty.
    with pytest.raises(LeakError):
        check(Composer(merged_edits(cases), known).prompts(), cases)
    assert scored_texts(cases)
