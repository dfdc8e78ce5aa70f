"""Pieces of a self-contained HTML page: the document, sections, embedded pictures, tables of texts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from depthjepa.drawing.panels import Captioned, run_colour

DOTS_PER_INCH = 110


def document(title: str, parts: Sequence[str]) -> str:
    """Return the page, with its style and its script in it; empty parts are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{packaged('page.css')}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<script>\n{packaged('page.js')}</script>\n</body>\n</html>\n"
    )


def packaged(name: str) -> str:
    """The text of a file that lies beside this one."""
    return resources.files("depthjepa.report").joinpath(name).read_text(encoding="utf-8")


def section(title: str, parts: Sequence[str], *, unfolded: bool = True) -> str:
    """Return a section that can be folded, or nothing where there are no parts to put into it."""
    if not parts:
        return ""
    head = f"<section><details{' open' * unfolded}><summary><h2>{text(title)}</h2></summary>\n"
    return head + "\n".join(parts) + "</details></section>"


def embed(drawn: Captioned, *, folded: bool = False) -> str:
    """Return a figure with its picture in it, what one sees there, and what failure would look like.

    The words are shown at once, or `folded` below the picture.
    """
    picture = io.BytesIO()
    drawn.figure.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    narrowest = round(64 * drawn.figure.get_size_inches()[0])
    words = f"<p>{text(drawn.seen)}</p><p><b>Had it failed:</b> {text(drawn.failed)}</p>"
    if folded:
        words = f"<details><summary>What one sees here</summary>{words}</details>"
    return (
        f'<figure><div class="scroll"><img alt="{text(drawn.seen)}" style="min-width:{narrowest}px" '
        f'src="data:image/png;base64,{data}"></div>\n<figcaption>{words}</figcaption></figure>'
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
