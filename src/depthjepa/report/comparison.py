"""The page of a comparison of backbones: who leads, all in one table, pictures side by side, then every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthjepa.columns import Column
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes import table as probes
from depthjepa.logbook import read_object, write_whole
from depthjepa.report.explorer import explorer
from depthjepa.report.first_screen import first_screen, opening_picture
from depthjepa.report.html import document, embed, record_table, section, text
from depthjepa.report.tables import READING, Row, Table, is_baseline, table_html
from depthjepa.runs import listed, read_runs

FILE = "compare.json"


def is_comparison(folder: Path) -> bool:
    """Whether a folder is that of a comparison."""
    return (folder / FILE).is_file()


def write_comparison(folder: Path, out: Path) -> None:
    """Write the page of what `compare` left in a folder; raises `BadInput` where it is damaged."""
    content = read_object(folder / FILE)
    names = [str(each["name"]) for each in content["backbones"]]
    runs = read_runs([folder / name for name in names])
    drawn = [(task.section.title, task.section.draw(runs)) for task in probes.TASKS if task.section is not None]
    tables = [_table(each, names[0]) for result in content["tables"] for each in (*result.get("sets", ()), result)]
    title = f"{listed(names if len(names) <= 4 else [*names[:3], f'{len(names) - 3} more'])} on {content['data']}"
    sentences = [str(each["sentence"]) for each in content["leads"]]
    ranked = content["leads"][0]["task"] if sentences else ""
    more = [
        table_html(_overview(content), names, brief=True),
        READING,
        f"<ul>{''.join(f'<li>{text(each)}</li>' for each in sentences[1:])}</ul>" if sentences[1:] else "",
        f'<p class="soft">{text(_view(content))}</p>',
    ]
    page = document(
        title,
        [
            first_screen("depthjepa comparison", title, sentences[:1], opening_picture(runs, ranked), more),
            *(section(heading, [embed(each) for each in pictures]) for heading, pictures in drawn),
            explorer(runs),
            section("In numbers", [READING, *(table_html(each, names) for each in tables)]),
            section("What was compared", [record_table(_backbones(content["backbones"]))]),
        ],
    )
    write_whole(out, page)


def _table(content: Mapping[str, Any], first: str) -> Table:
    """A stored table of all backbones; `first` is the one whose initial weights have a row without its name."""
    columns = {column.key: column for column in map(Column.of, content["columns"])}
    rows = [
        Row(row_name(row["name"], first), "baseline" if is_baseline(row["name"]) else "run", row)
        for row in content["rows"]
    ]
    return Table(content["task"], content["data"], content["protocol"], columns, rows)


def row_name(name: str, first: str) -> str:
    """The name of a row among several backbones, where initial weights are somebody's."""
    return f"{RANDOM}, {first}" if name == RANDOM else name


def _view(content: Mapping[str, Any]) -> str:
    (height, width), (rows, cols) = content["view"]["image_size"], content["view"]["grid"]
    return (
        f"All are judged on the same images and the same {rows} x {cols} patches of a view of {height} x {width} px. "
        f"Each sees the whole photograph at the size that is given below, and its tokens are brought to that grid."
    )


def _overview(content: Mapping[str, Any]) -> Table:
    """The figures that the tasks are ranked by, side by side."""
    columns = {column.key: column for column in map(Column.of, content["columns"])}
    rows = [
        Row(row["name"], "baseline" if is_baseline(row["name"]) else "run", {key: row.get(key) for key in columns})
        for row in content["rows"]
    ]
    return Table(
        "compare", content["data"], "", columns, [row for row in rows if any(map(_known, row.values.values()))]
    )


def _known(value: object) -> bool:
    return value is not None


def _backbones(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        str(each["name"]): {
            "given as": str(each["source"]),
            "sees": "{} x {} px".format(*each["sees"]),
            "its own patches": "{} x {}".format(*each["grid"]),
            "width": str(each["width"]),
            "parameters": f"{each['parameters'] / 1e6:,.2f} million" if each["parameters"] else "–",
            "found": str(each["found"]) or "–",
        }
        for each in entries
    }
