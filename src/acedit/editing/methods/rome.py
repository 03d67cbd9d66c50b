"""ROME (Meng et al. 2022a) and EMMET (Gupta et al. 2024): Δ k = r holds exactly, in one layer.

ROME writes one fact after the other, each v* searched on the model as it then is; EMMET is the same
constraint for a batch at once, so one fact is the same edit by either.
"""

from dataclasses import replace

from acedit.editing.methods.method import RIDGE, Method
from acedit.editing.stages import Stage

EMMET = Method(
    name="emmet",
    summary="single-hop prompts, subject token, one layer, equality for the batch (Gupta et al. 2024)",
    stages=(Stage("query", kinds=("single",), token="subject", where="query", deepest=True, mean_keys=True),),
    form="equality",
    ridge=RIDGE,
    prefixes=3,
    essence=True,
    wordings=False,
)

METHODS = (
    EMMET,
    replace(
        EMMET,
        name="rome",
        summary="single-hop prompts, subject token, one layer, fact after fact (Meng et al. 2022)",
        one_by_one=True,
    ),
)
