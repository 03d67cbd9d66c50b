"""A benchmark run on disk: every unit of work, every prompt and what was said, in one SQLite file.

    with Store.open("runs/a") as store:           # refuses a folder another run is writing to
        if key not in store.done():
            store.add(unit, outcome)
    Store.read("runs/a").units()                   # for looking, beside a run that is writing

A unit is one method on one group of cases edited together. Its key is a digest of everything its result
depends on, so a changed setting finds no row of an older one; the units of the run last asked for, in
order, are its `plan`. A unit is written in one transaction: it is there whole, or not at all.

Footgun: seconds are kept beside the answers and differ from run to run; nothing else does.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acedit.benchmark.score import Asked, Record
from acedit.errors import UserError

SCHEMA = 2
FILE = "run.sqlite"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (
    key TEXT PRIMARY KEY, method TEXT NOT NULL, at_once INTEGER NOT NULL, step INTEGER NOT NULL,
    cases TEXT NOT NULL, error TEXT, facts INTEGER, seconds REAL, rank INTEGER, norm REAL,
    perplexity REAL, before REAL
);
CREATE TABLE IF NOT EXISTS asked (
    unit TEXT NOT NULL, n INTEGER NOT NULL, metric TEXT NOT NULL, case_id TEXT NOT NULL,
    prompt TEXT NOT NULL, said TEXT NOT NULL, right INTEGER NOT NULL, PRIMARY KEY (unit, n)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    unit TEXT NOT NULL, n INTEGER NOT NULL, metric TEXT NOT NULL, case_id TEXT NOT NULL,
    right REAL NOT NULL, mean REAL NOT NULL, passed INTEGER NOT NULL, PRIMARY KEY (unit, n)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Unit:
    """One method on one group of cases; step: how many cases had been edited, in a sequence, else 0."""

    key: str
    method: str
    cases: tuple[str, ...]
    at_once: int
    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a unit: answers and records, or an error in one line; what the patch cost.

    rank and norm (‖Δ‖/‖W‖) are the largest over the layers; perplexity is a token's over Wikitext with the
    patch on, before the unedited model's (NaN where not asked).
    """

    key: str
    asked: tuple[Asked, ...] = ()
    records: tuple[Record, ...] = ()
    error: str | None = None
    facts: int = 0
    seconds: float = 0.0
    rank: int = 0
    norm: float = 0.0
    perplexity: float = float("nan")
    before: float = float("nan")


