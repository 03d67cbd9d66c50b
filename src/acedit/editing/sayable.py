"""Which new objects a model cannot say: a token of theirs was never learned.

    unsayable(lm, ["Lima", "Arabic"])       # {"Arabic": " Arab"} on the bundled model

Tokens that training never saw (a vocabulary made from other text, rows of padding) are pushed away all alike,
and their rows of the unembedding end up nearly parallel: no state of the stream prefers one to the others,
so no change of the FFNs makes it be said.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from acedit.lm.model import LanguageModel

PARALLEL = 0.98  # cosine of two rows that training did not tell apart
CROWD = 8  # so many rows parallel to a token's; inflections of a word are fewer
TILE = 8192


@torch.no_grad()
def unsayable(lm: LanguageModel, answers: Iterable[str]) -> dict[str, str]:
    """Of `answers` those with a token that at least `CROWD` others are parallel to, and that token's text."""
    ids = {answer: lm.token_ids(answer) for answer in dict.fromkeys(answers)}
    tokens = sorted({token for some in ids.values() for token in some})
    if not tokens:
        return {}

    def unit(rows: Tensor) -> Tensor:
        return torch.nn.functional.normalize(rows.float(), dim=-1)

    own = unit(lm.unembedding[tokens])
    crowd = torch.zeros(len(tokens), device=own.device)
    for tile in lm.unembedding.split(TILE):
        crowd += (unit(tile) @ own.T > PARALLEL).sum(0)
    lost = {token for token, count in zip(tokens, crowd.tolist(), strict=True) if count > CROWD}
    return {
        answer: str(lm.tokenizer.decode([token]))
        for answer, some in ids.items()
        for token in some[::-1]
        if token in lost
    }
