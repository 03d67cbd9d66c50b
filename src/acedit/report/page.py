"""One self-contained page about an edit or a study: no network, and no script but for charts and tables.

    page = Page(title="...", model="bundled", edits=rows, layers=where.layers, plan=where.plan, ...)
    write_text(Path("out/report.html"), render(page))

Charts need vl-convert (extra `study`), whose bundle of Vega goes into the page; without it a line says so.
Under each stands what it is drawn from, as a table, so that nothing is told by the pointer alone. Tables sort
by their heads and are searched; all of it works from the keyboard. Readable from 400 pixels up, light or dark
as the reader's system is. Every text that comes from a model or a file is escaped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any

from acedit.plain import plain
from acedit.report.charts import Chart, Table, bundle
from acedit.report.text import LayerLike, NeuronLike, PlanLike, chosen_as, quoted, score_rows


@dataclass(frozen=True)
class EditRow:
    """An edit as it reads: subject, cloze, old and new object."""

    subject: str
    prompt: str
    old: str
    target: str


@dataclass(frozen=True)
class Said:
    """What a model said, and whether that is what was wanted."""

    text: str
    right: bool


@dataclass(frozen=True)
class AnswerRow:
    """A question, what it ought to be answered once the edit is in, and what each model says."""

    kind: str
    question: str
    wanted: str
    said: Mapping[str, Said]  # column name ("before", "pmet", "ace") -> answer


@dataclass(frozen=True)
class Page:
    """All a page shows; an empty part is left out."""

    title: str
    model: str
    intro: str = ""
    edits: Sequence[EditRow] = ()
    layers: Sequence[LayerLike] = ()
    plan: PlanLike | None = None
    reasons: Sequence[str] = ()
    value_neurons: Sequence[NeuronLike] = ()
    query_neurons: Sequence[NeuronLike] = ()
    answers: Sequence[AnswerRow] = ()
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    figures: Sequence[Chart | Table] = ()
    notes: Sequence[str] = ()


def render(page: Page) -> str:
    """The page as one HTML document."""
    parts = [
        f"<h1>{escape(page.title)}</h1>",
        f"<p class=lead>{escape(page.intro)} Model: <code>{escape(page.model)}</code></p>",
        _section("What was edited", _edits(page.edits)),
        _section("Answers", _answers(page.answers)),
        _section("Scores", _scores(page.scores)),
        _section("Where the facts are kept", _layers(page)),
        _section("Top value neurons", _neurons(page.value_neurons, "raise the answer's log-probability")),
        _section(
            "Top query neurons", _neurons(page.query_neurons, "raise the coefficients of value neurons")
        ),
        *_figures(page.figures),
        "".join(f"<p class=note>{escape(note)}</p>" for note in page.notes),
        _scripts(page),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _figures(figures: Sequence[Chart | Table]) -> list[str]:
    """Those of one heading and note, one after the other, in one section."""
    sections = []
    number = 0
    for (title, note), some in groupby(figures, key=lambda one: (one.title, one.note)):
        body = f"<p class=note>{escape(note)}</p>"
        for one in some:
            if isinstance(one, Table):
                rows = [[escape(_cell(cell)) for cell in row.values()] for row in one.rows]
                body += f"<p class=caption>{escape(one.caption)}</p>{_sortable(list(one.rows[0]), rows)}"
            else:
                body += _chart(number, one)
                number += 1
        sections.append(_section(title, body))
    return sections


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _chart(number: int, one: Chart) -> str:
    own = str(one.spec.get("title", ""))
    label = escape(f"{one.title}: {own or one.note}", quote=True)
    caption = f"<figcaption>{escape(own)}</figcaption>" if own and own != one.title else ""
    return (
        f'<figure tabindex=0 aria-label="{label}">{caption}<div class=chart id="chart-{number}"></div>'
        f'<details id="data-{number}"><summary>as a table</summary></details></figure>'
    )


def _scripts(page: Page) -> str:
    """The tables' script, and with charts Vega's bundle and their specifications."""
    parts = []
    charts = [one for one in page.figures if isinstance(one, Chart)]
    if page.value_neurons or page.query_neurons or len(charts) < len(page.figures):
        parts.append(f"<script>{_TABLES}</script>")
    if charts:
        script = bundle()
        if script is None:
            return "<p class=note>Charts need vl-convert: pip install 'acedit[study]'.</p>" + "".join(parts)
        # "<" as an escape: no text of a model can end the script.
        specs = json.dumps([plain(one.spec) for one in charts]).replace("<", "\\u003c")
        parts.append(f"<script type=module>{script}</script>")
        parts.append(f"<script type=module>const specs = {specs};{_CHARTS}</script>")
    return "".join(parts)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""


def _row(cells: Sequence[str], labels: Sequence[str] = (), tag: str = "td") -> str:
    """A table row of cells that are HTML already; labels show in front of each on narrow screens."""
    names = [f' data-label="{escape(label, quote=True)}"' for label in labels] or [""] * len(cells)
    return (
        "<tr>"
        + "".join(f"<{tag}{name}><div>{cell}</div></{tag}>" for cell, name in zip(cells, names, strict=True))
        + "</tr>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    """A table from plain head cells and rows of HTML cells."""
    body = "".join(_row(row, head) for row in rows)
    top = _row([escape(cell) for cell in head], tag="th")
    return f'<div class=wide><table class="{kind}"><thead>{top}</thead><tbody>{body}</tbody></table></div>'


def _edits(edits: Sequence[EditRow]) -> str:
    if not edits:
        return ""
    rows = [
        [
            escape(edit.prompt.replace("{}", edit.subject)),
            f"<span class=old>{escape(edit.old or 'not stated')}</span>",
            f"<b>{escape(edit.target)}</b>",
        ]
        for edit in edits
    ]
    return _table(["fact", "before", "after"], rows, "stack")


def _answers(answers: Sequence[AnswerRow]) -> str:
    if not answers:
        return ""
    columns = list(answers[0].said)
    rows = []
    for row in answers:
        cells = [f"<span class=kind>{escape(row.kind)}</span>", escape(row.question), escape(row.wanted)]
        for column in columns:
            said = row.said[column]
            mark = "<span class=yes>✓</span>" if said.right else "<span class=no>✗</span>"
            cells.append(f"{mark} {escape(said.text) or '<i>nothing</i>'}")
        rows.append(cells)
    return _table(["", "asked", "wanted", *columns], rows, "stack")


def _scores(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    if not scores:
        return ""
    head, *rows = score_rows(scores)
    cells = [[f"<b>{escape(row[0])}</b>", *map(escape, row[1:])] for row in rows]
    note = (
        "<p class=note>Shares of greedy answers that are right, with 95% intervals. Multi-hop rows count the "
        "cases the unedited model could answer.</p>"
    )
    return _table(["metric", *head[1:]], cells, "stack scores") + note


def _layers(page: Page) -> str:
    if not page.layers:
        return ""
    top = {
        name: max((abs(getattr(row, name)) for row in page.layers), default=0.0)
        for name in ("value", "query")
    }
    lines = []
    for row in page.layers:
        stages = chosen_as(page.plan, row.layer) if page.plan is not None else []
        marks = "".join(f"<span class='mark {stage}'>{stage}</span>" for stage in stages)
        bars = "".join(
            f"<div class=bar>{_bar(getattr(row, name), top[name], name)}"
            f"<span>{name} {getattr(row, name):.3f}</span></div>"
            for name in ("value", "query")
        )
        lines.append(f"<div class=layer><div class=name>layer {row.layer} {marks}</div>{bars}</div>")
    why = "".join(f"<li>{escape(reason)}</li>" for reason in page.reasons)
    return (
        "<p class=note>Value score: how much a layer's FFN raises the answer's log-probability (nats, Eq. 9)."
        " Query score: how much it raises the coefficients of the value neurons above it (Eq. 10). Marked "
        "layers are written by the stage named.</p>"
        f"<div class=layers>{''.join(lines)}</div>" + (f"<ul class=note>{why}</ul>" if why else "")
    )


def _bar(value: float, largest: float, kind: str) -> str:
    share = min(100.0, 100 * abs(value) / largest) if largest > 0 else 0.0
    sign = "" if value >= 0 else " minus"
    return (
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="100" height="8" class="track"/>'
        f'<rect width="{share:.2f}" height="8" class="{kind}{sign}"/></svg>'
    )


def _neurons(neurons: Sequence[NeuronLike], what: str) -> str:
    if not neurons:
        return ""
    rows = [
        [str(n.layer), str(n.index), f"{n.score:.4f}", f"<code>{escape(quoted(n.tokens, 8))}</code>"]
        for n in neurons
    ]
    note = f"<p class=note>FFN neurons that {escape(what)}, with the tokens they point to.</p>"
    return note + _sortable(["layer", "neuron", "score", "top tokens"], rows)


def _sortable(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table to sort and search, from rows of HTML cells."""
    search = '<input type=search class=find placeholder="search" aria-label="search this table">'
    return f"<div class=searched>{search}{_table(head, rows, 'sortable')}</div>"


