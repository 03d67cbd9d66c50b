"""`LanguageModel`: a Hugging Face decoder seen as residual stream, attention and FFN neurons.

    lm = LanguageModel(model, tokenizer)            # or `lm.loading.load`
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

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from acedit.errors import UserError
from acedit.knowledge import prompts
from acedit.lm.families import Family, family_of
from acedit.lm.norms import FrozenNorm
from acedit.lm.reader import Reader
from acedit.lm.tokens import Encoded, Tokens

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

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # of weights that can be edited

_PATCHES = "_acedit_patches"  # the attribute of a model that holds what is on it


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
    tokens: Tokens

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
        self.tokens = Tokens(tokenizer, context=self.context, known=self.embedding.weight.shape[0])
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
        return self.padded(self.tokens.of(texts))

    def padded(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> Encoded:
        """Rows of token ids as one batch, on the model's device."""
        return self.tokens.padded(rows, left=left).to(self.device)

    def find_subject(self, template: str, subject: str) -> tuple[str, int]:
        """`template` filled, and the index of the subject's last token in `encode` of it.

        Raises `UserError` as `Tokens.find_subject` does.
        """
        return self.tokens.find_subject(template, subject)

    def token_ids(self, text: str, *, leading_space: bool | None = None) -> list[int]:
        """Tokens of `text` as they follow a prompt, without special tokens; see `Tokens.following`."""
        return self.tokens.following(text, leading_space=leading_space)

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
        """The first parameter that holds a number that is not finite, looked for once, on first use.

        What is offloaded to disk or memory is not looked at.
        """
        for name, weight in self.model.named_parameters():
            if weight.is_meta:
                continue
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

    # Runs

    @torch.no_grad()
    def logits(self, texts: Sequence[str], *, batch_size: int = 64) -> Float[Tensor, "batch vocab"]:
        """Logits at each prompt's last token, float32 at least, in the order of `texts`."""
        rows = self.tokens.of(texts)
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
        rows = [[*row, *tail] for row, tail in zip(self.tokens.of(texts), tails, strict=True)]
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
            before = {"use_cache": True, self.cache_name: past}
        out = self.backbone(input_ids=encoded.input_ids, attention_mask=everything, **before)
        return cast(Tensor, out[0]).to(self.device)  # the last block may lie elsewhere

    def remember(self, input_ids: Int[Tensor, "batch seq"]) -> DynamicCache:
        """Keys and values of these tokens, none of which is padding."""
        past = DynamicCache()
        self.run_backbone(Encoded(input_ids, torch.ones_like(input_ids)), past=past)
        return past

    @cached_property
    def cache_name(self) -> str:
        """The argument that takes keys and values: transformers 5 renamed it on the way."""
        return "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"

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
        """Greedy continuations, or what a `reader` makes of the prompts (it tells no progress).

        See `lm.generation.greedy` for what it takes and raises.
        """
        from acedit.lm.generation import greedy

        if self.reader is None:
            return greedy(
                self,
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

    def answer(self, question: str, *, cot: bool = False, max_new_tokens: int | None = None) -> str:
        """Greedy answer to one question.

        A text that ends in a question mark is asked as "Question: ... Answer:", any other is continued as a
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
