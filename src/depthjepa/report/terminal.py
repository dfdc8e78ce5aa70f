"""A probe's table in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from depthjepa.columns import Column, format_column

MANY = 8  # columns that a terminal has room for


def print_table(content: Mapping[str, Any]) -> None:
    """Print a stored table: a line for each model, or for each measure where there are many of them; then verdicts."""
    columns = [Column.of(column) for column in content["columns"]]
    heads = [escape(column.head) for column in columns]
    names = [escape(str(row["name"])) for row in content["rows"]]
    written = [format_column([row.get(column.key) for row in content["rows"]]) for column in columns]
    if len(columns) > MANY:
        heads, names, lines = names, heads, written
    else:
        lines = [list(line) for line in zip(*written, strict=True)]
    grid = Table(title=f"{content['task']} on {content['data']}", caption=content["protocol"], title_justify="left")
    grid.add_column("")
    for head in heads:
        grid.add_column(head, justify="right")
    for name, line in zip(names, lines, strict=True):
        grid.add_row(name, *map(escape, line))
    Console(width=None if sys.stdout.isatty() else 140).print(grid)
    for sentence in content.get("verdict", []):
        print(sentence)
