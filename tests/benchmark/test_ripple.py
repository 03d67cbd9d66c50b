"""RippleEdits' form: labels read out of sentences, conditions, any and all."""

import json
from pathlib import Path
from typing import Any

import pytest

from acedit.benchmark.ripple import CLOZES, RippleScorer, read_ripple
from acedit.errors import UserError
from tests.benchmark.test_score import Oracle


def query(prompt: str, *answers: str, subject: str = "Q1", relation: str = "MOTHER") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answers": [{"value": a, "aliases": [a + " the First"]} for a in answers],
        "query_type": "regular",
        "subject_id": subject,
        "relation": relation,
    }


def test(queries: list[dict[str, Any]], conditions: list[dict[str, Any]], mode: str = "OR") -> dict[str, Any]:
    return {"test_queries": queries, "test_condition": mode, "condition_queries": conditions}


test.__test__ = False  # type: ignore[attr-defined]

CLOZE = "The name of the country of citizenship of Ann of Lee is"
MOTHER = query("The name of the mother of Ann of Lee is", "Bo Ray")


def row(**axes: Any) -> dict[str, Any]:
    fact = {"subject_id": "Q1", "relation": "COUNTRY_OF_CITIZENSHIP"}
    return {
        "example_type": "popular",
        "edit": {
            **fact,
            "prompt": f"{CLOZE} United Kingdom.",
            "original_fact": {**fact, "prompt": f"{CLOZE} United States of America."},
        },
        **axes,
    }


def written(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), "utf-8")
    return path


def test_labels_are_read_out_of_the_sentences(tmp_path: Path) -> None:
    (case,) = read_ripple(written(tmp_path / "r.json", [row(Relation_Specificity=[test([MOTHER], [])])]))
    (edit,) = case.edits
    assert (edit.subject, edit.target, edit.old) == (
        "Ann of Lee",
        "United Kingdom",
        "United States of America",
    )
    assert edit.prompt == "The name of the country of citizenship of {} is"
    recent = row(Relation_Specifity=[test([MOTHER], [])])
    recent["edit"] = {"subject_id": "Q1", "relation": "HEAD", "prompt": "The head of Ann of Lee is Cy."}
    (case,) = read_ripple(written(tmp_path / "s.json", [recent]))
    assert (case.edits[0].subject, case.edits[0].target, case.edits[0].old) == ("Ann of Lee", "Cy", "")


def test_both_names_of_what_was_before_are_read(tmp_path: Path) -> None:
    newer = row(Relation_Specificity=[test([MOTHER], [])])
    newer["edit"]["previous_fact"] = newer["edit"].pop("original_fact")
    (case,) = read_ripple(written(tmp_path / "r.json", [newer]))
    assert case.edits[0].old == "United States of America"


def test_a_query_without_a_prompt_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", [row(Forgetfulness=[test([{**MOTHER, "prompt": None}], [])])])
    with pytest.raises(UserError, match=r"\[0\]: holds a field of another kind"):
        read_ripple(path)


@pytest.mark.parametrize("relation", sorted(CLOZES))
@pytest.mark.parametrize("before", [True, False])
def test_every_relation_of_the_files_is_read(relation: str, before: bool, tmp_path: Path) -> None:
    """Subjects that hold words of the cloze too, objects that start alike."""
    cloze = CLOZES[relation].format("Ann of Lee")
    one = row(Forgetfulness=[])
    one["edit"] = {"subject_id": "Q1", "relation": relation, "prompt": f"{cloze} New is York."}
    if before:
        one["edit"]["original_fact"] = {"prompt": f"{cloze} New Ulm."}
    (case,) = read_ripple(written(tmp_path / "r.json", [one]))
    (edit,) = case.edits
    assert (edit.subject, edit.target, edit.old) == ("Ann of Lee", "New is York", "New Ulm" if before else "")
    assert edit.prompt == CLOZES[relation]


def test_a_row_that_cannot_be_told_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = row(Forgetfulness=[])
    lost["edit"] = {"subject_id": "Q1", "relation": "HEAD", "prompt": "Ann is Cy."}
    found = read_ripple(written(tmp_path / "r.json", [lost, row(Forgetfulness=[])]))
    assert [case.id for case in found] == ["ripple-1"]
    assert "left out 1 of 2" in caplog.text and "Ann is Cy" in caplog.text


def test_tests_count_where_their_conditions_are_met(tmp_path: Path) -> None:
    unmet = test([query("The name of the father of Ann of Lee is", "Dan")], [query("The name of X is", "Y")])
    both = [query("The capital of her country is", "London"), query("The head of her country is", "Eve")]
    rows = [
        row(
            Relation_Specificity=[test([MOTHER], [MOTHER]), unmet],
            Compositionality_I=[test(both, []), test(both, [], "AND")],
        )
    ]
    said = {"mother of Ann": " Bo Ray the First", "capital of her": " London"}
    scorer = RippleScorer(Oracle(said), read_ripple(written(tmp_path / "r.json", rows)))
    said["citizenship of Ann"] = " United Kingdom"
    records = scorer.records(scorer.asked([0]))
    assert [(r.metric, r.right, r.mean) for r in records] == [
        ("efficacy", 1.0, 1.0),
        ("relation_specificity", 1.0, 1.0),
        ("compositionality_1", 1.0, 0.5),
        ("compositionality_1", 0.0, 0.5),
    ]


def test_what_is_not_of_the_form_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not RippleEdits cases"):
        read_ripple(written(tmp_path / "a.json", [{"edit": {}}]))
    with pytest.raises(UserError, match=r"\[0\]: field 'test_queries'"):
        read_ripple(written(tmp_path / "b.json", [row(Forgetfulness=[{}])]))
    lost = row(Forgetfulness=[])
    lost["edit"] = {"subject_id": "Q1", "relation": "HEAD", "prompt": "Ann is Cy."}
    with pytest.raises(UserError, match="subject cannot be told"):
        read_ripple(written(tmp_path / "c.json", [lost]))
    with pytest.raises(UserError, match="cannot be read"):
        read_ripple(tmp_path / "nowhere.json")
