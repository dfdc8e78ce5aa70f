"""The part of a report that is about a study: what may be claimed, and every run as a dot beside its arm's interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depthjepa.columns import Column
from depthjepa.drawing import charts
from depthjepa.drawing.panels import Captioned
from depthjepa.logbook import read_object
from depthjepa.report.html import document, embed, section, text

FILE = "study.json"
MOST = 4  # figures


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


def study_section(content: Mapping[str, Any]) -> str:
    """What the study says: sentences, then dots."""
    said = [line.removeprefix("- ") for line in content.get("sentences", [])]
    parts = [f"<p>{text(content['about'])}</p>"] if content["about"] else []
    parts += [f"<p><b>The source paper printed:</b> {text(content['printed'])}</p>"] if content.get("printed") else []
    parts += [f"<ul>{''.join(f'<li>{text(line)}</li>' for line in said)}</ul>"] if said else []
    columns = {column.key: column for column in map(Column.of, content["columns"])}
    keys = list(dict.fromkeys(claim["measure"] for claim in content.get("claims", [])))
    # Not how well a readout fits what it was fitted on.
    headline = [key for key, column in columns.items() if column.better and "train" not in key]
    keys += [key for key in headline if key not in keys]
    drawn = [_dots(content, columns[key]) for key in keys[:MOST] if key in columns]
    return section(f"Study {content['name']}", [*parts, *(embed(each) for each in drawn if each is not None)])


def studies_page(studies: Sequence[Mapping[str, Any]]) -> str:
    """The page of studies of which no run folder is kept, as in a repository's results."""
    title = ", ".join(content["name"] for content in studies)
    head = f'<p class="soft">depthjepa report</p>\n<h1>{text(title)}</h1>'
    return document(title, [head, *(study_section(content) for content in studies)])


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
    label = f"{key.partition('.')[0]}: {column.measure}"
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
