"""Any task of lm-evaluation-harness on a patched model, and MQuAKE's questions as tasks of it.

    results = run_tasks(lm, ["mquake_direct"], patches=[patch], cases="cases.json")
    results["mquake_direct"]["acc,none"]

Needs the extra `lm-eval`. `TASKS` is the folder of our tasks, for the harness's own `--include_path`.

Footgun: the harness downloads the data of its own tasks; only ours work without a network.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from acedit.editing.patch import Patch, patches_on
from acedit.errors import UserError
from acedit.lm.model import LanguageModel

TASKS = Path(str(resources.files("acedit.benchmark") / "tasks"))


def refuse_caseless(tasks: Sequence[str], cases: str | Path | None) -> None:
    """Raises UserError where one of our own tasks is asked for without the cases it asks about."""
    ours = {path.stem for path in TASKS.glob("*.yaml")}
    if cases is None and (without := [task for task in tasks if task in ours]):
        raise UserError(f"--tasks {without[0]} asks about cases: give --cases FILE, in MQuAKE's format")


def run_tasks(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    patches: Sequence[Patch] = (),
    cases: str | Path | None = None,
    old: bool = False,
    limit: int | None = None,
    batch_size: int = 16,
) -> Mapping[str, Mapping[str, Any]]:
    """The harness's results by task, with `patches` on; the model is its old self on return.

    cases: MQuAKE file for our own tasks. old: these ask for the answers before the edits. limit: at most so
    many rows a task. Raises UserError where the harness is missing, or does not know a task.
    """
    if find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is missing: pip install 'acedit[lm-eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(TASKS), metadata={"cases": "" if cases is None else str(cases), "old": old}
    )
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise UserError(f"lm-evaluation-harness knows no task {unknown[0]!r}; see 'lm_eval ls tasks'")
    for patch in patches:
        patch.refuse_memory("the harness asks the weights alone")
    with patches_on(lm, patches):
        model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)
        found = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return results
