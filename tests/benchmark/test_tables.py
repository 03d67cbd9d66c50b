"""Tables from records made up by hand, against figures worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from acedit.benchmark import tables
from acedit.benchmark.layouts import Table, html, latex, markdown
from acedit.benchmark.paired import comparison, paired, paired_mean
from acedit.benchmark.rows import Rows, joined, load
from acedit.benchmark.score import Record
from acedit.benchmark.store import Outcome, Store, Unit
from acedit.errors import UserError


def rows(**by_method: list[Record]) -> Rows:
    named = {name.replace("_", "-"): records for name, records in by_method.items()}
    units = tuple((Unit(name, name, ("a", "b", "c", "d"), 1), Outcome(name)) for name in named)
    cases = {
        id: {"edits": n, "hops": 3, "position": "mixed"} for id, n in (("a", 1), ("b", 1), ("c", 2), ("d", 4))
    }
    return Rows(tuple(named), cases, units, {name: tuple(records) for name, records in named.items()})


def asked(metric: str, marks: str, passed: str = "1111") -> list[Record]:
    return [
        Record(metric, case, float(mark == "1"), float(mark == "1"), ok == "1")
        for case, mark, ok in zip("abcd", marks, passed, strict=True)
    ]


ACE = [
    *asked("subset", "1101", "1110"),
    *asked("efficacy", "1111"),
    *asked("paraphrase", "1110"),
    *asked("specificity_subject", "1100"),
    *asked("specificity_relation", "1110"),
]
SKIPPED = [*asked("subset", "1000", "1110"), *asked("efficacy", "1100"), *asked("paraphrase", "1110")]


def test_table_2_is_over_the_subset_by_number_of_edits() -> None:
    table = tables.table2(rows(ace=ACE))
    ((name, mean, one, two, four, *paper),) = table.rows
    assert name == "ace"
    assert mean.startswith("66.7") and mean.endswith("(3)")
    assert one == "100.0 [15.8, 100.0] (2)"
    assert two == "0.0 [0.0, 97.5] (1)"
    assert four == "–"
    assert paper == ["46.45 / 58.24", "45.26 / 60.22", "50.24 / 59.48", "43.29 / 47.61"]
    assert table.head[1:5] == ("avg.", "1-edit", "2-edit", "4-edit")


def test_the_papers_ace_stands_beside_every_reading_of_it() -> None:
    table = tables.table2(rows(ace=ACE, ace_paper=ACE, memit=ACE))
    paper = {row[0]: row[-1] for row in table.rows}
    assert paper["ace"] == paper["ace-paper"] == "43.29 / 47.61"
    assert paper["memit"] == "8.16 / 4.20"


def test_table_3_pools_both_specificities() -> None:
    ((_, efficacy, paraphrase, specificity, mean, *_paper),) = tables.table3(rows(ace=ACE)).rows
    assert (efficacy.split()[0], paraphrase.split()[0], specificity.split()[0]) == ("100.0", "75.0", "62.5")
    assert specificity.endswith("(8)")
    assert mean == f"{(100 + 75 + 62.5) / 3:.1f}"


def test_table_4_says_what_skipping_costs() -> None:
    table = tables.table4(rows(ace=ACE, ace_skip_q2=SKIPPED))
    ((name, mean, efficacy, paraphrase, *rest),) = table.rows
    assert name == "ace without query #1-2"
    assert mean.startswith("33.3") and mean.endswith("(↓ 50.00%)")
    assert efficacy.endswith("↓")
    assert paraphrase.endswith("=")
    assert rest[1:] == ["41.19 / 47.34", "94.8 / 92.4", "91.0 / 89.3", "75.2 / 72.7"]
    assert "table4" not in tables.all_tables(rows(ace=ACE))


def test_what_was_left_out_is_shown_where_it_was_measured() -> None:
    assert "left_out" not in tables.positions(rows(ace=ACE)).head
    table = tables.positions(rows(ace=[*ACE, *asked("left_out", "1000", "1110")]))
    assert table.head[-1] == "left_out"
    assert table.rows[0][-1].startswith("33.3")
    assert any(note.startswith("left_out: ") for note in table.notes)


def test_whole_stands_beside_filtered() -> None:
    asked_of = [Record("direct", case, right, mean, passed) for case, right, mean, passed in (
        ("a", 1.0, 2 / 3, True), ("b", 0.0, 0.0, True), ("c", 1.0, 1.0, False), ("d", 1.0, 1.0, False),
    )]  # fmt: skip
    ((_, questions, everything, *_rest),) = tables.whole_and_filtered(rows(ace=asked_of)).rows
    assert (questions.split()[0], everything.split()[0]) == ("33.3", "75.0")
    assert everything.endswith("(4)")


def test_fluency_is_a_ratio_to_the_unedited_model() -> None:
    made = rows(ace=ACE, pmet=ACE)
    units = tuple(
        (unit, replace(outcome, perplexity=after, before=20.0))
        for (unit, outcome), after in zip(made.units, (22.0, 60.0), strict=True)
    )
    table = tables.fluency(replace(made, units=units))
    assert [row[1:4] for row in table.rows] == [("20.00", "22.00", "1.100"), ("20.00", "60.00", "3.000")]
    assert "fluency" not in tables.all_tables(made)


def test_a_paired_difference_is_over_shared_cases_that_pass() -> None:
    ours, theirs = asked("cot", "1110", "1111"), asked("cot", "1000", "1110")
    row = paired(ours, theirs)
    assert row["n"] == 3
    assert row["value"] == pytest.approx(2 / 3)
    assert row["low"] >= 0 and row["high"] <= 1
    same = paired(ours, ours)
    # Four cases alike: one that differs can be missed four times running.
    missed = 1 - 0.025 ** (1 / 4)
    assert (same["value"], same["low"], same["high"]) == (0, pytest.approx(-missed), pytest.approx(missed))
    first = paired(asked("cot", "1111", "1111"), asked("cot", "0000", "1111"))
    assert (first["value"], first["high"]) == (1, 1)
    assert first["low"] == pytest.approx(2 * 0.025**0.25 - 1)
    assert paired(ours, [])["n"] == 0


def test_a_paired_mean_is_the_mean_of_paired_differences() -> None:
    parts = [
        (asked("efficacy", "1111"), asked("efficacy", "1100")),
        (asked("paraphrase", "1010"), asked("paraphrase", "1010")),
    ]
    row = paired_mean(parts)
    assert row["value"] == pytest.approx(sum(paired(*part)["value"] for part in parts) / 2)
    assert 0 <= row["low"] < row["value"] < row["high"] <= 0.5
    assert paired_mean([parts[0], (parts[1][0], [])])["n"] == 0


def test_a_comparison_is_paired_by_number_of_edits_too() -> None:
    made = rows(ace=ACE, pmet=SKIPPED)
    table = comparison("A", {"x": made.of("ace")}, {"x": made.of("pmet")}, made.cases)
    (cells,) = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert cells["efficacy"].startswith("+50.0")
    assert cells["subset"].startswith("+33.3")
    assert cells["subset, 1-edit"].startswith("+50.0")
    assert cells["subset, 2-edit"].startswith("+0.0")
    assert all(cell.endswith(")") for name, cell in cells.items() if name != "editor")  # its n
    assert "mean of the three" not in cells  # one of them was not asked


def test_tables_say_how_many_facts_are_in_at_once() -> None:
    alone = rows(ace=ACE)
    assert "each case edited by itself" in tables.table2(alone).notes
    units = tuple((replace(unit, at_once=4), replace(o, facts=9)) for unit, o in alone.units)
    assert tables.table3(replace(alone, units=units)).notes[1].startswith("9 facts are in the model")


def test_every_form_holds_every_cell_escaped() -> None:
    table = Table("A & B (%)", ("editor", "x_1"), (("<ace>", "1 | 2 ↓"),), ("50% & more",))
    assert "| <ace> | 1 \\| 2 ↓ |" in markdown(table)
    assert "&lt;ace&gt;" in html(table)
    tex = latex(table)
    assert r"A \& B (\%)" in tex and r"x\_1" in tex and r"$\downarrow$" in tex


def test_the_papers_values_are_whole() -> None:
    assert all(len(values) == 5 for values in tables.PAPER2.values())
    assert set(tables.PAPER3) == set(tables.PAPER2) - {"base"}
    assert all(cell.count(" / ") == 1 for values in tables.PAPER4.values() for cell in values)


def test_only_what_the_paper_measured_stands_beside() -> None:
    assert [tables.in_paper(name) for name in ("ace-paper-cot", "pmet-cot", "ace")] == ["ace", "pmet", "ace"]
    made = rows(
        **{"pmet": ACE, "pmet-skip-q1": SKIPPED, "ace-paper-cot": ACE, "ace-paper-cot-skip-q1": SKIPPED}
    )
    found = {row[0]: row[-4] for row in tables.table4(made).rows}
    assert found == {
        "pmet without query #1": "–", "ace-paper-cot without query #1": tables.PAPER4[1, 0][0],
    }  # fmt: skip


def test_the_unedited_model_stands_in_no_row_of_edited_cases() -> None:
    made = rows(base=ACE, ace=ACE)
    for table in (tables.positions(made), tables.whole_and_filtered(made), tables.probabilities(made)):
        assert "base" not in {row[0] for row in table.rows}
    assert [row[0] for row in tables.table2(made).rows] == ["base", "ace"]


def test_groups_are_named_by_how_many_cases_they_hold() -> None:
    made = rows(ace=ACE)
    (unit, outcome), *_ = made.units
    units = [
        (replace(unit, at_once=n, cases=tuple(map(str, range(size)))), outcome)
        for n, size in ((1, 1), (0, 83), (0, 17))
    ]
    made = replace(made, units=tuple(units))
    assert [row[1] for row in tables.at_once(made).rows] == ["1", "17 to 83"]
    assert {row["cases"] for row in tables.degradation(made)} == {1, 50}


def test_runs_of_other_methods_make_one_table() -> None:
    both = joined({"a": rows(pmet=SKIPPED), "b": rows(ace=ACE)})
    whole = rows(pmet=SKIPPED, ace=ACE)
    assert tables.all_tables(both) == tables.all_tables(whole)
    assert joined({"a": whole}) == whole
    with pytest.raises(UserError, match="a and b both hold 'ace'"):
        joined({"a": rows(ace=ACE), "b": rows(ace=ACE)})
    fewer = {id: case for id, case in whole.cases.items() if id != "d"}
    with pytest.raises(UserError, match="a and b are not of the same cases"):
        joined({"a": rows(pmet=SKIPPED), "b": replace(rows(ace=ACE), cases=fewer)})
    with pytest.raises(UserError, match="not of the same model"):
        joined({"a": rows(pmet=SKIPPED), "b": replace(rows(ace=ACE), fingerprint="another")})
    with pytest.raises(UserError, match="not of the same seed"):
        joined({"a": rows(pmet=SKIPPED), "b": replace(rows(ace=ACE), seed=1)})
    units = tuple((replace(unit, at_once=4), o) for unit, o in rows(ace=ACE).units)
    with pytest.raises(UserError, match="not of the same number of cases at once"):
        joined({"a": rows(pmet=SKIPPED), "b": replace(rows(ace=ACE), units=units)})


def test_failures_alike_are_one_note(tmp_path: Path) -> None:
    units = [Unit(f"k{i}", "kn", (f"c{i}",), 1) for i in range(4)]
    with Store.open(tmp_path) as store:
        store.set_meta({"plan": [unit.key for unit in units]})
        for unit, error in zip(units, ("no gold", "no gold", "no room", "no gold"), strict=True):
            store.add(unit, Outcome(unit.key, error=error))
    assert load(Store.read(tmp_path)).notes == (
        "failed: kn on case c0 and 2 more: no gold",
        "failed: kn on case c2: no room",
    )


def test_runs_of_other_settings_make_no_table_together() -> None:
    one, two = rows(ace=ACE), rows(memit=ACE)
    older = joined({"a": one, "b": replace(two, settings={"preset": "gpt-j"})})
    assert older.methods == ("ace", "memit")
    settings = {"preset": "", "cot": True}
    with pytest.raises(UserError, match="a and b are not of the same preset"):
        joined(
            {"a": replace(one, settings=settings), "b": replace(two, settings=settings | {"preset": "gpt-j"})}
        )
