"""Prompts with their answers, encoded for teacher forcing.

    batch = Batch.of(lm, prompts)
    batch.nll(batch.logits(lm))            # (rows,), nats a token

A row is prompt + answer (with its end, where the prompt has one) + nothing else. Rows of a `Batch` share
one padded length; `split` cuts a long list into batches of like length, so that little is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acedit.errors import UserError
from acedit.knowledge.compose import Prompt
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded


@dataclass(frozen=True)
class Batch:
    """Rows of prompt and answer.

    subject: index of the subject's last token; last: index of the prompt's last token; answer_row and
    answer_at: where each answer token is predicted (the position before it); answer_ids: those tokens.
    """

    prompts: tuple[Prompt, ...]
    encoded: Encoded
    subject: Int[Tensor, " rows"]
    last: Int[Tensor, " rows"]
    answer_row: Int[Tensor, " answer_tokens"]
    answer_at: Int[Tensor, " answer_tokens"]
    answer_ids: Int[Tensor, " answer_tokens"]

    @classmethod
    def of(cls, lm: LanguageModel, prompts: Sequence[Prompt]) -> "Batch":
        """Encode `prompts` (at least one).

        Raises UserError where a subject cannot be found or a row outgrows the context.
        """
        rows: list[list[int]] = []
        subject: list[int] = []
        last: list[int] = []
        row_of: list[int] = []
        at: list[int] = []
        ids: list[int] = []
        texts = []
        for prompt in prompts:
            text, where = lm.find_subject(prompt.template, prompt.subject)
            texts.append(text)
            subject.append(where)
        encoded = lm.encode(texts)
        for i, (prompt, length) in enumerate(zip(prompts, encoded.lengths.tolist(), strict=True)):
            answer = lm.token_ids(prompt.answer) + ([] if prompt.end is None else [prompt.end])
            row = encoded.input_ids[i, :length].tolist() + answer
            if len(row) > lm.context:
                raise UserError(
                    f"prompt and answer have {len(row)} tokens, the model's context is {lm.context}:"
                    f" {texts[i][:60]!r}…"
                )
            rows.append(row)
            last.append(length - 1)
            row_of += [i] * len(answer)
            at += range(length - 1, length - 1 + len(answer))
            ids += answer
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), int(encoded.input_ids[0, 0]))
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        on = lm.device
        return cls(
            tuple(prompts),
            Encoded(tokens.to(on), mask.to(on)),
            torch.tensor(subject, device=on),
            torch.tensor(last, device=on),
            torch.tensor(row_of, device=on),
            torch.tensor(at, device=on),
            torch.tensor(ids, device=on),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def edits(self) -> Int[Tensor, " rows"]:
        """The edit each row serves, -1 for replay."""
        return torch.tensor([p.edit for p in self.prompts], device=self.subject.device)

    def pick(self, rows: Int[Tensor, " picked"]) -> "Batch":
        """The rows at `rows` (no repeats), padded to the longest of them."""
        place = torch.full((len(self),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = self.answers_of(rows)
        encoded = self.encoded.rows(rows)
        width = max(encoded.lengths.tolist(), default=0)
        return Batch(
            tuple(self.prompts[i] for i in rows.tolist()),
            encoded.upto(width),
            self.subject[rows],
            self.last[rows],
            place[self.answer_row[kept]],
            self.answer_at[kept],
            self.answer_ids[kept],
        )

    def answers_of(self, rows: Int[Tensor, " picked"]) -> Bool[Tensor, " answer_tokens"]:
        """Which answer tokens are of the rows at `rows`; `pick` keeps them in this order."""
        return torch.isin(self.answer_row, rows)

    def positions(self, token: str) -> Int[Tensor, " rows"]:
        """Where a stage at `token` ("subject" or "last") writes."""
        return self.subject if token == "subject" else self.last

    def at_answers(
        self, final: Float[Tensor, "rows seq d_model"], *, start: int = 0
    ) -> Float[Tensor, "t d_model"]:
        """The final residual where answers are read; start: the token that `final` begins with."""
        return final[self.answer_row, self.answer_at - start]

    def logits(self, lm: LanguageModel) -> Float[Tensor, "t vocab"]:
        """What the model as it stands says where answers are read: one pass, float32 at least."""
        return lm.head_logits(self.normed(lm))

    def normed(self, lm: LanguageModel) -> Float[Tensor, "t d_model"]:
        """What those logits are read from: the final-normed streams, one pass."""
        return self.at_answers(lm.run_backbone(self.encoded))

    def nll(self, logits: Float[Tensor, "t vocab"]) -> Float[Tensor, " rows"]:
        """Mean negative log-likelihood of each row's answer, nats a token."""
        token = torch.nn.functional.cross_entropy(logits, self.answer_ids, reduction="none")
        return self.row_mean(token)

    def row_mean(self, token: Float[Tensor, " t"]) -> Float[Tensor, " rows"]:
        """Mean over each row's answer tokens."""
        total = torch.zeros(len(self), dtype=token.dtype, device=token.device)
        count = torch.zeros_like(total)
        total = total.index_add(0, self.answer_row, token)
        count = count.index_add(0, self.answer_row, torch.ones_like(token))
        return total / count

    def right(self, logits: Float[Tensor, "t vocab"]) -> Bool[Tensor, " rows"]:
        """Rows whose every answer token is the argmax: what greedy decoding would say."""
        wrong = (logits.argmax(-1) != self.answer_ids).to(logits.dtype)
        return self.row_mean(wrong) == 0


def split(lm: LanguageModel, prompts: Sequence[Prompt], rows: int = 64, spread: float = 2.0) -> list[Batch]:
    """`prompts` in batches of at most `rows`, by length; the order within is by length too.

    spread: the longest of a batch has at most so many times the characters of its shortest.
    """
    batches: list[list[Prompt]] = []
    shortest = 0
    for prompt in sorted(prompts, key=_length):
        if not batches or len(batches[-1]) == rows or _length(prompt) > spread * shortest:
            batches.append([])
            shortest = _length(prompt)
        batches[-1].append(prompt)
    return [Batch.of(lm, batch) for batch in batches]


def _length(prompt: Prompt) -> int:
    return len(prompt.text) + len(prompt.answer)
