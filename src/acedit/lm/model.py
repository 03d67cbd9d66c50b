"""`LanguageModel`: a Hugging Face decoder seen as residual stream, attention and FFN neurons.

    lm = load("bundled")                            # or a hub name, a folder, a loaded model
    lm.logits(["The capital of Peru is"])           # (1, vocab), float32, at the last token
    lm.subvalues(3)                                 # (n_neurons, d_model): row k is fc2_k
    lm.generate(["Question: ...\\nAnswer:"])         # greedy

Shapes: batch and seq as encoded (right padded), d_model the residual stream's width, n_neurons the
FFN's width N, vocab the rows of the unembedding, which can be more than the tokenizer has tokens.

Footguns:
- The model is put in eval mode and its parameters' `requires_grad` is switched off, also for a
  model you loaded yourself: gradients here are of activations. Fine-tuning has to switch on what it
  trains.
- `subvalues`, `subkeys`, `gates` are views of the live weights: what is written to them is in the
  model.
- `encode` pads on the right, so position `i` of a prompt is index `i` whatever the batch;
  `generate` pads on the left inside. Never read a padded position: its values mean nothing.
- `fingerprint` is of the weights when it is first asked for, then kept. Whoever writes to the
  weights asks for it first (`editing.patch` does).
"""

import copy
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from acedit.errors import UserError, first_line
from acedit.knowledge import prompts
from acedit.lm.families import Family, family_of
from acedit.lm.norms import FrozenNorm
from acedit.lm.reader import Reader

# Config fields that change what the same weights compute, where a family has them. Rotary settings
# are left out: transformers 5 stores them otherwise than 4 did, and a fingerprint must outlive an
# upgrade.
_ARCHITECTURE = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "use_parallel_residual",
    "final_logit_softcapping",
)

_PREFIX = 32  # tokens that have to be shared to be worth running once
_STRIDE = 12  # new tokens between looks at which rows have ended

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of weights that can be edited

_PATCHES = "_acedit_patches"  # the attribute of a model that holds what is on it

# What loading can raise on a user's input; anything else is a bug and keeps its trace.
_LOADING = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    TypeError,  # a dtype that holds no weights
    AssertionError,  # torch without CUDA
    SafetensorError,
)


def load(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
) -> "LanguageModel":
    """Load a language model to look into and edit.

    model: `"bundled"` (the small model in the package), a folder of Hugging Face files, a hub name,
    or a loaded model, which then needs its `tokenizer`. dtype: as transformers takes it; None keeps
    the checkpoint's own, but takes the bundled model in float32, which CPUs run several times as fast
    as bf16. device_map: passed to accelerate.

    Raises `UserError` for a missing or broken folder, an unknown family, or a model without
    tokenizer.
    """
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise UserError("a loaded model needs its tokenizer: load(model, tokenizer=...)")
        if dtype is not None or device_map is not None:
            raise UserError("dtype and device_map are for loading: this model is already loaded")
        return LanguageModel(model, tokenizer)
    source = _source(model)
    if model == "bundled" and dtype is None:
        dtype = torch.float32
    try:
        config = AutoConfig.from_pretrained(source)
        family_of(config)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(source)
        auto: Any = AutoModelForCausalLM
        loaded, info = auto.from_pretrained(
            source,
            config=config,
            dtype="auto" if dtype is None else dtype,
            device_map=device_map,
            output_loading_info=True,
        )
    except UserError:
        raise
    except _LOADING as error:
        place = "folder" if Path(source).is_dir() else "hub name (there is no such folder)"
        raise UserError(f"cannot load a model from the {place} {source!r}: {first_line(error)}") from error
    if info["missing_keys"]:
        some = sorted(info["missing_keys"])
        raise UserError(f"{source!r} lacks {len(some)} of the model's weights, {some[0]} among them")
    if not tokenizer("a")["input_ids"]:
        raise UserError(f"{source!r} has no tokenizer: put its files (tokenizer.json) beside the weights")
    return LanguageModel(loaded, tokenizer)


