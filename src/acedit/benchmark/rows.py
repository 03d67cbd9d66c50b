"""What a run's store holds, and several runs as one.

    rows = load(Store.read("runs/a"))
    rows = joined({name: load(Store.read(name)) for name in ("runs/a", "runs/b")})
    rows.of("ace")              # the records of a method

Footgun: units that failed are in `notes` alone, and those not run yet too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from acedit.benchmark.score import Record
from acedit.benchmark.store import Outcome, Store, Unit
from acedit.errors import UserError

SPECIFICITY = ("specificity_subject", "specificity_relation")
"""What Table 3 pools."""


@dataclass(frozen=True)
class Rows:
    """What a run's units hold. cases: edits, hops and position by case id."""

    methods: tuple[str, ...]
    cases: Mapping[str, Mapping[str, Any]]
    units: tuple[tuple[Unit, Outcome], ...]
    records: Mapping[str, tuple[Record, ...]]  # by unit key
    notes: tuple[str, ...] = ()
    fingerprint: str = ""  # of the model
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # beside these; none in older stores

    @property
    def at_once(self) -> tuple[int, ...]:
        """How many cases are edited together, 0 (all of them) last."""
        return tuple(sorted({unit.at_once for unit, _ in self.units}, key=lambda n: (n == 0, n)))

    def at(self, number: int) -> "Rows":
        """What was edited so many cases at once."""
        return replace(self, units=tuple(pair for pair in self.units if pair[0].at_once == number))

    @property
    def fewest(self) -> "Rows":
        """What was edited fewest cases at once: what the paper's tables are of."""
        return self.at(self.at_once[0]) if len(self.at_once) > 1 else self

    @property
    def together(self) -> tuple[str, ...]:
        """The same in words, for a table's notes; nothing where nothing was edited."""
        if self.at_once == (1,):
            return ("each case edited by itself",)
        facts = [outcome.facts for _, outcome in self.units if outcome.facts]
        if not facts:
            return ()
        said = f"{span(facts)} facts are in the model at a time"
        return (f"{said}; how many there are in the paper's it does not say",)

    def of(self, method: str, step: int | None = None) -> list[Record]:
        """The records of a method, all units together, or those of one step of its sequence."""
        return [
            record
            for unit, _ in self.units
            if unit.method == method and (step is None or unit.step == step)
            for record in self.records[unit.key]
        ]

    @property
    def steps(self) -> list[int]:
        """The steps of a sequence, none for cases edited on their own."""
        return sorted({unit.step for unit, _ in self.units if unit.step})


def load(store: Store) -> Rows:
    """The units of the store's plan that have a result, and what is missing as notes."""
    tried = store.units()
    units = tuple((unit, outcome) for unit, outcome in tried if outcome.error is None)
    failed = [(unit, outcome) for unit, outcome in tried if outcome.error is not None]
    missing = len(store.plan()) - len(tried)
    notes = []
    if missing:
        notes.append(f"{missing} of {len(store.plan())} units are not run yet: run the same command again")
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for unit, outcome in failed:
        alike[unit.method, str(outcome.error)].append(unit.cases[0])
    for (method, error), cases in alike.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        notes.append(f"failed: {method} on case {cases[0]}{more}: {error}")
    return Rows(
        tuple(store.meta("methods") or ()),
        store.meta("cases") or {},
        units,
        {unit.key: tuple(store.records([unit.key])) for unit, _ in units},
        tuple(notes),
        str(store.meta("fingerprint") or ""),
        int(store.meta("seed") or 0),
        store.meta("settings") or {},
    )


def joined(runs: Mapping[str, Rows]) -> Rows:
    """Runs of other methods over the same cases as one, by the name each goes by.

    Raises UserError where they are not of the same model, seed, cases, steps and cases at once, or a method
    is in two of them.
    """
    (first, one), *others = runs.items()
    for name, other in others:
        differs = [
            part
            for part, ours, theirs in (
                ("model", one.fingerprint, other.fingerprint),
                ("seed", one.seed, other.seed),
                ("cases", one.cases, other.cases),
                ("steps", one.steps, other.steps),
                ("number of cases at once", one.at_once, other.at_once),
                *(
                    (name, one.settings[name], other.settings[name])
                    for name in one.settings
                    if name in other.settings
                ),
            )
            if ours != theirs
        ]
        if differs:
            raise UserError(
                f"{first} and {name} are not of the same {differs[0]}; they make no table together"
            )
    methods = [(method, name) for name, rows in runs.items() for method in rows.methods]
    by_method: dict[str, str] = {}
    for method, name in methods:
        if by_method.setdefault(method, name) != name:
            raise UserError(f"{by_method[method]} and {name} both hold {method!r}; give one of them")
    every = runs.values()
    return replace(
        one,
        methods=tuple(method for method, _ in methods),
        units=tuple(unit for rows in every for unit in rows.units),
        records={key: records for rows in every for key, records in rows.records.items()},
        notes=tuple(dict.fromkeys(note for rows in every for note in rows.notes)),
    )


def span(numbers: Sequence[int]) -> str:
    """The least and the most of them, in words; one number where all are alike."""
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def picked(records: Sequence[Record], metrics: Sequence[str]) -> list[Record]:
    """Those of the metrics named."""
    return [record for record in records if record.metric in metrics]
