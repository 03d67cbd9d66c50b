"""A method whose edits change nothing; it kills its own process the first time, or whenever it is told to."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from acedit.editing.methods import Beside, Method
from acedit.editing.stages import Update
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel

FLAG = "ACEDIT_KILLER"  # a file: while it is not there, the next edit makes it and dies
ALWAYS = "ACEDIT_KILLER_SUBJECT"  # whoever edits this subject dies

KILLER = Method(name="killer", summary="dies while it edits", writer="tests.benchmark.killer")


def write(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], _: Beside) -> list[Update]:
    flag = Path(os.environ[FLAG])
    if not flag.exists() or edits[0].subject == os.environ.get(ALWAYS):
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [Update(0, torch.zeros(lm.d_model, 1), torch.zeros(1, lm.n_neurons))]
