"""Numbers -> matplotlib figures with axes: losses, accuracies, layers, arms of a study. Pictures are in `figures`.

A run has one colour in all of them; a random encoder is grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from depthjepa.drawing.panels import FAINT, INK, PAGE_WIDTH, run_colour

LOSS_TITLES = {
    "loss_jepa": "latent prediction loss (I-JEPA)",
    "loss_depth": "depth loss",
    "loss_classes": "class loss (cross-entropy)",
    "loss_visible": "latent loss of visible patches",
    "loss_pixel": "pixel loss",
    "loss_variance": "variance term",
    "loss_covariance": "covariance term",
    "loss_gaussian": "gaussianity term (SIGReg)",
    "loss": "loss",
}
LOSSES_A_ROW = 3
DASHES = ((1, 2), (5, 3), (5, 2, 1, 2), (10, 3), (5, 2, 1, 2, 1, 2))  # of yardsticks: ink and gap, in line widths
SCHEDULES = {"lr": "learning rate", "momentum": "momentum of the target encoder"}


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    floors: Mapping[str, float] | None = None,
    frozen: Mapping[str, int] | None = None,
) -> Figure:
    """Draw one panel a loss, and small ones for learning rate and momentum, against the step.

    Args:
        runs: name -> logged steps, each with `step` and any of `loss_*`, `loss`, `lr`, `momentum`. A run
            without a quantity is left out of its panel.
        floors: name -> depth loss of the best constant prediction, drawn into the panel of `loss_depth`.
        frozen: name -> steps in which the head alone learned, marked in the same panel.
    """
    logged = list(dict.fromkeys(key for rows in runs.values() for row in rows for key in row))
    losses = sorted((key for key in logged if key.startswith("loss_")), key=_loss_order) or ["loss"]
    schedules = [key for key in SCHEDULES if key in logged]
    columns = min(len(losses), LOSSES_A_ROW)
    rows = -(-len(losses) // columns)
    height = 3.6 * rows + (2.1 if schedules else 0)
    figure = Figure(figsize=(PAGE_WIDTH, height), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[3.6 * rows, 2.1]) if schedules else [figure]
    panels = parts[0].subplots(rows, columns, squeeze=False).flatten()
    for axis in panels[len(losses) :]:
        axis.set_axis_off()
    for axis, key in zip(panels, losses, strict=False):
        _curves(axis, runs, key, smooth=True)
        if key == "loss_depth":
            _floor_lines(axis, list(runs), floors or {})
            for name, steps in (frozen or {}).items():
                colour = run_colour(list(runs).index(name))
                axis.axvspan(0, steps, color=colour, alpha=0.12, linewidth=0, label=f"head alone learns, {name}")
        _style(axis, LOSS_TITLES.get(key, key.replace("_", " ")), "loss (no unit)")
        axis.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    if schedules:
        for axis, key in zip(parts[1].subplots(1, len(schedules), squeeze=False)[0], schedules, strict=True):
            _curves(axis, runs, key, smooth=False)
            _style(axis, SCHEDULES[key], "")
    return figure


def _loss_order(key: str) -> int:
    return list(LOSS_TITLES).index(key) if key in LOSS_TITLES else len(LOSS_TITLES)


def _curves(axis: Any, runs: Mapping[str, Sequence[Mapping[str, Any]]], key: str, *, smooth: bool) -> None:
    largest, smallest = 0.0, np.inf
    for index, (name, rows) in enumerate(runs.items()):
        points = np.array([(row["step"], row[key]) for row in rows if row.get(key) is not None], dtype=float)
        if not len(points):
            continue
        step, value = points.T
        colour = run_colour(index)
        if smooth:
            axis.plot(step, value, color=colour, alpha=0.25, linewidth=0.8)
            value = running_mean(value, max(1, len(value) // 20))
        # Twins share their rates: dashes of growing offset let every one of two equal lines be seen.
        dash: Any = "solid" if smooth else (index * 4, (4, 4 * (len(runs) - 1)))
        axis.plot(step, value, color=colour, linewidth=1.8, label=name, linestyle=dash)
        largest, smallest = max(largest, np.nanmax(value)), min(smallest, np.nanmin(value))
    if smooth and smallest > 0 and largest > 10 * smallest:
        axis.set_yscale("log")


def _floor_lines(axis: Any, names: list[str], floors: Mapping[str, float]) -> None:
    shared = len({round(value, 6) for value in floors.values()}) == 1
    for position, (name, value) in enumerate(floors.items()):
        if shared and position:
            continue
        label = "constant predictor (floor)" if shared else f"constant predictor (floor), {name}"
        colour = INK if shared else run_colour(names.index(name))
        axis.axhline(value, color=colour, linestyle=(0, (5, 3)), linewidth=1.2, label=label)


def running_mean(values: Float[np.ndarray, " n"], reach: int) -> Float[np.ndarray, " n"]:
    """Mean over up to `reach` neighbours on either side; the window is cut at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first, after = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return np.asarray((total[after] - total[first]) / (after - first))


