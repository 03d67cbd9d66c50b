"""What several commands do alike: load a model, read what is given, check and write what comes out.

cases, known = read_cases(args.cases), given_facts(args.facts)
check_outputs(args)                      # before hours of work
progress = Progress(args.quiet)
lm = load_model(args)
write_result(args, "evaluate", scores=scores)
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acedit.errors import UserError
from acedit.waiting import counted

if TYPE_CHECKING:
    from acedit.knowledge.facts import Fact
    from acedit.lm.model import LanguageModel


class Progress:
    """Lines on standard error about long work, with the time it took and what is left."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._began = self._step = self._counted = self._last = time.monotonic()
        self._done = 0

    def say(self, text: str) -> None:
        """A step begins."""
        self._step = self._counted = time.monotonic()
        self._done = 0
        self._line(text)

    def count(self, done: int, total: int, what: str = "cases") -> None:
        """`done` of `total` of this step are done; at most a line every two seconds.

        A count that does not go on begins another one.
        """
        now = time.monotonic()
        if done <= self._done:
            self._step = self._counted
        self._done, self._counted = done, now
        if now - self._last < 2 and done < total:
            return
        self._last = now
        self._line(counted(done, total, what, now - self._step))

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)


def load_model(args: argparse.Namespace) -> "LanguageModel":
    """The model that the arguments name, without transformers' progress bars.

    Raises UserError for weights that are not finite, besides what `load` refuses.
    """
    from transformers.utils import logging as chatter

    from acedit.lm.loading import load

    silence: Any = chatter.disable_progress_bar
    silence()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each retry
    if args.dtype is not None:
        known_dtype(args.dtype)
    lm = load(args.model, dtype=args.dtype, device_map=args.device_map)
    lm.refuse_broken()
    if args.dtype is None and lm.device.type == "cpu" and lm.wide != lm.dtype and not args.quiet:
        print(
            f"the checkpoint is in {str(lm.dtype).removeprefix('torch.')}, in which many CPUs are several "
            "times slower: --dtype float32 takes twice the memory",
            file=sys.stderr,
        )
    return lm


def known_dtype(name: str) -> None:
    """Raises UserError where torch has no such number format."""
    import torch

    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise UserError(f"--dtype {name!r} is unknown; give float32, bfloat16 or float16")


def given_facts(path: str | None) -> "list[Fact]":
    """The facts of `--facts`, if given. Raises UserError for a file that holds none."""
    from acedit.knowledge.facts import read_facts

    if path is None:
        return []
    found = read_facts(path)
    if not found:
        raise UserError(f"{path}: holds no facts; give 'facts' a list of subject, relation and object")
    return found


def given_text(path: str | None) -> "list[str] | None":
    """The paragraphs of `--text`, if given."""
    from acedit.knowledge.prose import read_prose

    return None if path is None else read_prose(path)


def world_facts() -> "list[Fact]":
    """What the bundled world holds."""
    from acedit.world.cases import facts_of
    from acedit.world.graph import build_world

    return facts_of(build_world(), [])


@contextmanager
def about(path: str) -> Iterator[None]:
    """What is wrong with the contents of a file, said with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError where an output cannot be written, or would fall on another or on an input."""
    from acedit.files import check_writable

    taken = {}
    for name in ("edits", "cases", "facts", "text", "patch"):
        given = getattr(args, name, None)
        for path in given if isinstance(given, list) else [given]:
            if isinstance(path, str):
                taken[Path(path).resolve()] = name
    for name in ("out", "json", "page", "facts_out"):
        path = getattr(args, name, None)
        if path is None:
            continue
        check_writable(path, folder=name == "out" and not getattr(args, "out_is_file", False))
        other = taken.setdefault(Path(path).resolve(), name)
        if other != name:
            raise UserError(
                f"{path}: is named for --{name.replace('_', '-')} and for {other}; name another file"
            )


def write_result(args: argparse.Namespace, command: str, **fields: Any) -> None:
    """Write the object of `--json`, where it was asked for."""
    from acedit.files import record, write_json

    if args.json:
        write_json(args.json, record(command, **fields))
