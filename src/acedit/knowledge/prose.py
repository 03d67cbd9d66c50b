"""Ordinary text that ships with the package: the start of Wikitext-2's validation text (docs/data.md).

    wikitext()      # what fluency is measured on
    prose()         # paragraphs after that: what key covariances are taken over where no facts are known
    read_prose("wiki.txt")      # a user's own

The two do not overlap, or an edit would preserve the very text it is measured on.
"""

from functools import cache
from importlib import resources
from pathlib import Path

from acedit.errors import UserError
from acedit.knowledge.files import read_utf8

MEASURED = 47_640  # characters


@cache
def _whole() -> str:
    return (resources.files("acedit.knowledge") / "data" / "wikitext2.txt").read_text("utf-8")


def wikitext() -> str:
    """The first `MEASURED` characters."""
    return _whole()[:MEASURED]


def prose() -> list[str]:
    """The paragraphs after them, about 90,000 tokens of a large model's."""
    return _paragraphs(_whole()[MEASURED:])


def read_prose(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text that hold something. Raises UserError for a file without any."""
    lines = _paragraphs(read_utf8(path, "a text file"))
    if not lines:
        raise UserError(f"{path}: holds no text; give paragraphs, one a line")
    return lines


def _paragraphs(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
