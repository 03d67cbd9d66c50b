"""Several patches as one: edits that arrived over time, to be shipped together.

    merged([Patch.load("monday/"), Patch.load("tuesday/")]).to_lora("adapter/")

What it writes is what they write together, to rounding in float32. Its method names theirs, its `settings`
hold the ids it was made of, and it has no scores: nothing has been measured under it.
"""

from collections.abc import Sequence

import torch

from acedit.editing.patch import LayerUpdate, Patch
from acedit.errors import UserError


def merged(patches: Sequence[Patch]) -> Patch:
    """One patch of several, of rank min(theirs added up, d_model, n_neurons) in each layer; of edits that
    repeat a fact the last one is named.

    Raises UserError for fewer than two, for one that stands there twice, or for patches of different models;
    NoWeightChange for one whose method changes no weights.
    """
    if len(patches) < 2:
        raise UserError("there is nothing to merge: give two patches or more")
    first = patches[0]
    by_id: dict[str, Patch] = {}
    for patch in patches:
        patch.refuse_memory("it cannot be merged with others")
        if patch.id in by_id:
            raise UserError(f"patch {patch.id[:12]} is given twice: leave one out")
        if patch.fingerprint != first.fingerprint:
            raise UserError(
                f"patches {first.id[:12]} and {patch.id[:12]} were made for different models (fingerprints "
                f"{first.fingerprint[:12]} and {patch.fingerprint[:12]}): merge those of one model"
            )
        by_id[patch.id] = patch
    layers: dict[int, list[LayerUpdate]] = {}
    for id in sorted(by_id):
        for update in by_id[id].updates:
            layers.setdefault(update.layer, []).append(update)
    updates = tuple(
        LayerUpdate(layer, torch.cat([u.left for u in some], 1), torch.cat([u.right for u in some])).shrunk()
        for layer, some in sorted(layers.items())
    )
    modules = {layer: name for patch in patches for layer, name in patch.place["modules"].items()}
    return Patch(
        updates=updates,
        edits=tuple({edit.key: edit for patch in patches for edit in patch.edits}.values()),
        plan={},
        method="+".join(sorted({patch.method for patch in patches})),
        settings={"merged": [patch.id for patch in patches]},
        seed=first.seed,
        fingerprint=first.fingerprint,
        place={**first.place, "modules": modules},
    )
