"""The plan of an edit, with the reach of v* measured: `locate` as users call it.

where = locate(lm, edits, known=facts)                  # a short v* search in every layer
where = locate(lm, edits, known=facts, screen=True)     # hundreds of trial writes: ranges are tried
plan = find_plan(lm, edits, prompts)
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from acedit.attribution.layers import spaced
from acedit.attribution.locate import Location, locate_with
from acedit.attribution.plan import Plan, Reach, choose_layers
from acedit.attribution.spread import measure_spread
from acedit.editing.batch import split
from acedit.editing.screen import refuse_unscreenable, screened
from acedit.editing.target import TargetSettings, loss_with, search
from acedit.errors import UserError
from acedit.knowledge.compose import Composer, Prompt
from acedit.knowledge.facts import Edit, Fact
from acedit.lm.model import LanguageModel

REACH = TargetSettings(steps=15)
ENOUGH = 0.05  # nats, at which ROME ends its search: less tells no layer from another
SAMPLED = 8  # edits whose reach is measured,
PROMPTS = 6  # on so many of their prompts


Progress = Callable[[int, int, str], None]


def reach_of(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], *, progress: Progress | None = None
) -> Reach:
    """The loss of v* on prompts it was not searched on, by layer and edit, for both stages of an edit.

    At most `SAMPLED` edits, spread over the batch. v* is searched on every other prompt of an edit, and
    asked on the rest (on the same where there is but one). progress: told layers done, in all, and of what.
    """
    single, lead = ([p for p in prompts if p.kind == kind] for kind in ("single", "lead"))
    return Reach(
        _held_loss(lm, edits, single, "subject", progress),
        _held_loss(lm, edits, lead, "last", progress) or _held_loss(lm, edits, single, "last", progress),
        ENOUGH,
    )


def _held_loss(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    token: str,
    progress: Progress | None,
) -> list[list[float]]:
    sampled = spaced([i for i in range(len(edits)) if any(p.edit == i for p in prompts)], SAMPLED)
    searched, held = [], []
    for place, edit in enumerate(sampled):
        rows = [replace(p, edit=place) for p in spaced([p for p in prompts if p.edit == edit], PROMPTS)]
        searched += rows[::2]
        held += rows[1::2] or rows
    if not sampled:
        return []
    batches, asked = split(lm, searched), split(lm, held)
    losses = []
    for layer in range(lm.n_layers):
        found = search(lm, batches, layer, token=token, n_edits=len(sampled), settings=REACH)
        losses.append(loss_with(lm, asked, layer, found.delta, token=token).tolist())
        if progress is not None:
            progress(layer + 1, lm.n_layers, f"layers tried for a v* at the {token} token")
    return losses


def locate(
    lm: LanguageModel,
    edits: Sequence[Edit],
    *,
    known: Sequence[Fact] = (),
    top: int = 20,
    exclude: Collection[str] = (),
    avoid: Collection[str] = (),
    seed: int = 0,
    screen: bool = False,
    text: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Location:
    """Where the model keeps what `edits` change (at least one): neurons, layers, plan.

    known: facts that supply multi-hop prompts; without them single-hop prompts serve. exclude, avoid: as in
    `edit`. screen: choose the plan's layers by writing trial edits on every range of them, which takes
    minutes and known facts (`editing.screen`), text the prose for its covariance. progress: told layers done,
    in all, and of what. Raises UserError for no edits, subjects that cannot be found in their prompts, or
    screening without known facts or of edits that contradict each other.
    """
    if not edits:
        raise UserError("there are no edits to locate: give at least one")
    if screen:
        refuse_unscreenable(edits, known)
    prompts = Composer(edits, known, exclude=exclude, avoid=avoid, seed=seed).prompts()
    if progress is not None:
        told = progress
        measure_spread(lm, progress=lambda done, of: told(done, of, "layers measured, once a model"))
    where = locate_with(lm, edits, prompts, top=top, reach_of=partial(reach_of, progress=progress))
    if not screen:
        return where
    plan = screened(
        lm,
        edits,
        known,
        where.plan,
        exclude=exclude,
        avoid=avoid,
        seed=seed,
        text=text,
        progress=lambda done, of: progress(done, of, "ranges of layers tried") if progress else None,
    )
    return replace(where, plan=plan)


def find_plan(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    *,
    ranked: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """The plan alone, from prompts already made, on the model as it stands.

    ranked: with the scores of Eq. 9 and Eq. 10, by which the most important layers can be left out; they
    choose none. progress: told layers done, in all, and of what. Raises UserError for scores of a model with
    patches on.
    """
    if ranked:
        return locate_with(lm, edits, prompts, top=1, reach_of=partial(reach_of, progress=progress)).plan
    return choose_layers(reach_of(lm, edits, prompts, progress=progress)).checked(lm.n_layers)
