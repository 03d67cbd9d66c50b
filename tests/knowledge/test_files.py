"""A list is read as a stream, and as json.loads would have it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acedit.errors import UserError
from acedit.knowledge.facts import read_edits, read_facts, read_rows
from acedit.knowledge.files import list_rows
from acedit.world.cases import make_cases
from acedit.world.graph import build_world

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ONE_DRAW_A_FILE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ONE_DRAW_A_FILE
@given(
    rows=st.lists(values, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
    plain=st.booleans(),
    mark=st.booleans(),
)
def test_rows_are_those_of_the_whole(
    tmp_path: Path, rows: list[Any], chunk: int, indent: int | None, plain: bool, mark: bool
) -> None:
    path = tmp_path / "rows.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=plain)
    path.write_bytes(f" {text}\n".encode("utf-8-sig" if mark and plain else "utf-8", "surrogatepass"))
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        with pytest.raises(ValueError):
            list(list_rows(path, chunk=chunk))
        return
    assert list(list_rows(path, chunk=chunk)) == rows


@ONE_DRAW_A_FILE
@given(rows=st.lists(values, min_size=1, max_size=4), chunk=st.integers(1, 40), data=st.data())
def test_what_is_cut_short_is_no_list(
    tmp_path: Path, rows: list[Any], chunk: int, data: st.DataObject
) -> None:
    path = tmp_path / "rows.json"
    text = json.dumps(rows)
    path.write_text(text[: data.draw(st.integers(0, len(text) - 1))], "utf-8")
    with pytest.raises(ValueError):
        list(list_rows(path, chunk=chunk))


@pytest.mark.parametrize("text", ["", "{}", "3", "[1] 2", "[1,]", "[1 2]", "[,1]", "[1", '["a\n"]', "[01]"])
def test_what_is_no_json_list_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError):
        list(list_rows(path, chunk=1))


def test_the_first_rows_are_read_and_no_more(tmp_path: Path) -> None:
    """A file of cases that breaks off behind the third serves whoever wants three, and not who wants all."""
    cases = make_cases(build_world(), seed=1, n=3)
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases)[:-1] + ', {"case_id": ', "utf-8")
    assert read_rows(path, 3) == cases
    assert read_facts(path) == []
    for read in (read_rows, read_edits):
        with pytest.raises(UserError, match=r"cases\.json: not JSON at line 1, column \d+: Expecting value"):
            read(path)
    path.write_text("\n".join(map(json.dumps, cases)), "utf-8")
    assert read_rows(path, 2) == cases, "lines are read whole"
