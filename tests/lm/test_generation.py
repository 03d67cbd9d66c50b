"""Generation is greedy whatever the batch, the prefix and the room."""

import pytest
import torch

from acedit.lm.generation import shared_prefix
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm

TEXTS = [
    "Ann Lee is a citizen of",
    "Bo Ray is",
    "Question: What is the capital of Chile?\nAnswer:",
    "The capital of Peru",
    "Bo",
]


def greedy_reference(lm: LanguageModel, text: str, steps: int) -> str:
    """Greedy, one prompt at a time, by Hugging Face's own generate."""
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
    out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
    return str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_generation_is_greedy_whatever_the_batch(lm: LanguageModel) -> None:
    batched = lm.generate(TEXTS, max_new_tokens=10, stop=())
    assert batched == [lm.generate([t], max_new_tokens=10, stop=())[0] for t in TEXTS]
    assert batched == lm.generate(TEXTS, max_new_tokens=10, stop=(), batch_size=2)
    assert batched == [greedy_reference(lm, t, 10) for t in TEXTS]
    assert len(set(batched)) > 1


def test_a_shared_prefix_is_run_once_and_changes_nothing(lm: LanguageModel) -> None:
    prefix = "Question: Who is the head of state of Peru?\nThoughts: " * 2
    texts = [prefix + text for text in ("Bo Ray", "Ann Lee is a citizen of", "The capital of Peru is")]
    shared = shared_prefix(lm, lm.tokens.of(texts))
    slides = lm.model.config.model_type in ("mistral", "gemma2", "gemma3_text")
    assert (shared is None) == slides
    if shared is not None:
        assert len(shared.ids) > 32
        assert shared.cache.get_seq_length() == len(shared.ids)
    whole = [lm.generate([text], max_new_tokens=30, stop=())[0] for text in texts]
    # A stop that ends one row early and leaves another to its end: rows are let go on the way.
    stop = (whole[0][6:8] or "x",)
    alone = [lm.generate([text], max_new_tokens=30, stop=stop)[0] for text in texts]
    assert len(alone[0]) < len(whole[0]) or not whole[0]
    assert lm.generate(texts, max_new_tokens=30, stop=()) == whole
    assert lm.generate(texts, max_new_tokens=30, stop=stop) == alone
    assert lm.generate(texts, max_new_tokens=30, stop=stop, batch_size=2) == alone


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_checkpoint_s_knobs_change_nothing(name: str) -> None:
    """`use_cache: false` would read a shared prefix twice."""
    lm = tiny_lm(name)
    prefix = "Question: Who is the head of state of Peru?\nThoughts: " * 2
    texts = [prefix + text for text in ("Bo Ray", "Ann Lee is a citizen of")]
    plain = lm.generate(texts, max_new_tokens=20, stop=())
    for knob, value in (("use_cache", False), ("min_new_tokens", 15), ("temperature", 0.1), ("num_beams", 3)):
        setattr(lm.model.generation_config, knob, value)
    assert lm.generate(texts, max_new_tokens=20, stop=()) == plain


def test_generation_stops_before_a_stop_string() -> None:
    lm = tiny_lm("llama")
    whole = lm.generate(TEXTS, max_new_tokens=24, stop=())
    stops = [whole[0][4:6], whole[1][9:10]]
    for text, cut in zip(whole, lm.generate(TEXTS, max_new_tokens=24, stop=stops), strict=True):
        first = min((text.find(s) for s in stops if s in text), default=len(text))
        assert cut == text[:first]


def test_a_prompt_near_the_context_s_end_gets_the_room_there_is() -> None:
    lm = tiny_lm("gpt2")
    length = lm.context - 3
    text = "x" * length
    assert len(lm.tokenizer(text)["input_ids"]) == length
    new = lm.generate([text], max_new_tokens=32, stop=())[0]
    assert new == greedy_reference(lm, text, 3)
    assert lm.generate(["Bo Ray", text, "Bo"], max_new_tokens=32, stop=()) == [
        lm.generate(["Bo Ray"], max_new_tokens=32, stop=())[0],
        new,
        lm.generate(["Bo"], max_new_tokens=32, stop=())[0],
    ]
    assert lm.generate(["x" * lm.context], stop=()) == [""]
