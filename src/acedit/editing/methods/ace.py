"""ACE: the fact itself, what leads to it, what follows from it, and what must stay, in one edit.

The paper writes value layers on multi-hop prompts and query layers on single-hop ones, by the closed form.
`ace-closed` does that with our prompts, and a middle stage for facts with hops on both sides. `ace` keeps
the prompts and the closed form's metric, and leaves the closed form: it moves the down projections by
gradient in the space Δ·C^(1/2), where a step along keys that text uses much costs much (Eq. 11's first
term), in the directions there that its own keys use most, until every prompt is said and none that must
stay has drifted. What the FFNs write at the subject's own token may change by a tenth (in square): beyond
that what else is known of it drowns there. An answer is learned with its end, and a quarter of what is
replayed is thought aloud. Started from the closed form it kept less (docs/decisions.md). `ace-query` and
`ace-value` are `ace` with one stage's prompts alone.
"""

from dataclasses import replace

from acedit.editing.methods.method import RIDGE, Method
from acedit.editing.polish import Polish
from acedit.editing.stages import Stage
from acedit.knowledge.compose import Amounts

PASSES = 4
COLUMNS = 256  # of Δ at most: more directions than the keys of some hundred facts use
SHRINK = 0.02  # an edit beside patches moves a third as far with it, and says as much
AMOUNTS = Amounts(lead=21, ripple=24, middle=24, keep=8, hold=12, kin=16, replay=80, aloud=0.25)

ACE = Method(
    name="ace",
    summary="all stages' prompts by gradient in the closed form's metric (ours)",
    layers="all",
    amounts=AMOUNTS,
    ends=True,
    polish=Polish(
        space="whitened", columns=COLUMNS, near=1.0, shift=30.0, unfelt=0.1, shrink=SHRINK, passes=PASSES
    ),
)

CLOSED = Method(
    name="ace-closed",
    summary="value, middle and query stages by the closed form, as in the paper, on our prompts",
    stages=(
        Stage("query", kinds=("single", "ripple", "keep"), token="subject", where="query"),
        Stage("middle", kinds=("middle",), token="last", where="middle"),
        Stage("value", kinds=("lead",), token="last", where="value"),
    ),
    amounts=AMOUNTS,
    lam=0.1,
    known=0.3,
    ridge=RIDGE,
)

METHODS = (
    ACE,
    CLOSED,
    replace(
        ACE,
        name="ace-query",
        summary="ace's query stage alone: the fact, what follows, what stays",
        polished=("single", "ripple", "keep"),
    ),
    replace(
        ACE,
        name="ace-value",
        summary="ace's value stage alone: what leads to the fact",
        polished=("lead", "middle"),
    ),
)
