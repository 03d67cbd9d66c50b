"""ACE: write the value layers on multi-hop prompts and the query layers on single-hop ones.

The value stage writes deep layers at the last token of prompts that reach the subject through other
entities; the query stage writes shallow layers at the subject's last token; a middle stage writes the
layers between for facts with hops on both sides (ours). A short polish on the same prompts follows.
"""

from dataclasses import replace

from acedit.editing.methods.method import Method
from acedit.editing.polish import Polish
from acedit.editing.stages import Stage

QUERY = Stage("query", kinds=("single", "ripple", "keep"), token="subject", where="query")
MIDDLE = Stage("middle", kinds=("middle",), token="last", where="middle")
VALUE = Stage("value", kinds=("lead",), token="last", where="value")

ACE = Method(
    name="ace",
    summary="value, middle and query stages, then a short polish on the same prompts (ours)",
    stages=(QUERY, MIDDLE, VALUE),
    lam=0.1,
    known=0.3,
    ridge=0.03,
    polish=Polish(),
)

METHODS = (
    ACE,
    replace(ACE, name="ace-closed", summary="ace without the polish", polish=None),
    replace(
        ACE,
        name="ace-query",
        summary="ace's query stage alone",
        stages=(QUERY,),
        polished=("single", "ripple", "keep"),
    ),
    replace(
        ACE,
        name="ace-value",
        summary="ace's value stage alone",
        stages=(VALUE,),
        polished=("lead",),
    ),
)
