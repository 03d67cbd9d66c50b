"""Options that several commands share, and converters for their values.

    parser = commands.add_parser("locate", parents=[shared.common, shared.loading])
    parser.add_argument("--top", type=whole(1), default=10)

Footgun: a converter raises what argparse turns into one line and exit code 2, so it must not exit itself.
"""

import argparse
from dataclasses import dataclass
from typing import Any

MODEL = "'bundled', a folder of Hugging Face files, or a hub name"
EDITS = "JSON or JSONL of edits"


@dataclass(frozen=True)
class Shared:
    """Groups of options, as parents of a command's parser.

    again: those of `common` below a command that has them too, whose values stand.
    """

    common: argparse.ArgumentParser
    again: argparse.ArgumentParser
    seeded: argparse.ArgumentParser
    loading: argparse.ArgumentParser
    layers: argparse.ArgumentParser
    facts: argparse.ArgumentParser
    text: argparse.ArgumentParser


def shared_options() -> Shared:
    """The groups, made anew."""

    def group(**kwargs: Any) -> argparse.ArgumentParser:
        return argparse.ArgumentParser(add_help=False, **kwargs)

    shared = Shared(
        common=group(),
        again=group(argument_default=argparse.SUPPRESS),
        seeded=group(),
        loading=group(),
        layers=group(),
        facts=group(),
        text=group(),
    )
    for parser in (shared.common, shared.again):
        parser.add_argument("--json", metavar="FILE", help="write the result as JSON too (docs/json.md)")
        parser.add_argument("--quiet", action="store_true", help="no progress and no notices")
    shared.seeded.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="seed of everything drawn (default 0)"
    )
    shared.loading.add_argument("--dtype", help="float32, bfloat16, ...; the checkpoint's own if not given")
    shared.loading.add_argument(
        "--device-map", metavar="MAP", help="as transformers takes it: cpu, cuda, auto"
    )
    shared.layers.add_argument(
        "--screen", action="store_true", help="choose layers by writing trial edits on all ranges (minutes)"
    )
    shared.facts.add_argument(
        "--facts", metavar="FILE", help="known facts, beside those in the edits' own file"
    )
    shared.text.add_argument(
        "--text", metavar="FILE", help="paragraphs, one a line, for the key covariance; not the known facts"
    )
    return shared


class Once(argparse.Action):
    """An option that others take several times, and this command does not."""

    def __call__(self, parser: Any, args: argparse.Namespace, value: Any, option: str | None = None) -> None:
        if getattr(args, self.dest) is not None:
            parser.error(f"{option} is given twice; one is scored at a time")
        setattr(args, self.dest, value)


def whole(low: int, high: int | None = None) -> Any:
    """A converter for whole numbers in a range."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            allowed = f"{low} to {high}" if high is not None else f"{low} or more"
            raise argparse.ArgumentTypeError(f"{value} is out of range; give {allowed}")
        return value

    return convert


def wholes(low: int, high: int | None = None) -> Any:
    """A converter for whole numbers with commas between."""

    def convert(text: str) -> list[int]:
        return [whole(low, high)(part) for part in text.split(",")]

    return convert


def share(text: str) -> float:
    """A converter for shares of a whole."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is out of range; give 0 to 1")
    return value
