"""MQuAKE's known faults: found, reported, packed apart."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from acedit.benchmark.evaluate import _notice_contaminated
from acedit.benchmark.faults import audit, contradicting, counts, pack, without
from acedit.knowledge.facts import Case, cases_from


def case(id: str, chain: list[tuple[str, str, str]], edits: Mapping[int, str], **more: Any) -> Case:
    """A case whose chain before is `chain`; `edits` gives hop index and new object."""
    after, subject = [], chain[0][0]
    true = {(s, r): o for s, r, o in WORLD}
    for i, (_, relation, _) in enumerate(chain):
        to = edits[i] if i in edits else true[subject, relation]
        after.append((subject, relation, to))
        subject = to
    row = {
        "case_id": id,
        "requested_rewrite": [
            {
                "prompt": "{} is a citizen of" if r == "P27" else "The capital of {} is",
                "relation_id": r,
                "target_new": {"str": o},
                "subject": s,
            }
            for i, (s, r, o) in enumerate(after)
            if i in edits
        ],
        "questions": [f"What is asked of {chain[0][0]} in {id}?"],
        "answer": chain[-1][2],
        "answer_alias": [],
        "new_answer": after[-1][2],
        "new_answer_alias": [],
        "single_hops": [hop(*fact) for fact in chain],
        "new_single_hops": [hop(*fact) for fact in after],
        "orig": {
            "triples": chain,
            "triples_labeled": chain,
            "new_triples": after,
            "new_triples_labeled": after,
        },
    }
    rows = [{**row, **more}]
    for name in ("triples", "triples_labeled", "new_triples", "new_triples_labeled"):
        rows[0]["orig"][name] = [list(t) for t in rows[0]["orig"][name]]
    return cases_from(rows)[0]


def hop(subject: str, relation: str, object: str) -> dict[str, Any]:
    return {"question": f"{relation} of {subject}?", "cloze": f"{relation} of {subject} is", "answer": object,
            "answer_alias": []}  # fmt: skip


WORLD = [
    ("Ann", "P27", "Peru"), ("Bo", "P27", "Peru"), ("Cy", "P27", "Chile"),
    ("Peru", "P36", "Lima"), ("Chile", "P36", "Santiago"),
]  # fmt: skip
ANN = [("Ann", "P27", "Peru"), ("Peru", "P36", "Lima")]
BO = [("Bo", "P27", "Peru"), ("Peru", "P36", "Lima")]

MOVES = case("moves", ANN, {0: "Chile"})  # takes Chile's capital as it was
STAYS = case("stays", ANN, {1: "Cusco"})  # Peru's capital becomes Cusco
CLASH = case("clash", BO, {1: "Quito"})  # Peru's capital becomes Quito
SOILS = case("soils", [("Cy", "P27", "Chile"), ("Chile", "P36", "Santiago")], {1: "Valdivia"})


def test_contradicting_cases_are_packed_apart() -> None:
    assert pack([MOVES, STAYS, CLASH, SOILS], None) == [(MOVES, STAYS, SOILS), (CLASH,)]
    assert pack([STAYS, CLASH, MOVES], 2) == [(STAYS, MOVES), (CLASH,)]
    assert pack([STAYS, CLASH], 1) == [(STAYS,), (CLASH,)]
    (fault,) = audit(pack([STAYS, CLASH], None))
    assert (fault.kind, fault.case, fault.other) == ("contradicting", "clash", "stays")


def test_a_fact_taken_as_it_was_but_edited_beside_it_is_found() -> None:
    together = audit(pack([MOVES, SOILS], None))
    assert [(f.kind, f.case, f.other) for f in together] == [("contaminated", "moves", "soils")]
    assert audit(pack([MOVES, SOILS], 1)) == []


def test_a_batch_that_bends_an_answer_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("acedit").propagate = True
    _notice_contaminated([MOVES, SOILS], 1)
    assert not caplog.text
    _notice_contaminated([MOVES, SOILS], 2)
    assert "1 of the cases take as it was what another case of their batch edits" in caplog.text


def test_shared_questions_and_answers_that_stay_are_found() -> None:
    same = case("same", ANN, {0: "Chile"}, questions=list(MOVES.questions))
    alias = case("alias", ANN, {0: "Chile"}, new_answer_alias=["LIMA!"])
    faults = audit(pack([MOVES, same, alias], 1))
    assert [(f.kind, f.case, f.other) for f in faults] == [
        ("duplicated", "same", "moves"),
        ("aliased", "alias", ""),
    ]
    assert counts(faults) == {"duplicated": 1, "aliased": 1}
    assert without([MOVES, same, alias], faults) == [MOVES]


def test_a_chain_that_is_not_its_edits_is_found() -> None:
    other = {
        **MOVES.raw,
        "requested_rewrite": [dict(MOVES.raw["requested_rewrite"][0], target_new={"str": "Ade"})],
    }
    ends = {**MOVES.raw, "new_answer": "Cusco", "new_answer_alias": []}
    faults = audit(pack(cases_from([other, ends, MOVES.raw]), 1))
    found = [f for f in faults if f.kind == "inconsistent"]
    assert ["'Ade'" in found[0].detail, "'Cusco'" in found[1].detail] == [True, True]
    assert len(found) == 2


def test_a_case_against_itself_is_left_out() -> None:
    rows = [{**MOVES.raw, "requested_rewrite": [*MOVES.raw["requested_rewrite"]]}]
    twice = dict(rows[0]["requested_rewrite"][0], target_new={"str": "Peru"})
    rows[0]["requested_rewrite"].append(twice)
    (torn,) = cases_from(rows)
    assert pack([torn, STAYS], None) == [(STAYS,)]
    faults = audit(pack([torn, STAYS], None), [torn, STAYS])
    assert [(f.kind, f.case) for f in faults] == [("contradicting", torn.id)]


@pytest.mark.parametrize("at_once", [1, 3, None])
def test_packing_keeps_every_case_once_and_in_order(at_once: int | None) -> None:
    cases = [MOVES, STAYS, SOILS, case("again", ANN, {0: "Chile"})]
    packed = [one for group in pack(cases, at_once) for one in group]
    assert packed == cases


def test_two_relations_that_say_the_same_sentence_contradict() -> None:
    """By their ids they are two facts; no edit could say both, so they are packed apart and reported."""
    one = case("a", [("Ann", "P27", "Peru"), ("Peru", "P36", "Lima")], {0: "Chile"})
    edit = one.edits[0]
    twin = replace(edit, relation=replace(edit.relation, id="own"), target="Cuba")
    two = replace(one, id="b", edits=(twin,))
    assert [len(group) for group in pack([one, two], None)] == [1, 1]
    assert [(f.case, f.other) for f in contradicting([one, two])] == [("b", "a")]
    assert pack([replace(one, edits=(edit, twin))], None) == []
