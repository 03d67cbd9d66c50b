"""The store: whole units or none, one writer, one version, nothing lost."""

import sqlite3
from pathlib import Path

import pytest

from acedit.benchmark.score import Asked, Record
from acedit.benchmark.store import FILE, Outcome, Store, Unit
from acedit.errors import UserError

UNIT = Unit("k1", "ace", ("a", "b"), 2)
OUTCOME = Outcome(
    "k1",
    (Asked("cot", "a", "Who?", " Zoë 東京 🙂\nAnswer: Peru", True), Asked("cot", "b", "Who?", "", False)),
    (Record("cot", "a", 1.0, 1 / 3), Record("cot", "b", 0.0, 0.0, passed=False)),
    facts=2,
    seconds=1.5,
    rank=4,
    norm=0.25,
)


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.set_meta({"plan": ["k1", "k2"], "model": "bundled"})
        store.add(UNIT, OUTCOME)
        assert store.done() == {"k1"}
    found = Store.read(tmp_path)
    ((unit, outcome),) = found.units()
    assert unit == UNIT
    assert (outcome.facts, outcome.seconds, outcome.rank, outcome.norm) == (2, 1.5, 4, 0.25)
    assert tuple(found.asked("k1")) == OUTCOME.asked
    assert tuple(found.records(["k1"])) == OUTCOME.records
    assert found.meta("model") == "bundled"


def test_a_unit_that_failed_is_not_done_and_can_be_mended(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.set_meta({"plan": ["k1"]})
        store.add(UNIT, Outcome("k1", error="out of memory"))
        assert store.done() == set()
        store.add(UNIT, OUTCOME)
        assert store.done() == {"k1"}
        assert tuple(store.records(["k1"])) == OUTCOME.records


def test_a_unit_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    unsaid = Asked("cot", "a", "Who?", "", True)
    object.__setattr__(unsaid, "said", None)
    broken = Outcome("k1", (OUTCOME.asked[0], unsaid), OUTCOME.records)
    with Store.open(tmp_path) as store:
        store.set_meta({"plan": ["k1"]})
        with pytest.raises(UserError):
            store.add(UNIT, broken)
        assert store.units() == []
        assert store.records(["k1"]) == []


def test_a_second_writer_is_refused_a_reader_is_not(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.set_meta({"plan": ["k1"]})
        with pytest.raises(UserError, match="another run is writing"), Store.open(tmp_path):
            pass
        assert Store.read(tmp_path).plan() == ["k1"]
    with Store.open(tmp_path) as store:
        assert store.plan() == ["k1"]


def test_another_version_and_another_file_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        pass
    db = sqlite3.connect(tmp_path / FILE)
    with db:
        db.execute("UPDATE meta SET value = '0' WHERE name = 'schema'")
    db.close()
    for look in (lambda: Store.read(tmp_path), lambda: Store.open(tmp_path).__enter__()):
        with pytest.raises(UserError, match="version 0"):
            look()
    (tmp_path / FILE).write_text("this is no database, but long enough to look like a file of some kind" * 20)
    with pytest.raises(UserError, match="no run of acedit"):
        Store.read(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        Store.read(tmp_path / "nowhere")


def test_a_store_killed_while_it_is_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables and its version come together or not at all."""
    monkeypatch.setattr("acedit.benchmark.store._TABLES", "CREATE TABLE meta (name TEXT); CREATE nonsense;")
    with pytest.raises(UserError), Store.open(tmp_path):
        pass
    monkeypatch.undo()
    with Store.open(tmp_path) as store:
        store.add(UNIT, OUTCOME)
    assert Store.read(tmp_path).done() == {"k1"}


def test_a_run_that_has_ended_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.add(UNIT, OUTCOME)
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    mode = sqlite3.connect(tmp_path / FILE).execute("PRAGMA journal_mode").fetchone()
    assert mode == ("delete",), "a WAL file wants its folder to be writable"
    assert Store.read(tmp_path).asked("k1") == list(OUTCOME.asked)
