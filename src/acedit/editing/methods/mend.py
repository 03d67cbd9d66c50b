"""MEND (Mitchell et al. 2022): a trained hyper-network makes the update from the edit's own gradient.

`acedit mend MODEL --facts FILE` trains one for a model (`editing.hyper`); the bundled model has its own.
"""

from collections.abc import Sequence

from acedit.editing.hyper import digest, load
from acedit.editing.methods.method import Beside, Method
from acedit.editing.stages import Update
from acedit.knowledge.compose import Amounts, Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel

METHODS = (
    Method(
        name="mend",
        summary="a hyper-network trained on edits maps the gradient to an update (Mitchell et al. 2022)",
        writer="acedit.editing.methods.mend",
        amounts=Amounts(lead=0, ripple=0, middle=0, keep=0, replay=0),
    ),
)


def state(fingerprint: str) -> str:
    """What an edit of that checkpoint depends on beside the method's settings: the trained network."""
    return digest(fingerprint)


def write(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], _: Beside) -> list[Update]:
    """One update for each of the editor's layers, from all edits at once. Raises UserError without one."""
    return load(lm).updates(lm, [p for p in prompts if p.kind == "single"])