def _style(axis: Any, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.set_xlabel("step", fontsize=8, color=FAINT)
    axis.set_ylabel(unit, fontsize=8, color=FAINT)
    axis.tick_params(labelsize=8, colors=FAINT, which="both")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#cbd2d9")


def accuracy_curves(curves: Mapping[str, tuple[Float[np.ndarray, " epochs"], Float[np.ndarray, " epochs"]]]) -> Figure:
    """Draw accuracy against the epoch of a classifier: on training images in one panel, on validation images beside it.

    Args:
        curves: name -> accuracies in [0, 1] on training and on validation images; `random encoder` is drawn in grey.
    """
    figure = Figure(figsize=(PAGE_WIDTH, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axis, place, title in zip(panels, (0, 1), ("training images", "validation images"), strict=True):
        for name, style in _line_styles(curves).items():
            each = curves[name][place]
            axis.plot(np.arange(1, len(each) + 1), 100 * each, linewidth=1.8, label=name, **style)
        _style(axis, title, "accuracy [%]" if place == 0 else "")
        axis.set_xlabel("epoch of the classifier", fontsize=8, color=FAINT)
    panels[1].legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


def layer_curves(values: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Draw a figure of each block's tokens against the block's number, a line for each model."""
    figure = Figure(figsize=(0.6 * PAGE_WIDTH, 3.2), layout="constrained")
    _layer_lines(figure.subplots(), values, label)
    return figure


def gate_panels(swap: Mapping[str, Mapping[str, float]], layers: Mapping[str, Sequence[float]]) -> Figure | None:
    """Draw an input swap as bars and a layer sweep as lines, a colour for each run; None where neither was measured.

    Args:
        swap: run -> the figure of each input.
        layers: run -> the figure after each block.
    """
    label = "R² within images (ridge)"
    if not (swap or layers):
        return None
    inputs = list(dict.fromkeys(name for each in swap.values() for name in each))
    figure = Figure(figsize=(PAGE_WIDTH, max(3.2, 1 + 0.25 * len(inputs) * len(swap))), layout="constrained")
    panels: list[Any] = list(np.ravel(figure.subplots(1, bool(swap) + bool(layers), squeeze=False)))
    if swap:
        _grouped_bars(panels.pop(0), inputs, swap, f"input swap: {label}")
    if layers:
        _layer_lines(panels.pop(0), layers, f"layer sweep: {label}")
    return figure


def _line_styles(names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Colour and dash of each line. A random encoder takes no run's colour, wherever it stands among them."""
    runs = [name for name in names if name != "random encoder"]
    styles: dict[str, dict[str, Any]] = {
        name: {"color": run_colour(row), "linestyle": "solid"} for row, name in enumerate(runs)
    }
    grey = {"color": FAINT, "linestyle": (0, (5, 3))}
    return {name: styles.get(name, grey) for name in names}


def _layer_lines(axis: Any, values: Mapping[str, Sequence[float]], label: str) -> None:
    for name, style in _line_styles(values).items():
        axis.plot(range(1, len(values[name]) + 1), values[name], "o", linewidth=1.8, label=name, **style)
    _style(axis, label, "")
    axis.set_xlabel("block", fontsize=8, color=FAINT)
    axis.set_xticks(range(1, max(map(len, values.values())) + 1))
    axis.legend(fontsize=8, framealpha=0.9, edgecolor="none")


def _grouped_bars(axis: Any, names: Sequence[str], values: Mapping[str, Mapping[str, float]], label: str) -> None:
    """One group of bars for each of `names`, in it one for each run, with its figure."""
    height = 0.8 / len(values)
    for row, (run, each) in enumerate(values.items()):
        places = np.arange(len(names)) + height * (row - (len(values) - 1) / 2)
        found = [each.get(name, np.nan) for name in names]
        bars = axis.barh(places, found, color=run_colour(row), height=0.9 * height, label=run)
        axis.bar_label(bars, fmt="%.3f", fontsize=8, color=INK, padding=3)
    axis.set_yticks(range(len(names)), [textwrap.fill(name, 22) for name in names])
    axis.invert_yaxis()
    axis.margins(x=0.16)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_title(label, fontsize=10, color=INK, loc="left")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(labelsize=9, colors=INK, length=0)


def arm_dots(
    values: Mapping[str, Sequence[float]],
    intervals: Mapping[str, tuple[float, float]],
    baselines: Mapping[str, float],
    label: str,
) -> Figure:
    """Draw the arms of a study one below the other: each run a dot, the mean's interval a bar, yardsticks as lines."""
    figure = Figure(figsize=(PAGE_WIDTH, 1.3 + 0.42 * len(values)), layout="constrained")
    axis: Any = figure.subplots()
    for row, (arm, found) in enumerate(values.items()):
        low, high = intervals[arm]
        axis.plot([low, high], [row, row], color=run_colour(row), linewidth=5, alpha=0.3, solid_capstyle="butt")
        axis.plot([sum(found) / len(found)], [row], marker="|", markersize=16, color=run_colour(row), markeredgewidth=2)
        # Spread by place, not by chance: a picture that is drawn again is the same.
        spread = [row + 0.24 * (((7 * place) % 5) / 2 - 1) for place in range(len(found))]
        axis.scatter(found, spread, s=22, color=run_colour(row), edgecolors="white", linewidths=0.6, zorder=3)
    for place, (name, value) in enumerate(baselines.items()):
        axis.axvline(value, color=INK, linewidth=1.1, linestyle=(0, DASHES[place % len(DASHES)]), label=name)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_xlabel(label, fontsize=9, color=INK)
    axis.grid(axis="x", color="#e1e5ea", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(labelsize=9, colors=INK, length=0)
    if baselines:
        axis.legend(
            fontsize=8, framealpha=0.9, edgecolor="none", loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=4
        )
    return figure
