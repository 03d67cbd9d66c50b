"""IFMET (Zhang et al. 2024): single-hop prompts in shallow layers, then multi-hop ones in deep layers.

The second stage's targets are searched on the model as the first left it, at the last token.
"""

from acedit.editing.methods.method import RIDGE, Method
from acedit.editing.stages import Stage

METHODS = (
    Method(
        name="ifmet",
        summary="single-hop prompts in shallow layers, then multi-hop in deep ones (Zhang et al. 2024)",
        stages=(
            Stage("shallow", kinds=("single",), token="subject", where="query", width=3, mean_keys=True),
            Stage("deep", kinds=("lead",), token="last", where="value"),
        ),
        in_turn=True,
        ridge=RIDGE,
        prefixes=3,
        essence=True,
        wordings=False,
    ),
)