class Store:
    """The SQLite file of a run. Use `open` to write, `read` to look."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path) -> Iterator["Store"]:
        """For writing, alone: raises UserError where another run holds the folder, or for another version."""
        at = Path(folder)
        try:
            at.mkdir(parents=True, exist_ok=True)
            lock = sqlite3.connect(at / "lock.sqlite", timeout=0, isolation_level=None)
            db = sqlite3.connect(at / FILE, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{at}: cannot be written: {error}; choose another place") from None
        try:
            with _speaking(at):
                lock.execute("BEGIN EXCLUSIVE")
            with _speaking(at / FILE):
                if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                    cls(at / FILE, db)._check()
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                schema = f"INSERT OR IGNORE INTO meta VALUES ('schema', '{json.dumps(SCHEMA)}');"
                db.executescript(f"BEGIN;{_TABLES}{schema}COMMIT;")  # all or none, should it be killed here
            yield cls(at / FILE, db)
        finally:
            # A file left in WAL mode cannot be read where its folder cannot be written.
            with suppress(sqlite3.OperationalError):  # somebody is reading
                db.execute("PRAGMA journal_mode=DELETE")
            db.close()
            lock.close()

    @classmethod
    def read(cls, folder: str | Path) -> "Store":
        """For reading; a run may go on writing meanwhile. Raises UserError where there is no run."""
        path = Path(folder) / FILE
        if not path.exists():
            raise UserError(f"{folder}: holds no run; give the folder that 'acedit bench --out' wrote")
        with _speaking(path):
            store = cls(path, sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True))
            store._check()
        return store

    def _check(self) -> None:
        if self.meta("schema") != SCHEMA:
            raise UserError(
                f"{self.path}: is of version {self.meta('schema')}, this acedit writes {SCHEMA}; "
                "choose another folder, or read it with the version that wrote it"
            )

    def meta(self, name: str) -> Any:
        """A setting of the run, None where it is not set."""
        with _speaking(self.path):
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_meta(self, values: Mapping[str, Any]) -> None:
        """Keep settings of the run, as JSON."""
        rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in values.items()]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def done(self) -> set[str]:
        """Keys of units that have a result; those that failed are tried again."""
        with _speaking(self.path):
            return {key for (key,) in self._db.execute("SELECT key FROM units WHERE error IS NULL")}

    def add(self, unit: Unit, outcome: Outcome) -> None:
        """Keep a unit's outcome, all of it in one transaction."""
        with self._transaction():
            for table in ("asked", "records"):
                self._db.execute(f"DELETE FROM {table} WHERE unit = ?", (unit.key,))
            self._db.execute(
                "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    unit.key, unit.method, unit.at_once, unit.step, json.dumps(unit.cases), outcome.error,
                    outcome.facts, outcome.seconds, outcome.rank, outcome.norm,
                    outcome.perplexity, outcome.before,
                ),
            )  # fmt: skip
            self._db.executemany(
                "INSERT INTO asked VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (unit.key, n, a.metric, a.case, a.prompt, a.said, a.right)
                    for n, a in enumerate(outcome.asked)
                ],
            )
            self._db.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (unit.key, n, r.metric, r.case, r.right, r.mean, r.passed)
                    for n, r in enumerate(outcome.records)
                ],
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _speaking(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def plan(self) -> list[str]:
        """Keys of the run's units, in order."""
        return list(self.meta("plan") or [])

    def units(self) -> list[tuple[Unit, Outcome]]:
        """The units of the plan that were tried, in its order, without their answers."""
        with _speaking(self.path):
            rows = {row[0]: row for row in self._db.execute("SELECT * FROM units")}
        found = []
        for key in self.plan():
            if key in rows:
                _, method, at_once, step, cases, error, facts, seconds, rank, *real = rows[key]
                unit = Unit(key, method, tuple(json.loads(cases)), at_once, step)
                # SQLite has no NaN.
                norm, after, before = (float("nan") if x is None else x for x in real)
                found.append((unit, Outcome(key, (), (), error, facts, seconds, rank, norm, after, before)))
        return found

    def records(self, keys: Sequence[str]) -> list[Record]:
        """The records of units, in order."""
        found = []
        with _speaking(self.path):
            for key in keys:
                rows = self._db.execute(
                    "SELECT metric, case_id, right, mean, passed FROM records WHERE unit = ? ORDER BY n",
                    (key,),
                )
                found += [
                    Record(metric, case, right, mean, bool(ok)) for metric, case, right, mean, ok in rows
                ]
        return found

    def asked(self, key: str) -> list[Asked]:
        """Every prompt of a unit and what was said."""
        with _speaking(self.path):
            rows = self._db.execute(
                "SELECT metric, case_id, prompt, said, right FROM asked WHERE unit = ? ORDER BY n", (key,)
            ).fetchall()
        return [Asked(metric, case, prompt, said, bool(right)) for metric, case, prompt, said, right in rows]

    def close(self) -> None:
        """Give the file back."""
        self._db.close()


@contextmanager
def _speaking(path: Path) -> Iterator[None]:
    """SQLite's complaints as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(
                f"{path}: another run is writing here; wait for it, or choose another folder"
            ) from None
        raise UserError(f"{path}: {error}; free room, or choose another folder") from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: {error}; it was cut short or is no run of acedit: choose another folder"
        ) from None
