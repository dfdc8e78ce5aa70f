"""Probe results of several runs -> merged tables -> HTML.

A probe result is a mapping with `task`, `data`, `protocol` (one sentence), `columns` (see `columns.Column`), `rows`
(each `name` and values by column key) and, where there is something to say in words, `verdict` (sentences). Figures
stand in one table only where task, data and protocol are equal. Baselines are shown once, unless their figures differ
between runs. A column that does not say its meaning is explained by the task's own row in `evaluation.probes.table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from depthjepa.columns import Column, format_column, is_number, meaning_of
from depthjepa.evaluation.gathering import is_random
from depthjepa.evaluation.leads import shown_of
from depthjepa.evaluation.probes import table as probes
from depthjepa.faults import BadInput
from depthjepa.report.html import run_label, text

READING = (
    '<p class="soft">↑ higher is better, ↓ lower is better; the best figure of a column is bold. Shaded rows '
    "are yardsticks: a teacher's own maps, and what took no pretraining, which a run beats by what it has learned.</p>"
)
Kind = Literal["baseline", "run"]
FEW_COLUMNS = 4  # more of them stand close
FEW = 3  # columns of one meaning that are all named


@dataclass(frozen=True, slots=True)
class Row:
    """One model's figures by column key. A baseline is a yardstick that no run trained."""

    name: str
    kind: Kind
    values: Mapping[str, Any]
    of: str = ""  # the run in whose table it stands, and
    called: str = ""  # what it is called there


@dataclass(slots=True)
class Table:
    """Rows of all runs for one task, data and protocol; `columns` by their keys; when the newest was asked for."""

    task: str
    data: str
    protocol: str
    columns: dict[str, Column] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    probed: str = ""  # older results do not say
    stems: dict[str, str] = field(default_factory=dict)  # by run: of the files of the table and of its arrays

    def figures(self, key: str) -> dict[str, float]:
        """The finite figures of one column by the names of their rows."""
        return {row.name: row.values[key] for row in self.rows if is_number(row.values.get(key))}

    @property
    def ranked(self) -> list[Column]:
        """The column that rows are ranked by, and the one beside it; empty of a table that ranks nothing."""
        task = probes.tasks().get(self.task)
        return [] if task is None else shown_of(task, self.content())

    def content(self) -> dict[str, Any]:
        """Columns and rows as run folders keep them."""
        columns = [column.to_json() for column in self.columns.values()]
        return {"columns": columns, "rows": [{**row.values, "name": row.name} for row in self.rows]}

    def written(self, key: str) -> list[str]:
        """One column as it is displayed, row by row."""
        return format_column([row.values.get(key) for row in self.rows])


