"""lm-evaluation-harness, for real: our tasks on the bundled model, edited and not."""

import json
from pathlib import Path

import pytest

from acedit.benchmark.leak import starts
from acedit.editing.edit import edit
from acedit.errors import UserError
from acedit.knowledge.facts import cases_from
from acedit.lm.loading import load
from acedit.world.cases import facts_of, make_cases
from acedit.world.graph import build_world

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra 'lm-eval')")

# The harness and what it brings warn of their own accord; ours stay errors everywhere else.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_our_tasks_run_on_a_patched_model(tmp_path: Path) -> None:
    from acedit.benchmark.harness import run_tasks

    lm = load("bundled")
    rows = make_cases(build_world(), seed=3, n=2)
    (tmp_path / "cases.json").write_text(json.dumps(rows), "utf-8")
    cases = cases_from(rows)
    patch = edit(
        lm,
        [e for case in cases for e in case.edits],
        known=facts_of(build_world(), []),
        method="lora",
        exclude=starts(cases),
    )
    weights = [lm.down_weight(layer).clone() for layer in range(lm.n_layers)]
    before = run_tasks(lm, ["mquake_edit"], cases=tmp_path / "cases.json")
    after = run_tasks(lm, ["mquake_edit", "mquake_direct"], patches=[patch], cases=tmp_path / "cases.json")
    assert before["mquake_edit"]["acc,none"] == 0.0
    assert after["mquake_edit"]["acc,none"] == 1.0
    assert all(w.equal(lm.down_weight(layer)) for layer, w in enumerate(weights))
    tasks = ["mquake_direct", "mquake_cot"]
    new, old = (
        run_tasks(lm, tasks, cases=tmp_path / "cases.json", limit=4, old=old) for old in (False, True)
    )
    for task in tasks:
        assert new[task]["acc,none"] == 0.0, task
        assert old[task]["acc,none"] > 0.5, task
    with pytest.raises(UserError, match="knows no task 'nonsense'"):
        run_tasks(lm, ["nonsense"])
