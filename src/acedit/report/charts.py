"""Charts as Vega-Lite specifications, and their pictures.

    save_charts({"curve": chart("Loss", rows, "line", x=..., y=...)}, Path("out"))

Pictures (SVG, PNG) are drawn where vl-convert is installed (extra `study`); the specification always is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from acedit.files import write_bytes, write_text
from acedit.plain import plain


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


def chart(title: str, rows: Sequence[Mapping[str, Any]], mark: Any, **encoding: Any) -> dict[str, Any]:
    """A Vega-Lite specification over `rows`."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": title,
        "data": {"values": [dict(row) for row in rows]},
        "mark": mark,
        "encoding": encoding,
    }


def save_charts(charts: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write each chart as NAME.vl.json, NAME.svg and NAME.png; the paths written.

    Raises UserError where the folder cannot be written.
    """
    draw = import_module("vl_convert") if find_spec("vl_convert") else None
    written = []
    for name, spec in charts.items():
        text = json.dumps(plain(spec))
        written.append(write_text(folder / f"{name}.vl.json", text + "\n"))
        if draw is not None:
            written.append(write_text(folder / f"{name}.svg", draw.vegalite_to_svg(text)))
            written.append(write_bytes(folder / f"{name}.png", draw.vegalite_to_png(text, scale=2)))
    return written
