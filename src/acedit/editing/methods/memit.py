"""MEMIT (Meng et al. 2022b): one delta on the FFN, spread evenly over shallow layers.

Layers: the plan's query layers, three at least (published ones for two models: `presets`).
"""

from acedit.editing.methods.method import RIDGE, Method
from acedit.editing.stages import Stage

MEMIT = Method(
    name="memit",
    summary="single-hop prompts, subject token, shallow layers, even spread (Meng et al. 2022)",
    stages=(
        Stage(
            "query", kinds=("single",), token="subject", where="query", spread="even", width=3, mean_keys=True
        ),
    ),
    ridge=RIDGE,
    prefixes=3,
    essence=True,
    wordings=False,
)

METHODS = (MEMIT,)
