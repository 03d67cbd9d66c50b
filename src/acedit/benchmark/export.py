"""Every prompt of a run and what was said, as one flat file: CSV, or Parquet with pyarrow.

    export(Store.read("runs/a"), "answers.csv")

One row an answer: method, case, its edits, hops and position, step, metric, prompt, said, right.
"""

import csv
import io
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from acedit.benchmark.store import Store
from acedit.errors import UserError
from acedit.files import write_bytes

COLUMNS = (
    "method",
    "case",
    "edits",
    "hops",
    "position",
    "at_once",
    "step",
    "metric",
    "prompt",
    "said",
    "right",
)

Row = tuple[str | int | bool | None, ...]


def export(store: Store, path: str | Path) -> int:
    """Write the run's answers; how many. Raises UserError for another ending, or no pyarrow."""
    path = Path(path)
    rows = list(_rows(store))
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        write_bytes(path, text.getvalue().encode("utf-8"))
    elif path.suffix == ".parquet":
        if find_spec("pyarrow") is None:
            raise UserError(
                "Parquet needs pyarrow: pip install 'acedit[parquet]', or give a name that ends in .csv"
            )
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        table = arrow.table({name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)})
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        write_bytes(path, sink.getvalue())
    else:
        raise UserError(f"{path}: the ending {path.suffix!r} is unknown; give .csv or .parquet")
    return len(rows)


def _rows(store: Store) -> Iterator[Row]:
    cases = store.meta("cases") or {}
    for unit, outcome in store.units():
        if outcome.error is None:
            for a in store.asked(unit.key):
                case = cases.get(a.case, {})
                about = (case.get("edits"), case.get("hops"), case.get("position"), unit.at_once, unit.step)
                yield (unit.method, a.case, *about, a.metric, a.prompt, a.said, a.right)
