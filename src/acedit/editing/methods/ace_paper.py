"""ACE as the paper prints it, in two readings: value layers first, then query layers, by the closed form.

`ace-paper` is Algorithm 1 to the letter: single-hop prompts for both stages, the query search after the
value write. `ace-paper-hops` is section 5's: multi-hop prompts for the value stage.
"""

from dataclasses import replace

from acedit.editing.methods.method import Method
from acedit.editing.stages import Stage

QUERY = Stage("query", kinds=("single",), token="subject", where="query", width=3, mean_keys=True)

PAPER = Method(
    name="ace-paper",
    summary="Algorithm 1 to the letter: value layers, then query layers, on single-hop prompts",
    stages=(Stage("value", kinds=("single",), token="last", where="value", mean_keys=True), QUERY),
    in_turn=True,
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
