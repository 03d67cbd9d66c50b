"""Tensors worked out once and kept on disk, best effort.

    path = default_cache() / "covariance" / f"{key}.safetensors"
    found = kept(path)                  # {"c": ...} or None
    keep(path, {"c": c})

Footguns: the key must name everything the tensors depend on (model fingerprint, text, dtype, settings).
A file that is cut short counts as none; a folder that cannot be written costs time, not the work.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def default_cache() -> Path:
    """$ACEDIT_CACHE, or ~/.cache/acedit."""
    return Path(os.environ.get("ACEDIT_CACHE") or Path.home() / ".cache" / "acedit")


def kept(path: Path) -> dict[str, Tensor] | None:
    """The tensors in `path`, memory-mapped; None where there are none, or not whole."""
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` under a temporary name, then move them to `path`; does nothing where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, partial)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except (OSError, SafetensorError):
        return
