"""Files of facts, edits and cases: the real ones as they are, and every way to get one wrong."""

import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acedit.errors import UserError
from acedit.knowledge.facts import (
    Chain,
    Edit,
    Fact,
    _template,
    cases_from,
    distinct_edits,
    read_cases,
    read_edits,
    read_facts,
)
from acedit.knowledge.relations import Relation, mquake

DATA = Path(__file__).parents[2] / "src/acedit/world/data"
SMALL: dict[str, Any] = {
    "relations": {
        "citizen": {
            "prompts": ["{} is a citizen of"],
            "questions": ["Which country is {} a citizen of?"],
            "phrase": "the country of citizenship of {}",
        }
    },
    "facts": [{"subject": "Ann Lee", "relation": "citizen", "object": "Peru"}],
    "edits": [{"subject": "Bo Ray", "relation": "citizen", "target": "Chile", "old": "Peru"}],
}


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "edits.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    return {**SMALL, "edits": [{**SMALL["edits"][0], **fields}]}


def test_small_form(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    (edit,) = read_edits(path)
    assert (edit.subject, edit.target, edit.old) == ("Bo Ray", "Chile", "Peru")
    assert edit.prompt == "{} is a citizen of"
    assert edit.relation.phrases == ("the country of citizenship of {}",)
    (fact,) = read_facts(path)
    assert (fact.subject, fact.object, fact.relation) == ("Ann Lee", "Peru", edit.relation)


def test_jsonl_and_bare_lists_use_mquake_s_relations(tmp_path: Path) -> None:
    rows = [
        {"subject": "Bo Ray", "relation": "P27", "target": "Chile"},
        {"subject": "Peru", "relation": "P36", "target": "Cusco"},
    ]
    wanted = [("P27", "Chile"), ("P36", "Cusco")]
    for text in ("\n".join(map(json.dumps, rows)) + "\n", json.dumps(rows)):
        found = read_edits(written(tmp_path, text))
        assert [(e.relation.id, e.target) for e in found] == wanted
        assert found[0].relation == mquake()["P27"]
    assert read_facts(written(tmp_path, rows)) == []


def test_an_edit_may_bring_its_own_wording(tmp_path: Path) -> None:
    row = {
        "subject": "Bo Ray",
        "prompt": "The favourite dish of {} is",
        "question": "What does {} like to eat?",
        "paraphrases": ["{} likes to eat"],
        "target": "soup",
    }
    (edit,) = read_edits(written(tmp_path, [row]))
    assert edit.relation.prompts == ("The favourite dish of {} is", "{} likes to eat")
    assert edit.relation.questions == ("What does {} like to eat?",)


def test_identical_edits_merge_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "acedit")
    logging.getLogger("acedit").propagate = True
    found = read_edits(written(tmp_path, {**SMALL, "edits": SMALL["edits"] * 3}))
    assert len(found) == 1
    assert "2 identical edits were merged" in caplog.text


def test_a_field_that_is_nearly_one_is_asked_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("acedit").propagate = True
    relation = {"prompts": ["{} is of"], "question": ["Whose is {}?"]}
    fact = {"subject": "Ann", "relation": "r", "object": "Peru", "alias": ["PE"]}
    whole = {"relations": {"r": relation}, "facts": [fact], "edit": [], "edits": SMALL["edits"]}
    read_facts(written(tmp_path, whole))
    for name, meant in (("edit", "edits"), ("r.question", "questions"), ("facts[0].alias", "aliases")):
        assert f"{name} is not read; did you mean '{meant}'" in caplog.text


def test_an_edit_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    row = {"subject": "Bo Ray", "relation": "P27", "target": "são  Tomé", "old": "Sa\u0303o Tomé"}
    with pytest.raises(UserError, match="which is the old object too"):
        read_edits(written(tmp_path, [row]))
    with pytest.raises(UserError, match="its old object"):
        distinct_edits([Edit("Bo Ray", mquake()["P27"], "Peru", "peru")])
    with pytest.raises(UserError, match="has no prompt"):
        distinct_edits([Edit("Bo Ray", Relation("r", ()), "Peru")])


def test_edits_of_one_fact_keep_every_wording(tmp_path: Path) -> None:
    words = ("{} is from", "{} has the passport of")
    rows = [{"subject": "Bo Ray", "relation": "P27", "prompt": w, "target": "Chile"} for w in words]
    (edit,) = read_edits(written(tmp_path, {"edits": rows}))
    assert edit.relation.prompts == words
    assert edit.prompt == words[0]


def test_edits_of_one_fact_keep_every_question_and_alias(tmp_path: Path) -> None:
    rows = [
        {
            "subject": "Bo Ray",
            "relation": "P27",
            "target": "Chile",
            "prompt": "{} is of",
            "aliases": [alias],
            "question": asked,
        }
        for alias, asked in (("CL", "Whose is {}?"), ("Chili", "Whom does {} serve?"))
    ]
    (edit,) = read_edits(written(tmp_path, {"edits": rows}))
    assert edit.aliases == ("CL", "Chili")
    assert {"Whose is {}?", "Whom does {} serve?"} <= set(edit.relation.questions)


