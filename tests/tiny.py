"""Tiny random models of every family, and a small real tokenizer trained in-process.

    lm = tiny_lm("gemma2")                          # d_model 32, 3 layers, seeded, float32
    model = tiny_model("llama", num_hidden_layers=6)

Weights are drawn wide enough that activations bend, norms scale and heads disagree: a parity test
on near-zero weights proves nothing. Biases and norm gains are random too.
"""

import json
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from acedit.lm.model import LanguageModel

VOCAB = 320

CORPUS = [
    "The capital of Peru is Lima. The capital of Chile is Santiago.",
    "Ann Lee is a citizen of Peru. Bo Ray is a citizen of Chile.",
    "Question: Which country is Ann Lee a citizen of?\nAnswer: Peru\n",
    "Question: What is the capital of the country of citizenship of Bo Ray?\nAnswer: Santiago\n",
    "Thoughts: Ann Lee is a citizen of Peru. The capital of Peru is Lima.",
    "Zoë Núñez speaks the language of 東京 and Malmö (not Lima's).",
    "Is it Lima, Peru and not Santiago?",
]

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
_GEMMA = {
    **_GATED,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "attn_implementation": "eager",
}

# What a family's config needs beside the sizes.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 48},
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "gpt_neox": {"intermediate_size": 48, "use_parallel_residual": True},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": 8},
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 16},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_GEMMA, "sliding_window_pattern": 2},
    "phi3": _GATED,
    "olmo2": _GATED,
}


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The config of a tiny model of a family."""
    return AutoConfig.for_model(model_type, **{**_SIZES, **CONFIGS[model_type], **overrides})


def tiny_model(
    model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A tiny random model of a family, the same for the same seed; overrides go to its config."""
    config = tiny_config(model_type, **overrides)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                gain = "norm" in name or "ln_" in name
                weight.copy_((weight if gain else 0.0) + 0.2 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name or "head" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * 1.5 / 32**0.5)
    return model.to(dtype)


@cache
def byte_tokenizer(vocab: int = VOCAB, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (the gpt2 way); bos: put `<s>` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)]),
            ]
        )
    return _wrapped(tokenizer)


@cache
def metaspace_tokenizer(*, unigram: bool = False) -> PreTrainedTokenizerFast:
    """A sentencepiece-like tokenizer with BOS: BPE with byte fallback, or Unigram."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    tokenizer: Tokenizer
    trainer: Any
    if unigram:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(
            vocab_size=160, special_tokens=special, limit_alphabet=40, show_progress=False
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if not unigram:
        tokenizer.model = _with_byte_fallback(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return _wrapped(tokenizer, unk_token="<unk>")


def _with_byte_fallback(tokenizer: Tokenizer) -> models.BPE:
    """The trained BPE, spelling characters it does not know as bytes."""
    trained = json.loads(tokenizer.to_str())["model"]
    vocab = trained["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in trained["merges"]]
    return models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)


def _wrapped(tokenizer: Tokenizer, **more: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        **more,
    )


def tiny_lm(model_type: str, **options: Any) -> LanguageModel:
    """`tiny_model` with the byte-level tokenizer, wrapped."""
    return LanguageModel(tiny_model(model_type, **options), byte_tokenizer())
