"""Reading a user's file of text.

read_utf8("edits.json", "a JSON file")
next(list_rows("cases.json"))               # the first of a hundred megabytes, at once

Footgun: `list_rows` and `line_rows` say no more of a broken file than that it is one, where it breaks.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from acedit.errors import UserError

CHUNK = 1 << 20  # characters read at a time
_SPACE = re.compile(r"[ \t\n\r]*")


def read_utf8(path: str | Path, wanted: str) -> str:
    """The file's text, without a byte order mark. Raises UserError where it cannot be read."""
    try:
        return Path(path).read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; give {wanted}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def list_rows(path: str | Path, *, chunk: int = CHUNK) -> Iterator[Any]:
    """The items of a JSON file that holds a list, each as soon as it is read.

    Raises ValueError or RecursionError where the file is no JSON list, OSError where it cannot be read.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        window = _Window(file, chunk)
        if window.take() != "[":
            raise ValueError("no list")
        if window.peek() == "]":
            window.take()
        else:
            while True:
                yield window.value()
                mark = window.take()
                if mark == "]":
                    break
                if mark != ",":
                    raise ValueError("neither a comma nor the list's end")
        if window.peek():
            raise ValueError("something after the list")


def line_rows(path: str | Path) -> Iterator[Any]:
    """The objects of a file of JSON lines, each as soon as its line is read.

    Raises ValueError or RecursionError where a line is no JSON object or the file has one line only (which is
    then the whole of it), OSError where it cannot be read.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        lines = (line for line in file if line.strip())
        first, second = next(lines, ""), next(lines, "")
        if not second:
            raise ValueError("not several lines")
        for line in chain((first, second), lines):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
            yield row


class _Window:
    """The part of a file that is being read, and where in it."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self._file, self._chunk = file, chunk
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def _more(self) -> bool:
        read = self._file.read(self._chunk)
        self._text, self._at = self._text[self._at :] + read, 0
        return bool(read)

    def peek(self) -> str:
        """The next sign that is no space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> str:
        """The same, gone past."""
        sign = self.peek()
        self._at += len(sign)
        return sign

    def value(self) -> Any:
        """The next value, gone past."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # A number may go on beyond the window: "1" of "1.5", and of "1." too.
            if self._text[end : end + 1] not in tuple(" \t\n\r,]") and self._more():
                continue
            self._at = end
            return value
