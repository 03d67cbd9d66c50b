"""Runs: killed and gone on, by one worker or two, in sequence; failures kept, leaks not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acedit.attribution.plan import Plan
from acedit.benchmark import evaluate, runner, tables
from acedit.benchmark.layouts import markdown
from acedit.benchmark.leak import LeakError
from acedit.benchmark.rows import load as rows_in
from acedit.benchmark.runner import Job, items_of, run
from acedit.benchmark.store import Store
from acedit.editing.methods import Method, method
from acedit.editing.preserve import text_of
from acedit.editing.presets import Preset
from acedit.errors import UserError
from acedit.knowledge.facts import Case, Fact, cases_from
from acedit.lm.loading import load
from acedit.lm.model import LanguageModel
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world
from tests.benchmark.killer import ALWAYS, FLAG, KILLER
from tests.benchmark.test_faults import CLASH, MOVES, SOILS, STAYS
from tests.tiny import byte_tokenizer

METHODS = (method("base"), method("memit"))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load("bundled")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return cases_from(make_cases(build_world(), seed=3, n=3))


@pytest.fixture(scope="module")
def job(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """With a plan and a short text of its own, so that neither is worked out for every run."""
    known: Sequence[Fact] = facts_of(build_world(), [])
    return Job(
        "bundled",
        cot=False,
        known=tuple(known),
        plan=Plan((7, 8), (0, 1)),
        text=tuple(text_of(lm, known)[::8]),
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture(scope="module")
def whole(job: Job, cases: list[Case], lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    report = run(job, cases, METHODS, folder=folder, lm=lm)
    assert (report.made, report.kept, report.failed) == (6, 0, [])
    return folder


def test_a_preset_is_for_its_own_model(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = replace(job, preset="gpt-j")
    with pytest.raises(UserError, match="preset 'gpt-j' is for 28 layers"):
        run(published, cases, METHODS, folder=tmp_path, lm=lm)
    monkeypatch.setattr(Preset, "fitted", lambda _, __, method: (job.plan, method))
    with pytest.raises(UserError, match="ranks no layers"):
        run(published, cases, [method("ace-paper").skipping(query=1)], folder=tmp_path, lm=lm)
    plain, with_preset = (
        items_of(one, lm.fingerprint, [tuple(cases)], METHODS, at_once=None) for one in (job, published)
    )
    keys = [(a.units[0].key == b.units[0].key) for a, b in zip(plain, with_preset, strict=True)]
    assert keys == [True, False]  # base has no layers to choose


def printed(folder: Path) -> str:
    """Every table of a run, without costs."""
    return "".join(map(markdown, tables.all_tables(rows_in(Store.read(folder))).values()))


def test_every_answer_is_kept(whole: Path, cases: list[Case], lm: LanguageModel) -> None:
    store = Store.read(whole)
    units = store.units()
    assert [unit.method for unit, _ in units] == ["base", "memit"] * 3
    unit, outcome = units[1]
    asked = store.asked(unit.key)
    assert {a.case for a in asked} == {cases[0].id}
    assert {"efficacy", "paraphrase", "direct"} <= {a.metric for a in asked}
    assert outcome.facts == 1
    assert outcome.norm > 0
    recalled = [r for r in store.records([units[0][0].key]) if r.metric == "direct"]
    assert recalled[0].right == 1.0  # the bundled model knows the case's original chain


def test_what_is_there_is_not_made_again(whole: Path, job: Job, cases: list[Case], lm: LanguageModel) -> None:
    before = printed(whole)
    report = run(job, cases, METHODS, folder=whole, lm=lm)
    assert (report.made, report.kept) == (0, 6)
    assert printed(whole) == before


def test_a_killed_run_ends_with_the_same_table(
    whole: Path,
    job: Job,
    cases: list[Case],
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add, left = Store.add, [3]

    def dying(self: Store, *given: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        add(self, *given)

    monkeypatch.setattr(Store, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        run(job, cases, METHODS, folder=tmp_path, lm=lm)
    monkeypatch.undo()
    assert printed(tmp_path) != printed(whole)
    report = run(job, cases, METHODS, folder=tmp_path, lm=lm)
    assert (report.made, report.kept) == (3, 3)
    assert printed(tmp_path) == printed(whole)


def test_layers_are_chosen_once_a_run(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept in the store, and chosen again where they would be others."""
    chosen: list[int] = []

    def choosing(*args: Any) -> Any:
        chosen.append(args[3])
        return job.plan

    monkeypatch.setattr(runner, "shared_plan", choosing)
    own = replace(job, plan=None)
    run(own, cases[:1], METHODS[:1], folder=tmp_path, lm=lm)
    assert chosen == []  # base needs none
    run(own, cases[:1], METHODS, folder=tmp_path, lm=lm)
    run(own, cases[:2], METHODS, folder=tmp_path / "more", lm=lm)
    assert chosen == [0, 0]
    assert job.plan is not None and Store.read(tmp_path).meta("layers")["plan"] == job.plan.to_json()
    run(own, cases[:1], [method("pmet")], folder=tmp_path, lm=lm)
    assert chosen == [0, 0]
    run(replace(own, seed=1), cases[:1], METHODS, folder=tmp_path, lm=lm)
    assert chosen == [0, 0, 1]


