"""The command line: takes the arguments, runs one of `acedit.commands`, and ends in an exit code.

    acedit locate bundled edits.json --top 20
    acedit edit bundled edits.json --method ace --out p/
    acedit ask bundled --patch p/ "Who is the head of state of the country ...?"

Results go to standard output, progress and notices to standard error, and `--json FILE` writes what a
program would want (docs/json.md). Bad input ends in one line and exit code 2, Ctrl-C in exit code 130.

Footgun: nothing heavy may be imported at the top of this file; `acedit --help` should come at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from acedit.commands.options import shared_options
from acedit.errors import UserError, out_of_memory

COMMANDS = (
    "demo",
    "locate",
    "edit",
    "mend",
    "ask",
    "evaluate",
    "bench",
    "study",
    "lm_eval",
    "patch",
    "world",
)
"""Files of `acedit.commands`, in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    kept = "the model and the files are as before"
    try:
        if any("\ud800" <= sign <= "\udfff" for text in argv for sign in text):
            raise UserError("an argument is not UTF-8; write it anew")
        args = _parser().parse_args(argv)
        kept = getattr(args, "interrupted", kept)
        with _notices(args.quiet):
            args.run(args)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except SystemExit as stop:  # argparse's way to end
        return int(stop.code or 0)
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {kept}", 130)
    except BrokenPipeError:
        # Whoever read our output has gone; leave nothing for the interpreter to flush into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _complain(
            f"out of memory; {kept}: give --dtype bfloat16, --device-map auto, or a closed form as --method",
            2,
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", 2)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"acedit: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"acedit: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="acedit",
        description="Change facts inside a language model so that the change carries through reasoning.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shared = shared_options()
    for name in COMMANDS:
        import_module(f"acedit.commands.{name}").add(commands, shared)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from acedit import __version__

        print(f"acedit {__version__}")
        parser.exit()


@contextmanager
def _notices(quiet: bool) -> Iterator[None]:
    """Our log as lines like the rest, and transformers' chatter off unless asked for."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    log = logging.getLogger("acedit")
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [_Notices()], False
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])


class _Notices(logging.Handler):
    """Each notice once: a method that edits a hundred batches need not say a hundred times the same."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            print(f"acedit: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
