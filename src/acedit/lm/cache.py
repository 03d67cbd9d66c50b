"""Tensors worked out once and kept on disk, best effort.

    path = default_cache() / "covariance" / f"{key}.safetensors"
    found = kept(path)                  # {"c": ...} or None
    keep(path, {"c": c})

Footguns: the key must name everything the tensors depend on (model fingerprint, text, dtype, settings).
A file that is cut short counts as none; a folder that cannot be written costs time, not the work.
"""

import os
from collections.abc import Callable, Mapping
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
    """`save_tensors`, but does nothing where it cannot."""
    try:
        save_tensors(path, tensors)
    except (OSError, SafetensorError):
        return


def kept_or_made(path: Path, names: set[str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `path` if they are those `names`, else what `make` returns, now kept there."""
    found = kept(path)
    if found is None or set(found) != names:
        found = make()
        keep(path, found)
    return found


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` under a temporary name in `path`'s folder, made if need be, then move them to `path`.

    Raises OSError or SafetensorError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            partial,
            metadata=None if metadata is None else dict(metadata),
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
