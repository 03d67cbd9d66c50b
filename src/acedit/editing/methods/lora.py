"""LoRA (Hu et al. 2022) on the edit's own prompts: what a practitioner would do, without replay.

Rank 8, α = 16, on every down projection, Adam at 1e-3 until each wording is said or has been looked at
`PASSES` times on average, however many facts there are.
"""

from acedit.editing.methods.method import Method
from acedit.editing.polish import Polish
from acedit.knowledge.compose import Amounts

PASSES = 32

METHODS = (
    Method(
        name="lora",
        summary="low-rank factors by gradient on the edit's own wordings, no replay (Hu et al. 2022)",
        layers="all",
        amounts=Amounts(lead=0, ripple=0, middle=0, keep=0, replay=0),
        polish=Polish(space="low_rank", rank=8, replay=0.0, passes=PASSES),
    ),
)
