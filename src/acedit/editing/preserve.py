"""What an edit preserves: the text its covariance is of, and the closed form's metric over it.

    texts = text_of(lm, known)
    metric = metric_of(lm, method, texts, layers, replay, cache_dir)
    metric(layer, size)(keys)          # Q K, see `solve`
    metric_beside(lm, texts, layers, kin)(layer)(keys)  # the same for what is moved by gradient

Footgun: patches that are on a model are taken off while its text is read, and their keys are kept instead
(AlphaEdit's K_p).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.layers import spaced
from acedit.editing.batch import Batch, split
from acedit.editing.covariance import TEXT_READ, covariances
from acedit.editing.keys import key_moments, keys_at
from acedit.editing.methods import Method
from acedit.editing.patch import edits_on, patches_off
from acedit.editing.solve import Metric, factor, inverse, null_space
from acedit.editing.stages import Stage, mean_by
from acedit.knowledge.compose import Prompt, belief_texts
from acedit.knowledge.facts import Edit, Fact
from acedit.knowledge.prose import prose
from acedit.lm.model import LanguageModel
from acedit.waiting import Countdown

TOKENS_A_NEURON = 16  # of text, where little is known
SAMPLED = 32  # texts, and tokens of each, that tell what a model reads with ease
RIDGE = 0.05  # of the mean diagonal, added to what steps by gradient preserve
FLOOR = 1e-6  # of the mean diagonal, added to what is preserved: a short text spans few keys


def text_of(lm: LanguageModel, known: Sequence[Fact]) -> list[str]:
    """What key covariances are taken over: the known facts said in full, and the package's prose beside them,
    up to `TOKENS_A_NEURON` tokens a neuron in all.

    Facts that hold more tokens than a layer has neurons stand alone where the model was not made for prose,
    which it then reads worse than them. Fewer would make C of too low a rank.
    """
    said = belief_texts(known)
    tokens = 0
    for text in dict.fromkeys(said):
        tokens += len(lm.token_ids(text))
        if tokens >= TOKENS_A_NEURON * lm.n_neurons:
            return said
    if tokens >= lm.n_neurons and surprise(lm, prose()) > surprise(lm, said):
        return said
    for paragraph in prose():
        if tokens >= TOKENS_A_NEURON * lm.n_neurons:
            break
        said.append(paragraph)
        tokens += len(lm.token_ids(paragraph))
    return said


@torch.no_grad()
def surprise(lm: LanguageModel, texts: Sequence[str]) -> float:
    """Mean negative log-likelihood of the first `SAMPLED` tokens of `SAMPLED` of the texts, spread over them,
    nats a token, of the unedited model. NaN for texts of one token."""
    rows: list[list[int]] = [lm.tokenizer(text)["input_ids"][:SAMPLED] for text in spaced(texts, SAMPLED)]
    encoded = lm.padded([row for row in rows if row])
    with patches_off(lm):
        said = lm.head_logits(lm.run_backbone(encoded))[:, :-1].log_softmax(-1)
    each = -said.gather(-1, encoded.input_ids[:, 1:, None])[..., 0]
    return float(each[encoded.attention_mask[:, 1:].bool()].mean())


def metric_of(
    lm: LanguageModel,
    chosen: Method,
    texts: Sequence[str],
    layers: Sequence[int],
    replay: Sequence[Batch],
    cache_dir: Path | None,
    edits: Sequence[Edit] = (),
    tell: Callable[[str], None] | None = None,
) -> Callable[[int, float], Metric]:
    """What the closed form preserves, as `solve` wants it: beside `edits`, in the null space."""
    read = Countdown(tell or (lambda _: None), TEXT_READ)
    c = covariances(lm, texts, layers, cache_dir=cache_dir, progress=read)
    known = key_moments(lm, replay, list(c)) if chosen.known and replay else {}
    factors: dict[int, Metric] = {}

    def metric(layer: int, size: float) -> Metric:
        if layer in factors:
            return factors[layer]
        if chosen.form == "null":
            (stage,) = chosen.stages
            return null_space(c[layer].to(lm.device), earlier=_earlier_keys(lm, edits, layer, stage))
        p = chosen.lam * lm.n_neurons * c[layer].to(lm.device).double()
        if known:
            p = p + chosen.known * lm.n_neurons * known[layer].to(lm.device)
        floor = FLOOR * float(p.diagonal().mean())
        p.diagonal().add_(floor + chosen.ridge * size)
        q = inverse(factor(p))
        if not chosen.ridge:
            factors[layer] = q  # the same for every edit
        return q

    return metric


def metric_beside(
    lm: LanguageModel,
    texts: Sequence[str],
    layers: Sequence[int],
    kin: Mapping[int, Float[Tensor, "keys n_neurons"]] | None = None,
    weight: float = 1.0,
    cache_dir: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Callable[[int], Metric]:
    """What steps by gradient preserve (`polish`): Q = P⁻¹ with P = C + `RIDGE`, on the layer's device.

    kin: of each layer keys of what must stay, whose second moment, brought to C's trace, is added `weight`
    times. P is factored when a layer is asked for, N³/3 multiplications in float64, and not kept.
    """
    read = Countdown(tell or (lambda _: None), TEXT_READ)
    c = covariances(lm, texts, layers, cache_dir=cache_dir, progress=read)

    def metric(layer: int) -> Metric:
        p = c[layer].to(lm.down_weight(layer).device).double()
        floor, trace = RIDGE * p.diagonal().mean(), p.diagonal().sum()
        if kin is not None:
            keys = kin[layer].to(p)
            p = p + (weight * trace / keys.square().sum().clamp(min=1e-12)) * (keys.T @ keys)
        p.diagonal().add_(floor)
        return inverse(factor(p))

    return metric


def _earlier_keys(
    lm: LanguageModel, edits: Sequence[Edit], layer: int, stage: Stage
) -> Float[Tensor, "n_neurons n"] | None:
    """Keys of the edits that patches have put in, where `stage` would write them; none for none.

    Those of `edits` themselves are left out: what is to be changed again is not kept.
    """
    anew = {edit.key for edit in edits}
    before = [edit for edit in edits_on(lm) if edit.key not in anew]
    if not before:
        return None
    asked = [Prompt(edit.prompt, edit.subject, edit.target, "single", i) for i, edit in enumerate(before)]
    rows = [
        (keys_at(lm, batch.encoded, layer, batch.positions(stage.token))[0], batch.edits())
        for batch in split(lm, asked)
    ]
    keys, edit = (torch.cat(column) for column in zip(*rows, strict=True))
    return mean_by(edit, keys).T