def test_a_line_ends_where_json_lines_end_it(tmp_path: Path) -> None:
    rows = [{"subject": f"Bo\u2028Ray\x85 {i}", "relation": "P27", "target": "Chile"} for i in range(2)]
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    assert [edit.subject for edit in read_edits(path)] == [row["subject"] for row in rows]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(json.dumps(SMALL),))
    writer.start()
    assert read_edits(pipe) == read_edits(written(tmp_path, SMALL))
    writer.join()


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(SMALL), "utf-8-sig")
    assert read_edits(path) == read_edits(written(tmp_path, SMALL))


@pytest.mark.parametrize(
    ("content", "field", "mend"),
    [
        ("", "empty", "file"),
        ("{not json", "line 1, column 2", "JSON"),
        ('{"subject": "a"}\n{"subject": }\n', "line 2", "JSON"),
        ("[]", "empty", "at least one"),
        ('"text"', "a text", "give a list"),
        ({"something": 1}, "none of", "relations"),
        ({**SMALL, "edits": []}, "edits", "at least one"),
        ({**SMALL, "edits": {"a": 1}}, "edits", "give a list"),
        ({**SMALL, "edits": ["x"]}, "edits[0]", "give an object"),
        (changed(target=None), "edits[0].target", "give a text"),
        (changed(target=""), "edits[0].target", "give a text"),
        (changed(target=7), "edits[0].target", "give a text"),
        (changed(subject=[]), "edits[0].subject", "give a text"),
        (changed(relation="nope"), "edits[0].relation", "describe it under 'relations'"),
        (changed(target="Peru"), "edits[0].target", "give a new object"),
        (changed(prompt="no place for it"), "edits[0].prompt", "exactly one {}"),
        (changed(prompt="{} and {}"), "edits[0].prompt", "exactly one {}"),
        (changed(prompt="The set {x} of {} is"), "edits[0].prompt", "no other brace"),
        (changed(prompt="The set { of {}"), "edits[0].prompt", "no other brace"),
        (changed(aliases="x"), "edits[0].aliases", "list of texts"),
        (changed(target="\ud83d"), "edits[0].target", "surrogate"),
        (changed(aliases=["\udc00"]), "edits[0].aliases", "surrogate"),
        ({**SMALL, "relations": []}, "relations", "object"),
        ({**SMALL, "relations": {"citizen": {}}}, "relations.citizen.prompts", "at least one cloze"),
        (
            {**SMALL, "edits": [*SMALL["edits"], {**SMALL["edits"][0], "target": "Spain"}]},
            "contradict",
            "keep one",
        ),
        (
            {
                **SMALL,
                "edits": [
                    *SMALL["edits"],
                    {"subject": "Bo Ray", "prompt": "{} is a citizen of", "target": "Spain"},
                ],
            },
            "contradict",
            "keep one",
        ),
        (changed(subject="std::{}"), "edits[0].subject", "a name cannot hold {}"),
        (changed(question="Who?"), "edits[0].question", "a 'prompt' of its own"),
        (changed(paraphrases="zzz"), "edits[0].paraphrases", "a 'prompt' of its own"),
        ("[" * 100_000, "nested too deep", "JSON"),
        ('{"edits": [' + "1" * 5000 + "]}", "too many digits", "JSON"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path: Path, content: Any, field: str, mend: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_edits(path)
    line = str(error.value)
    assert str(path) in line
    assert field in line
    assert mend in line
    assert "\n" not in line


def test_bad_facts_name_their_field(tmp_path: Path) -> None:
    path = written(tmp_path, {**SMALL, "facts": [{"subject": "Ann Lee", "relation": "citizen"}]})
    with pytest.raises(UserError, match=r"facts\[0\]\.object is missing"):
        read_facts(path)


def test_missing_files_folders_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_edits(tmp_path / "none.json")
    with pytest.raises(UserError, match="a folder"):
        read_edits(tmp_path)
    path = tmp_path / "latin.json"
    path.write_bytes('["Malmö"]'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_edits(path)


@pytest.mark.parametrize(("name", "count"), [("mquake_2hop", 12), ("mquake_hard", 200)])
def test_real_files_are_read_as_they_are(name: str, count: int) -> None:
    path = DATA / f"{name}.json"
    raw = json.loads(path.read_text("utf-8"))
    cases = read_cases(path)
    assert len(cases) == count
    for case, row in zip(cases, raw, strict=True):
        assert case.raw == row
        assert case.new_answer == row["new_answer"]
        assert case.after.facts[-1].object == row["orig"]["new_triples_labeled"][-1][2]
        assert [e.target for e in case.edits] == [r["target_new"]["str"] for r in row["requested_rewrite"]]
        assert {case.after.facts[i].object for i in case.edited} >= {
            e.target for e in case.edits if e.key in {f.key for f in case.after.facts}
        }
    assert read_edits(path)
    assert read_facts(path) == []


def test_items_that_lie_flat_are_those_that_are_nested(tmp_path: Path) -> None:
    """MQuAKE-Remastered's form: the same fields, without nesting."""
    nested = json.loads((DATA / "mquake_2hop.json").read_text("utf-8"))
    flat = []
    for row in nested:
        rewrites = [
            {
                **{k: v for k, v in one.items() if k not in ("target_new", "target_true")},
                "target_new_str": one["target_new"]["str"],
                "target_true_str": one["target_true"]["str"],
            }
            for one in row["requested_rewrite"]
        ]
        chains = {k if k.startswith("new") else f"orig_{k}": v for k, v in row["orig"].items()}
        rest = {k: v for k, v in row.items() if k != "orig"}
        flat.append({**rest, "requested_rewrite": rewrites, **chains})
    path = written(tmp_path, flat)
    found, wanted = read_cases(path), read_cases(DATA / "mquake_2hop.json")
    assert [replace(case, raw={}) for case in found] == [replace(case, raw={}) for case in wanted]
    assert [case.raw for case in found] == flat
    assert read_edits(path) == read_edits(DATA / "mquake_2hop.json")
    broken = {**flat[0], "requested_rewrite": [{**flat[0]["requested_rewrite"][0], "target_new_str": 5}]}
    with pytest.raises(UserError, match=r"\[0\]\.requested_rewrite\[0\]\.target_new\.str is a number"):
        read_cases(written(tmp_path, [broken]))


def test_further_answers_of_mquake_t_are_aliases(tmp_path: Path) -> None:
    raw = json.loads((DATA / "mquake_2hop.json").read_text("utf-8"))[0]
    (case,) = read_cases(written(tmp_path, [{**raw, "answer_extended": ["Somebody Else"]}]))
    assert case.answer_aliases == (*raw["answer_alias"], "Somebody Else")


def test_lists_of_facts_and_a_single_line_are_read(tmp_path: Path) -> None:
    fact = {"subject": "Peru", "relation": "P36", "object": "Lima"}
    edit = {"subject": "Bo Ray", "relation": "P27", "target": "Chile"}
    for content in ([fact], json.dumps(fact), f"{json.dumps(fact)}\n{json.dumps(fact)}"):
        assert {f.object for f in read_facts(written(tmp_path, content))} == {"Lima"}
    for content in ([edit], json.dumps(edit)):
        path = written(tmp_path, content)
        assert [e.target for e in read_edits(path)] == ["Chile"]
        assert read_facts(path) == []
    with pytest.raises(UserError, match=r"facts\[0\].object is missing"):
        read_facts(written(tmp_path, [{"subject": "Peru", "relation": "P36"}]))


def test_positions() -> None:
    cases = cases_from(json.loads((DATA / "mquake_2hop.json").read_text("utf-8")))
    by_case = {case.id: case.position for case in cases}
    assert by_case["1"] == "mixed"
    assert {"explicit", "implicit"} & set(by_case.values())


def test_a_broken_case_names_its_field(tmp_path: Path) -> None:
    raw = json.loads((DATA / "mquake_2hop.json").read_text("utf-8"))[:2]
    for change, field in (
        ({"questions": []}, r"\[1\]\.questions"),
        ({"requested_rewrite": []}, r"\[1\]\.requested_rewrite"),
        ({"new_single_hops": raw[1]["new_single_hops"][:1]}, r"\[1\]\.new_single_hops"),
        ({"answer": 5}, r"\[1\]\.answer"),
        ({"orig": {}}, r"\[1\]\.orig\.triples"),
        ({"orig": {**raw[1]["orig"], "triples": [["Q1", ["P27"], "Q2"]] * 2}}, "not a text; give texts"),
        (
            {"orig": {**raw[1]["orig"], "new_triples_labeled": raw[1]["orig"]["new_triples_labeled"][::-1]}},
            r"\[1\]\.orig\.new_triples_labeled is no chain: chain breaks at hop 1",
        ),
    ):
        path = written(tmp_path, [raw[0], {**raw[1], **change}])
        with pytest.raises(UserError, match=field):
            read_cases(path)


def test_a_file_of_edits_is_not_one_of_cases(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not MQuAKE cases"):
        read_cases(written(tmp_path, [{"subject": "a", "relation": "P27", "target": "b"}]))


def test_a_chain_links_up() -> None:
    citizen = mquake()["P27"]
    good = Fact("Ann Lee", citizen, "Peru"), Fact("Peru", mquake()["P36"], "Lima")
    assert Chain(good).facts == good
    with pytest.raises(UserError, match="breaks at hop 1"):
        Chain((good[0], Fact("Chile", mquake()["P36"], "Santiago")))


def test_a_cloze_with_braces_of_its_own_makes_a_template() -> None:
    """Of a relation that nothing describes, the case's own cloze is the wording."""
    assert _template("Bo {jr} lives in", "Bo") == "{} (jr) lives in"
    assert _template("The home of Bo is", "Bo").format("Ann") == "The home of Ann is"
    assert _template("nobody is {named}", "Bo") == "nobody is (named)"