def _source(model: str | Path) -> str:
    if model == "bundled":
        from acedit.world import bundled_path

        return str(bundled_path())
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a model folder: it has no config.json")
        return str(path)
    if path.exists():
        raise UserError(f"{path} is a file, not a model folder")
    text = str(model)
    looks_local = isinstance(model, Path) or path.is_absolute() or text.startswith((".", "~"))
    if looks_local or text.count("/") > 1 or not text:
        raise UserError(f"there is no model folder {text!r}")
    if get_close_matches(text, ["bundled"], cutoff=0.75):
        raise UserError(f"there is no model {text!r}: did you mean 'bundled'?")
    return text


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

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class LanguageModel:
    """A Hugging Face causal model with its tokenizer and its family's row.

    model, tokenizer and family are the objects themselves; sizes are plain ints; everything that
    takes a `layer` counts from 0.
    """

    model: Any
    tokenizer: Any
    family: Family
    n_layers: int
    d_model: int
    n_neurons: int
    n_heads: int
    head_dim: int
    vocab_size: int
    context: int

    def __init__(self, model: PreTrainedModel, tokenizer: Any):
        """Wrap a loaded model. Raises `UserError` for an unknown family, offloaded or quantised weights."""
        self.family = family_of(model.config)
        if any(p.device.type == "meta" for p in model.parameters()):
            away = [name for name, at in getattr(model, "hf_device_map", {}).items() if at in ("cpu", "disk")]
            parts = f" ({away[0]} first)" if away else ""
            raise UserError(
                f"some weights are offloaded or on the meta device{parts}: "
                "use a smaller dtype, or a device_map with room for all of them"
            )
        self.model = model
        self.model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._blocks = cast(nn.ModuleList, self._at(self.family.blocks))
        self.n_layers = len(self._blocks)
        for layer in range(self.n_layers):
            weight = getattr(self.down(layer), "weight", None)
            if weight is None or weight.dtype not in _FLOATS:
                raise UserError(
                    f"layer {layer}'s down projection is quantised ({getattr(weight, 'dtype', 'packed')}): "
                    "load the model in float32, bfloat16 or float16"
                )
        self.n_neurons, self.d_model = self.subvalues(0).shape
        self.n_heads = int(model.config.num_attention_heads)
        self.head_dim = self._inputs_of(self.attention_out(0)) // self.n_heads
        self.vocab_size = self.unembedding.shape[0]
        self.context = int(model.config.max_position_embeddings)
        self._kv_heads = int(
            getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
        )

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.model.config.model_type}, {self.n_layers} layers, "
            f"d_model={self.d_model}, n_neurons={self.n_neurons}, {self.dtype})"
        )

    @property
    def patch_stack(self) -> Any:
        """The patches that are on (see editing.patch): of the model, whatever wraps it."""
        return getattr(self.model, _PATCHES, None)

    @patch_stack.setter
    def patch_stack(self, stack: Any) -> None:
        setattr(self.model, _PATCHES, stack)

    @property
    def _patched(self) -> bool:
        return self.patch_stack is not None and len(self.patch_stack) > 0

    @property
    def reader(self) -> Reader | None:
        """What answers prompts in the model's place, see lm.reader: of the patches that are on."""
        return None if self.patch_stack is None else self.patch_stack.reader

    # Modules

    def _at(self, path: str, root: nn.Module | None = None) -> nn.Module:
        return (self.model if root is None else root).get_submodule(path)

    def _optional(self, layer: int, path: str | None) -> nn.Module | None:
        return None if path is None else self._at(path, self.block(layer))

    @property
    def device(self) -> torch.device:
        """Where token ids go in (the embedding's device)."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The residual stream's dtype."""
        return self.embedding.weight.dtype

    @property
    def wide(self) -> torch.dtype:
        """What scores are worked out in: float32, or float64 for a float64 model."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def refuse_patched(self, what: str) -> None:
        """Raises UserError if a patch is on, for work that is of the unedited model."""
        if self._patched:
            raise UserError(f"a patch is on: {what} is of the unedited model; remove the patch first")

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return cast(nn.Embedding, self._at(self.family.embedding))

    @property
    def backbone(self) -> nn.Module:
        """The model without its head."""
        return cast(nn.Module, self.model.base_model)

    @property
    def parallel(self) -> bool:
        """Whether the FFN reads the stream as attention found it (GPT-J; NeoX if configured)."""
        flag = self.family.parallel
        return bool(getattr(self.model.config, flag)) if isinstance(flag, str) else flag

    def block(self, layer: int) -> nn.Module:
        """The layer as a whole: residual stream in, residual stream out."""
        return self._blocks[layer]

    def attention(self, layer: int) -> nn.Module:
        """The attention of the layer; its (first) output is before any post-norm."""
        return self._at(self.family.attention, self.block(layer))

    def attention_out(self, layer: int) -> nn.Module:
        """W_o of the layer: its input is the heads' outputs, laid end to end."""
        return self._at(self.family.attention_out, self.attention(layer))

    def ffn_module(self, layer: int) -> nn.Module:
        """The module whose output is the FFN's, before any post-norm."""
        return self.down(layer) if self.family.ffn is None else self._ffn_home(layer)

    def _ffn_home(self, layer: int) -> nn.Module:
        return self._at(self.family.ffn or "", self.block(layer))

    def up(self, layer: int) -> nn.Module:
        """The up projection, fused with the gate in phi3; its input is the FFN's normed input."""
        return self._at(self.family.up, self._ffn_home(layer))

    def down(self, layer: int) -> nn.Module:
        """The down projection: input m (n_neurons), output Σ m_k·fc2_k (+ bias)."""
        return self._at(self.family.down, self._ffn_home(layer))

    def attention_norm(self, layer: int) -> nn.Module | None:
        """The norm attention reads the stream through; None in olmo2."""
        return self._optional(layer, self.family.attention_norm)

    def ffn_norm(self, layer: int) -> nn.Module | None:
        """The norm the FFN reads the stream through; None in olmo2."""
        return self._optional(layer, self.family.ffn_norm)

    def attention_post_norm(self, layer: int) -> nn.Module | None:
        """The norm attention's output passes before it is added (gemma2, gemma3, olmo2)."""
        return self._optional(layer, self.family.attention_post_norm)

    def ffn_post_norm(self, layer: int) -> nn.Module | None:
        """The norm the FFN's output passes before it is added (gemma2, gemma3, olmo2)."""
        return self._optional(layer, self.family.ffn_post_norm)

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the head."""
        return self._at(self.family.final_norm)

    def freeze_norm(self, norm: nn.Module | None, x: Float[Tensor, "*pos d_model"]) -> FrozenNorm:
        """`norm` (None: identity) made linear at its real inputs `x`."""
        return FrozenNorm(norm, x, self.family.norm)

    # Weights

    def _inputs_of(self, linear: nn.Module) -> int:
        weight = cast(Tensor, linear.weight)
        return weight.shape[0] if self.family.conv1d else weight.shape[1]

    def _out_in(self, linear: nn.Module) -> Tensor:
        """The weight as (out, in), a view."""
        weight = cast(Tensor, linear.weight)
        return weight.T if self.family.conv1d else weight

    def down_weight(self, layer: int) -> nn.Parameter:
        """The down projection's parameter as stored: (d_model, n_neurons); Conv1D transposes."""
        return cast(nn.Parameter, self.down(layer).weight)

    def subvalues(self, layer: int) -> Float[Tensor, "n_neurons d_model"]:
        """Row k is fc2_k, what neuron k adds to the FFN's output per unit of m_k; a live view."""
        return self._out_in(self.down(layer)).detach().T

    def down_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """The FFN output's bias, nobody's neuron; None in families without."""
        return cast("Tensor | None", self.down(layer).bias)

    def _halves(self, layer: int) -> tuple[Tensor | None, Tensor]:
        """Gates and subkeys, (n_neurons, d_model) each."""
        up = self._out_in(self.up(layer)).detach()
        if self.family.fused_gate_up:
            gate, up = up.chunk(2)
            return gate, up
        if self.family.gate is None:
            return None, up
        return self._out_in(self._at(self.family.gate, self._ffn_home(layer))).detach(), up

    def subkeys(self, layer: int) -> Float[Tensor, "n_neurons d_model"]:
        """Row k is fc1_k, the up projection's direction of neuron k; a live view."""
        return self._halves(layer)[1]

    def gates(self, layer: int) -> Float[Tensor, "n_neurons d_model"] | None:
        """Row k is neuron k's gate direction; None where the FFN is not gated."""
        return self._halves(layer)[0]

    def _bias_halves(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        up = cast("Tensor | None", self.up(layer).bias)
        if self.family.fused_gate_up:
            return (None, None) if up is None else cast(tuple[Tensor, Tensor], up.chunk(2))
        if self.family.gate is None:
            return None, up
        return cast("Tensor | None", self._at(self.family.gate, self._ffn_home(layer)).bias), up

    def up_bias(self, layer: int) -> Float[Tensor, " n_neurons"] | None:
        """The up projection's bias, or None."""
        return self._bias_halves(layer)[1]

    def gate_bias(self, layer: int) -> Float[Tensor, " n_neurons"] | None:
        """The gate projection's bias, or None."""
        return self._bias_halves(layer)[0]

    def activation(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The FFN's nonlinearity."""
        home = self._ffn_home(layer)
        return cast(Callable[[Tensor], Tensor], getattr(home, self.family.activation))

    def coefficients_of(
        self, layer: int, x: Float[Tensor, "*pos d_model"]
    ) -> Float[Tensor, "*pos n_neurons"]:
        """m of the layer for normed FFN inputs `x`: act(g·x)(u·x) if gated, else act(u·x + b).

        Computed in `x`'s dtype, so a bf16 model can be asked in float32.
        """

        def project(weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(x, weight.to(x), None if bias is None else bias.to(x))

        gate, up = self._halves(layer)
        gate_bias, up_bias = self._bias_halves(layer)
        act = self.activation(layer)
        if gate is None:
            return act(project(up, up_bias))
        return act(project(gate, gate_bias)) * project(up, up_bias)

    def attention_subvalues(self, layer: int) -> Float[Tensor, "n_heads head_dim d_model"]:
        """[h, i] is what unit i of head h's output adds to attention's output: a column of W_o."""
        weight = self._out_in(self.attention_out(layer)).detach()
        return torch.unflatten(weight.T, 0, (self.n_heads, self.head_dim))

    def _value_slice(self, t: Tensor) -> Tensor:
        """W_v's part of the `value` module's weight or bias, as (kv heads, head_dim, ...)."""
        n, dim = self._kv_heads, self.head_dim
        if self.family.value_layout == "interleaved":
            return torch.unflatten(t, 0, (n, 3, dim))[:, 2]
        if self.family.value_layout == "concatenated":
            t = t[-n * dim :]
        return torch.unflatten(t, 0, (n, dim))

    def attention_value_rows(self, layer: int) -> Float[Tensor, "n_heads head_dim d_model"]:
        """[h, i] is the row of W_v that unit i of head h reads with.

        With grouped queries the heads of a group share rows, which are repeated here (a copy).
        """
        value = self._at(self.family.value, self.attention(layer))
        rows = self._value_slice(self._out_in(value).detach())
        return rows.repeat_interleave(self.n_heads // self._kv_heads, 0)

    def attention_value_bias(self, layer: int) -> Float[Tensor, "n_heads head_dim"] | None:
        """The bias beside `attention_value_rows`, or None."""
        bias = cast("Tensor | None", self._at(self.family.value, self.attention(layer)).bias)
        if bias is None:
            return None
        return self._value_slice(bias).repeat_interleave(self.n_heads // self._kv_heads, 0)

    @property
    def head(self) -> nn.Module:
        """The unembedding's module."""
        # transformers 5 renamed gpt_neox's head, so the table's name may not be this version's.
        if hasattr(self.model, self.family.head):
            return self._at(self.family.head)
        return cast(nn.Module, self.model.get_output_embeddings())

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_U, one row a token; a live view."""
        return cast(Tensor, self.head.weight).detach()

    @property
    def head_bias(self) -> Float[Tensor, " vocab"] | None:
        """The head's bias (gptj), or None."""
        bias = cast("Tensor | None", self.head.bias)
        return None if bias is None else bias.detach()

    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by; 1 in every family known so far."""
        return 1.0

    @property
    def logit_softcap(self) -> float | None:
        """c where logits become c·tanh(logits/c) (gemma2), else None."""
        field = self.family.softcap
        cap = None if field is None else getattr(self.model.config, field, None)
        return None if cap is None else float(cap)

    def unembed(self, residual: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos vocab"]:
        """Final norm, head and softcap of final residuals: in the weights' dtype, then float32 at least."""
        return self._read(self.final_norm(residual.to(self.dtype)))

    def head_logits(self, normed: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos vocab"]:
        """Head and softcap of what `run_backbone` returns: in the weights' dtype, then float32 at least."""
        return self._read(normed)

    def _read(self, normed: Tensor) -> Tensor:
        logits = self.head(normed).to(self.device)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.logit_softcap
        return cast(Tensor, logits if cap is None else cap * torch.tanh(logits / cap))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the architecture and every weight's bytes, taken once, on first use.

        The same checkpoint loaded in another dtype is another model: its rounding differs.
        """
        if self._patched:
            return str(self.patch_stack.fingerprint)  # of the weights under the patches
        digest = hashlib.sha256()
        for field in _ARCHITECTURE:
            digest.update(f"{field}={getattr(self.model.config, field, None)};".encode())
        for name, weight in sorted(self.model.named_parameters()):
            digest.update(f"{name}:{weight.dtype}:{tuple(weight.shape)};".encode())
            flat = weight.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
            digest.update(memoryview(flat.numpy()))
        return digest.hexdigest()

    # Text

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Token ids with the tokenizer's own special tokens, right padded.

        Raises `UserError` for an empty batch, an empty prompt, or one longer than the context.
        """
        return self.padded(self._ids(texts))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str) or len(texts) == 0:
            raise UserError("encode takes a list of at least one text")
        rows: list[list[int]] = self.tokenizer(list(texts), padding=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if not row or not text:  # some tokenizers begin nothing with a token, too
                raise UserError("a prompt is empty")
            if max(row) >= self.embedding.weight.shape[0]:
                raise UserError(
                    f"the tokenizer gives token {max(row)}, the model has {self.embedding.weight.shape[0]}: "
                    "give it its own tokenizer"
                )
            if len(row) > self.context:
                raise UserError(
                    f"a prompt has {len(row)} tokens, the model's context is {self.context}: shorten "
                    f"{text[:60]!r}..."
                )
        return rows

    @property
    def _pad(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    def padded(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> Encoded:
        """Rows of token ids as one batch, on the model's device."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(width - len(row), None) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = 1
        return Encoded(ids.to(self.device), mask.to(self.device))

    def token_ids(self, text: str, *, leading_space: bool = True) -> list[int]:
        """Tokens of `text` as they follow a prompt, without special tokens.

        leading_space: whether a space stands between prompt and text. The tokens are those that
        come after a stand-in prompt, since many tokenizers treat a text's start as a word's start.
        """
        text = text.strip() if leading_space else text
        if not text:
            raise UserError("an answer is empty")
        for anchor in ("a", ":", "0") if leading_space else ("\n", "(", '"'):
            before = self._plain(anchor)
            whole = self._plain(anchor + " " + text if leading_space else anchor + text)
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return self._plain(" " + text if leading_space else text)

    def answer_ids(self, answer: str) -> list[int]:
        """`token_ids` of an answer the model can give.

        Raises UserError where it has no tokens, or one, wherever in it, that the tokenizer or the model does
        not know.
        """
        ids, vocab = self.token_ids(answer), len(self.unembedding)
        strange = [i for i in ids if i >= vocab or i == getattr(self.tokenizer, "unk_token_id", None)]
        if strange or not ids:
            raise UserError(
                f"answer {answer!r} is not one of the model's tokens"
                + (f": token {strange[0]} is unknown to it" if strange else "")
            )
        return ids

    @cached_property
    def _broken(self) -> str | None:
        """The first parameter that holds a number that is not finite, looked for once, on first use."""
        for name, weight in self.model.named_parameters():
            flat = weight.detach().reshape(-1)
            if not all(bool(torch.isfinite(part).all()) for part in flat.split(1 << 24)):
                return str(name)
        return None

    def refuse_broken(self) -> None:
        """Raises UserError where a weight is NaN or infinite, naming its layer and tensor."""
        if self._broken is not None:
            place = re.search(r"\.(\d+)\.", self._broken)
            where = f"layer {place[1]}: " if place else ""
            raise UserError(f"{where}{self._broken} holds NaN or infinite weights")

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def find_subject(self, template: str, subject: str) -> tuple[str, int]:
        """Fill `template` and find its subject.

        Returns the prompt and the index, in `encode([prompt])`, of the last token that holds a part
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
        if getattr(self.tokenizer, "is_fast", False):
            spans = self.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
            index = max((i for i, (a, b) in enumerate(spans) if a < end <= b), default=None)
        if index is None:
            index = self._find_by_decoding(prompt, prompt[:end])
        if index is None:
            raise UserError(f"subject {subject!r} cannot be found among the tokens of {prompt!r}")
        return prompt, index

    def _find_by_decoding(self, prompt: str, upto: str) -> int | None:
        """First token after which the decoded text reaches the end of `upto`, spaces aside."""

        def squeeze(text: str) -> str:
            return "".join(text.split())

        ids = self._ids([prompt])[0]
        wanted = squeeze(upto)
        for i in range(len(ids)):
            if squeeze(self._decode(ids[: i + 1])).startswith(wanted):
                return i
        return None

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    # Runs

    @torch.no_grad()
    def logits(self, texts: Sequence[str], *, batch_size: int = 64) -> Float[Tensor, "batch vocab"]:
        """Logits at each prompt's last token, float32 at least, in the order of `texts`."""
        rows = self._ids(texts)
        out = []
        for i in range(0, len(rows), batch_size):
            encoded = self.padded(rows[i : i + batch_size])
            hidden = self.run_backbone(encoded)
            at_last = hidden[torch.arange(len(encoded)), encoded.last]
            out.append(self._read(at_last))
        return torch.cat(out)

    @torch.no_grad()
    def answer_nll(
        self, texts: Sequence[str], answers: Sequence[str], *, batch_size: int = 64
    ) -> list[float]:
        """Mean negative log-likelihood of each answer after its prompt, nats a token, by teacher forcing.

        The prompt is what a `reader` makes of it, where one is on. Raises `UserError` for an empty answer, or
        where prompt and answer outgrow the context.
        """
        if self.reader is not None:
            texts = [self.reader.context(text) for text in texts]
        tails = [self.token_ids(answer) for answer in answers]
        rows = [[*row, *tail] for row, tail in zip(self._ids(texts), tails, strict=True)]
        if (longest := max(map(len, rows))) > self.context:
            raise UserError(f"prompt and answer have {longest} tokens, the model's context is {self.context}")
        losses = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for at in range(0, len(order), batch_size):
            picked = order[at : at + batch_size]
            hidden = self.run_backbone(self.padded([rows[i] for i in picked]))
            for j, i in enumerate(picked):
                end = len(rows[i])
                logits = self._read(hidden[j, end - len(tails[i]) - 1 : end - 1])
                wanted = torch.tensor(tails[i], device=logits.device)
                losses[i] = float(F.cross_entropy(logits, wanted))
        return losses

    def run_backbone(
        self, encoded: Encoded, *, past: DynamicCache | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """One forward pass of a right-padded batch without the head; the result is final-normed.

        past: keys and values of tokens before these (`remember`), which grows by these.
        """
        # Causal attention never looks right, so padding on the right needs no mask. A mask would
        # cost the fused causal kernel, and leave sliding windows with nothing to look at (NaN).
        everything = torch.ones_like(encoded.attention_mask)
        before: dict[str, Any] = {"use_cache": False}
        if past is not None:
            earlier = everything.new_ones(len(encoded), past.get_seq_length())
            everything = torch.cat([earlier, everything], dim=1)
            before = {"use_cache": True, self._cache_name: past}
        out = self.backbone(input_ids=encoded.input_ids, attention_mask=everything, **before)
        return cast(Tensor, out[0]).to(self.device)  # the last block may lie elsewhere

    def remember(self, input_ids: Int[Tensor, "batch seq"]) -> DynamicCache:
        """Keys and values of these tokens, none of which is padding."""
        past = DynamicCache()
        self.run_backbone(Encoded(input_ids, torch.ones_like(input_ids)), past=past)
        return past

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 32,
        stop: Sequence[str] | re.Pattern[str] = ("\n",),
        batch_size: int = 64,
        share: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """`greedy`, or what a `reader` makes of the prompts where one is on (it tells no progress)."""
        if self.reader is None:
            return self.greedy(
                texts,
                max_new_tokens=max_new_tokens,
                stop=stop,
                batch_size=batch_size,
                share=share,
                progress=progress,
            )
        return self.reader.generate(
            self, texts, max_new_tokens=max_new_tokens, stop=stop, batch_size=batch_size
        )

    @torch.no_grad()
    def greedy(
        self,
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
        rows = self._ids(texts)
        done: list[str] = [""] * len(rows)
        pattern = stop
        if not isinstance(pattern, re.Pattern):
            pattern = re.compile("|".join(map(re.escape, pattern)) or r"(?!)")
        # Rows of like length together, so that little is padded. Those with less room than asked
        # for go by exact length, so that none takes room from another.
        groups: dict[int, list[int]] = {}
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            room = min(max_new_tokens, self.context - len(rows[i]))
            groups.setdefault(room, []).append(i)
        prefix = self._shared_prefix(rows) if share else None
        answered = 0
        for room, group in groups.items():
            for at in range(0, len(group), batch_size):
                picked = group[at : at + batch_size]
                texts_of = self._generate([rows[i] for i in picked], room, pattern, prefix)
                for i, text in zip(picked, texts_of, strict=True):
                    done[i] = text
                answered += len(picked)
                if progress is not None:
                    progress(answered, len(rows))
        return done

    def _shared_prefix(self, rows: Sequence[Sequence[int]]) -> "_Prefix | None":
        """What all rows start with, run once; None where that is short, or attention slides over it."""
        length = min(map(len, rows)) - 1
        for row in rows[1:]:
            length = next((i for i in range(length) if row[i] != rows[0][i]), length)
        if length < _PREFIX or len(rows) == 1 or self._slides:
            return None
        ids = torch.tensor([list(rows[0][:length])], device=self.device)
        return _Prefix(tuple(rows[0][:length]), self.remember(ids))

    @cached_property
    def _cache_name(self) -> str:
        """Transformers 5 renamed the argument on the way."""
        return "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"

    @property
    def _slides(self) -> bool:
        """Whether some layer attends to a window only, which padding in the middle would shift."""
        kinds = getattr(self.model.config, "layer_types", None)
        if kinds:
            return any("sliding" in kind or "chunked" in kind for kind in kinds)
        return getattr(self.model.config, "sliding_window", None) is not None

    def _generate(
        self,
        rows: Sequence[Sequence[int]],
        room: int,
        stop: re.Pattern[str],
        prefix: "_Prefix | None" = None,
    ) -> list[str]:
        if room < 1:
            return [""] * len(rows)
        start = 0 if prefix is None else len(prefix.ids)
        encoded = self.padded([row[start:] for row in rows], left=True)
        cached: dict[str, Any] = {}
        if prefix is not None:
            # Padding stands between prefix and rest; positions count what is not padding.
            encoded = prefix.before(encoded)
            cached[self._cache_name] = prefix.copies(len(rows))
        stopper = _StopStrings(self, encoded.input_ids.shape[1], stop)
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        new: list[list[int]] = [[] for _ in rows]
        running = list(range(len(rows)))
        while running:
            # With a cache of our own, rows that have ended are let go every so often.
            steps = room if prefix is None else min(_STRIDE, room)
            width = encoded.input_ids.shape[1]
            # Every knob is named, lest a checkpoint's generation_config bends greedy decoding.
            out = self.model.generate(
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
                eos_token_id=eos,
                pad_token_id=self._pad,
                stopping_criteria=StoppingCriteriaList([stopper]),
                **cached,
            )
            for i, ids in zip(running, out[:, width:].tolist(), strict=True):
                new[i] += ids
            room -= steps
            going = [
                j
                for j, i in enumerate(running)
                if room and not ends & set(new[i]) and not stop.search(self._decode(new[i]))
            ]
            if going:
                pick = torch.tensor(going)  # layers' keys and values may lie on several devices
                grown = torch.ones_like(out[:, width:], dtype=encoded.attention_mask.dtype)
                mask = torch.cat([encoded.attention_mask, grown], dim=1)
                encoded = Encoded(out[pick], mask[pick])
                cached[self._cache_name].batch_select_indices(pick)
                stopper.ended = None
            running = [running[j] for j in going]
        texts = []
        for row, made in zip(rows, new, strict=True):
            end = next((i for i, t in enumerate(made) if t in ends), len(made))
            texts.append(_cut(self._continuation(row, made[:end]), stop))
        return texts

    def _continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        # Decoded with its prompt: alone, a first token would lose the space before it in tokenizers
        # that mark words rather than spaces.
        before, whole = self._decode(prompt), self._decode([*prompt, *new])
        return whole[len(before) :] if whole.startswith(before) else self._decode(new)

    def answer(self, question: str, *, cot: bool = False, max_new_tokens: int | None = None) -> str:
        """Greedy answer to one question.

        A text that ends in "?" is asked as "Question: ... Answer:", any other is continued as a
        cloze. cot=True asks under the paper's few-shot chain-of-thought prompt (appendix G.1) and
        returns what stands on its "Answer:" line, "" if the model never gets to one.
        """
        question = question.strip()
        if cot:
            text = self.generate(
                [prompts.cot_prompt(question)],
                max_new_tokens=max_new_tokens or 160,
                stop=prompts.COT_STOP,
            )[0]
            return prompts.parse_cot_answer(text)
        prompt = prompts.direct_prompt(question)
        return self.generate([prompt], max_new_tokens=max_new_tokens or 32)[0].strip()


@dataclass(frozen=True)
class _Prefix:
    """Tokens that every row of a call starts with, and their keys and values."""

    ids: tuple[int, ...]
    cache: DynamicCache

    def before(self, rest: Encoded) -> Encoded:
        ids = torch.tensor(self.ids, device=rest.input_ids.device).expand(len(rest), -1)
        mask = rest.attention_mask
        return Encoded(
            torch.cat([ids, rest.input_ids], dim=1),
            torch.cat([torch.ones_like(ids, dtype=mask.dtype), mask], dim=1),
        )

    def copies(self, rows: int) -> DynamicCache:
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def _cut(text: str, stop: re.Pattern[str]) -> str:
    found = stop.search(text)
    return text[: found.start(found.lastindex or 0)] if found else text


class _StopStrings(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Ends a row once its new text holds a stop. Only open rows are decoded."""

    def __init__(self, lm: LanguageModel, width: int, stop: re.Pattern[str]):
        self.lm = lm
        self.width = width
        self.stop = stop
        self.ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.ended is None:
            self.ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new = input_ids[:, self.width :].tolist()
        for i in (~self.ended).nonzero().flatten().tolist():
            if self.stop.search(self.lm._decode(new[i])):
                self.ended[i] = True
        return self.ended
