"""Charts as Vega-Lite specifications, and their pictures.

    save_charts({"curve": chart("Loss", rows, "line", x=..., y=...)}, Path("out"))

Pictures (SVG, PNG) are drawn where vl-convert is installed (extra `study`); the specification always is.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from acedit.files import write_bytes, write_text
from acedit.plain import plain

log = logging.getLogger("acedit")

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True)
class Chart:
    """A chart on a page: its heading, what it shows in a sentence or two, its specification."""

    title: str
    note: str
    spec: Mapping[str, Any]


def bundle() -> str | None:
    """Vega-Lite and what it needs as one script that leaves `vegaEmbed` on the window; None without
    vl-convert."""
    if not find_spec("vl_convert"):
        return None
    script: str = import_module("vl_convert").javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


@dataclass(frozen=True)
class Table:
    """A table on a page, to sort and search: its heading, what it shows, its caption, and rows of the same
    fields."""

    title: str
    note: str
    caption: str
    rows: Sequence[Mapping[str, object]]


def chart(
    title: str, rows: Sequence[Mapping[str, Any]], mark: str | Mapping[str, Any], **encoding: Any
) -> dict[str, Any]:
    """A Vega-Lite specification over `rows`; what lies under the pointer is told with all its fields."""
    return {
        "$schema": SCHEMA,
        "title": title,
        "data": {"values": [dict(row) for row in rows]},
        "mark": told(mark),
        "encoding": encoding,
    }


def told(mark: str | Mapping[str, Any]) -> dict[str, Any]:
    """The mark, with a tooltip of all that its row holds."""
    own = {"type": mark} if isinstance(mark, str) else dict(mark)
    return {**own, "tooltip": {"content": "data"}}


def charts_by(
    field: str, rows: Sequence[Mapping[str, Any]], name: str, title: str, mark: Any, **encoding: Any
) -> dict[str, dict[str, Any]]:
    """A chart over the rows of each value of `field`, by names that go on from `name`. Not facets, which are
    of a fixed width."""
    values = list(dict.fromkeys(row[field] for row in rows))
    return {
        f"{name}-{i + 1}": chart(
            f"{title}: {value}", [row for row in rows if row[field] == value], mark, **encoding
        )
        for i, value in enumerate(values)
    }


def save_charts(charts: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write each chart as NAME.vl.json, NAME.svg and NAME.png; the paths written. Charts that stand in the
    folder from before go.

    Raises UserError where the folder cannot be written.
    """
    draw = import_module("vl_convert") if find_spec("vl_convert") else None
    written = []
    for old in folder.glob("*.vl.json"):
        name = old.name.removesuffix(".vl.json")
        if name not in charts:
            for suffix in (".vl.json", ".svg", ".png"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    if draw is None and charts:
        log.warning("%s: no pictures without vl-convert: pip install 'acedit[study]'", folder)
    for name, spec in charts.items():
        text = json.dumps(plain(spec))
        written.append(write_text(folder / f"{name}.vl.json", text + "\n"))
        if draw is not None:
            written.append(write_text(folder / f"{name}.svg", draw.vegalite_to_svg(text)))
            written.append(write_bytes(folder / f"{name}.png", draw.vegalite_to_png(text, scale=2)))
    return written
