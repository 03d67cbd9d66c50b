"""What stands between a prompt and the model, for methods that edit by what the model reads.

    lm.reader                   # the patches' that are on, see editing.patch; None for none
    lm.generate(prompts)        # what the reader makes of them
    greedy(lm, prompts)         # lm.generation's: the model alone

Footguns: `logits` and the attributions see the model alone, whatever reader is on.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from acedit.lm.model import LanguageModel


@runtime_checkable
class Reader(Protocol):
    """Answers prompts with a model and with what it was told."""

    weighs: bool
    """Whether an answer's probability is asked of the model behind `context`."""

    def context(self, prompt: str) -> str:
        """The prompt as the model reads it."""
        ...

    def generate(
        self,
        lm: "LanguageModel",
        texts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] | re.Pattern[str],
        batch_size: int,
    ) -> list[str]:
        """Continuations, as `LanguageModel.generate` gives them."""
        ...
