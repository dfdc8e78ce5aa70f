"""Columns of tables: what a figure is called, its unit, which way is better, what it means, and how it is written.

A task of `evaluation.probes` owns its columns; run folders keep them beside the rows, and everything that shows a table
reads them there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

Better = Literal["higher", "lower"]
ARROWS: dict[str, str] = {"higher": "↑", "lower": "↓"}
NUMBER = "#"  # stands at the end of the key of a column that comes once for each of several numbers
NAME = "*"  # the same for several names


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `unit` is empty for a pure number; `better` is None for what is no merit and for words.

    A key that ends in `#` or `*` is that of a family: `block_#` with the label `block #` is block_1, block_2, ..., and
    `iou_*` with the label `* IoU` is iou_sky, iou_road, ...
    """

    key: str
    label: str
    meaning: str  # a clause without its full stop; empty in files that did not say
    unit: str = ""
    better: Better | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Column:
        """Read a column of a stored table; what it does not say is empty."""
        better = content.get("better")
        return cls(
            key=content["key"],
            label=content.get("label", content["key"]),
            meaning=content.get("meaning", ""),
            unit=content.get("unit", ""),
            better=better if better in ARROWS else None,
        )

    def to_json(self) -> dict[str, str]:
        """As run folders keep it; `better` is left out where there is no direction."""
        better = {} if self.better is None else {"better": self.better}
        return {"key": self.key, "label": self.label, "unit": self.unit, **better, "meaning": self.meaning}

    @property
    def arrow(self) -> str:
        """Which way is better; empty where neither is."""
        return ARROWS.get(self.better or "", "")

    @property
    def measure(self) -> str:
        """Label and unit: `RMSE [m]`."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    @property
    def head(self) -> str:
        """Label, unit and direction: `RMSE [m] ↓`."""
        return f"{self.measure} {self.arrow}".strip()

    @property
    def is_family(self) -> bool:
        """Whether it stands for several columns."""
        return self.key.endswith((NUMBER, NAME))

    def has(self, key: str) -> bool:
        """Whether a key is the column's own, or that of a member of the family."""
        if not self.is_family:
            return key == self.key
        beginning, kind = self.key[:-1], self.key[-1]
        more = key[len(beginning) :] if key.startswith(beginning) else ""
        return bool(more) and (kind == NAME or re.fullmatch(r"\d+", more) is not None)

    def member(self, key: str) -> Column:
        """The member of a family that has this key."""
        more = key.removeprefix(self.key[:-1])
        return replace(self, key=key, label=self.label.replace(self.key[-1], more))


def columns_of(columns: Iterable[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns for which a row has a figure, in their order; families in the order of the rows' figures."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown: list[Column] = []
    for column in columns:
        if column.is_family:
            shown += [column.member(key) for key in keys if column.has(key)]
        elif column.key in keys:
            shown.append(column)
    return shown


def meaning_of(columns: Iterable[Column], key: str) -> str:
    """What the column with this key means, among those of one task; empty where none has it."""
    found = [column for column in columns if column.has(key)]
    found.sort(key=lambda column: column.is_family)  # its own before a family's
    return found[0].meaning if found else ""


def table(
    task: str, data: str, protocol: str, columns: Iterable[Column], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A table as run folders keep it and the report reads it; of the `columns`, those that its rows have."""
    shown = [column.to_json() for column in columns_of(columns, rows)]
    return {"task": task, "data": data, "protocol": protocol, "columns": shown, "rows": list(rows)}


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


def format_spreads(spreads: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Write one column of `mean` ± `deviation`; the mean alone where there is no deviation, a dash without either."""
    means = [each["mean"] if each else None for each in spreads]
    deviations = [each.get("deviation") if each else None for each in spreads]
    written = format_column([*means, *deviations])
    pairs = zip(written[: len(spreads)], written[len(spreads) :], deviations, strict=True)
    return [mean if deviation is None else f"{mean} ± {text}" for mean, text, deviation in pairs]


def _written(value: Any, style: str) -> str:
    if is_number(value):
        return format(value, style).replace("-", "−")
    return value if isinstance(value, str) else "–"
