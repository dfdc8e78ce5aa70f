"""Probe results of several runs -> merged tables -> HTML.

A probe result is a mapping with `task`, `data`, `protocol` (one sentence), `columns` (each `key`, `label`,
and where they apply `unit` and `better`: higher or lower), `rows` (each `name` and values by column key) and,
where there is something to say in words, `verdict` (sentences). Figures stand in one table only where task,
data and protocol are equal. Baselines are shown once, unless their figures differ between runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from depthjepa.faults import BadInput
from depthjepa.report.html import run_label, text

BASELINES = ("mean map", "chance", "majority class", "random encoder")
TASKS = {
    "depth": "Depth from frozen features",
    "decode": "Depth as the run's own head decodes it",
    "knn": "Classification by nearest neighbours",
    "linear": "Linear classification",
    "mlp": "Classification with two layers",
    "attentive": "Classification with attentive pooling",
    "diagnose": "Diagnostics of the features",
    "gates": "Gates: why depth decodes or does not",
    "guidance": "What the guidance head says of held-out images",
    "guidance-layers": "What each block knows of the teacher's latents (R² within images)",
    "guidance-alignment": "How the features of each block align with the teacher's (CKA less chance)",
}
MEANINGS = {
    "r2_within": "share of the disparity's variation within an image that is explained, once the training "
    "set's mean map and each image's own mean are taken away; 0 is the mean map, 1 is perfect",
    "r2_position": "share of the disparity's variation about the training set's mean map that is explained",
    "r2_between": "share of the variation of the images' mean disparities that is explained",
    "absrel": "mean of |predicted − true depth| ÷ true depth",
    "rmse": "root of the mean squared error of depth",
    "delta1": "share of cells whose depth is wrong by less than a factor of 1.25",
    "aligned_absrel": "the same once scale and shift of each image are fitted to its ground truth",
    "aligned_delta1": "the same once scale and shift of each image are fitted to its ground truth",
    "sqrel": "mean of (predicted − true depth)² ÷ true depth",
    "rmselog": "root of the mean squared difference of the logarithms of depth",
    "log10": "mean difference of the decimal logarithms of depth",
    "silog": "100 times the deviation of the differences of the logarithms within an image",
    "rank_me": "effective number of dimensions of the features, their mean included",
    "effective_rank": "effective number of dimensions in which the features of images differ",
    "dead_dimensions": "share of the dimensions that do not vary over images",
    "position_share": "share of the tokens' variation that their place explains; near 1, they hardly depend "
    "on the image",
    "image_share": "share of the tokens' variation that the mean of their image explains",
    "floor_ratio": "guidance loss over that of the mean map: 1 is nothing learned",
    "channels_above_mean": "share of the teacher's channels that are told better than by their mean map",
    "gradient_correlation": "do neighbouring cells differ as the teacher's do; 0 is no structure, 1 the same edges",
    "gradient_energy": "size of the differences of neighbouring cells over the teacher's: below 0.3 a blur, above 1.5 "
    "noise",
    "specificity_auc": "how often the map is nearer to its own image's than to another's; 0.5 is chance",
    "retrieval_top1": "how often the own image's map is the nearest of all candidates",
    "pull": "size of the guidance loss's gradient at the context encoder over that of all other losses",
    "pull_cosine": "cosine of the two gradients; below 0 they work against each other",
}
ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(slots=True)
class Table:
    """Rows of all runs for one task, data and protocol: row name -> values by column key."""

    task: str
    data: str
    protocol: str
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def merge_tables(probes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """Merge the probe results of runs (run name -> its results), baselines first, then runs in their order.

    Raises:
        BadInput: a result without `task`, `columns` or `rows`.
    """
    tables: dict[tuple[str, str, str], Table] = {}
    for run, results in probes.items():
        for result in results:
            for key in ("task", "columns", "rows"):
                if key not in result:
                    raise BadInput(f"a probe result of run {run!r} has no {key!r}")
            place = (str(result["task"]), str(result.get("data", "")), str(result.get("protocol", "")))
            _add(tables.setdefault(place, Table(*place)), result, run, set(probes))
    for table in tables.values():
        table.rows = dict(sorted(table.rows.items(), key=lambda row: not is_baseline(row[0])))
    order = list(TASKS)
    return sorted(tables.values(), key=lambda t: order.index(t.task) if t.task in order else len(order))


def is_baseline(name: str) -> bool:
    """Whether a row is a yardstick that no run trained (its name may go on with the run it came with)."""
    return any(name == baseline or name.startswith(f"{baseline}, ") for baseline in BASELINES)


def _add(table: Table, result: Mapping[str, Any], run: str, runs: set[str]) -> None:
    for column in result["columns"]:
        table.columns.setdefault(column["key"], column)
    own = [row["name"] for row in result["rows"] if row["name"] not in BASELINES]
    for row in result["rows"]:
        values = {key: value for key, value in row.items() if key != "name"}
        name = row["name"]
        if own == [name]:
            name = run
        elif name not in BASELINES and name not in runs:
            name = f"{run}: {name}"
        if name in table.rows and table.rows[name] != values:
            name = f"{name}, {run}"
        table.rows[name] = values
    table.remarks += [f"{run}: {sentence}" for sentence in result.get("verdict", [])]


def best_rows(table: Table, key: str) -> set[str]:
    """Return the rows whose figure is the best of column `key` as displayed.

    None for a column without a better direction or with fewer than two figures.
    """
    better = table.columns[key].get("better")
    figures = {name: values[key] for name, values in table.rows.items() if is_number(values.get(key))}
    if better not in ARROWS or len(figures) < 2:
        return set()
    written = dict(zip(figures, format_column(list(figures.values())), strict=True))
    best = (max if better == "higher" else min)(figures, key=lambda name: figures[name])
    return {name for name in figures if written[name] == written[best]}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_column(values: Sequence[Any]) -> list[str]:
    """Write the values of one column with equal decimals; a dash where there is no figure."""
    numbers = [value for value in values if is_number(value)]
    largest = max((abs(value) for value in numbers), default=0.0)
    whole = all(float(value).is_integer() for value in numbers)
    if whole and (largest >= 10 or all(isinstance(value, int) for value in numbers)):
        style = ",.0f"
    elif 0 < largest < 0.01:
        style = ".1e"
    else:
        style = ",.1f" if largest >= 100 else ".2f" if largest >= 10 else ".3f"
    return [_written(value, style) for value in values]


def _written(value: Any, style: str) -> str:
    if is_number(value):
        return format(value, style).replace("-", "−")
    return value if isinstance(value, str) else "–"


def table_html(table: Table, runs: Sequence[str]) -> str:
    """Return a heading, the protocol, the table, and its remarks; `runs` gives the colours of the runs."""
    header = "".join(_head(column) for column in table.columns.values())
    best = {key: best_rows(table, key) for key in table.columns}
    columns = {
        key: dict(zip(table.rows, format_column([v.get(key) for v in table.rows.values()]), strict=True))
        for key in table.columns
    }
    lines = []
    for name in table.rows:
        cells = "".join(
            f"<td><b>{text(written[name])}</b></td>" if name in best[key] else f"<td>{text(written[name])}</td>"
            for key, written in columns.items()
        )
        style = ' class="baseline"' if is_baseline(name) else ""
        lines.append(f"<tr{style}><td>{run_label(name, runs)}</td>{cells}</tr>")
    where = f" on {text(table.data)}" if table.data else ""
    remarks = "".join(f"<li>{text(remark)}</li>" for remark in table.remarks)
    meanings = "".join(
        f"<p class='soft'><b>{text(column.get('label', key))}</b>: {MEANINGS[key]}.</p>"
        for key, column in table.columns.items()
        if key in MEANINGS
    )
    return (
        f"<h3>{text(TASKS.get(table.task, table.task))}{where}</h3>\n"
        f'<p class="soft">{text(table.protocol)}</p>\n<div class="scroll"><table>\n'
        f"<thead><tr><th></th>{header}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>\n"
        + meanings
        + (f"\n<ul>{remarks}</ul>" if remarks else "")
    )


def _head(column: Mapping[str, Any]) -> str:
    arrow = ARROWS.get(str(column.get("better")), "")
    hint = f' title="{column["better"]} is better"' if arrow else ""
    unit = f"<small>{text(column['unit'])}</small>" if column.get("unit") else "<small>&nbsp;</small>"
    return f"<th{hint}>{text(column.get('label', column['key']))}&nbsp;{arrow}{unit}</th>"
