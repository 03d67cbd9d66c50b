"""A model whose blocks lie on two devices gives the same answers, locations, edits and scores.

Devices are pretended (`tests.pretend`): the numbers are the same CPU's, so results are equal bit for bit.
"""

from pathlib import Path

import pytest
import torch

from acedit.attribution.certified import certified_top
from acedit.attribution.query import query_scores
from acedit.attribution.value import attention_subvalue_scores, layer_scores
from acedit.benchmark.fluency import perplexity
from acedit.editing.edit import edit
from acedit.editing.plan import locate
from acedit.errors import UserError
from acedit.lm.generation import greedy
from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace
from tests.editing.test_edit import EDITS, KNOWN, PLAN, short
from tests.pretend import Pretend
from tests.tiny import byte_tokenizer, tiny_lm, tiny_model

PROMPTS = ["Ann Lee is a citizen of", "Who is Bo Ray?"]
ANSWERS = ["Peru", "Chile"]

PARTS = {
    "llama": (["model.embed_tokens", "model.rotary_emb"], "model.layers.{}", ["model.norm", "lm_head"]),
    "gemma2": (["model.embed_tokens", "model.rotary_emb", "lm_head"], "model.layers.{}", ["model.norm"]),
    "gpt2": (
        ["transformer.wte", "transformer.wpe", "transformer.drop", "lm_head"],
        "transformer.h.{}",
        ["transformer.ln_f"],
    ),
}


def halves(name: str, layers: int, split: int) -> dict[str, str]:
    """Blocks below `split` and what comes before them on one device, the rest on another."""
    before, block, after = PARTS[name]
    blocks = {block.format(i): f"cuda:{int(i >= split)}" for i in range(layers)}
    return {**dict.fromkeys(before, "cuda:0"), **blocks, **dict.fromkeys(after, "cuda:1")}


def dispatched(devices: Pretend, name: str, split: int = 1) -> LanguageModel:
    tied = name != "llama"
    model = tiny_model(name, tie_word_embeddings=tied)
    placed = devices.place(model, halves(name, model.config.num_hidden_layers, split))
    return LanguageModel(placed, byte_tokenizer())


def whole(name: str) -> LanguageModel:
    return LanguageModel(tiny_model(name, tie_word_embeddings=name != "llama"), byte_tokenizer())


def test_what_is_apart_may_not_meet() -> None:
    with Pretend():
        one = torch.ones(3, device="cuda:0")
        other = torch.ones(3, device="cuda:1")
        with pytest.raises(RuntimeError, match=r"cuda:0.*cuda:1"):
            one + other
        with pytest.raises(RuntimeError, match=r"cuda:0.*cuda:1"):
            one[other.long()]
        assert (one + other.to("cuda:0")).device == torch.device("cuda:0")
        assert one[torch.tensor([0, 1])].device == torch.device("cuda:0")
        assert (one.to(other) * other).device == torch.device("cuda:1")


def everything(lm: LanguageModel) -> dict[str, object]:
    """What can be asked of an unedited model; tensors on the CPU."""
    shared = ["Ann Lee is a citizen of Peru. " * 3 + end for end in ("Bo Ray", "The capital", "Is it")]
    scores = layer_scores(lm, PROMPTS, ANSWERS)
    top = certified_top(lm, PROMPTS, ANSWERS, k=3)
    return {
        "logits": lm.logits(PROMPTS).cpu(),
        "greedy": greedy(lm, shared, max_new_tokens=12, stop=()),
        "perplexity": perplexity(lm, shared[0]),
        "residual": trace(lm, PROMPTS).residual.cpu(),
        "neurons": scores.neurons.cpu(),
        "heads": scores.heads.cpu(),
        "subvalues": attention_subvalue_scores(lm, PROMPTS, ANSWERS).cpu(),
        "top": [part.neurons for parts in top for part in parts],
        "query": query_scores(lm, PROMPTS[0], top[0][-1].neurons).neurons.cpu(),
    }


@pytest.mark.parametrize("name", sorted(PARTS))
def test_runs_and_attribution(name: str) -> None:
    wanted = everything(whole(name))
    with Pretend() as devices:
        lm = dispatched(devices, name)
        assert {str(p.device) for p in lm.model.parameters()} == {"cuda:0", "cuda:1"}
        found = everything(lm)
    for what, value in wanted.items():
        same = torch.equal(found[what], value) if isinstance(value, torch.Tensor) else found[what] == value  # type: ignore[arg-type]
        assert same, what


@pytest.mark.parametrize("method", ["ace", "ace-closed", "memit", "pmet", "rome", "ft", "lora", "kn"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_edits(name: str, method: str, tmp_path: Path) -> None:
    plain = whole(name)
    how = {"known": KNOWN, "method": short(method), "plan": PLAN}
    wanted = edit(plain, EDITS, **how, cache_dir=tmp_path / "plain")
    before = plain.logits(PROMPTS)
    with wanted.applied(plain):
        edited = plain.logits(PROMPTS)
    assert not torch.equal(edited, before)
    with Pretend() as devices:
        lm = dispatched(devices, name, split=0)  # every layer apart from the prompts
        patch = edit(lm, EDITS, **how, cache_dir=tmp_path / "apart")
        with patch.applied(lm):
            found = lm.logits(PROMPTS).cpu()
        after = lm.logits(PROMPTS).cpu()
    assert torch.equal(found, edited)
    assert torch.equal(after, before)


def test_locating(tmp_path: Path) -> None:
    plain = whole("llama")
    wanted = locate(plain, EDITS, known=KNOWN)
    with Pretend() as devices:
        found = locate(dispatched(devices, "llama"), EDITS, known=KNOWN)
    assert found == wanted


def test_weights_that_are_nowhere_are_one_line() -> None:
    model = tiny_lm("llama").model
    with torch.device("meta"):
        nowhere = type(model)(model.config)
    with pytest.raises(UserError, match="offloaded or on the meta device: use a smaller dtype"):
        LanguageModel(nowhere, byte_tokenizer())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_model_is_refused(dtype: torch.dtype) -> None:
    lm = tiny_lm("llama")
    down = lm.down(1)
    down.weight = torch.nn.Parameter(down.weight.to(dtype), requires_grad=False)
    with pytest.raises(UserError, match=r"layer 1's down projection is quantised .*: load the model in"):
        LanguageModel(lm.model, lm.tokenizer)
