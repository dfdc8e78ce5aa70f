"""The first screen of a page: what came out in a sentence or two, one picture, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from depthjepa.columns import Column, format_column
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.gathering import RANDOM, RAW
from depthjepa.evaluation.leads import Lead, lead
from depthjepa.evaluation.probes import table as probes
from depthjepa.evaluation.teacher_rows import ITSELF, READ_OUT
from depthjepa.report.html import embed, text
from depthjepa.report.sections import feature_figures
from depthjepa.report.tables import READING, Table, overview, table_html
from depthjepa.runs import Run, read_arrays

KIND = "depthjepa report"
IMAGES = 2  # of the picture
MOST = 6  # columns of the table
TAUGHT = (READ_OUT, ITSELF)  # rows that are neither a run's nor of what took no pretraining
UNTRAINED = {RANDOM: "random_", RAW: "raw_"}  # what figures of their single images begin with, where they are kept


def first_screen(kind: str, title: str, answer: Sequence[str], picture: Captioned | None, more: Sequence[str]) -> str:
    """What the page is, its answer and what is to be known with it, a picture, and what else belongs there (HTML)."""
    said = "".join(f'<p class="lead">{text(sentence)}</p>' for sentence in answer[:1])
    said += "".join(f'<p class="soft">{text(sentence)}</p>' for sentence in answer[1:])
    shown = "" if picture is None else embed(picture, folded=True)
    head = f'<p class="soft">{text(kind)}</p>\n<h1>{text(title)}</h1>'
    return f'<div class="answer">{head}\n{said}\n{shown}\n{"".join(more)}</div>\n<p class="folding"></p>'


def asked_last(tables: Sequence[Table]) -> Table | None:
    """The table of the probe that was asked for last; None where none ranks its rows.

    What diagnoses tell beside counts only where there is no probe; of several probes at once it is the first.
    """
    ranking = [table for table in tables if table.ranked]
    asked = [table for table in ranking if table.task in probes.of_command("probe")] or ranking
    return max(asked, key=lambda table: table.probed, default=None)


def answer(runs: Sequence[Run], table: Table) -> list[str]:
    """Which run is ahead by the figure that a table ranks by, and whether it beats what took no pretraining.

    Intervals are bootstraps over the places that the images are of, from the figures of single images that run folders
    keep. They hold for these very networks: a run trained with another seed is another one.
    """
    column, judged = table.ranked[0], {row.name for row in table.rows if row.kind == "run"}
    figures = table.figures(column.key)
    best = _best({name: figure for name, figure in figures.items() if name in judged}, column)
    yardstick = _best({name: figure for name, figure in figures.items() if name not in {*judged, *TAUGHT}}, column)
    if best is None:
        return []
    arrays = _arrays(runs, table)
    leading = _lead(table, {name: arrays.get(name, {}) for name in figures if name in judged})
    where = f" on {table.data}" if table.data else ""
    if leading is None:
        (written,) = format_column([figures[best]])
        first = f"{column.measure}{where} ({table.task}, {column.better} is better): {best} has {written}."
    else:
        first = f"{column.label}{where} ({table.task}): {leading.words}."
    beside = []
    if yardstick is not None:
        row = next(each for each in table.rows if each.name == yardstick)
        untrained = _untrained(arrays.get(row.of, {}), row.called)
        against = _lead(table, {best: arrays.get(best, {}), yardstick: untrained})
        beside.append(f"The best without pretraining, {yardstick}: {against.words}." if against else "")
    for teacher in [name for name in TAUGHT if name in figures][:1]:
        beside.append(f"The {teacher} has {format_column([figures[teacher]])[0]}.")
    if leading is not None:
        beside.append("One run of each: how much another seed would change is not in these figures.")
    return [first, *filter(None, [" ".join(beside)])]


def _best(figures: Mapping[str, float], column: Column) -> str | None:
    sign = -1 if column.better == "lower" else 1
    return max(figures, key=lambda name: sign * figures[name], default=None)


def _lead(table: Table, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Lead | None:
    return lead(probes.tasks()[table.task], table.content(), arrays)


def _arrays(runs: Sequence[Run], table: Table) -> dict[str, dict[str, np.ndarray]]:
    """Figures of single images by run, of those whose images are of the same places, one by one, as the first's."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for run in runs:
        stored = read_arrays(run, f"probes/{table.stems[run.name]}.npz") if run.name in table.stems else None
        if stored is None or "group" not in stored:
            continue
        if all(np.array_equal(stored["group"], other["group"]) for other in found.values()):
            found[run.name] = stored
    return found


def _untrained(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A run's arrays with the figures of a row that took no pretraining in place of its own; empty without them."""
    beginning = UNTRAINED.get(name)
    own = {key: values for key, values in arrays.items() if beginning and key.startswith(beginning)}
    return {**arrays, **{key.removeprefix(str(beginning)): values for key, values in own.items()}} if own else {}


def opening_picture(runs: Sequence[Run], task: str) -> Captioned | None:
    """The maps of a task with few images, else those of another task, else the features; None where nothing is kept."""
    rows = sorted(probes.TASKS, key=lambda row: row.name != task)
    for section in [row.section for row in rows if row.section is not None and row.section.maps]:
        if drawn := section.draw(runs, images=IMAGES):
            return drawn[0]
    return next(iter(feature_figures(runs, IMAGES)), None)


def opening_table(tables: Sequence[Table], runs: Sequence[str]) -> str:
    """The figures that matter of all tables, side by side; `runs` gives the colours. Empty without any."""
    found = overview(tables)
    found.columns = dict(list(found.columns.items())[:MOST])
    found.rows = [row for row in found.rows if found.columns.keys() & row.values.keys()]
    return table_html(found, runs, brief=True) + READING if found.rows else ""