def merge_tables(probed: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """Merge the probe results of runs (run name -> its results), baselines first, then runs in their order.

    Raises:
        BadInput: a result without `task`, `columns` or `rows`.
    """
    tables: dict[tuple[str, str, str], Table] = {}
    for run, results in probed.items():
        for result in results:
            for key in ("task", "columns", "rows"):
                if key not in result:
                    raise BadInput(f"a probe result of run {run!r} has no {key!r}")
            # Each of several data sets by itself, and then all together.
            for each in (*result.get("sets", ()), result):
                place = (str(each["task"]), str(each.get("data", "")), str(each.get("protocol", "")))
                table = tables.setdefault(place, Table(*place))
                _add(table, each, run, set(probed))
                if "stem" in each:
                    table.stems[run] = each["stem"]
    for table in tables.values():
        table.rows.sort(key=lambda row: row.kind != "baseline")
    order = list(probes.tasks())
    return sorted(tables.values(), key=lambda t: order.index(t.task) if t.task in order else len(order))


def overview(tables: Sequence[Table]) -> Table:
    """The figures that the rows of tables are ranked by, of all tables in one; of one or two also those beside them."""
    found = Table("overview", "", "")
    kinds: dict[str, Kind] = {}
    values: dict[str, dict[str, float]] = {}
    for number, table in enumerate(tables):
        several = len({each.data for each in tables if each.task == table.task}) > 1
        for column in table.ranked[: 2 if len(tables) < FEW else 1]:
            label = f"{table.task}: {column.label}" if len(tables) > 1 else column.label
            label += f" on {table.data}" * several
            label += ", another protocol" * any(each.label == label for each in found.columns.values())
            key = f"{number}.{column.key}"
            found.columns[key] = replace(column, key=key, label=label)
            for row in table.rows:
                if is_number(figure := row.values.get(column.key)):
                    kinds.setdefault(row.name, row.kind)
                    values.setdefault(row.name, {})[key] = figure
    found.rows = [Row(name, kinds[name], values[name]) for name in sorted(values, key=lambda name: kinds[name])]
    return found


def is_baseline(name: str) -> bool:
    """Whether a row is a yardstick that took no pretraining: a guess, or a network at its initial weights."""
    return name in probes.baselines() or is_random(name)


def _add(table: Table, result: Mapping[str, Any], run: str, runs: set[str]) -> None:
    table.probed = max(table.probed, str(result.get("probed", "")))
    for column in map(Column.of, result["columns"]):
        table.columns.setdefault(column.key, _explained(column, table.task))
    own = [row["name"] for row in result["rows"] if not is_baseline(row["name"])]
    for row in result["rows"]:
        values = {key: value for key, value in row.items() if key != "name"}
        name, baseline = row["name"], is_baseline(row["name"])
        if own == [name]:
            name = run
        elif not baseline and name not in runs:
            name = f"{run}: {name}"
        there = next((each for each in table.rows if each.name == name), None)
        if there is not None and there.values == values:
            continue
        if there is not None:
            name = f"{name}, {run}"
        table.rows.append(Row(name, "baseline" if baseline else "run", values, run, row["name"]))
    table.remarks += [f"{run}: {sentence}" for sentence in result.get("verdict", [])]
    step, asked = result.get("step"), result.get("of_steps")
    if is_number(step) and is_number(asked) and step < asked:
        table.remarks.append(f"{run}: the weights are those of step {step:,} of {asked:,}")


def _explained(column: Column, task: str) -> Column:
    """The column with its meaning: its own, or that of the task's row, never another task's."""
    known = probes.tasks().get(task)
    if column.meaning or known is None:
        return column
    return replace(column, meaning=meaning_of(known.columns, column.key))


def best_rows(table: Table, key: str) -> set[str]:
    """Return the rows whose figure is the best of column `key` as displayed.

    None for a column without a better direction or with fewer than two figures.
    """
    better, figures = table.columns[key].better, table.figures(key)
    if better is None or len(figures) < 2:
        return set()
    written = dict(zip(figures, format_column(list(figures.values())), strict=True))
    best = (max if better == "higher" else min)(figures, key=lambda name: figures[name])
    return {name for name in figures if written[name] == written[best]}


def table_html(table: Table, runs: Sequence[str], *, brief: bool = False) -> str:
    """Return a heading, the protocol, the table, and its remarks; `runs` gives the colours of the runs.

    `brief` is the table alone.
    """
    units = any(column.unit for column in table.columns.values())
    header = "".join(_head(column, units) for column in table.columns.values())
    best = {key: best_rows(table, key) for key in table.columns}
    columns = {key: table.written(key) for key in table.columns}
    lines = []
    for number, row in enumerate(table.rows):
        cells = ""
        for key, written in columns.items():
            figure = text(written[number])
            figure = f"<b>{figure}</b>" if row.name in best[key] else figure
            cells += f'<td data-column="{text(_heading(table.columns[key]))}">{figure}</td>'
        style = ' class="baseline"' if row.kind == "baseline" else ""
        lines.append(f"<tr{style}><td>{run_label(row.name, runs)}</td>{cells}</tr>")
    kind = "figures wide" if len(table.columns) > FEW_COLUMNS else "figures"
    grid = (
        f'<div class="scroll"><table class="{kind}">\n<thead><tr><th></th>{header}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>\n"
    )
    if brief:
        return grid
    known = probes.tasks().get(table.task)
    where = f" on {text(table.data)}" if table.data else ""
    remarks = "".join(f"<li>{text(remark)}</li>" for remark in table.remarks)
    return (
        f"<h3>{text(table.task if known is None else known.title)}{where}</h3>\n"
        f'<p class="soft">{text(table.protocol)}</p>\n{grid}'
        + _meanings(table.columns.values())
        + (f"\n<ul>{remarks}</ul>" if remarks else "")
    )


def _meanings(columns: Iterable[Column]) -> str:
    """What the columns mean; those that follow one another and mean the same share a line."""
    lines = ""
    for meaning, group in groupby(columns, key=lambda column: column.meaning):
        labels = [column.label for column in group]
        shown = labels if len(labels) <= FEW else [labels[0], "…", labels[-1]]
        lines += f"<p class='soft'><b>{text('; '.join(shown))}</b>: {text(meaning)}.</p>" if meaning else ""
    return lines


def _heading(column: Column) -> str:
    """What stands beside a figure where there is no room for a head: label, direction, unit."""
    return " ".join(filter(None, [column.label, column.arrow, f"[{column.unit}]" if column.unit else ""]))


def _head(column: Column, units: bool) -> str:
    """`units`: whether a column of the table has one."""
    hint = f' title="{column.better} is better"' if column.better else ""
    unit = f"<small>{text(column.unit) or '&nbsp;'}</small>" if units else ""
    return f"<th{hint}>{text(column.label)}&nbsp;{column.arrow}{unit}</th>"
