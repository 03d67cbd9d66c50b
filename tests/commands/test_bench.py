"""`acedit bench` from the command line: run, look, compare, export, and bad input."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from acedit.benchmark.store import Store
from acedit.commands.bench import _first_of_each, _skipping
from acedit.editing.methods import method
from acedit.knowledge.facts import cases_from
from acedit.world.cases import make_cases
from acedit.world.graph import build_world
from tests.conftest import Run
from tests.tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, and a file of two cases."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_model("qwen3", max_position_embeddings=2048).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "cases.json").write_text(json.dumps(make_cases(build_world(), seed=0, n=2)), "utf-8")
    return folder


def bench(folder: Path, *more: object) -> list[object]:
    return [
        "bench", "--model", folder / "model", "--cases", folder / "cases.json", "--no-cot",
        "--methods", "base", "memit", *more,
    ]  # fmt: skip


def test_a_run_can_be_looked_at_compared_and_taken_away(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run(*bench(folder, "--out", tmp_path / "a", "--json", tmp_path / "a.json"))
    assert code == 0, err
    assert "4 units made, 0 found made, 0 failed" in out
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["command"], record["made"], record["failed"]) == ("bench", 4, [])
    assert record["tables"]["table3"]["rows"][0][0] == "memit"

    _, again, _ = run(*bench(folder, "--out", tmp_path / "a"))
    assert "0 units made, 4 found made" in again

    code, shown, _ = run("bench", "show", tmp_path / "a")
    assert code == 0
    assert "seconds a fact" in shown

    code, _, _ = run("bench", "tables", tmp_path / "a", "--json", tmp_path / "t.json")
    assert code == 0
    for suffix in ("md", "tex", "html"):
        assert "memit" in (tmp_path / "a" / "tables" / f"tables.{suffix}").read_text()

    run(*bench(folder, "--seed", "1", "--out", tmp_path / "b"))
    code, compared, _ = run("bench", "compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "+0.0 [-84.2, +84.2] (2)" in compared

    code, _, err = run("bench", "export", tmp_path / "a", "--out", tmp_path / "answers.csv")
    assert code == 0, err
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"base", "memit"}
    assert {row["right"] for row in rows} <= {"True", "False"}
    assert {row["at_once"] for row in rows} == {"1"}

    run(*bench(folder, "--at-once", "all", "--out", tmp_path / "c"))
    code, _, err = run("bench", "compare", tmp_path / "a", tmp_path / "c")
    assert code == 2
    assert "edit no number of cases at once alike" in err


def test_answers_go_to_parquet(run: Run, folder: Path, tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra 'parquet')")
    code, _, err = run(*bench(folder, "--out", tmp_path / "a"))
    assert code == 0, err
    run("bench", "export", tmp_path / "a", "--out", tmp_path / "answers.parquet")
    table = parquet.read_table(tmp_path / "answers.parquet")
    assert "said" in table.column_names
    assert table.num_rows > 0


def test_skipped_layers_are_rows_of_their_own(run: Run, folder: Path, tmp_path: Path) -> None:
    # Where one stage is left no layer, the other is written all the same.
    skipping = ("--methods", "ace-paper", "--skip-query", "1", "--skip-value", "1", "2")
    code, out, err = run(*bench(folder, "--out", tmp_path / "a", *skipping))
    assert code == 0, err
    for name in ("ace-paper-skip-q1", "ace-paper-skip-v1", "ace-paper-skip-v2"):
        assert name in out


def test_a_method_without_a_layer_left_is_said_so(run: Run, folder: Path, tmp_path: Path) -> None:
    # The plan of a model of three layers leaves one for the query stage.
    code, _, err = run(*bench(folder, "--out", tmp_path / "a", "--skip-query", "1"))
    assert code == 2
    assert "method 'memit-skip-q1' has no layer to write: skip fewer" in err


def test_relations_left_out_of_the_prompts_are_scored_apart(run: Run, folder: Path, tmp_path: Path) -> None:
    run(*bench(folder, "--out", tmp_path / "a"))
    code, _, err = run(*bench(folder, "--out", tmp_path / "a", "--left-out", "1"))
    assert code == 0, err
    store = Store.read(tmp_path / "a")
    scored = {unit.method: {r.metric for r in store.records([unit.key])} for unit, _ in store.units()}
    assert "left_out" in scored["memit"]  # and the units made without are not taken for these


def test_methods_without_such_layers_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """Table 4 of several methods: who has no value layers has no row of its own, and it is said."""
    assert [m.name for m in _skipping(method("ace-closed"), [{"value": 1}])] == ["ace-closed-skip-v1"]
    for name in ("pmet", "kn", "ike"):
        caplog.clear()
        assert _skipping(method(name), [{"value": 1}]) == []
        assert name in caplog.text


def test_the_first_of_each_number_of_edits() -> None:
    cases = cases_from([row for k in (1, 2) for row in make_cases(build_world(), seed=0, n=3, edits=k)])
    assert [len(case.edits) for case in _first_of_each(cases, 2)] == [1, 1, 2, 2]
    assert _first_of_each(cases, None) == cases


def test_a_sequence_draws_its_curve(run: Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = run(
        *bench(folder, "--out", tmp_path / "a", "--sequence", "1,2", "--json", tmp_path / "a.json")
    )
    assert code == 0, err
    assert json.loads((tmp_path / "a.json").read_text())["failed"] == []
    assert "In sequence" in out and "perplexity, ratio" in out
    run("bench", "tables", tmp_path / "a", "--out", tmp_path / "t")
    assert (tmp_path / "t" / "degradation.vl.json").exists()
    run(*bench(folder, "--out", tmp_path / "b"))
    code, _, err = run("bench", "compare", tmp_path / "a", tmp_path / "b")
    assert (code, "share no step" in err) == (2, True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--out is missing"),
        (["--out", "OUT", "--methods", "nope"], "unknown method 'nope'"),
        (["--out", "OUT", "--edits", "4"], "no case has [4] edits"),
        (["--out", "OUT", "--sequence", "5"], "--sequence 5: there are 2 cases"),
        (["--out", "OUT", "--edits", "5"], "5 is out of range"),
        (["--out", "OUT", "--left-out", "2"], "2 is out of range; give 0 to 1"),
        (["--out", "OUT", "--left-out", "half"], "'half' is not a number"),
        (["--out", "OUT", "--skip-value", "1"], "no method named has layers of that kind"),
    ],
)
def test_bad_input_is_one_line(run: Run, folder: Path, tmp_path: Path, more: list[str], said: str) -> None:
    more = [str(tmp_path / "a") if part == "OUT" else part for part in more]
    code, _, err = run(*bench(folder, "--quiet", *more))
    assert code == 2
    assert said in err and err.startswith("acedit: ") and err.count("\n") == 1


def test_looking_where_nothing_is_is_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    for command in (["show", tmp_path], ["tables", tmp_path], ["compare", tmp_path, tmp_path]):
        code, _, err = run("bench", *command)
        assert code == 2
        assert "holds no run" in err
    with Store.open(tmp_path / "busy"):
        code, _, err = run(*bench(folder, "--quiet", "--out", tmp_path / "busy"))
    assert code == 2
    assert "another run is writing" in err
    code, _, err = run("bench", "export", tmp_path / "busy", "--out", tmp_path / "x.txt")
    assert (code, "give .csv or .parquet" in err) == (2, True)


def test_ripple_edits_are_read_and_scored_by_axis(run: Run, folder: Path, tmp_path: Path) -> None:
    cloze = "The name of the country of citizenship of Bo Ray is"
    fact = {"subject_id": "Q1", "relation": "COUNTRY_OF_CITIZENSHIP"}
    test = {
        "test_queries": [{"prompt": "The capital of his country is", "answers": [{"value": "Santiago"}]}],
        "test_condition": "OR",
        "condition_queries": [],
    }
    row = {
        "edit": {**fact, "prompt": f"{cloze} Chile.", "original_fact": {**fact, "prompt": f"{cloze} Peru."}},
        "Compositionality_I": [test],
    }
    (tmp_path / "r.json").write_text(json.dumps([row]), "utf-8")
    code, out, err = run(
        "bench", "--model", folder / "model", "--cases", tmp_path / "r.json", "--methods", "lora",
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert code == 0, err
    assert "compositionality 1" in out
    assert out.count("(1)") == 2, "one edit and one test are counted"
    assert "Fluency: perplexity" in out
