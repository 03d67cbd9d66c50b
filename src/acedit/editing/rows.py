"""Prompts an edit is to say and prompts it is to leave alone, and what each loses, a few rows at a time.

    rows = Rows(lm, told, kept)                   # on the unedited model
    for group in rows.together():                 # of like length, so that little is padded
        rows.losses(group)                        # on the model as it now is

Footgun: `kept` prompts are held to what the model says when `Rows` is made, so make it with no update in.
Their distributions take vocab × 4 bytes a token of answer, or where that is beyond `REFERENCE` the streams
they are read from d_model numbers.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from acedit.editing.batch import Batch
from acedit.knowledge.compose import Prompt
from acedit.lm.model import LanguageModel

FEW, SPREAD = 8, 1.25  # rows that run together whatever their lengths; beyond them, longest over shortest
TOKENS = 8192  # of one run, padding included, at most,
ROOM = 2**33  # bytes, and so many that what they leave for the way back fits
LOGITS = 2**28  # of one run
REFERENCE = 2**30  # bytes of distributions that are kept
CLASS = 1.5  # longest over shortest in a class of `classes`


class Rows:
    """Both sorts of prompts (at least one), the shortest first.

    kept: which are to be left alone. lengths: tokens, prompt and answer. classes: rows of one number are
    of one sort and of like length.
    """

    kept: Bool[Tensor, " rows"]
    lengths: Int[Tensor, " rows"]
    classes: Int[Tensor, " rows"]

    def __init__(self, lm: LanguageModel, told: Sequence[Prompt], kept: Sequence[Prompt]) -> None:
        """Raises UserError where a subject cannot be found or a row outgrows the context."""
        whole = Batch.of(lm, [*told, *kept])
        order = whole.encoded.lengths.argsort(stable=True)
        self._lm, self._batch = lm, whole.pick(order)
        self._tokens = tokens_at_once(lm)
        self.kept = order.cpu() >= len(told)
        self.lengths = self._batch.encoded.lengths.cpu()
        self.classes = _classes(self.lengths, self.kept)
        answer_row = self._batch.answer_row
        self._answers = torch.bincount(answer_row.cpu(), minlength=len(order))
        held = self.kept.to(answer_row.device)[answer_row]
        self._place = torch.where(held, held.cumsum(0) - 1, -1)
        tokens = int(held.sum())
        self._whole = tokens * lm.vocab_size * lm.wide.itemsize <= REFERENCE
        width, dtype = (lm.vocab_size, lm.wide) if self._whole else (lm.d_model, lm.dtype)
        self._before = torch.zeros(tokens, width, device=lm.device, dtype=dtype)
        with torch.no_grad():
            for group in self.together(torch.nonzero(self.kept)[:, 0]):
                batch, place = self._picked(group)
                normed = batch.normed(lm)
                self._before[place] = self._said(normed) if self._whole else normed

    def __len__(self) -> int:
        return len(self.kept)

    def subjects(self, group: Int[Tensor, " picked"]) -> Int[Tensor, " picked"]:
        """Index of the subject's last token, by row."""
        return self._batch.subject[group.to(self._batch.subject.device)]

    def together(self, picked: Int[Tensor, " picked"] | None = None) -> list[Int[Tensor, " group"]]:
        """`picked` (ascending; default all) cut into runs of like length."""
        picked = torch.arange(len(self)) if picked is None else picked
        lengths, answers = self.lengths[picked].tolist(), self._answers[picked].tolist()
        cuts, read = [0] if lengths else [], 0
        for i, length in enumerate(lengths):
            count, read = i - cuts[-1], read + answers[i]
            unlike = count >= FEW and length > SPREAD * lengths[cuts[-1]]
            large = (count + 1) * length > self._tokens or read * self._lm.vocab_size > LOGITS
            if unlike or (count and large):
                cuts.append(i)
                read = answers[i]
        return [picked[start:end] for start, end in pairwise([*cuts, len(lengths)])]

    def losses(self, group: Int[Tensor, " picked"]) -> Float[Tensor, " picked"]:
        """NLL of the answer, or for kept rows KL from the unedited model, nats a token; rows ascend."""
        batch, place = self._picked(group)
        said = self._said(batch.normed(self._lm))
        token = F.nll_loss(said, batch.answer_ids, reduction="none")
        held = place >= 0
        if held.any():
            before = self._before[place[held]]
            reference = before if self._whole else self._said(before)
            kl = F.kl_div(said[held], reference, log_target=True, reduction="none").sum(-1)
            token = token.index_put((held,), kl)
        return batch.row_mean(token)

    def _said(self, normed: Float[Tensor, "t d_model"]) -> Float[Tensor, "t vocab"]:
        """Log-probabilities; neither the final norm nor the head is ever edited."""
        said: Tensor = self._lm.head_logits(normed).log_softmax(-1)
        return said

    def _picked(self, group: Tensor) -> tuple[Batch, Int[Tensor, " answer_tokens"]]:
        """The rows, and where each of their answers' tokens has its reference; -1 for none."""
        group = group.to(self._place.device)
        return self._batch.pick(group), self._place[self._batch.answers_of(group)]


def tokens_at_once(lm: LanguageModel) -> int:
    """How many tokens a run with gradients may hold: a block leaves some ten vectors of the stream's width
    and four of the FFN's a token."""
    token = lm.n_layers * (10 * lm.d_model + 4 * lm.n_neurons) * lm.dtype.itemsize
    return max(1, min(TOKENS, ROOM // token))


def _classes(lengths: Int[Tensor, " rows"], kept: Bool[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """A number a row: the sort, and which stretch of lengths it is in; lengths ascend."""
    classes = torch.zeros_like(lengths)
    number = 0
    for sort in (~kept, kept):
        shortest = 0
        for row in torch.nonzero(sort)[:, 0].tolist():
            if int(lengths[row]) > CLASS * shortest:
                shortest, number = int(lengths[row]), number + 1
            classes[row] = number - 1
    return classes
