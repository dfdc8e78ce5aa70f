"""Pieces of a self-contained HTML page: the document, sections, embedded pictures, tables of texts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from depthjepa.drawing.panels import Captioned, run_colour

DOTS_PER_INCH = 110
STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e1e5ea; --pale: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 72rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .75rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p, li { margin: .4rem 0; max-width: 52rem; }
.lead { font-size: 1.1rem; }
.soft { color: var(--soft); font-size: .92rem; }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em; }
figure { margin: 1.25rem 0 2.5rem; }
figcaption { font-size: .92rem; color: var(--soft); }
.scroll { overflow-x: auto; }
.scroll img { display: block; height: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: .75rem 0; }
th, td { padding: .4rem .9rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
table.wide { font-size: .82rem; }
table.wide th, table.wide td { padding: .4rem .35rem; }
table.wide th { white-space: normal; }
th small { display: block; font-weight: 400; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: .3rem; }
thead th { border-bottom: 2px solid var(--ink); }
tr.baseline td { color: var(--soft); background: var(--pale); }
td b { color: var(--ink); }
table.text th, table.text td { text-align: left; vertical-align: top; white-space: normal; overflow-wrap: anywhere; }
table.text td + td { min-width: 4rem; }
.explore th { text-align: left; max-width: 8rem; white-space: normal; overflow-wrap: anywhere; border: 0;
  padding: .1rem .4rem; vertical-align: middle; }
.explore td { padding: .1rem; border: 0; }
.explore canvas { display: block; cursor: crosshair; touch-action: manipulation; max-width: none; }
.explore canvas:focus { outline: 3px solid #0072b2; outline-offset: 1px; }
.explorer [role=status] { min-height: 3.2em; max-width: none; }
.explorer .bar span { display: inline-block; width: 10rem; height: .8em; vertical-align: middle; margin: 0 .4em; }
pre { background: var(--pale); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
summary { cursor: pointer; margin: .5rem 0; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .9rem 3rem; font-size: 15px; }
  h1 { font-size: 1.5rem; }
  /* A row of figures becomes a list of them: columns side by side have no room. */
  table.figures thead { display: none; }
  table.figures, table.figures tbody, table.figures tr { display: block; }
  table.figures td { display: flex; justify-content: space-between; gap: 1rem; white-space: normal; }
  table.figures td:first-child { display: block; margin-top: 1rem; font-weight: 600;
    border-bottom: 2px solid var(--ink); }
  table.text { font-size: .8rem; }
  table.text th, table.text td { padding: .3rem .25rem; min-width: 0; }
  table.figures td[data-column]::before { content: attr(data-column); text-align: left; color: var(--soft); }
}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """Return the page; empty parts are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, parts: Sequence[str]) -> str:
    """Return a section, or nothing where there are no parts to put into it."""
    return f"<section><h2>{text(title)}</h2>\n" + "\n".join(parts) + "</section>" if parts else ""


def embed(drawn: Captioned) -> str:
    """Return a figure with its picture in it, what one sees there, and what failure would look like."""
    picture = io.BytesIO()
    drawn.figure.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    narrowest = round(64 * drawn.figure.get_size_inches()[0])
    return (
        f'<figure><div class="scroll"><img alt="{text(drawn.seen)}" style="min-width:{narrowest}px" '
        f'src="data:image/png;base64,{data}"></div>\n<figcaption><p>{text(drawn.seen)}</p>'
        f"<p><b>Had it failed:</b> {text(drawn.failed)}</p></figcaption></figure>"
    )


def text(value: object) -> str:
    """Escape a value for HTML."""
    return html.escape(str(value))


def run_label(name: str, runs: Sequence[str]) -> str:
    """Return a row's name, with the colour of the run in the loss figure if it is one."""
    if name not in runs:
        return text(name)
    return f'<span class="dot" style="background:{run_colour(runs.index(name))}"></span>{text(name)}'


def plain_table(header: Sequence[str], rows: Mapping[str, Sequence[Any]], runs: Sequence[str]) -> str:
    """Return a table of texts: row name -> its cells."""
    head = "".join(f"<th>{run_label(name, runs)}</th>" for name in header)
    lines = "\n".join(
        f"<tr><td>{run_label(name, runs)}</td>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f'<div class="scroll"><table class="text">\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def record_table(records: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of texts, run name -> texts by column; a dash where one is missing."""
    header = list(dict.fromkeys(key for record in records.values() for key in record))
    rows = {name: [record.get(key, "–") for key in header] for name, record in records.items()}
    return plain_table(header, rows, list(records)) if header else "<p>Nothing was recorded.</p>"
