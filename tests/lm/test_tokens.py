"""Batches of tokens, and where the subject ends for each tokenizer's way with spaces, BOS and bytes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from acedit.errors import UserError
from acedit.knowledge.compose import Prompt
from acedit.knowledge.prompts import space_before
from acedit.lm.model import LanguageModel
from tests.tiny import byte_tokenizer, metaspace_tokenizer, tiny_lm, tiny_model


class Slow:
    """A tokenizer that knows no offsets, as slow ones do not."""

    is_fast = False

    def __init__(self, fast: Any):
        self.fast = fast

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert "return_offsets_mapping" not in kwargs
        return self.fast(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fast, name)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": byte_tokenizer,
    "bytes-bos": lambda: byte_tokenizer(bos=True),
    "bytes-unmerged": lambda: byte_tokenizer(259),
    "metaspace-bpe": metaspace_tokenizer,
    "metaspace-unigram": lambda: metaspace_tokenizer(unigram=True),
    "slow-bytes-bos": lambda: Slow(byte_tokenizer(bos=True)),
    "slow-metaspace": lambda: Slow(metaspace_tokenizer()),
}

PROMPTS = [
    ("{} is a citizen of", "Ann Lee"),
    ("The capital of {} is", "Peru"),
    ("Ann, Ann Lee and {} is a citizen of Ann", "Ann"),
    ("Question: Which country is {} a citizen of?\nAnswer:", "Bo Ray"),
    ("The language of {}", "Peru"),
    ("The language of {}.", "Bo"),
    ("{}'s capital", "Chile"),
    ("({})", "Lima"),
]
BYTES = [
    ("{} speaks the language of", "Zoë"),
    ("The language of {} is", "東京"),
    ("The language of Zoë and {}", "Núñez 東"),
    ("Is it ({})?", "Malmö"),
]


@pytest.fixture(params=sorted(TOKENIZERS))
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    """A model with each tokenizer in turn."""
    return LanguageModel(tiny_model("llama", vocab_size=512), TOKENIZERS[request.param]())


def squeeze(text: str) -> str:
    """A text without its spaces."""
    return "".join(text.split())


@pytest.mark.parametrize(("template", "subject"), PROMPTS + BYTES)
def test_the_subject_ends_where_the_decoded_text_first_holds_it(
    lm: LanguageModel, template: str, subject: str
) -> None:
    prompt, index = lm.find_subject(template, subject)
    assert prompt == template.replace("{}", subject)
    ids = lm.encode([prompt]).input_ids[0].tolist()
    assert lm.tokenizer.unk_token_id is None or lm.tokenizer.unk_token_id not in ids
    wanted = squeeze(template.split("{}")[0] + subject)
    upto, before = (squeeze(lm.tokens.decode(ids[:n])) for n in (index + 1, index))
    assert upto.startswith(wanted)
    assert not before.startswith(wanted)


@pytest.mark.parametrize("text", ["Peru", "Ann Lee", " Peru ", "Zoë", "東京"])
def test_answer_tokens_are_those_that_follow_a_prompt(lm: LanguageModel, text: str) -> None:
    prompt = "The capital is"
    ids = lm.token_ids(text)
    together = lm.tokenizer(f"{prompt}{space_before(text.strip())}{text.strip()}")["input_ids"]
    assert together == lm.tokenizer(prompt)["input_ids"] + ids
    assert lm.token_ids("\n", leading_space=False)


def test_text_is_given_back_with_its_spaces(lm: LanguageModel) -> None:
    prompt, answer = lm.tokens.of(["The capital of Peru is"])[0], lm.token_ids("Lima")
    assert lm.tokens.continuation(prompt, answer) == " Lima"


@pytest.mark.parametrize(
    ("template", "subject", "why"),
    [
        ("The capital of Peru is", "Peru", "exactly one"),
        ("{} and {} is", "Peru", "exactly one"),
        ("The capital of {} is", "  ", "empty"),
    ],
)
def test_bad_templates_and_subjects(lm: LanguageModel, template: str, subject: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        lm.find_subject(template, subject)


def test_a_subject_no_token_shows_is_refused() -> None:
    tokenizer = Slow(metaspace_tokenizer(unigram=True))
    lm = LanguageModel(tiny_model("llama"), tokenizer)
    with pytest.raises(UserError, match="cannot be found"):
        lm.find_subject("The capital of {} is", "Ω")


def test_an_empty_answer_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="empty"):
        lm.token_ids("  ")


def test_encode_pads_on_the_right_with_the_tokenizer_s_special_tokens() -> None:
    lm = LanguageModel(tiny_model("llama"), byte_tokenizer(bos=True))
    texts = ["Ann Lee is a citizen of", "Bo Ray is", "Bo"]
    encoded = lm.encode(texts)
    assert bool((encoded.input_ids[:, 0] == 0).all())
    assert encoded.lengths.tolist() == [len(lm.tokenizer(t)["input_ids"]) for t in texts]
    for row, mask, last in zip(encoded.input_ids, encoded.attention_mask, encoded.last.tolist(), strict=True):
        assert mask.tolist() == [1] * (last + 1) + [0] * (len(row) - last - 1)
    two = encoded.rows(torch.tensor([1, 1]))
    assert torch.equal(two.input_ids[0], encoded.input_ids[1])


def test_prompts_that_cannot_be_run_are_refused() -> None:
    lm = tiny_lm("llama")
    for texts in ([], [""]):
        with pytest.raises(UserError):
            lm.encode(texts)
    with pytest.raises(UserError, match="context is 128"):
        lm.encode(["Peru " * 300])
    begun = LanguageModel(tiny_model("llama"), byte_tokenizer(bos=True))
    with pytest.raises(UserError, match="a prompt is empty"):
        begun.encode(["Peru", ""])


def test_padding_is_a_token_that_the_model_has() -> None:
    """Also where a tokenizer's own was added beyond the embedding."""
    tokenizer = byte_tokenizer()
    known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<added>"})
    lm = LanguageModel(tiny_model("llama", vocab_size=known), tokenizer)
    assert tokenizer.pad_token_id == known
    assert int(lm.encode(["Bo", "Bo Ray is"]).input_ids.max()) < known
    assert lm.logits(["Bo", "Bo Ray is"]).shape == (2, known)


def test_no_space_stands_before_a_script_that_has_none() -> None:
    lm = tiny_lm("llama")
    lima = "\u5229\u9a6c"
    assert lm.token_ids(lima) == lm.tokenizer(lima, add_special_tokens=False)["input_ids"]
    assert lm.token_ids(f" {lima}") == lm.token_ids(lima)
    assert lm.token_ids("Lima") == lm.tokenizer(" Lima", add_special_tokens=False)["input_ids"]
    asked = Prompt("{}\u7684\u9996\u90fd\u662f", "\u79d8\u9c81", lima, "single", 0)
    assert asked.whole == asked.text + lima
    assert Prompt("The capital of {} is", "Peru", "Lima", "single", 0).whole.endswith("is Lima")
