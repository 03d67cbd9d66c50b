"""The demo from end to end on a random model: it learns nothing, but everything runs and is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from acedit.benchmark.evaluate import merged_edits
from acedit.benchmark.leak import starts
from acedit.editing.patch import Patch
from acedit.files import plain
from acedit.knowledge.compose import Composer
from acedit.knowledge.facts import cases_from
from acedit.lm.model import LanguageModel
from acedit.report import demo
from acedit.world.cases import facts_of
from acedit.world.graph import build_world, mquake_cases
from tests.tiny import byte_tokenizer, tiny_model

CASES = cases_from(mquake_cases("2hop"))


def test_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACEDIT_CACHE", str(tmp_path / "cache"))
    lm = LanguageModel(tiny_model("qwen3", max_position_embeddings=2048), byte_tokenizer())
    before = lm.logits(["The capital of Peru is"])
    lines: list[str] = []
    found = demo.run(lm, tmp_path / "out", cases=CASES[:1], tell=lambda _: None, say=lines.append)
    said = "\n".join(lines)
    assert "Fernando Santos" in said and "United Kingdom" in said
    assert "Top value neurons" in said and "pmet" in said and "ace" in said
    json.dumps(plain(found), allow_nan=False)
    assert set(found["scores"]) == {"before", "pmet", "ace"}
    assert {row["kind"] for row in found["answers"]} >= {"single-hop", "paraphrase", "multi-hop"}
    for method in demo.METHODS:
        assert Patch.load(tmp_path / "out" / method).method == method
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Emmerson Mnangagwa" in page
    assert (lm.logits(["The capital of Peru is"]) == before).all(), "the model is as it was"


def test_the_real_cases_do_not_disturb_one_another() -> None:
    assert demo.apart(CASES) == CASES


def test_a_case_that_another_would_change_is_left_out() -> None:
    first, second = CASES[0], CASES[1]
    other = replace(second, edits=(replace(first.edits[0], target="Ghana"),))
    assert demo.apart([first, other]) == [first]


def test_what_makes_the_edits_leaks_nothing() -> None:
    world = build_world()
    edits = merged_edits(CASES)
    known = facts_of(world, edits)
    assert not {edit.key for edit in edits} & {fact.key for fact in known}
    prompts = Composer(edits, known, exclude=starts(CASES), seed=0).prompts()
    scored = {q for case in CASES for q in case.questions}
    texts = [p.text for p in prompts]
    assert not any(question in text for question in scored for text in texts)
    assert not {p.subject for p in prompts if p.kind == "lead"} & starts(CASES)
