"""One forward pass, recorded: the residual stream and what every layer adds to it.

    t = trace(lm, ["The capital of Peru is"])
    t.residual[0] + t.attention.sum(0) + t.ffn.sum(0)       # == t.residual[-1]
    t.at_last(t.coefficients)                               # (layers, batch, n_neurons)

Legend: residual[0] is the embedding (with positions, where the family embeds them), residual[l + 1]
the stream after block l, the last one before the final norm. attention and ffn are what is *added*,
after the post-norm where the family has one. coefficients are m, the down projection's input,
ffn_inputs what the subkeys read, head_outputs the input of W_o.

Footguns: everything is detached and in the model's dtype. A trace keeps layers × batch × seq × N
numbers, so trace in batches. Padded positions hold values that mean nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded


@dataclass(frozen=True)
class Trace:
    """What one forward pass over a batch recorded; layers come first in every field."""

    encoded: Encoded
    residual: Float[Tensor, "layers_plus_1 batch seq d_model"]
    attention: Float[Tensor, "layers batch seq d_model"]
    ffn: Float[Tensor, "layers batch seq d_model"]
    coefficients: Float[Tensor, "layers batch seq n_neurons"]
    head_outputs: Float[Tensor, "layers batch seq n_heads head_dim"]
    ffn_inputs: Float[Tensor, "layers batch seq d_model"]
    logits: Float[Tensor, "batch seq vocab"] | None = None
    attention_weights: Float[Tensor, "layers batch n_heads seq seq"] | None = None

    def at_last(self, field: Float[Tensor, "layers batch seq *rest"]) -> Tensor:
        """A field of this trace at each row's last real token: (layers, batch, *rest)."""
        rows = torch.arange(len(self.encoded), device=field.device)
        return field[:, rows, self.encoded.last.to(field.device)]

    def refuse_overflow(self, rows: Sequence[int], at: Sequence[int]) -> None:
        """Raises UserError where the streams at the tokens (rows, at) are not finite, naming the layer."""
        # What overflows anywhere in a block is in the stream that leaves it.
        finite = torch.isfinite(self.residual[:, list(rows), list(at)]).flatten(1).all(1)
        if not bool(finite.all()):
            layer = max(0, int((~finite).nonzero()[0]) - 1)
            raise UserError(f"layer {layer}: the residual stream holds NaN or infinite numbers")


def first(output: Any) -> Tensor:
    """A module's tensor output, whether or not it comes in a tuple."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def at_tokens(
    x: Float[Tensor, "batch seq *rest"], rows: Int[Tensor, " n"], at: Int[Tensor, " n"]
) -> Float[Tensor, "n *rest"]:
    """`x` at the tokens (rows, at), on its own device, which may be another than that of the prompts."""
    return x[rows.to(x.device), at.to(x.device)]


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream among the arguments a block was called with."""
    tensor: Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


@contextmanager
def run_by(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Run `module` by `forward` in place of its own, or of what accelerate put there. Its hooks stay."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _eager(lm: LanguageModel) -> Iterator[None]:
    """Fused attention never holds its weights; the plain kind does."""
    before = lm.model.config._attn_implementation
    if before == "eager":
        yield
        return
    lm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)


@torch.no_grad()
def trace(
    lm: LanguageModel,
    texts: Sequence[str] | Encoded,
    *,
    attention_weights: bool = False,
    logits: bool = False,
) -> Trace:
    """Run `texts` once and record.

    attention_weights: also keep every head's pattern (layers batch n_heads seq seq), which runs
    plain attention in place of a fused kernel. logits: also keep logits at every position, float32
    at least; `lm.unembed(t.residual[-1][...])` gives them where they are needed.
    """
    encoded = texts if isinstance(texts, Encoded) else lm.encode(texts)
    batch, seq = encoded.input_ids.shape
    kinds = ("attention", "ffn", "coefficients", "head_outputs", "ffn_inputs", "patterns")
    kept: dict[str, list[Tensor]] = {kind: [] for kind in ("residual", *kinds)}
    handles: list[Any] = []

    def keep(kind: str, tensor: Tensor) -> None:
        # opt's FFN sees (batch · seq) rows; one view serves all.
        shaped = tensor if kind == "patterns" else tensor.reshape(batch, seq, -1)
        kept[kind].append(shaped.detach().to(lm.device))

    def on_input(module: nn.Module, kind: str) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            keep(kind, hidden_of(args, kwargs))

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def on_output(module: nn.Module, kind: str, pick: Callable[[Any], Tensor] = first) -> None:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            keep(kind, pick(output))

        handles.append(module.register_forward_hook(hook))

    on_input(lm.block(0), "residual")
    for layer in range(lm.n_layers):
        on_output(lm.block(layer), "residual")
        on_output(lm.attention_post_norm(layer) or lm.attention(layer), "attention")
        on_output(lm.ffn_post_norm(layer) or lm.ffn_module(layer), "ffn")
        on_input(lm.down(layer), "coefficients")
        on_input(lm.attention_out(layer), "head_outputs")
        on_input(lm.up(layer), "ffn_inputs")
        if attention_weights:
            on_output(lm.attention(layer), "patterns", lambda output: output[1])
    try:
        if attention_weights:
            with _eager(lm):
                lm.run_backbone(encoded)
        else:
            lm.run_backbone(encoded)
    finally:
        for handle in handles:
            handle.remove()
    residual = torch.stack(kept["residual"])
    return Trace(
        encoded=encoded,
        residual=residual,
        attention=torch.stack(kept["attention"]),
        ffn=torch.stack(kept["ffn"]),
        coefficients=torch.stack(kept["coefficients"]),
        head_outputs=torch.unflatten(torch.stack(kept["head_outputs"]), -1, (lm.n_heads, lm.head_dim)),
        ffn_inputs=torch.stack(kept["ffn_inputs"]),
        logits=lm.unembed(residual[-1]) if logits else None,
        attention_weights=torch.stack(kept["patterns"]) if attention_weights else None,
    )
