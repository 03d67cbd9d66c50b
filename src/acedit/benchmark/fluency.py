"""Fluency: a model's perplexity over text it was not edited on.

    before = perplexity(lm)
    with patch.applied(lm):
        after = perplexity(lm)

Footgun: over the first windows of Wikitext-2's validation text, tokenised as it is distributed; compare
a model with itself, not with another.
"""

import math

import torch
from torch.nn import functional as F

from acedit.knowledge.prose import wikitext
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded

WINDOWS = 32
TOKENS = 128  # a window


@torch.no_grad()
def perplexity(lm: LanguageModel, text: str | None = None, *, windows: int = WINDOWS) -> float:
    """exp of the mean negative log-likelihood of a token (nats), each window of `text` on its own, behind
    the token that the tokenizer starts every text with, if it does.

    NaN for a text of fewer than two tokens.
    """
    ids: list[int] = lm.tokenizer(wikitext() if text is None else text)["input_ids"]
    start = ids[:1] if ids and ids[0] == lm.tokenizer.bos_token_id else []
    ids = ids[len(start) :]
    width = min(TOKENS, lm.context) - len(start)
    rows = [start + ids[i : i + width] for i in range(0, len(ids), width)][:windows]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return float("nan")
    total, count = 0.0, 0
    for row in rows:
        ids_of = torch.tensor([list(row)], device=lm.device)
        encoded = Encoded(ids_of, torch.ones_like(ids_of))
        logits = lm.head_logits(lm.run_backbone(encoded)[0, :-1]).float()
        total += float(F.cross_entropy(logits, encoded.input_ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    return math.exp(total / count)
