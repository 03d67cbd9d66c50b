"""Reading a user's file of text.

read_utf8("edits.json", "a JSON file")
"""

from pathlib import Path

from acedit.errors import UserError


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
