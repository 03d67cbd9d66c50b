"""Knowledge neurons (Dai et al. 2021): integrated gradients find them, their values are rewritten.

A neuron's attribution is the integral of dP(o)/dm_k as its layer's coefficients grow from zero to what
they are (section 3.2), at the prompt's last token. Of each prompt the neurons above 0.2 of the largest
are kept, then those that a share of the fact's prompts have (3.3): 0.7, moved by 0.05 until 2 to 5 are
found, as in the authors' code; there the bounds are on a data set's mean, here on each fact's own. Neurons
that more than a tenth of the relation's other facts have are nobody's (section 4.4): other facts are those
of kin and of the other edits. A subvalue v loses λ1·‖v‖ along the unembedding of the old object and gains
λ2·‖v‖ along the new one's, λ1 = 1 and λ2 = 8, each in the direction its neuron fires.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.layers import old_answers, signs
from acedit.editing.batch import Batch, split
from acedit.editing.keys import keys_at
from acedit.editing.methods.method import Beside, Method
from acedit.editing.stages import Update
from acedit.knowledge.compose import Amounts, Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix

STEPS = 20  # of the integral
ROWS = 8  # prompts run at once, each in all its steps
THRESHOLD = 0.2
SHARED, STEP = 0.7, 0.05
FEWEST, MOST = 2, 5  # neurons of a fact
COMMON = 0.1  # share of the relation's other facts
OLD, NEW = 1.0, 8.0  # λ1, λ2

Neuron = tuple[int, int]

METHODS = (
    Method(
        name="kn",
        summary="knowledge neurons by integrated gradients, their values rewritten (Dai et al. 2021)",
        writer="acedit.editing.methods.kn",
        amounts=Amounts(lead=0, ripple=0, middle=0, keep=0, replay=0, kin=16),
    ),
)


def write(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt], _: Beside) -> list[Update]:
    """One update a layer that holds a knowledge neuron of some edit, of rank one an edit."""
    single = [p for p in prompts if p.kind == "single"]
    old = old_answers(lm, edits, [next(p for p in single if p.edit == i) for i in range(len(edits))])
    asked = [Prompt(p.template, p.subject, old[p.edit], p.kind, p.edit) for p in single]
    kin = {p.subject: p for p in reversed(prompts) if p.kind == "hold"}
    others = [p for p in kin.values() if p.subject != edits[p.edit].subject]
    found = _prominent(lm, [*asked, *others])
    # A fact is a subject of a relation; of each, what every prompt has.
    facts: dict[str, dict[str, list[set[Neuron]]]] = {}
    for prompt, some in zip([*asked, *others], found, strict=True):
        relation = facts.setdefault(edits[prompt.edit].relation.id, {})
        relation.setdefault(prompt.subject, []).append(some)
    left: dict[int, list[Tensor]] = {}
    right: dict[int, list[Tensor]] = {}
    for i, edit in enumerate(edits):
        relation = facts[edit.relation.id]
        elsewhere = Counter(
            neuron
            for subject, prompted in relation.items()
            if subject != edit.subject
            for neuron in set.union(*prompted)
        )
        limit = max(1.0, COMMON * (len(relation) - 1))
        own = [{n for n in all_of if elsewhere[n] <= limit} for all_of in relation[edit.subject]]
        move = NEW * _direction(lm, edit.target) - OLD * _direction(lm, old[i])
        # In gated FFNs a coefficient may be negative: its subvalue then moves the other way.
        fires = signs(lm, [p.text for p in asked if p.edit == i]).to(lm.device)
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in _shared(own):
            by_layer.setdefault(layer, []).append(neuron)
        for layer, neurons in by_layer.items():
            pick = torch.zeros(1, lm.n_neurons, device=lm.device)
            size = lm.subvalues(layer)[neurons].float().norm(dim=-1).to(lm.device)
            pick[0, neurons] = fires[layer, neurons].float() * size
            left.setdefault(layer, []).append(move[:, None])
            right.setdefault(layer, []).append(pick)
    return [Update(layer, torch.cat(left[layer], 1), torch.cat(right[layer])) for layer in sorted(left)]


def _direction(lm: LanguageModel, answer: str) -> Float[Tensor, " d_model"]:
    """W_U's row of the answer's first token, of length one."""
    row: Tensor = lm.unembedding[lm.token_ids(answer)[0]].to(lm.device).float()
    unit: Tensor = row / row.norm()
    return unit


def _prominent(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[set[Neuron]]:
    """Of each prompt the neurons above `THRESHOLD` of its largest attribution."""
    found: dict[int, set[Neuron]] = {}
    numbered = [replace(p, edit=i) for i, p in enumerate(prompts)]
    for batch in split(lm, numbered):
        scores = torch.stack([integrated_gradients(lm, batch, layer) for layer in range(lm.n_layers)], 1)
        top = scores.flatten(1).max(1).values
        for prompt in batch.prompts:
            found[prompt.edit] = set()
        for row, layer, neuron in (scores > THRESHOLD * top[:, None, None]).nonzero().tolist():
            found[batch.prompts[row].edit].add((layer, neuron))
    return [found[i] for i in range(len(prompts))]


def _shared(prompted: Sequence[set[Neuron]]) -> list[Neuron]:
    """The neurons that enough of a fact's prompts have: `SHARED` of them, moved until there are 2 to 5."""
    counts = Counter(neuron for some in prompted for neuron in some)

    def at(share: float) -> list[Neuron]:
        return sorted(neuron for neuron, n in counts.items() if n >= share * len(prompted))

    share = SHARED
    while len(at(share)) > MOST and share + STEP <= 1:
        share += STEP
    while len(at(share)) < FEWEST and share > STEP:
        share -= STEP
    return at(share)


def integrated_gradients(
    lm: LanguageModel, batch: Batch, layer: int, steps: int = STEPS
) -> Float[Tensor, "rows n_neurons"]:
    """m_k ∫₀¹ dP(o)/dm_k(α m) dα at each prompt's last token, o its answer's first token (Riemann sum).

    Nothing before that token is moved, so it alone is run again, in all the steps at once.
    """
    first = torch.tensor([lm.token_ids(p.answer)[0] for p in batch.prompts], device=lm.device)
    with torch.no_grad():
        whole, _ = keys_at(lm, batch.encoded, layer, batch.last)
    share = torch.arange(1, steps + 1, device=lm.device) / steps
    total = torch.zeros_like(whole)
    for last in batch.last.unique().tolist():
        for rows in (batch.last == last).nonzero()[:, 0].split(ROWS):
            leaf = (whole[rows, None] * share[:, None]).flatten(0, 1).to(lm.dtype).requires_grad_(True)

            def scaled(_: object, args: tuple[Tensor, ...], leaf: Tensor = leaf) -> tuple[Tensor, ...]:
                return (leaf.to(args[0]).reshape(args[0].shape), *args[1:])

            suffix = Suffix(lm, batch.pick(rows).encoded.upto(last + 1), layer, start=last, copies=steps)
            handle = lm.down(layer).register_forward_pre_hook(scaled)
            try:
                final = suffix.run()[:, 0]
            finally:
                handle.remove()
            said = suffix.logits(final).softmax(-1)
            chance = said.gather(1, first[rows].repeat_interleave(steps)[:, None])
            (gradient,) = torch.autograd.grad(chance.sum(), leaf)
            total[rows] = gradient.float().unflatten(0, (len(rows), steps)).sum(1)
    return whole.float() * total / steps
