"""Fine-tuning of one FFN on the edit's own prompt: ROME's and MEMIT's baseline, without their norm limit."""

from acedit.editing.methods.method import Method
from acedit.editing.polish import Polish
from acedit.knowledge.compose import Amounts

METHODS = (
    Method(
        name="ft",
        summary="gradient steps on one layer's down projection, the edit's own prompt (Meng et al. 2022)",
        layers="query",
        amounts=Amounts(lead=0, ripple=0, middle=0, keep=0, replay=0),
        polish=Polish(steps=500, lr=5e-4, rows=32, space="weights", replay=0.0),
        prefixes=3,
        wordings=False,
    ),
)
