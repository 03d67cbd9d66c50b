"""Layers chosen by writing: every range is tried, targets are searched once, the model stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acedit.attribution.plan import Plan
from acedit.editing import screen as screening
from acedit.editing.batch import Batch
from acedit.editing.plan import locate
from acedit.editing.screen import Range, Screened, Trial, ranges, screen, screened
from acedit.errors import UserError
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.relations import mquake
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm

R = mquake()
EDITS = [Edit("Bo Ray", R["P27"], "Chile", "Peru"), Edit("Ann Lee", R["P27"], "Norway", "Peru")]
KNOWN = [
    *(Fact(f"Person {i}", R["P27"], ("Peru", "Chile", "Norway")[i % 3]) for i in range(12)),
    *(Fact(f"Work {i}", R["P50"], ("Bo Ray", "Ann Lee")[i % 2]) for i in range(8)),
    *(Fact(country, R["P36"], f"{country} City") for country in ("Peru", "Chile", "Norway")),
]


@pytest.fixture
def lm() -> LanguageModel:
    return tiny_lm("qwen3")


@pytest.fixture
def trial(lm: LanguageModel, tmp_path: Path) -> Trial:
    return Trial(lm, EDITS, KNOWN, cache_dir=tmp_path)


def test_ranges_are_contiguous_and_all_there() -> None:
    assert ranges(range(4), 2) == [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3)]
    assert len(ranges(range(9), 9)) == 45


def test_a_trial_writes_where_it_is_told_and_leaves_the_model(lm: LanguageModel, trial: Trial) -> None:
    before = [p.clone() for p in lm.model.parameters()]
    assert {u.layer for u in trial.write((0,), (2,))} >= {0, 2}
    assert {u.layer for u in trial.write((), (1, 2))} == {1, 2}
    assert all(torch.equal(a, b) for a, b in zip(before, lm.model.parameters(), strict=True))


def test_what_is_kept_was_right_before(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def even(_: Trial, batch: Batch) -> torch.Tensor:
        return torch.tensor([len(p.text) % 2 == 0 for p in batch.prompts])

    monkeypatch.setattr(Trial, "_right", even)
    right = Trial(lm, EDITS, KNOWN, cache_dir=tmp_path).score([])
    assert right["kept"] == 1.0
    assert 0 < right["edit"] < 1


def test_targets_are_searched_once_for_each_layer(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[str, int]] = []
    search = screening.search

    def counting(lm, batches, layer, **rest):  # type: ignore[no-untyped-def]
        searched.append((rest["token"], layer))
        return search(lm, batches, layer, **rest)

    monkeypatch.setattr(screening, "search", counting)
    found = screen(trial, longest=2, finalists=2)
    assert len(searched) == len(set(searched))
    assert found and all(t.query[-1] < t.value[0] for t in found)
    assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)


def test_the_screened_plan_is_the_best_of_what_was_written(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[tuple[Range, Range], int] = {}

    def told(trial: Trial, query: Range, value: Range) -> Screened:
        asked.append(trial)
        score = {((0,), (2,)): 0.9, ((1,), (2,)): 0.5}.get((query, value), 0.1)
        written[query, value] = len(written)
        return Screened(query, value, {"edit": score})

    asked: list[Trial] = []
    monkeypatch.setattr(Trial, "__call__", told)
    given = Plan((2,), (1,), (), {"middle": "none"}, {"reach": [3.0, 2.0, 1.0], "value": [0.1, 0.2, 0.3]})
    found = screened(lm, EDITS, KNOWN, given, longest=1, cache_dir=tmp_path)
    assert (found.query_layers, found.value_layers, found.middle_layers) == ((0,), (2,), (1,))
    assert found.scores == {"value": [0.1, 0.2, 0.3]}, "the loss would have methods widen the ranges"
    assert found.reason["middle"] == "half-way between query and value layers"
    assert "right about 0.90" in found.reason["value"] and "(0.50 in" in found.reason["value"]
    assert ((1,), (2,)) in written
    assert asked[0]._n > len(EDITS)  # edits of known facts beside the few given


def test_edits_are_spread_over_the_batch_and_excluded_entities_get_none(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[Edit]] = []

    def noted(_: Trial, __: object, edits: list[Edit], *rest: object, **how: object) -> None:
        made.append(list(edits))

    monkeypatch.setattr(Trial, "__init__", noted)
    monkeypatch.setattr(Trial, "__call__", lambda _, query, value: Screened(query, value, {"edit": 0.5}))
    monkeypatch.setattr(Trial, "layers", 3)
    many = [Edit(f"Cat {i}", R["P27"], "Chile", "Peru") for i in range(25)]
    plan = Plan((2,), (1,))
    screened(lm, many, KNOWN, plan)
    screened(lm, EDITS, [*KNOWN, Fact("Work 0", R["P27"], "Peru"), Fact("Ann Lee", R["P27"], "Peru")], plan)
    screened(lm, EDITS[:1], [*KNOWN, Fact("Ann Lee", R["P27"], "Peru")], plan, exclude={"Ann Lee"})
    assert [e.subject for e in made[0]] == [e.subject for e in many[:24]]
    assert [e.subject for e in made[1]][:2] == ["Bo Ray", "Ann Lee"]
    assert all("Ann Lee" not in (e.subject for e in edits) for edits in (made[1][2:], made[2]))


def test_what_cannot_be_screened_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="give known facts"):
        screened(lm, EDITS, [], Plan((2,), (1,)))
    with pytest.raises(UserError, match="contradict each other"):
        screened(lm, [EDITS[0], replace(EDITS[0], target="Norway")], KNOWN, Plan((2,), (1,)))
    with pytest.raises(UserError, match="leave nothing to ask"):
        Screened((0,), (1,), {}).score  # noqa: B018


def test_locate_screens_where_asked(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def noted(lm: object, edits: object, known: object, plan: Plan, **how: object) -> Plan:
        seen.update(how)
        return replace(plan, query_layers=(0,), value_layers=(2,))

    monkeypatch.setattr("acedit.editing.plan.screened", noted)
    where = locate(lm, EDITS, known=KNOWN, screen=True, exclude={"Work 1"}, avoid={"Who?"}, seed=3)
    assert (where.plan.query_layers, where.plan.value_layers) == ((0,), (2,))
    assert (seen["exclude"], seen["avoid"], seen["seed"]) == ({"Work 1"}, {"Who?"}, 3)


def test_trial_edits_are_of_known_facts_to_other_objects() -> None:
    edits = screening.trial_edits(KNOWN, 3)
    held = {(f.subject, f.relation.id): f.object for f in KNOWN}
    assert edits == screening.trial_edits(KNOWN, 3)
    assert edits and len({e.subject for e in edits}) == len(edits)
    for edit in edits:
        assert held[edit.key] == edit.old != edit.target
        assert edit.subject in {f.object for f in KNOWN}
