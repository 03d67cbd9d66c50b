"""Fine-tuning on ACE's own prompts with replay of known facts: the fair rival the paper never ran.

The same layers, the same prompts, the same replay; no closed form, and more steps.
"""

from dataclasses import replace

from acedit.editing.methods.ace import ACE
from acedit.editing.polish import Polish

METHODS = (
    replace(
        ACE,
        name="ft-same",
        summary="fine-tuning of the same layers on ACE's prompts, with replay (the fair rival)",
        lam=0.0,
        known=0.0,
        ridge=1.0,
        stages=tuple(replace(stage, kinds=()) for stage in ACE.stages),
        polish=Polish(steps=100, screen=0),
    ),
)
