"""Knowledge neurons (Dai et al. 2021): integrated gradients find them, their values are rewritten.

A neuron's attribution is the integral of dP(o)/dm_k as its layer's coefficients grow from zero to what
they are (section 3.2), at the prompt's last token. Of each prompt the neurons above 0.2 of the largest
are kept, then those that 0.7 of the fact's prompts share (3.3). Their subvalues lose the unembedding of
the old object and gain the new one's, λ1 = 1 and λ2 = 8 (section 4.4's rewriting of value slots), each in the
direction its neuron fires.

Where no neuron is shared so widely, the share is halved until some is.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.layers import old_answers, signs
from acedit.editing.batch import Batch, split
from acedit.editing.keys import keys_at
from acedit.editing.methods.method import Method
from acedit.editing.stages import Update
from acedit.knowledge.compose import Amounts, Prompt
from acedit.knowledge.facts import Edit
from acedit.lm.model import LanguageModel

STEPS = 20  # of the integral
THRESHOLD = 0.2
SHARED = 0.7
OLD, NEW = 1.0, 8.0  # λ1, λ2

METHODS = (
    Method(
        name="kn",
        summary="knowledge neurons by integrated gradients, their values rewritten (Dai et al. 2021)",
        writer="acedit.editing.methods.kn",
        amounts=Amounts(lead=0, ripple=0, middle=0, keep=0, replay=0),
    ),
)


def write(lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Prompt]) -> list[Update]:
    """One update a layer that holds a knowledge neuron of some edit, of rank one an edit."""
    left: dict[int, list[Tensor]] = {}
    right: dict[int, list[Tensor]] = {}
    for i, edit in enumerate(edits):
        rows = [p for p in prompts if p.edit == i and p.kind == "single"]
        (old,) = old_answers(lm, edits, rows[:1])
        asked = [Prompt(p.template, p.subject, old, p.kind, i) for p in rows]
        move = NEW * _direction(lm, edit.target) - OLD * _direction(lm, old)
        # In gated FFNs a coefficient may be negative: its subvalue then moves the other way.
        fires = signs(lm, [p.text for p in asked]).to(lm.device)
        for layer, neurons in _knowledge_neurons(lm, asked).items():
            pick = torch.zeros(1, lm.n_neurons, device=lm.device)
            pick[0, neurons] = fires[layer, neurons].float()
            left.setdefault(layer, []).append(move[:, None])
            right.setdefault(layer, []).append(pick)
    return [Update(layer, torch.cat(left[layer], 1), torch.cat(right[layer])) for layer in sorted(left)]


def _direction(lm: LanguageModel, answer: str) -> Float[Tensor, " d_model"]:
    """W_U's row of the answer's first token."""
    return lm.unembedding[lm.token_ids(answer)[0]].float()


def _knowledge_neurons(lm: LanguageModel, prompts: Sequence[Prompt]) -> dict[int, list[int]]:
    """Neurons by layer that enough of the prompts share."""
    counts: Counter[tuple[int, int]] = Counter()
    for batch in split(lm, prompts):
        scores = torch.stack([integrated_gradients(lm, batch, layer) for layer in range(lm.n_layers)], 1)
        top = scores.flatten(1).max(1).values
        for _, layer, neuron in (scores > THRESHOLD * top[:, None, None]).nonzero().tolist():
            counts[layer, neuron] += 1
    share, found = SHARED, [at for at, n in counts.items() if n >= SHARED * len(prompts)]
    while not found and counts:
        share /= 2
        found = [at for at, n in counts.items() if n >= share * len(prompts)]
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in sorted(found):
        by_layer.setdefault(layer, []).append(neuron)
    return by_layer


def integrated_gradients(
    lm: LanguageModel, batch: Batch, layer: int, steps: int = STEPS
) -> Float[Tensor, "rows n_neurons"]:
    """m_k ∫₀¹ dP(o)/dm_k(α m) dα at each prompt's last token, o its answer's first token (Riemann sum)."""
    rows = torch.arange(len(batch), device=lm.device)
    at, first = batch.last, torch.tensor([lm.token_ids(p.answer)[0] for p in batch.prompts], device=lm.device)
    total = torch.zeros(len(batch), lm.n_neurons, device=lm.device)
    with torch.no_grad():
        whole, _ = keys_at(lm, batch.encoded, layer, at)
    for step in range(1, steps + 1):
        leaf = (step / steps * whole).to(lm.dtype).requires_grad_(True)

        def scaled(_: object, args: tuple[Tensor, ...], leaf: Tensor = leaf) -> tuple[Tensor, ...]:
            key = args[0].detach()  # opt hands its FFN flat rows
            flat = key.reshape(len(batch), -1, key.shape[-1]).index_put((rows, at), leaf)
            return (flat.reshape(key.shape), *args[1:])

        handle = lm.down(layer).register_forward_pre_hook(scaled)
        try:
            final = lm.run_backbone(batch.encoded)
        finally:
            handle.remove()
        chance = lm.head_logits(final[rows, at]).softmax(-1)[rows, first]
        (gradient,) = torch.autograd.grad(chance.sum(), leaf)
        total += gradient.float()
    return whole.float() * total / steps
