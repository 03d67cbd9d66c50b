"""Text as a model's token ids.

    tokens = Tokens(tokenizer, context=2048, known=151936)
    encoded = tokens.padded(tokens.of(["The capital of Peru is"]))     # (batch, seq), right padded
    tokens.following(" Lima")                                          # as it stands behind a prompt
    prompt, index = tokens.find_subject("{} is a citizen of", "Bo Ray")

Footguns: `of` puts a tokenizer's own special tokens to a text, `following` none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from acedit.errors import UserError
from acedit.knowledge.prompts import space_before


@dataclass(frozen=True)
class Encoded:
    """Token ids of a batch of texts, padded on the right; attention_mask is 1 on real tokens."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens a row."""
        return self.attention_mask.sum(-1)

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Index of the last real token of each row."""
        return self.lengths - 1

    def rows(self, index: Int[Tensor, " picked"]) -> "Encoded":
        """The rows at `index`, still padded to the whole batch's length."""
        return Encoded(self.input_ids[index], self.attention_mask[index])

    def upto(self, end: int) -> "Encoded":
        """The first `end` tokens of every row."""
        return Encoded(self.input_ids[:, :end], self.attention_mask[:, :end])

    def to(self, device: torch.device) -> "Encoded":
        """The same on a device."""
        return Encoded(self.input_ids.to(device), self.attention_mask.to(device))

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class Tokens:
    """A tokenizer, and what the model takes of its tokens.

    context: tokens that the model reads at once. known: rows of its embedding.
    """

    def __init__(self, tokenizer: Any, *, context: int, known: int):
        self._tokenizer, self._context, self._known = tokenizer, context, known

    @property
    def pad(self) -> int:
        """What padding is made of: the tokenizer's own token if the model has it, its end of text, or 0."""
        named = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return int(next(t for t in named if t is not None and 0 <= t < self._known))

    def of(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the tokenizer's own special tokens.

        Raises `UserError` for no text, an empty one, one longer than the context, or a token that the model
        does not know.
        """
        if isinstance(texts, str) or len(texts) == 0:
            raise UserError("encode takes a list of at least one text")
        rows: list[list[int]] = self._tokenizer(list(texts), padding=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if not row or not text:  # some tokenizers begin nothing with a token, too
                raise UserError("a prompt is empty")
            if max(row) >= self._known:
                raise UserError(
                    f"the tokenizer gives token {max(row)}, the model has {self._known}: "
                    "give it its own tokenizer"
                )
            if len(row) > self._context:
                raise UserError(
                    f"a prompt has {len(row)} tokens, the model's context is {self._context}: shorten "
                    f"{text[:60]!r}..."
                )
        return rows

    def padded(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> Encoded:
        """Rows of token ids as one batch, on the CPU."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(width - len(row), None) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = 1
        return Encoded(ids, mask)

    def following(self, text: str, *, leading_space: bool | None = None) -> list[int]:
        """Tokens of `text` as they follow a prompt, without special tokens.

        leading_space: whether a space stands between prompt and text (None: as its script has it). The
        tokens are those that come after a stand-in prompt, since many tokenizers treat a text's start as a
        word's start.

        Raises `UserError` for an empty text.
        """
        if leading_space is None:
            text = text.strip()
            leading_space = space_before(text) == " "
        text = text.strip() if leading_space else text
        if not text:
            raise UserError("an answer is empty")
        for anchor in ("a", ":", "0") if leading_space else ("\n", "(", '"'):
            before = self._plain(anchor)
            whole = self._plain(anchor + " " + text if leading_space else anchor + text)
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return self._plain(" " + text if leading_space else text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens and with its spaces as they are."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text of `new` behind `prompt`.

        Decoded with its prompt: alone, a first token would lose the space before it in tokenizers that mark
        words rather than spaces.
        """
        before, whole = self.decode(prompt), self.decode([*prompt, *new])
        return whole[len(before) :] if whole.startswith(before) else self.decode(new)

    def find_subject(self, template: str, subject: str) -> tuple[str, int]:
        """Fill `template` and find its subject.

        Returns the prompt and the index, in `of([prompt])`, of the last token that holds a part
        of the subject. A subject cut into bytes ends at its last byte's token.

        Raises `UserError` if the template has not exactly one `{}`, or the subject is empty or its
        tokens cannot be told from the prompt's.
        """
        if template.count("{}") != 1:
            raise UserError(f"template {template!r} must hold exactly one {{}} for the subject")
        subject = subject.strip()
        if not subject:
            raise UserError(f"the subject for template {template!r} is empty")
        start = template.index("{}")
        prompt = template.replace("{}", subject)
        end = start + len(subject)
        index = None
        if getattr(self._tokenizer, "is_fast", False):
            spans = self._tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
            index = max((i for i, (a, b) in enumerate(spans) if a < end <= b), default=None)
        if index is None:
            index = self._find_by_decoding(prompt, prompt[:end])
        if index is None:
            raise UserError(f"subject {subject!r} cannot be found among the tokens of {prompt!r}")
        return prompt, index

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _find_by_decoding(self, prompt: str, upto: str) -> int | None:
        """First token after which the decoded text reaches the end of `upto`, spaces aside."""

        def squeeze(text: str) -> str:
            return "".join(text.split())

        ids = self.of([prompt])[0]
        wanted = squeeze(upto)
        for i in range(len(ids)):
            if squeeze(self.decode(ids[: i + 1])).startswith(wanted):
                return i
        return None
