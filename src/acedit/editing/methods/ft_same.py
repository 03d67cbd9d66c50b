"""Fine-tuning on ACE's own prompts with replay of known facts: the fair rival the paper never ran.

The same layers, prompts, replay and rows, and the steps that `ace` plans with (it goes on where much is still
unsaid); Adam on the weights as they are, every prompt at its turn.
"""

from dataclasses import replace

from acedit.editing.methods.ace import ACE, PASSES
from acedit.editing.polish import Polish

METHODS = (
    replace(
        ACE,
        name="ft-same",
        summary="fine-tuning of the same layers on ACE's prompts, with replay (the fair rival)",
        polish=Polish(space="weights", screen=False, passes=PASSES),
    ),
)
