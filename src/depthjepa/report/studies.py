"""The part of a report that is about a study: what may be claimed, and every run as a dot beside its arm's interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from depthjepa.columns import Column, format_spreads
from depthjepa.drawing import charts
from depthjepa.drawing.panels import Captioned
from depthjepa.logbook import read_object
from depthjepa.report.first_screen import KIND, first_screen
from depthjepa.report.html import document, embed, section, text
from depthjepa.report.tables import Kind, Row, Table, table_html

FILE = "study.json"
MOST = 4  # measures that are drawn


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study."""
    return (folder / FILE).is_file()


def read_study(folder: Path) -> dict[str, Any]:
    """Read a study's content; raises `BadInput` where it is damaged."""
    return read_object(folder / FILE)


def first_runs(folder: Path, content: Mapping[str, Any]) -> list[Path]:
    """Folders of the finished runs of the first seed, for pictures; those that are kept."""
    seed = content["seeds"][0]
    places = [folder / run["arm"] / f"seed-{run['seed']}" for run in content["runs"] if run["seed"] == seed]
    return [place for place in places if (place / "config.yaml").is_file()]


def study_opening(content: Mapping[str, Any], title: str, more: Sequence[str] = ()) -> str:
    """The first screen of a page about a study: its question, what may be claimed, its arms as dots and in a table."""
    sentences = [line.removeprefix("- ") for line in content.get("sentences", [])][:1]
    drawn = [figure for figure in (_dots(content, column) for column in _shown(content)[:1]) if figure is not None]
    question = f'<p class="soft">{text(content["about"])}</p>' if content["about"] else ""
    return first_screen(KIND, title, sentences, next(iter(drawn), None), [_table(content), question, *more])


def study_section(content: Mapping[str, Any], *, opened: bool = False) -> str:
    """What the study says: sentences, then dots; without what the first screen has shown of one that is `opened`."""
    sentences = [line.removeprefix("- ") for line in content.get("sentences", [])]
    parts = [f"<p>{text(content['about'])}</p>"] if content["about"] and not opened else []
    parts += [f"<p><b>The source paper printed:</b> {text(content['printed'])}</p>"] if content.get("printed") else []
    parts += [f"<ul>{''.join(f'<li>{text(line)}</li>' for line in sentences)}</ul>"] if sentences else []
    drawn = [_dots(content, column) for column in _shown(content)[int(opened) :]]
    return section(f"Study {content['name']}", [*parts, *(embed(each) for each in drawn if each is not None)])


def studies_page(studies: Sequence[Mapping[str, Any]]) -> str:
    """The page of studies of which no run folder is kept, as in a repository's results."""
    title = ", ".join(content["name"] for content in studies)
    return document(title, [study_opening(studies[0], title), *study_sections(studies)])


def study_sections(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sections of studies, the first of which is on the first screen."""
    return [study_section(content, opened=not number) for number, content in enumerate(studies)]


def _shown(content: Mapping[str, Any]) -> list[Column]:
    """The measures that matter: those that claims are about, then those that tell better from worse."""
    columns = {column.key: column for column in map(Column.of, content["columns"])}
    keys = [claim["measure"] for claim in content.get("claims", [])]
    # Not how well a readout fits what it was fitted on.
    keys += [key for key, column in columns.items() if column.better and "train" not in key]
    return [columns[key] for key in list(dict.fromkeys(keys))[:MOST] if key in columns]


def _label(column: Column) -> str:
    return f"{column.key.partition('.')[0]}: {column.label}"


def _table(content: Mapping[str, Any]) -> str:
    """Means ± deviations over the seeds of what matters, arm by arm, below what took no pretraining."""
    columns = {column.key: replace(column, label=_label(column)) for column in _shown(content)}
    arms = {arm: [run["figures"] for run in content["runs"] if run["arm"] == arm] for arm in content["arms"]}
    rows: dict[str, tuple[Kind, Mapping[str, Any]]]
    rows = {row["name"]: ("baseline", row["figures"]) for row in content["baselines"]}
    rows |= {arm: ("run", {key: _spread(key, runs) for key in columns}) for arm, runs in arms.items()}
    written = {key: format_spreads([figures.get(key) for _, figures in rows.values()]) for key in columns}
    found = Table("study", "", "", columns)
    for number, (name, (kind, figures)) in enumerate(rows.items()):
        if any(figures.get(key) for key in columns):
            found.rows.append(Row(name, kind, {key: written[key][number] for key in columns}))
    return table_html(found, list(content["arms"]), brief=True) if found.rows else ""


def _spread(key: str, runs: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    values = [figures[key] for figures in runs if key in figures]
    if not values:
        return None
    deviation = {"deviation": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return {"mean": float(np.mean(values)), **deviation}


def _dots(content: Mapping[str, Any], column: Column) -> Captioned | None:
    key = column.key
    values = {
        arm: [run["figures"][key] for run in content["runs"] if run["arm"] == arm and key in run["figures"]]
        for arm in content["arms"]
    }
    values = {arm: each for arm, each in values.items() if each}
    if not values:
        return None
    baselines = {
        row["name"]: row["figures"][key]["mean"] for row in content["baselines"] if row["figures"].get(key) is not None
    }
    label = f"{_label(column)} [{column.unit}]" if column.unit else _label(column)
    intervals = {arm: _interval(each) for arm, each in values.items()}
    figure = charts.arm_dots(values, intervals, baselines, label)
    seen = (
        f"{label} ({column.better or ''} is better). Each dot is a run, its colour the arm; the bar is the "
        f"95 % t interval of the mean over seeds. Lines are yardsticks that took no pretraining. Arms of a seed "
        f"share weights, order and masks, and claims are made of their paired differences, so bars may overlap."
    )
    return Captioned(figure, seen, "the dots of all arms would lie in one cloud, or left of the yardsticks' lines.")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the mean's 95 % t interval over seeds; the value itself of a single seed, or where all are equal."""
    from scipy import stats

    error = stats.sem(values) if len(set(values)) > 1 else 0.0
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (values[0],) * 2
    return float(low), float(high)
