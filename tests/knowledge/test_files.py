"""A list is read as a stream, and as json.loads would have it."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acedit.errors import UserError
from acedit.knowledge import facts
from acedit.knowledge.facts import read_cases, read_edits, read_edits_file, read_facts, read_rows
from acedit.knowledge.files import line_rows, list_rows
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


def test_the_first_lines_are_read_and_no_more(tmp_path: Path) -> None:
    cases = make_cases(build_world(), seed=1, n=3)
    path = tmp_path / "cases.jsonl"
    path.write_text("\n\n".join(map(json.dumps, cases)) + '\n{"case_id": ', "utf-8")
    assert read_rows(path, 2) == cases[:2]
    assert read_facts(path) == []
    with pytest.raises(UserError, match=r"cases\.jsonl: not JSON at line 6, column \d+: Expecting value"):
        read_rows(path, 4)
    for alone in ('{"edits": []}', '{"edits":\n[]}', "[1]\n[2]", ""):
        path.write_text(alone, "utf-8")
        with pytest.raises(ValueError):
            list(line_rows(path))


def test_a_file_of_edits_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a command asks of it comes from one reading, and is what each reader gives by itself."""
    cases = make_cases(build_world(), seed=1, n=3)
    told = {"facts": [{"subject": "Ann", "relation": "P27", "object": "Peru"}]}
    told["edits"] = [{"subject": "Bo", "relation": "P27", "target": "Chile"}]
    for rows, lines in ((cases, False), (cases, True), (told, False)):
        path = tmp_path / "edits.json"
        path.write_text("\n".join(map(json.dumps, cases)) if lines else json.dumps(rows), "utf-8")
        with monkeypatch.context() as patched:
            reading = Mock(wraps=facts._data)
            patched.setattr(facts, "_data", reading)
            found = read_edits_file(path)
        reading.assert_called_once_with(path)
        assert (found.edits, found.facts) == (read_edits(path), read_facts(path))
        assert found.cases == ([] if rows is told else read_cases(path))
