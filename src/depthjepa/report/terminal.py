"""Tables in the terminal: of a probe, and of the configuration's keys."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from depthjepa.columns import Column, format_column
from depthjepa.config.keys import Listing

MANY = 8  # columns that a terminal has room for
PIPED = 100  # columns of text for keys where nobody's terminal says how many


def print_table(content: Mapping[str, Any]) -> None:
    """Print a stored table: a line for each model, or for each measure where there are many of them; then verdicts.

    Those of several data sets, each by itself, come before that of all together.
    """
    for each in content.get("sets", ()):
        print_table(each)
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


def print_comparison(content: Mapping[str, Any]) -> None:
    """Print the one table of a comparison, and who leads."""
    (height, width), (rows, cols) = content["view"]["image_size"], content["view"]["grid"]
    protocol = f"the figures of {rows} x {cols} patches of a view of {height} x {width} px"
    shown = {"task": "compare", "data": content["data"], "protocol": protocol, "columns": content["columns"]}
    known = {column["key"] for column in content["columns"]}
    filled = [row for row in content["rows"] if any(row.get(key) is not None for key in known)]
    print_table({**shown, "rows": filled, "verdict": [each["sentence"] for each in content["leads"]]})


def print_keys(listings: Sequence[Listing], most: int | None = None) -> None:
    """Print keys, section by section: name, type, default and meaning, wrapped and never cut off.

    Below them what recipes set otherwise, where values of more than `most` letters are cut off.
    """
    console = Console(width=None if sys.stdout.isatty() else PIPED, highlight=False)
    keys = [key for listing in listings for section in listing.sections for key in section.keys]
    longest = max(len(key.name) for key in keys)
    for listing in listings:
        console.print(listing.title, markup=False, style="bold")
        for section in listing.sections:
            name = f"{section.name}, with {section.needs}" if section.needs else section.name
            console.print(f"\n{name}: {section.about}\n" if name else f"\n{section.about}\n", markup=False)
            grid = Table(box=None, padding=(0, 2, 0, 0), expand=True)
            grid.add_column("key", width=longest)
            grid.add_column("type", ratio=11, overflow="fold")
            grid.add_column("default", ratio=7, overflow="fold")
            grid.add_column("meaning", ratio=15, overflow="fold")
            for key in section.keys:
                grid.add_row(*map(escape, (key.name, key.type, key.default or "required", key.meaning)))
            console.print(grid)
            _print_set_by_recipes(console, section.set_by_recipes(most))
        console.print()


def _print_set_by_recipes(console: Console, settings: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    if not settings:
        return
    console.print("\nSet otherwise by recipes:\n")
    grid = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    grid.add_column(width=2)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, values in settings:
        grid.add_row("", key, escape("; ".join(f"{recipes} {value}" for recipes, value in values)))
    console.print(grid)
