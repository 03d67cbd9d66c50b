"""ACE as the paper prints it, in two readings: value layers first, then query layers, by the closed form.

`ace-paper` follows Algorithm 1: single-hop prompts for both stages, value layers written before the query
stage looks for its targets. `ace-paper-hops` is section 5's: multi-hop prompts for the value stage.

Deviations from the algorithm as printed (`ace-paper-letter` has none of them): each stage searches a v* of
its own at its own token (printed: one for both, of which the value write leaves the query layers little to
write); the query layers are those of the plan, found before anything is written (printed: after the value
write); the plan's layers are by the reach of v* rather than by Eq. 9 and 10 (docs/decisions.md); v* moves the
stream alone (PMET, the paper's backbone, moves attention beside it).
"""

from dataclasses import replace

from acedit.editing.methods.method import RIDGE, Method
from acedit.editing.stages import Stage

QUERY = Stage("query", kinds=("single",), token="subject", where="query", width=3, mean_keys=True)

PAPER = Method(
    name="ace-paper",
    summary="Algorithm 1: value layers, then query layers, each by its own v*, on single-hop prompts",
    stages=(Stage("value", kinds=("single",), token="last", where="value", mean_keys=True), QUERY),
    in_turn=True,
    ridge=RIDGE,
    prefixes=3,
    essence=True,
    wordings=False,
)

METHODS = (
    PAPER,
    replace(
        PAPER,
        name="ace-paper-hops",
        summary="section 5: value layers on multi-hop prompts, then query layers on single-hop ones",
        stages=(Stage("value", kinds=("lead",), token="last", where="value"), QUERY),
    ),
)
