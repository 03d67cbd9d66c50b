"""ACE's Algorithm 1 to the letter: layers by Eq. 9 and 10, one single-hop v* for both stages.

`ace-paper-letter` ranks layers by their summed value scores (Eq. 9) and query scores (Eq. 10) at the last
token of multi-hop prompts and takes the best `LAYERS` of each (section 5, stage 1). v* is searched once, at
the deepest value layer, on the edit's own prompt behind prefixes, at the last token, with PMET's δ on
attention beside it that is dropped. The value layers are written towards it; then the query layers are ranked
anew on the model as written, against the value neurons of the new object, and written towards the same v*.

The algorithm does not say at which token. PMET, its backbone, writes at the subject's, from where the last
layers, which it names as value layers, reach no answer; the scores are of the last token, and so is this.
What the second write aims at is there already, so that it is left little to do: `ace-paper` is the reading
that works better (docs/decisions.md).

Footgun: the second ranking scores every neuron of the written model in full (N × V a layer), on `SAMPLED`
prompts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from acedit.attribution.layers import measure, spaced
from acedit.attribution.query import query_scores
from acedit.attribution.value import layer_scores, top_neurons
from acedit.editing.batch import split
from acedit.editing.methods.method import RIDGE, Beside, Method
from acedit.editing.patch import LayerUpdate, Patch, patches_off, place_of
from acedit.editing.stages import Stage, Update, Writing, added_up, updates_in
from acedit.editing.target import TargetSettings, search
from acedit.errors import UserError
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel

LAYERS = 3  # of each sort: appendix F's value layers of GPT-J are three
SAMPLED = 4  # prompts of the second ranking
LEADING = 10  # value neurons of each, that query neurons are held against

_VALUE, _QUERY = (
    Stage(
        name,
        kinds=("single",),
        token="last",
        where=name,
        mean_keys=True,
        target=TargetSettings(attention=True),
    )
    for name in ("value", "query")
)

METHODS = (
    Method(
        name="ace-paper-letter",
        summary="Algorithm 1 to the letter: layers by Eq. 9 and 10, one v* for both stages (the paper)",
        writer="acedit.editing.methods.ace_letter",
        ridge=RIDGE,
        prefixes=3,
        essence=True,
        wordings=False,
    ),
)


def write(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], beside: Beside
) -> list[Update]:
    """The value layers' updates and then the query layers', one a layer. Raises UserError as `edit`."""
    single = [p for p in prompts if p.kind == "single"]
    with patches_off(lm):  # where neurons are scored by the unedited weights
        scores = measure(lm, edits, prompts, top=1)
    value = _best(scores.value, range(lm.n_layers))
    batches = tuple(split(lm, single))
    beside.tell(f"v* for {len(edits)} edits at layer {value[-1]}")
    searched = split(lm, [*single, *beside.essence]) if beside.essence else batches
    found = search(lm, searched, value[-1], token="last", n_edits=len(edits), settings=_VALUE.target)
    first = Writing(_VALUE, value, batches, found).aimed(lm)
    updates = beside.swept([first], value)
    with _written(lm, edits, updates).applied(lm):
        query = _best(_query_layers(lm, edits, single), range(lm.n_layers - 1))
    second = Writing(_QUERY, query, batches, found, first.aim)
    with updates_in(lm, updates):
        more = beside.swept([second], query)
    return added_up(updates, more)


def _best(scores: Sequence[float], among: range) -> tuple[int, ...]:
    """The `LAYERS` of `among` that score most, ascending."""
    if not among:
        raise UserError("query layers lie below value layers: the model has one layer only")
    return tuple(sorted(sorted(among, key=lambda layer: -scores[layer])[:LAYERS]))


def _written(lm: LanguageModel, edits: Sequence[Edit], updates: Sequence[Update]) -> Patch:
    """What is written so far, to be attributed as any model's weights are."""
    return Patch(
        updates=tuple(LayerUpdate(u.layer, u.left.cpu(), u.right.cpu()) for u in updates),
        edits=tuple(edits),
        plan={},
        method="ace-paper-letter",
        settings={},
        seed=0,
        fingerprint=lm.fingerprint,
        place=place_of(lm, [u.layer for u in updates]),
    )


def _query_layers(lm: LanguageModel, edits: Sequence[Edit], single: Sequence[Prompt]) -> list[float]:
    """Each layer's summed query score (Eq. 10) against the new objects' value neurons, mean over prompts."""
    picked = spaced(single, SAMPLED)
    total: Tensor = torch.zeros(lm.n_layers)
    for prompt in picked:
        scores = layer_scores(lm, [prompt.text], [edits[prompt.edit].target]).neurons[:, 0]
        best = top_neurons(lm, scores, min(LEADING, scores.numel()), named=False)
        total += query_scores(lm, prompt.text, best).layers.float()
    return (total / len(picked)).tolist()
