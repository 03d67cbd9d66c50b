"""Fine-tuning of one FFN on the edit's own prompt: ROME's and MEMIT's baseline, with and without their limit.

`ft` moves one layer's down projection freely; `ft-l` keeps each entry of Δ within a bound (Zhu et al. 2020,
FT+L of Meng et al. 2022), here in multiples of the weights' root mean square, so that it holds for any model:
the published bounds are absolute, one for each model they name.
"""

from dataclasses import replace

from acedit.editing.methods.method import Method
from acedit.editing.polish import Polish
from acedit.knowledge.compose import Amounts

PASSES = 160
LIMIT = 0.4  # a tenth says no edit of 25 at once, and beyond it nothing is held back (docs/decisions.md)
POLISH = Polish(lr=5e-4, rows=32, space="weights", replay=0.0, passes=PASSES)

FT = Method(
    name="ft",
    summary="gradient steps on one layer's down projection, the edit's own prompt (Meng et al. 2022)",
    layers="query",
    amounts=Amounts(lead=0, ripple=0, middle=0, keep=0, replay=0),
    polish=POLISH,
    prefixes=3,
    wordings=False,
)

METHODS = (
    FT,
    replace(
        FT,
        name="ft-l",
        summary="ft with every entry of the change bounded (FT+L; Zhu et al. 2020)",
        polish=replace(POLISH, limit=LIMIT),
    ),
)
