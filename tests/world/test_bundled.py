"""The checkpoint in the package: what its card says holds, and the main path works on it.

Thresholds are the issue's floors less two standard errors of the smaller sample asked here.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from acedit.attribution.plan import Plan
from acedit.benchmark.evaluate import edit_cases, shared_plan
from acedit.benchmark.leak import starts
from acedit.benchmark.score import matches
from acedit.editing.edit import edit
from acedit.editing.methods import method, methods
from acedit.editing.patch import Patch
from acedit.knowledge.facts import Case, Fact, cases_from
from acedit.lm.loading import load
from acedit.lm.model import LanguageModel
from acedit.world import bundled_path
from acedit.world.card import measure, read_table
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world, mquake_cases

ASKED = ["Fernando Santos is a citizen of", "Question: Which continent is London located in?\nAnswer:"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load("bundled")


@pytest.fixture(scope="module")
def case() -> Case:
    found = [c for c in cases_from(mquake_cases("2hop")) if c.edits[0].subject == "Fernando Santos"]
    return found[0]


@pytest.fixture(scope="module")
def known(case: Case) -> list[Fact]:
    return facts_of(build_world(), case.edits)


@pytest.fixture(scope="module")
def patch(lm: LanguageModel, case: Case, known: list[Fact]) -> Patch:
    return edit(lm, case.edits, known=known, exclude=starts([case]), method="ace", seed=0)


def test_the_card_reports_every_figure_above_its_floor() -> None:
    rows = [line.split("|") for line in read_table(bundled_path()).splitlines()[2:]]
    floors = [row for row in rows if row[4].strip()]
    assert len(rows) == 8
    assert len(floors) == 6
    for row in floors:
        assert float(row[2]) >= float(row[4]), f"{row[1].strip()} fell"
        assert int(row[3]) >= 100


def test_it_recalls_composes_and_thinks(lm: LanguageModel) -> None:
    for row in measure(lm, build_world(), n=90, seed=11):
        floor = row.least or 0.0
        error = (floor * (1 - floor) / row.n) ** 0.5
        assert row.value >= floor - 2 * error, f"{row.name}: {row.value:.3f} of {row.n}"


def test_the_checkpoint_is_small_and_plain() -> None:
    folder = bundled_path()
    assert (folder / "model.safetensors").stat().st_size < 20e6
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["max_position_embeddings"] == 2048
    assert not any(p.suffix in (".bin", ".pt", ".pkl") for p in folder.iterdir())


def test_an_edit_is_said_and_carried_through_a_chain(lm: LanguageModel, case: Case, patch: Patch) -> None:
    assert not any(case.new_answer in lm.answer(q) for q in case.questions)
    before = lm.logits(ASKED)
    with patch.applied(lm):
        said = lm.answer(case.edits[0].prompt.format(case.edits[0].subject))
        assert said.strip(" .").startswith(case.edits[0].target)
        assert any(case.new_answer in lm.answer(q) for q in case.questions)
        assert any(case.new_answer in lm.answer(q, cot=True) for q in case.questions)
    assert torch.equal(lm.logits(ASKED), before)


# peft reads a property that transformers 5 renames; nothing of ours does.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.04)])
def test_peft_serves_the_same_edit(
    patch: Patch, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    """Largest gap over the largest logit: as an adapter, and merged; bf16 as in tests/editing."""
    lm = load("bundled", dtype=dtype)
    patch = replace(patch, fingerprint=lm.fingerprint)  # the adapter is the same in either dtype
    patch.to_lora(tmp_path / "adapter")
    plain = lm.logits(ASKED)
    with patch.applied(lm):
        wanted = lm.logits(ASKED)
    size = wanted.abs().max()
    assert (plain - wanted).abs().max() > 0.1 * size
    adapter = PeftModel.from_pretrained(load("bundled", dtype=dtype).model, str(tmp_path / "adapter"))
    served = LanguageModel(adapter.base_model.model, lm.tokenizer)
    assert (served.logits(ASKED) - wanted).abs().max() < tolerance * size
    merged = LanguageModel(adapter.merge_and_unload(), lm.tokenizer)
    assert (merged.logits(ASKED) - wanted).abs().max() < tolerance * size


@pytest.fixture(scope="module")
def fresh() -> tuple[Case, ...]:
    return tuple(cases_from(make_cases(build_world(), seed=21, n=6)))


@pytest.fixture(scope="module")
def plan(lm: LanguageModel, fresh: tuple[Case, ...]) -> Plan:
    return shared_plan(lm, fresh, facts_of(build_world(), []), 0)


# A batch of six: what single edits by `ace` are held to stands in the main table.
FLOORS = {name: 5 / 6 for name in methods() if methods()[name].stages} | {
    "ft": 5 / 6,
    "lora": 0.5,
    "kn": 1 / 6,
    "mend": 1 / 6,
}


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_every_method_that_writes_makes_it_say_its_edits(
    name: str, lm: LanguageModel, fresh: tuple[Case, ...], plan: Plan
) -> None:
    facts = facts_of(build_world(), [])
    patch, _ = edit_cases(lm, fresh, method(name), known=facts, plan=plan)
    with patch.applied(lm):
        said = [lm.answer(one.prompt.format(one.subject)) for one in patch.edits]
    right = [matches(a, [e.target, *e.aliases]) for a, e in zip(said, patch.edits, strict=True)]
    assert sum(right) >= FLOORS[name] * len(right), said


def test_edits_that_arrive_one_after_the_other_stay_and_add_up_to_little(
    lm: LanguageModel, fresh: tuple[Case, ...]
) -> None:
    """Made as if alone, three add up to 0.45 of the weights' norm."""
    known = facts_of(build_world(), [])
    with ExitStack() as on:
        patches: list[Patch] = []
        for case in fresh[:3]:
            patch, _ = edit_cases(lm, [case], method("ace"), known=known, scored=fresh)
            on.enter_context(patch.applied(lm))
            patches.append(patch)
        edits = [one for patch in patches for one in patch.edits]
        said = [lm.answer(one.prompt.format(one.subject)) for one in edits]
    assert all(matches(a, [e.target, *e.aliases]) for a, e in zip(said, edits, strict=True)), said
    total = {layer: torch.zeros(lm.d_model, lm.n_neurons) for layer in range(lm.n_layers)}
    for update in (update for patch in patches for update in patch.updates):
        total[update.layer] += update.delta()
    sizes = [float(d.norm() / lm.down_weight(layer).float().norm()) for layer, d in total.items()]
    assert max(sizes) < 0.36