_CHARTS = """
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
specs.forEach((spec, i) => {
  const config = {legend: {orient: 'bottom'}};
  const whole = {width: 'container', background: 'transparent', ...spec, config};
  delete whole.title;  // stands above as text, which wraps
  window.vegaEmbed('#chart-' + i, whole, {theme: dark ? 'dark' : undefined, renderer: 'svg', actions: false})
    .then(() => document.getElementById('chart-' + i).dataset.drawn = 'yes');
  const details = document.getElementById('data-' + i);
  details.ontoggle = () => {
    if (details.querySelector('table')) return;
    for (const part of [spec, ...(spec.layer || [])])
      if (part.data && part.data.values.length) details.append(tableOf(part.data.values));
  };
});
function tableOf(rows) {
  const table = document.createElement('table');
  const cell = (row, kind, text) => {
    const one = document.createElement(kind);
    one.textContent = typeof text === 'number' && !Number.isInteger(text) ? text.toFixed(4) : text;
    row.append(one);
  };
  const head = table.createTHead().insertRow();
  for (const name of Object.keys(rows[0])) cell(head, 'th', name);
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const name of Object.keys(rows[0])) cell(line, 'td', row[name]);
  }
  const wide = document.createElement('div');
  wide.className = 'wide';
  wide.append(table);
  return wide;
}
"""

