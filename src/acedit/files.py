"""Files written whole or not at all, and JSON that other programs can read.

    write_text(Path("out/page.html"), text)
    write_json(Path("scores.json"), record("evaluate", scores=scores))

Values go through `acedit.plain` on their way into JSON.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from acedit.errors import UserError, first_line
from acedit.knowledge.facts import Edit
from acedit.plain import plain

SCHEMA = 1
"""Version of every JSON object the command line writes; docs/json.md describes it."""


def record(command: str, **fields: Any) -> dict[str, Any]:
    """An object for `--json`: its schema version, the command, then `fields`."""
    return {"schema": SCHEMA, "command": command, **fields}


def edit_rows(edits: Iterable[Edit]) -> list[dict[str, str]]:
    """The edits as docs/json.md has them."""
    return [
        {
            "subject": edit.subject,
            "relation": edit.relation.id,
            "prompt": edit.prompt,
            "old": edit.old,
            "target": edit.target,
        }
        for edit in edits
    ]


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON. Raises as `write_text`."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON, as files of ours hold it."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n"


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 file. Raises as `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file under a temporary name, then move it into place.

    A pipe or a device is written to as it is, a link's target is what is replaced. Raises UserError where it
    cannot be written; what stood there before then still stands.
    """
    return write_together({path: data})[0]


def write_together(files: Mapping[str | Path, bytes]) -> list[Path]:
    """Several files as `write_bytes`: all are written under temporary names before the first is moved."""
    moves: list[tuple[Path, Path]] = []
    written = []
    path = Path()
    try:
        for name, data in files.items():
            path = Path(name)
            special = path.exists() and not path.is_file() and not path.is_dir()
            path = path.resolve() if path.is_symlink() and not special else path
            written.append(path)
            if special:
                path.write_bytes(data)
                continue
            partial = path.with_name(f".{path.name}-{os.getpid()}")
            path.parent.mkdir(parents=True, exist_ok=True)
            moves.append((partial, path))
            partial.write_bytes(data)
        for partial, path in moves:
            partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; choose another place"
        ) from None
    finally:
        for partial, _ in moves:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    return written


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """Around what libraries save: raises UserError naming `path` where the disk is full or refuses."""
    try:
        yield
        return
    except OSError as error:
        wrong = error.strerror or str(error)
    except Exception as error:
        # safetensors and tokenizers raise errors of their own for what the system says.
        wrong = first_line(error)
        if "os error" not in wrong:
            raise
    raise UserError(f"{path}: cannot be written: {wrong}; choose another place")


def check_writable(path: str | Path, *, folder: bool = False) -> Path:
    """`path` if something can be written there, asked before hours of work. Raises UserError if not.

    folder: whether it is to be a folder, or a file.
    """
    if not str(path):
        raise UserError("an output has an empty name: name a file or a folder")
    path = Path(path)
    if folder and path.exists() and not path.is_dir():
        raise UserError(f"{path}: cannot be written: this is a file; name a folder")
    if not folder and path.is_dir():
        raise UserError(f"{path}: cannot be written: this is a folder; name a file")
    home = path if path.is_dir() else path.parent
    while not home.exists() and home != home.parent:
        home = home.parent
    if not home.is_dir():
        raise UserError(f"{path}: cannot be written: {home} is not a folder; choose another place")
    if not os.access(home, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written: no permission in {home}; choose another place")
    return path