def test_what_needs_layers_fails_where_none_can_be_chosen(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise RuntimeError("out of\n memory")

    monkeypatch.setattr(runner, "shared_plan", failing)
    report = run(replace(job, plan=None), cases[:1], METHODS, folder=tmp_path, lm=lm)
    assert report.made == 1
    ((unit, error),) = report.failed
    assert unit.method == "memit"
    assert error.endswith("no layers were chosen: RuntimeError: out of memory")


@pytest.mark.parametrize(("workers", "ray"), [(2, None), (4, None), (2, "local")])
def test_workers_make_the_same_table(
    workers: int, ray: str | None, whole: Path, job: Job, cases: list[Case], tmp_path: Path
) -> None:
    if ray:
        pytest.importorskip("ray", reason="Ray is not installed (extra 'ray')")
    report = run(job, cases, METHODS, folder=tmp_path, workers=workers, ray=ray)
    assert report.made == 6
    assert printed(tmp_path) == printed(whole)


@pytest.mark.parametrize("ray", [None, "local"])
def test_a_worker_killed_at_a_case_costs_its_retry_and_nothing_else(
    ray: str | None,
    job: Job,
    cases: list[Case],
    lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if ray:
        pytest.importorskip("ray", reason="Ray is not installed (extra 'ray')")
    methods = (method("base"), KILLER)
    monkeypatch.setenv(FLAG, str(tmp_path / "died"))
    report = run(job, cases, methods, folder=tmp_path / "killed", workers=2, ray=ray)
    assert (tmp_path / "died").exists()
    assert (report.made, report.failed) == (6, [])
    run(job, cases, methods, folder=tmp_path / "whole", lm=lm)
    assert printed(tmp_path / "killed") == printed(tmp_path / "whole")


def test_a_case_that_kills_every_worker_is_kept_as_failed(
    job: Job, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "died").touch()
    monkeypatch.setenv(FLAG, str(tmp_path / "died"))
    monkeypatch.setenv(ALWAYS, cases[1].edits[0].subject)
    report = run(job, cases, (KILLER,), folder=tmp_path / "run", workers=2)
    assert report.made == 2
    ((unit, error),) = report.failed
    assert (unit.cases, error) == (
        (cases[1].id,),
        "the worker died, twice: SIGKILL, as the system does when memory runs out",
    )


def test_a_changed_setting_reuses_nothing(job: Job, cases: list[Case]) -> None:
    def keys(job: Job, some: Sequence[Method] = METHODS) -> set[str]:
        items = items_of(job, "f", [tuple(cases[:1])], some, at_once=1)
        return {unit.key for item in items for unit in item.units}

    first = keys(job)
    assert keys(job) == first
    others = [
        keys(runner.replace(job, seed=1)),
        keys(runner.replace(job, cot=True)),
        keys(runner.replace(job, threads=2)),
        keys(runner.replace(job, text=("Lima is by the sea.",))),
        {
            u.key
            for i in items_of(job, "f", [tuple(cases[:1])], METHODS, at_once=None, steps=[1])
            for u in i.units
        },
        keys(runner.replace(job, known=job.known[:-1])),
        {u.key for i in items_of(job, "g", [tuple(cases[:1])], METHODS, at_once=1) for u in i.units},
        {u.key for i in items_of(job, "f", [tuple(cases[1:2])], METHODS, at_once=1) for u in i.units},
    ]
    for other in others:
        assert not other & first
    stronger = runner.replace(method("memit"), lam=1.0)
    assert len(keys(job, [METHODS[0], stronger]) & first) == 1


def test_a_case_that_cannot_be_asked_fails_alone(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path
) -> None:
    long = replace(cases[1], questions=("Who " * 3000 + "?",))
    mixed = [cases[0], long, cases[2]]
    report = run(job, mixed, [method("memit")], folder=tmp_path, lm=lm, at_once=3)
    assert report.made == 1
    ((unit, error),) = report.failed
    assert unit.cases == (long.id,)
    assert "the model's context is 2048" in error
    with pytest.raises(UserError, match="there are 2 cases that do not contradict and can be asked"):
        run(job, mixed, [method("memit")], folder=tmp_path / "s", lm=lm, sequence=(3,))


def test_a_digest_of_parts_is_that_of_the_whole() -> None:
    whole = {"b": [1, "ö", None], "a": {"z": 1.5, "y": (2,)}}
    parts = {name: runner._form(value) for name, value in whole.items()}
    assert runner._digest_of(parts) == runner._digest(whole)


def test_a_case_that_fails_is_kept_as_failed_and_stops_nothing(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_cases = runner.edit_cases

    def failing(lm: LanguageModel, some: Sequence[Case], *rest: Any, **more: Any) -> Any:
        if some[0].id == cases[1].id:
            raise RuntimeError("out of\n memory")
        return edit_cases(lm, some, *rest, **more)

    monkeypatch.setattr(runner, "edit_cases", failing)
    report = run(job, cases, METHODS, folder=tmp_path, lm=lm)
    assert report.made == 5
    ((unit, error),) = report.failed
    assert (unit.method, unit.cases, error) == ("memit", (cases[1].id,), "RuntimeError: out of memory")
    assert "failed: memit on case dev-3-1" in printed(tmp_path)
    monkeypatch.undo()
    again = run(job, cases, METHODS, folder=tmp_path, lm=lm)
    assert (again.made, again.kept, again.failed) == (1, 5, [])


def test_a_broken_leak_rule_stops_everything(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(*_: Any) -> None:
        raise LeakError("a prompt was seen")

    monkeypatch.setattr(evaluate, "check", leaking)
    with pytest.raises(LeakError):
        run(job, cases, METHODS, folder=tmp_path, lm=lm)


def test_strict_says_how_many_cases_it_leaves_out(tmp_path: Path, lm: LanguageModel) -> None:
    """Of four, some take as it was what another edits."""
    some = [MOVES, STAYS, CLASH, SOILS]
    groups, faults = runner._grouped(some, None, strict=True)
    kept = {case.id for group in groups for case in group}
    assert kept < {case.id for case in some}
    assert kept.isdisjoint(fault.case for fault in faults)
    said: list[str] = []
    run(
        Job("bundled", cot=False),
        some,
        (method("base"),),
        folder=tmp_path,
        strict=True,
        at_once=None,
        lm=lm,
        say=said.append,
    )
    assert f"--strict leaves out {4 - len(kept)} of 4 cases" in said
    assert Store.read(tmp_path).meta("left_out") == 4 - len(kept)


def test_the_same_cases_are_edited_by_several_numbers_at_once(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path
) -> None:
    """As runs of their own would be, in one table; as many at once as there are is all of them."""
    ways = {"lm": lm, "methods": [method("memit")]}
    run(job, cases, folder=tmp_path / "all", at_once=[2, 3, None], **ways)  # type: ignore[arg-type]
    rows = rows_in(Store.read(tmp_path / "all"))
    assert rows.at_once == (2, 3)
    assert [outcome.facts for _, outcome in rows.units] == [2, 1, 3]
    run(job, cases, folder=tmp_path / "two", at_once=2, **ways)  # type: ignore[arg-type]
    alone = rows_in(Store.read(tmp_path / "two"))
    assert rows.at(2).of("memit") == alone.of("memit")
    found = tables.all_tables(rows)
    assert found["table3"] == tables.all_tables(alone)["table3"]
    assert [row[:2] for row in found["at_once"].rows] == [("memit", "1 to 2"), ("memit", "3")]
    assert {row["cases"] for row in tables.degradation(rows)} == {1.5, 3}
    assert tables.degradation(alone) == []


def test_strict_asks_the_same_cases_of_every_number_at_once(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path
) -> None:
    """Two that contradict may each stand alone, but are asked by no number if they are not by all."""
    edit = cases[0].edits[0]
    other = replace(edit, target=cases[1].edits[0].target)
    against = replace(cases[0], id="against", edits=(other,))
    said: list[str] = []
    run(
        job, [*cases, against], [method("base")],
        folder=tmp_path, at_once=[1, 2], strict=True, lm=lm, say=said.append,
    )  # fmt: skip
    rows = rows_in(Store.read(tmp_path))
    asked = [{case for unit, _ in rows.at(n).units for case in unit.cases} for n in (1, 2)]
    assert asked[0] == asked[1] == set(rows.cases)
    assert f"--strict leaves out {4 - len(asked[0])} of 4 cases" in said


def test_edits_in_sequence_stay_in(job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path) -> None:
    before = [lm.down_weight(layer).clone() for layer in range(lm.n_layers)]
    report = run(job, cases, [method("memit")], folder=tmp_path, lm=lm, sequence=[1, 3])
    assert report.failed == []
    rows = rows_in(Store.read(tmp_path))
    assert rows.steps == [1, 3]
    facts = [outcome.facts for _, outcome in rows.units]
    assert facts == [1, 3]
    assert {r.case for r in rows.of("memit", 1)} == {cases[0].id}
    assert {r.case for r in rows.of("memit", 3)} == {case.id for case in cases}
    assert all(w.equal(lm.down_weight(layer)) for layer, w in enumerate(before))
    assert "| memit | 3 |" in printed(tmp_path)


def test_a_sequence_asks_after_its_own_cases_alone(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path
) -> None:
    said: list[str] = []
    run(job, cases, [method("base")], folder=tmp_path, lm=lm, sequence=[1, 2], say=said.append)
    rows = rows_in(Store.read(tmp_path))
    assert set(rows.cases) == {r.case for r in rows.of("base")} | {cases[0].id, cases[1].id}
    assert len(rows.cases) == 2
    assert "the sequence is of the first 2 cases that do not contradict" in said


def test_what_a_method_reads_is_looked_up_by_the_models_own_fingerprint(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hyper-network trained anew is another unit: its state is asked for by the name it is kept under."""
    asked: list[str] = []
    monkeypatch.setattr(Method, "state", lambda _, fingerprint: asked.append(fingerprint) or "s")
    monkeypatch.setattr(runner, "_drive", lambda *_: None)
    run(job, cases, [method("mend")], folder=tmp_path, lm=lm)
    assert asked == [lm.fingerprint]


def test_another_tokenizer_is_another_model(lm: LanguageModel) -> None:
    """The fingerprint is of the weights; what is said depends on how they are read too."""
    other = LanguageModel(lm.model, byte_tokenizer())
    other.tokenizer.add_tokens(["<more>"])
    assert runner._reading(other) != runner._reading(lm)
    assert runner._reading(LanguageModel(lm.model, lm.tokenizer)) == runner._reading(lm)


def test_a_sequence_that_is_killed_goes_on_where_it_was(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"lm": lm, "sequence": [1, 3]}
    run(job, cases, [method("memit")], folder=tmp_path / "whole", **ways)  # type: ignore[arg-type]
    edited: list[str] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        if len(edited) == 2:
            raise KeyboardInterrupt
        edited.append(args[1][0].id)
        return evaluate.edit_cases(*args, **kwargs)

    monkeypatch.setattr("acedit.benchmark.runner.edit_cases", counting)
    with pytest.raises(KeyboardInterrupt):
        run(job, cases, [method("memit")], folder=tmp_path / "killed", **ways)  # type: ignore[arg-type]
    edited[:] = ["none"]
    report = run(job, cases, [method("memit")], folder=tmp_path / "killed", **ways)  # type: ignore[arg-type]
    assert report.failed == []
    assert edited == ["none", cases[2].id]
    assert printed(tmp_path / "killed") == printed(tmp_path / "whole")
    assert not (tmp_path / "killed" / "sequence").exists()


def test_a_sequence_killed_before_its_scores_are_kept_has_its_patches(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"lm": lm, "sequence": [1, 3]}

    def dying(self: Store, *given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        run(job, cases, [method("memit")], folder=tmp_path, **ways)  # type: ignore[arg-type]
    monkeypatch.undo()

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr("acedit.benchmark.runner.edit_cases", never)
    report = run(job, cases, [method("memit")], folder=tmp_path, **ways)  # type: ignore[arg-type]
    assert (report.made, report.failed) == (2, [])


def test_two_cases_of_a_sequence_may_ask_for_the_same(
    job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = [cases[0], replace(cases[0], id="twin"), cases[1]]
    report = run(job, twins, [method("base")], folder=tmp_path / "twins", lm=lm, sequence=[1, 2])
    assert (report.made, report.failed) == (2, [])

    def failing(*args: Any, **kwargs: Any) -> Any:
        if args[1][0].id == cases[1].id:
            raise RuntimeError("no more")
        return evaluate.edit_cases(*args, **kwargs)

    monkeypatch.setattr("acedit.benchmark.runner.edit_cases", failing)
    report = run(job, twins, [method("base")], folder=tmp_path / "fails", lm=lm, sequence=[2, 3])
    assert [unit.step for unit, _ in report.failed] == [3], "what it had come to is kept"


def test_a_sequence_asks_a_spread_of_what_was_edited() -> None:
    assert runner._spread(3) == [0, 1, 2]
    some = runner._spread(250)
    assert len(some) == 100
    assert (min(some) < 5, max(some)) == (True, 249)


def test_bad_runs_are_refused(job: Job, cases: list[Case], lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cases"):
        run(job, [], METHODS, folder=tmp_path, lm=lm)
    with pytest.raises(UserError, match="case ids stand for several"):
        run(job, [cases[0], cases[0]], METHODS, folder=tmp_path, lm=lm)
    with pytest.raises(UserError, match="--sequence 10: there are 3 cases"):
        run(job, cases, METHODS, folder=tmp_path, lm=lm, sequence=[10])
    with pytest.raises(UserError, match="every one has a known fault"):
        twin = runner.replace(cases[0], new_answer=cases[0].answer)
        run(job, [twin], METHODS, folder=tmp_path, lm=lm, strict=True)