_TABLES = """
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  const text = (row, i) => row.cells[i].textContent.trim();
  const missing = said => ['', '-', '–', 'nan'].includes(said.toLowerCase());
  table.querySelectorAll('thead th').forEach((head, i) => {
    const button = document.createElement('button');
    button.textContent = head.textContent;
    head.firstChild.replaceChildren(button);
    button.onclick = () => {
      const up = head.ariaSort !== 'ascending';
      table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
      head.ariaSort = up ? 'ascending' : 'descending';
      const number = [...body.rows].every(row => missing(text(row, i)) || !isNaN(Number(text(row, i))));
      const order = (a, b) => number ? a - b : a.localeCompare(b, undefined, {numeric: true});
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [text(a, i), text(b, i)];
        if (missing(x) || missing(y)) return missing(x) - missing(y);  // last, whichever way
        return up ? order(x, y) : order(y, x);
      });
      body.append(...sorted);
    };
  });
  const find = table.closest('.searched').querySelector('.find');
  find.oninput = () => {
    for (const row of body.rows)
      row.hidden = !row.textContent.toLowerCase().includes(find.value.toLowerCase());
  };
}
"""

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1d21;--soft:#5d6069;--paper:#fff;--card:#f5f6f8;--line:#d9dce2;
--value:#2563b8;--query:#b4540a;--middle:#5b6b1f;--yes:#12703a;--no:#b3261e}
@media (prefers-color-scheme:dark){:root{--ink:#e8e9ec;--soft:#a3a7b0;--paper:#15161a;--card:#1e2025;
--line:#363a42;--value:#7fb0f5;--query:#f0a25c;--middle:#b6c86a;--yes:#6fd39a;--no:#ff8f86}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0}h2{font-size:1.15rem;margin:2em 0 .6em}
.lead,.note{color:var(--soft)}.note{font-size:.9rem}
code{font:0.9em ui-monospace,monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;vertical-align:top;padding:6px 10px;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
th{color:var(--soft);font-weight:600;overflow-wrap:normal}
.kind{color:var(--soft);white-space:nowrap}.old{text-decoration:line-through;color:var(--soft)}
.yes{color:var(--yes)}.no{color:var(--no)}
table.sortable td:not(:last-child){white-space:nowrap;font-variant-numeric:tabular-nums}
.layers{display:grid;gap:8px}
.layer{display:grid;grid-template-columns:170px 1fr 1fr;gap:12px;align-items:center;
background:var(--card);border-radius:6px;padding:6px 10px}
.bar{display:grid;grid-template-columns:1fr 112px;gap:8px;align-items:center}
.bar span{font-size:.85rem;font-variant-numeric:tabular-nums}
.bar svg{width:100%;height:10px;display:block}
.track{fill:var(--line)}rect.value{fill:var(--value)}rect.query{fill:var(--query)}
rect.minus{fill:var(--no)}
.mark{font-size:.75rem;border:1px solid currentColor;border-radius:9px;padding:0 7px;margin-left:3px}
.mark.value{color:var(--value)}.mark.query{color:var(--query)}.mark.middle{color:var(--middle)}
.find{font:inherit;padding:4px 10px;margin:0 0 8px;width:100%;max-width:320px;color:inherit;
background:var(--card);border:1px solid var(--line);border-radius:6px}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:left}
th[aria-sort=ascending] button::after{content:" ↑"}th[aria-sort=descending] button::after{content:" ↓"}
.chart{width:100%;overflow-x:auto}figure{margin:0 0 1.2em}
figcaption,.caption{font-weight:600;margin:.8em 0 .3em}
details{font-size:.9rem}summary{color:var(--soft);cursor:pointer}.searched{margin-top:.8em}
@media (max-width:720px){
.layer{grid-template-columns:1fr;gap:4px}
table.stack thead{display:none}
table.stack tr{display:block;background:var(--card);border-radius:6px;margin:0 0 10px;padding:6px 0}
table.stack td{display:grid;grid-template-columns:92px 1fr;gap:8px;border:0;padding:3px 10px}
table.stack td::before{content:attr(data-label);color:var(--soft);font-size:.85rem}
.kind{white-space:normal}}
"""
