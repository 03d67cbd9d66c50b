"""`load`: a language model from a hub name, a folder, or memory.

    lm = load("bundled")                # or "meta-llama/Llama-3.2-1B", a folder, a loaded model
    lm = load(model, tokenizer=tokenizer)

Footguns: a loaded model is not copied, see `lm.model`.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from acedit.errors import UserError, first_line
from acedit.lm.families import family_named, family_of
from acedit.lm.model import LanguageModel

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
    StrictDataclassError,  # a field of config.json of the wrong type
)


def load(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
) -> LanguageModel:
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
    if not isinstance(model, str | Path):
        raise UserError(
            f"a {type(model).__name__} is no model to load: give a hub name, a folder, or a loaded "
            "transformers model with its tokenizer (of a PEFT one, what merge_and_unload() gives)"
        )
    source = _source(model)
    if model == "bundled" and dtype is None:
        dtype = torch.float32
    try:
        given, _ = PretrainedConfig.get_config_dict(source)
        family_named(given.get("model_type"))
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
