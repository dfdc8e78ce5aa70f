"""Which of several encoders leads a table, and by how much: a bootstrap over the places that the images are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from depthjepa import runtime
from depthjepa.columns import Column, is_number
from depthjepa.evaluation.probes.task import Resampled, Task

RESAMPLES = 2000
SHOWN = 2  # columns of a task in the one table of a comparison
FEWEST = 6  # groups: with fewer, resamples of them repeat a handful of values


@dataclass(frozen=True, slots=True)
class Lead:
    """The best encoder of a table by one figure, the next one, and the 95 % interval of their difference.

    `low` and `high` are None where there are too few groups or no figures of single images; `why` says so.
    """

    task: str
    column: Column
    first: str
    second: str
    difference: float  # first less second, in the figure's unit
    low: float | None
    high: float | None
    groups: int
    why: str

    @property
    def sentence(self) -> str:
        """What may be said of it, and by which figure."""
        return f"{self.task}, {self.column.label}: {self.words}."

    @property
    def words(self) -> str:
        """What may be said of it, as a clause."""
        unit = {"": "", "%": " points"}.get(self.column.unit, f" {self.column.unit}")
        size = f"{abs(self.difference):.3g}{unit}"
        ahead = f"{self.first} is ahead of {self.second} by {size}"
        if self.low is None or self.high is None:
            return f"{ahead} ({self.why})"
        # Of how far the first is ahead: where less is better, the difference itself is below 0.
        ends = sorted((self.low, self.high) if self.difference >= 0 else (-self.low, -self.high))
        interval = f"95 % interval {ends[0]:.3g} to {ends[1]:.3g}{unit}, bootstrap over {self.groups} groups"
        if self.low <= 0 <= self.high:
            return f"{self.first} and {self.second} cannot be told apart ({size}; {interval})"
        return f"{ahead} ({interval})"

    def to_json(self) -> dict[str, Any]:
        """As `compare.json` keeps it."""
        interval = {"low": self.low, "high": self.high, "groups": self.groups}
        figure = {"task": self.task, "key": self.column.key, "difference": self.difference}
        return {**figure, "first": self.first, "second": self.second, **interval, "sentence": self.sentence}


def shown_of(task: Task, table: Mapping[str, Any]) -> list[Column]:
    """The columns of a table that a comparison shows: that which its rows are ranked by, and the one beside it.

    Ranked by is the task's own choice, else the first column with a direction; never how well a readout fits what it
    was fitted on.
    """
    directed = [column for column in map(Column.of, table["columns"]) if column.better and "train" not in column.key]
    wanted = task.resampled.key if task.resampled is not None else ""
    return sorted(directed, key=lambda column: column.key != wanted)[:SHOWN]


def lead(task: Task, table: Mapping[str, Any], arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Lead | None:
    """Who leads among the rows whose arrays are given, by their names; None where fewer than two have a figure."""
    columns = shown_of(task, table)
    if not columns:
        return None
    column = columns[0]
    rows = {row["name"]: row[column.key] for row in table["rows"] if row["name"] in arrays}
    figures = {name: float(value) for name, value in rows.items() if is_number(value)}
    if len(figures) < 2:
        return None
    first, second = sorted(figures, key=lambda name: figures[name], reverse=column.better == "higher")[:2]
    low, high, groups, why = _interval(task.resampled, arrays[first], arrays[second])
    return Lead(task.name, column, first, second, figures[first] - figures[second], low, high, groups, why)


def _interval(
    resampled: Resampled | None, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> tuple[float | None, float | None, int, str]:
    if resampled is None or "group" not in first or "group" not in second:
        return None, None, 0, "no interval: figures of single images are not kept"
    names, of = np.unique(first["group"], return_inverse=True)
    if "" in names:
        return None, None, 0, "no interval: nothing tells which scene or place an image is of"
    if len(names) < FEWEST:
        return None, None, len(names), f"no interval: {len(names)} groups, fewer than {FEWEST}"
    found = [
        resampled.figure(first, counts) - resampled.figure(second, counts) for counts in _resamples(of, len(names))
    ]
    low, high = np.nanquantile(found, [0.025, 0.975]).tolist()
    return low, high, len(names), ""


def _resamples(of: np.ndarray, groups: int) -> Float64[np.ndarray, "resamples images"]:
    """How often each image counts when its groups are drawn anew, with replacement."""
    drawn = runtime.uniforms(groups, seed=0, stream="bootstrap of groups", epoch=0, indices=np.arange(RESAMPLES))
    counts = np.zeros((RESAMPLES, groups))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], (drawn * groups).astype(np.int64)), 1)
    weights: Float64[np.ndarray, "resamples images"] = counts[:, of]
    return weights
