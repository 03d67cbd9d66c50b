"""PMET (Li et al. 2024): deltas on attention and FFN are optimised together, only the FFN is written.

Single-hop prompts behind prefixes, the subject's last token, square-root spread. Layers: the plan's query
layers, three at least (published ones for two models: `presets`).

Deviation: the residual that is spread is what the stream still lacks after the last layer (MEMIT's), so what
one layer writes is taken off the next one's; the authors' is what the last layer's FFN output lacks.
"""

from acedit.editing.methods.method import RIDGE, Method
from acedit.editing.stages import Stage
from acedit.editing.target import TargetSettings

METHODS = (
    Method(
        name="pmet",
        summary="single-hop prompts, subject token, shallow layers, root spread (Li et al. 2024)",
        stages=(
            Stage(
                "query",
                kinds=("single",),
                token="subject",
                where="query",
                spread="root",
                width=3,
                mean_keys=True,
                target=TargetSettings(attention=True),
            ),
        ),
        ridge=RIDGE,
        prefixes=3,
        essence=True,
        wordings=False,
    ),
)
