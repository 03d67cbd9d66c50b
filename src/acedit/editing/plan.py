"""The plan of an edit, with the reach of v* measured: `locate` as users call it.

where = locate(lm, edits, known=facts)
plan = find_plan(lm, edits, prompts)
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from acedit.attribution.locate import Location, locate_with
from acedit.attribution.plan import Plan
from acedit.editing.batch import split
from acedit.editing.target import TargetSettings, search
from acedit.errors import UserError
from acedit.knowledge.compose import Composer, Prompt
from acedit.knowledge.facts import Edit, Fact
from acedit.lm.model import LanguageModel

REACH = TargetSettings(steps=15)
SAMPLED = 4  # edits whose reach is measured,
WORDINGS = 3  # on so many of their single-hop prompts


def reach_of(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt]) -> list[float]:
    """By layer: the loss (nats a token) that v* attains at the subject's last token.

    A mean over at most `SAMPLED` edits, spread over the batch.
    """
    sampled = range(0, len(edits), -(-len(edits) // SAMPLED))
    place = {edit: i for i, edit in enumerate(sampled)}
    single = [
        replace(p, edit=i)
        for edit, i in place.items()
        for p in [p for p in prompts if p.kind == "single" and p.edit == edit][:WORDINGS]
    ]
    batches = split(lm, single)
    return [
        float(search(lm, batches, layer, token="subject", n_edits=len(place), settings=REACH).loss.mean())
        for layer in range(lm.n_layers)
    ]


def locate(
    lm: LanguageModel,
    edits: Sequence[Edit],
    *,
    known: Sequence[Fact] = (),
    top: int = 20,
    exclude: Collection[str] = (),
    seed: int = 0,
) -> Location:
    """Where the model keeps what `edits` change (at least one): neurons, layers, plan.

    known: facts that supply multi-hop prompts; without them single-hop prompts serve. Raises UserError
    for no edits, or subjects that cannot be found in their prompts.
    """
    if not edits:
        raise UserError("there are no edits to locate: give at least one")
    prompts = Composer(edits, known, exclude=exclude, seed=seed).prompts()
    return locate_with(lm, edits, prompts, top=top, reach_of=reach_of)


def find_plan(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt]) -> Plan:
    """The plan alone, from prompts already made."""
    return locate_with(lm, edits, prompts, top=1, reach_of=reach_of).plan
