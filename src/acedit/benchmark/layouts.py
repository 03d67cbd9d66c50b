"""A table in words, as markdown, LaTeX or HTML.

print(markdown(Table("Accuracy (%)", ("editor", "avg."), (("ace", "95.8"),))))
"""

import html as html_text
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table in words: the head, rows of cells, notes below."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default=())


def markdown(table: Table) -> str:
    """GitHub's tables, notes below."""
    lines = [f"**{table.title}**", "", "| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in table.rows]
    lines += ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "%&#_${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "–": "--",
        "‖": r"$\|$",
        "Δ": r"$\Delta$",
    }
)


def latex(table: Table) -> str:
    """A `tabular` with booktabs' rules, caption and notes."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(c.translate(_LATEX) for c in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{table.title.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            line(table.head),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\small {note.translate(_LATEX)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def html(table: Table) -> str:
    """A `table` element with its caption, notes as a list."""
    escape = html_text.escape
    head = "".join(f"<th>{escape(c)}</th>" for c in table.head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>" + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>\n"
        for row in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<table>\n<caption>{escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n" + (f"<ul>{notes}</ul>\n" if notes else "")
    )
