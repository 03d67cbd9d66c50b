"""Tensors worked out once and kept on disk, best effort.

    path = default_cache() / "covariance" / f"{key}.safetensors"
    found = kept(path)                  # {"c": ...} or None
    keep(path, {"c": c})

Footguns: the key must name everything the tensors depend on (model fingerprint, text, dtype, settings).
A file that is cut short, or of something else, is said and counts as none; a folder that cannot be written
costs time, not the work.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger("acedit")


def default_cache() -> Path:
    """$ACEDIT_CACHE, or ~/.cache/acedit."""
    return Path(os.environ.get("ACEDIT_CACHE") or Path.home() / ".cache" / "acedit")


def kept(path: Path, *, of: str | None = None) -> dict[str, Tensor] | None:
    """The tensors in `path`, memory-mapped; None where there are none, not whole, or not kept as `of`."""
    if not path.exists():
        return None
    try:
        if of is not None:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("of") != of:
                    log.warning("%s is not of this model: it is made again", path)
                    return None
        return load_file(path)
    except (SafetensorError, OSError):
        log.warning("%s is cut short or cannot be read: it is made again", path)
        return None


def keep(path: Path, tensors: Mapping[str, Tensor], *, of: str | None = None) -> None:
    """`save_tensors`, or a notice where it cannot: what is not kept is made again each time."""
    try:
        save_tensors(path, tensors, None if of is None else {"of": of})
    except OSError as error:
        log.warning(
            "%s cannot be kept (%s): it will be made again each time", path.parent, error.strerror or error
        )


def kept_or_made(
    path: Path, starts: Mapping[str, tuple[int, ...]], make: Callable[[], dict[str, Tensor]], *, of: str
) -> dict[str, Tensor]:
    """The tensors in `path` if they have the names and the `starts` of shapes that they should, kept as those
    `of`; else what `make` returns, now kept there."""
    found = kept(path, of=of)
    if found is not None:
        if {name: t.shape[: len(starts.get(name, ()))] for name, t in found.items()} == starts:
            return found
        log.warning("%s holds something else than it should: it is made again", path)
    made = make()
    keep(path, made, of=of)
    return made


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` under a temporary name in `path`'s folder, made if need be, then move them to `path`.

    Raises OSError where it cannot be written.
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
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
