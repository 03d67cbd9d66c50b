"""AlphaEdit (Fang et al. 2025): MEMIT's write, confined to directions that kept keys hardly use.

The keys of edits whose patches are on the model already are spared too, as in its Eq. 14.
"""

from dataclasses import replace

from acedit.editing.methods.memit import MEMIT

METHODS = (
    replace(
        MEMIT,
        name="alphaedit",
        summary="MEMIT in the null space of what is kept (Fang et al. 2025)",
        form="null",
        ridge=0.0,
    ),
)
