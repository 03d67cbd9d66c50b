"""Where each model family keeps its parts: one declarative table, keyed by `config.model_type`.

    from acedit.lm.families import FAMILIES, family_of
    family_of(model.config).down                    # 'down_proj'

Adding a family is one row here and one row in `tests/tiny.py`; `tests/lm/test_parity.py` then
proves that the row is right. Nothing else in the package may ask what a model is called.

Footguns:
- The same module name means different things in different families. `post_attention_layernorm`
  feeds the FFN in llama, but in gemma2, gemma3 and olmo2 it norms what attention adds to the
  residual stream.
- A weight's orientation is stated (`conv1d`), never read off its shape: a square weight has no
  shape to read. `Conv1D` (gpt2) stores (in, out), `nn.Linear` stores (out, in).
- gpt_neox runs attention and FFN side by side only when its config says so, hence `parallel` may be
  the name of a config flag.
"""

from dataclasses import dataclass
from typing import Any, Literal

from acedit.errors import UserError

NormKind = Literal["layer", "rms", "rms+1"]
"""`layer`: γ(x-mean)/std + β. `rms`: γx/rms. `rms+1`: (1+γ)x/rms, gamma's convention."""

ValueLayout = Literal["separate", "concatenated", "interleaved"]
"""W_v lies in its own module; as the last rows of one q,k,v module; or head by head (gpt_neox)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row. Paths are dotted from the Hugging Face model, the block, or the module named before.

    `None` says the family has no such part. `refuse` lists (config field, value it must have, why).
    """

    embedding: str
    blocks: str
    attention: str
    attention_out: str
    value: str
    value_layout: ValueLayout = "separate"
    ffn: str | None
    up: str
    gate: str | None = None
    down: str
    activation: str
    fused_gate_up: bool = False
    norm: NormKind
    attention_norm: str | None
    ffn_norm: str | None
    attention_post_norm: str | None = None
    ffn_post_norm: str | None = None
    final_norm: str
    head: str = "lm_head"
    parallel: bool | str = False
    conv1d: bool = False
    softcap: str | None = None
    refuse: tuple[tuple[str, Any, str], ...] = ()

    @property
    def gated(self) -> bool:
        """Whether m = act(g·x)(u·x) rather than act(u·x + b)."""
        return self.gate is not None or self.fused_gate_up


_LLAMA: dict[str, Any] = {
    "embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention": "self_attn",
    "attention_out": "o_proj",
    "value": "v_proj",
    "ffn": "mlp",
    "up": "up_proj",
    "gate": "gate_proj",
    "down": "down_proj",
    "activation": "act_fn",
    "norm": "rms",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "final_norm": "model.norm",
}

_GEMMA: dict[str, Any] = _LLAMA | {
    "norm": "rms+1",
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
    "softcap": "final_logit_softcapping",
}

_GPT: dict[str, Any] = {
    "embedding": "transformer.wte",
    "blocks": "transformer.h",
    "attention": "attn",
    "ffn": "mlp",
    "activation": "act",
    "norm": "layer",
    "attention_norm": "ln_1",
    "final_norm": "transformer.ln_f",
}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        **_GPT,
        attention_out="c_proj",
        value="c_attn",
        value_layout="concatenated",
        up="c_fc",
        down="c_proj",
        ffn_norm="ln_2",
        conv1d=True,
        refuse=(("add_cross_attention", False, "cross-attention is not a decoder-only model"),),
    ),
    "gptj": Family(
        **_GPT,
        attention_out="out_proj",
        value="v_proj",
        up="fc_in",
        down="fc_out",
        ffn_norm="ln_1",
        parallel=True,
    ),
    "gpt_neox": Family(
        embedding="gpt_neox.embed_in",
        blocks="gpt_neox.layers",
        attention="attention",
        attention_out="dense",
        value="query_key_value",
        value_layout="interleaved",
        ffn="mlp",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        activation="act",
        norm="layer",
        attention_norm="input_layernorm",
        ffn_norm="post_attention_layernorm",
        final_norm="gpt_neox.final_layer_norm",
        parallel="use_parallel_residual",
    ),
    "opt": Family(
        embedding="model.decoder.embed_tokens",
        blocks="model.decoder.layers",
        attention="self_attn",
        attention_out="out_proj",
        value="v_proj",
        ffn=None,
        up="fc1",
        down="fc2",
        activation="activation_fn",
        norm="layer",
        attention_norm="self_attn_layer_norm",
        ffn_norm="final_layer_norm",
        final_norm="model.decoder.final_layer_norm",
        refuse=(
            (
                "do_layer_norm_before",
                True,
                "its norms stand on the residual stream itself, so nothing adds up along it",
            ),
            ("_remove_final_layer_norm", False, "it has no final norm to read the stream through"),
        ),
    ),
    "llama": Family(**_LLAMA),
    "mistral": Family(**_LLAMA),
    "qwen2": Family(**_LLAMA),
    "qwen3": Family(**_LLAMA),
    "gemma2": Family(**_GEMMA),
    "gemma3_text": Family(**_GEMMA),
    "phi3": Family(
        **_LLAMA
        | {
            "value": "qkv_proj",
            "value_layout": "concatenated",
            "up": "gate_up_proj",
            "gate": None,
            "fused_gate_up": True,
            "activation": "activation_fn",
        }
    ),
    "olmo2": Family(
        **_LLAMA
        | {
            "attention_norm": None,
            "ffn_norm": None,
            "attention_post_norm": "post_attention_layernorm",
            "ffn_post_norm": "post_feedforward_layernorm",
        }
    ),
}


def family_named(name: object) -> Family:
    """The row of a `model_type`. Raises `UserError` for one that the table lacks."""
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UserError(
            f"model family {name!r} is not known; known: {', '.join(sorted(FAMILIES))} "
            "(to add one, write its row in acedit/lm/families.py and run tests/lm/test_parity.py)"
        )
    return family


def family_of(config: Any) -> Family:
    """The table's row for a Hugging Face `config`.

    Raises `UserError` for a family the table lacks, and for a member of a known family whose config
    breaks what the row states.
    """
    name = getattr(config, "model_type", None)
    family = family_named(name)
    for field, wanted, why in family.refuse:
        found = getattr(config, field, wanted)
        if found != wanted:
            raise UserError(f"this {name} model has {field}={found}, which acedit cannot edit: {why}")
    width = getattr(config, "word_embed_proj_dim", None)
    if width is not None and width != config.hidden_size:
        raise UserError(
            f"this {name} model has word_embed_proj_dim={width}, not its hidden_size "
            f"{config.hidden_size}, so its head does not read the residual stream itself"
        )
    return family
