"""Greedy generation for many prompts at once.

    greedy(lm, prompts, max_new_tokens=32, stop=["\\n"])          # one continuation a prompt

What all prompts start with (the few-shot prompt of appendix G.1) is run once, rows of like length go
together, and rows that have ended are let go.

Footguns: a checkpoint's generation_config has a say in where texts end and in tokens that it suppresses or
forces, in nothing else.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded, Tokens

PREFIX = 32  # tokens that have to be shared to be worth running once
STRIDE = 12  # new tokens between looks at which rows have ended


@torch.no_grad()
def greedy(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    stop: Sequence[str] | re.Pattern[str] = ("\n",),
    batch_size: int = 64,
    share: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy continuations, without the prompts, cut before the first stop or EOS.

    stop: strings, or one pattern, which sees the whole new text; its group, if it has one, is where
    the text is cut. share: run what all prompts start with once, and keep its keys and values.
    progress: told prompts answered, and in all.

    Raises `UserError` as `encode` does; a prompt that fills the context gets fewer new tokens.
    """
    rows = lm.tokens.of(texts)
    done: list[str] = [""] * len(rows)
    pattern = stop
    if not isinstance(pattern, re.Pattern):
        pattern = re.compile("|".join(map(re.escape, pattern)) or r"(?!)")
    # Rows of like length together, so that little is padded. Those with less room than asked
    # for go by exact length, so that none takes room from another.
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        room = min(max_new_tokens, lm.context - len(rows[i]))
        groups.setdefault(room, []).append(i)
    prefix = shared_prefix(lm, rows) if share else None
    answered = 0
    for room, group in groups.items():
        for at in range(0, len(group), batch_size):
            picked = group[at : at + batch_size]
            texts_of = _continue(lm, [rows[i] for i in picked], room, pattern, prefix)
            for i, text in zip(picked, texts_of, strict=True):
                done[i] = text
            answered += len(picked)
            if progress is not None:
                progress(answered, len(rows))
    return done


@dataclass(frozen=True)
class Prefix:
    """Tokens that every row of a call starts with, and their keys and values."""

    ids: tuple[int, ...]
    cache: DynamicCache

    def before(self, rest: Encoded) -> Encoded:
        """`rest` behind it."""
        ids = torch.tensor(self.ids, device=rest.input_ids.device).expand(len(rest), -1)
        mask = rest.attention_mask
        return Encoded(
            torch.cat([ids, rest.input_ids], dim=1),
            torch.cat([torch.ones_like(ids, dtype=mask.dtype), mask], dim=1),
        )

    def copies(self, rows: int, room: int) -> DynamicCache:
        """Its keys and values for so many rows, which may add `room` tokens each."""
        cache = DynamicCache()
        for layer in self.cache.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            cache.layers.append(_Roomy(layer.keys, layer.values, rows, room))
        return cache


class _Roomy(DynamicLayer):  # type: ignore[misc, unused-ignore]
    """A layer's keys and values, of one row at first, with room for what `rows` of them add.

    The library's own copies all it holds for every new token, which with long prompts is most of the work.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: int, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._whole = _with_room(keys, rows, room), _with_room(values, rows, room)
        self._show(keys.shape[-2])

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        shown = self._whole[0][..., :length, :], self._whole[1][..., :length, :]
        self.keys, self.values = shown
        return shown

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[..., start:end, :] = new
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        keys, values = self._whole
        self._whole = keys[indices.to(keys.device)], values[indices.to(values.device)]
        self._show(length)


def _with_room(part: Tensor, rows: int, room: int) -> Tensor:
    """`rows` times what is there, and behind it `room` tokens not written yet."""
    _, heads, length, width = part.shape
    whole = part.new_empty(rows, heads, length + room, width)
    whole[:, :, :length] = part
    return whole


def shared_prefix(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Prefix | None:
    """What all rows start with, run once; None where that is short, or attention slides over it."""
    length = min(map(len, rows)) - 1
    for row in rows[1:]:
        length = next((i for i in range(length) if row[i] != rows[0][i]), length)
    if length < PREFIX or len(rows) == 1 or _slides(lm):
        return None
    ids = torch.tensor([list(rows[0][:length])], device=lm.device)
    return Prefix(tuple(rows[0][:length]), lm.remember(ids))


def _slides(lm: LanguageModel) -> bool:
    """Whether some layer attends to a window only, which padding in the middle would shift."""
    kinds = getattr(lm.model.config, "layer_types", None)
    if kinds:
        return any("sliding" in kind or "chunked" in kind for kind in kinds)
    return getattr(lm.model.config, "sliding_window", None) is not None


def _continue(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    room: int,
    stop: re.Pattern[str],
    prefix: Prefix | None,
) -> list[str]:
    """Continuations of at most `room` tokens."""
    if room < 1:
        return [""] * len(rows)
    start = 0 if prefix is None else len(prefix.ids)
    encoded = lm.padded([row[start:] for row in rows], left=True)
    cached: dict[str, Any] = {}
    if prefix is not None:
        # Padding stands between prefix and rest; positions count what is not padding.
        cached[lm.cache_name] = prefix.copies(len(rows), encoded.input_ids.shape[1] + room)
        encoded = prefix.before(encoded)
    stopper = _StopStrings(lm.tokens, encoded.input_ids.shape[1], stop)
    eos = lm.model.generation_config.eos_token_id
    eos = lm.tokenizer.eos_token_id if eos is None else eos
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    new: list[list[int]] = [[] for _ in rows]
    running = list(range(len(rows)))
    while running:
        # With a cache of our own, rows that have ended are let go every so often.
        steps = room if prefix is None else min(STRIDE, room)
        width = encoded.input_ids.shape[1]
        # Every knob is named, lest a checkpoint's generation_config bends greedy decoding.
        out = lm.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            use_cache=True,
            eos_token_id=eos,
            pad_token_id=lm.tokens.pad,
            stopping_criteria=StoppingCriteriaList([stopper]),
            **cached,
        )
        for i, ids in zip(running, out[:, width:].tolist(), strict=True):
            new[i] += ids
        room -= steps
        going = [
            j
            for j, i in enumerate(running)
            if room and not ends & set(new[i]) and not stop.search(lm.tokens.decode(new[i]))
        ]
        if going:
            pick = torch.tensor(going)  # layers' keys and values may lie on several devices
            grown = torch.ones_like(out[:, width:], dtype=encoded.attention_mask.dtype)
            mask = torch.cat([encoded.attention_mask, grown], dim=1)
            encoded = Encoded(out[pick], mask[pick])
            if len(going) < len(running):
                cached[lm.cache_name].batch_select_indices(pick)
            stopper.ended = None
        running = [running[j] for j in going]
    texts = []
    for row, made in zip(rows, new, strict=True):
        end = next((i for i, t in enumerate(made) if t in ends), len(made))
        texts.append(_cut(lm.tokens.continuation(row, made[:end]), stop))
    return texts


def _cut(text: str, stop: re.Pattern[str]) -> str:
    found = stop.search(text)
    return text[: found.start(found.lastindex or 0)] if found else text


class _StopStrings(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Ends a row once its new text holds a stop. Only open rows are decoded."""

    def __init__(self, tokens: Tokens, width: int, stop: re.Pattern[str]):
        self.tokens = tokens
        self.width = width
        self.stop = stop
        self.ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.ended is None:
            self.ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new = input_ids[:, self.width :].tolist()
        for i in (~self.ended).nonzero().flatten().tolist():
            if self.stop.search(self.tokens.decode(new[i])):
                self.ended[i] = True
        return self.ended
