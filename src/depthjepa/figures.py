"""Arrays -> matplotlib figures: losses, masks, feature colours, depth maps, teacher maps, batches.

No model and no file is known here; every function takes arrays and returns a `Figure` of its own, so that
nothing of matplotlib's global state is touched. Three conventions hold everywhere. Disparity [1/m] has one
perceptually uniform colour map (magma: bright is near), cells without a value are grey, and panels that are
to be compared share one scale.

Feature colours are the first three principal components of the tokens as red, green and blue, as is usual
since DINOv2 (Oquab et al. 2023, figure 1). Unlike there, models of equal width are projected on one joint
basis with one scaling and nothing is thresholded, so that equal features give equal pictures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import whole_file

DISPARITY_MAP = "magma"
LATENT_MAP = "RdBu_r"
INVALID = (0.72, 0.72, 0.72)
INK = "#1f2933"
FAINT = "#7b8794"
SAME, OTHER = "#009e73", "#d55e00"
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#5f6b6d")
PAGE_WIDTH = 10.0  # inches
SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
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
SCHEDULES = {"lr": "learning rate", "momentum": "momentum of the target encoder"}


def run_colour(index: int) -> str:
    """Return the colour of run `index` in figures and tables; it repeats after eight runs."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as `.png`, `.pdf`, `.svg` or `.jpg` and make the folders above it.

    Raises:
        BadInput: for any other suffix, and where the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = nearest(suffix, SUFFIXES)
        raise BadInput(f"{path}: a figure cannot be written as {path.suffix!r}{hint}; use {', '.join(SUFFIXES)}")
    with whole_file(path) as file:
        figure.savefig(file, format=suffix[1:], dpi=150)


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    floors: Mapping[str, float] | None = None,
    thawed: Mapping[str, int] | None = None,
) -> Figure:
    """Draw one panel a loss, and small ones for learning rate and momentum, against the step.

    Args:
        runs: name -> logged steps, each with `step` and any of `loss_*`, `loss`, `lr`, `momentum`. A run
            without a quantity is left out of its panel.
        floors: name -> depth loss of the best constant prediction, drawn into the panel of `loss_depth`.
        thawed: name -> steps in which the head alone learned, marked in the same panel.
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
            for name, steps in (thawed or {}).items():
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


def masks_figure(
    images: UInt8[np.ndarray, "k h w 3"],
    context: Bool[np.ndarray, "k rows cols"],
    targets: Bool[np.ndarray, "k m rows cols"],
) -> Figure:
    """Draw what the context encoder sees and what is to be predicted, one image a row; the rest is pale.

    The share of the patches that each mask holds stands below it.
    """
    blocks = targets.shape[1]
    names = [
        "image",
        "context",
        *(f"target {block + 1}" if blocks > 1 else "target" for block in range(blocks)),
    ]
    figure, axes = _panels(len(images), names, images.shape[1:3])
    for row, image in enumerate(images):
        _show(axes[row][0], image, image.shape[:2])
        for column, mask in enumerate([context[row], *targets[row]], start=1):
            _show(axes[row][column], _veil(image, mask), image.shape[:2])
            axes[row][column].set_xlabel(f"{mask.mean():.0%}", fontsize=8, color=FAINT, labelpad=2)
    return figure


def _veil(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "rows cols"]) -> Float[np.ndarray, "h w 3"]:
    (h, w), (rows, cols) = image.shape[:2], mask.shape
    seen = mask[np.arange(h) * rows // h][:, np.arange(w) * cols // w, None]
    return np.where(seen, image / 255, 0.93)


def feature_pca(images: UInt8[np.ndarray, "k h w 3"], tokens: Mapping[str, Float[np.ndarray, "k _ _ _"]]) -> Figure:
    """Draw images beside the principal colours of their tokens, one model a column (`principal_colours`)."""
    figure, axes = _panels(len(images), ["image", *tokens], images.shape[1:3])
    colours = principal_colours(tokens)
    for row, image in enumerate(images):
        for axis, panel in zip(axes[row], [image, *(array[row] for array in colours.values())], strict=True):
            _show(axis, panel, image.shape[:2])
    return figure


def principal_colours(
    tokens: Mapping[str, Float[np.ndarray, "k _ _ _"]],
) -> dict[str, Float[np.ndarray, "k _ _ 3"]]:
    """Colour tokens by their first three principal components, in [0, 1].

    Each model's own mean is removed first (an offset between models shows nothing and would take a component
    for itself). Models of equal width then share one basis and one scaling, the 1st to the 99th percentile of
    each component over all of them. Collapsed tokens, without variance, come out mid-grey.

    Args:
        tokens: name -> [k, rows, cols, d]; the grid and the width may differ between models.
    """
    colours: dict[str, np.ndarray] = {}
    for width in dict.fromkeys(array.shape[-1] for array in tokens.values()):
        group = {name: array for name, array in tokens.items() if array.shape[-1] == width}
        flat = {name: array.reshape(-1, width).astype(np.float64) for name, array in group.items()}
        centred = {name: array - array.mean(axis=0) for name, array in flat.items()}
        basis = _basis(np.concatenate(list(centred.values())))
        scores = {name: array @ basis for name, array in centred.items()}
        pool = np.concatenate(list(scores.values()))
        low, high = np.percentile(pool, [1, 99], axis=0)
        noise = 1e-5 * np.sqrt(np.mean(np.concatenate(list(flat.values())) ** 2))
        for name, array in group.items():
            span = np.where(high - low > noise, high - low, np.inf)
            shade = np.where(np.isinf(span), 0.5, (scores[name] - low) / span)
            colours[name] = np.clip(shade, 0, 1).reshape(*array.shape[:-1], 3)
    return {name: colours[name] for name in tokens}


def _basis(centred: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d 3"]:
    _, vectors = np.linalg.eigh(centred.T @ centred)
    leading = vectors[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary; its largest entry is made positive so that a figure can be repeated.
    leading = leading * np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(leading.shape[1])])
    return np.pad(leading, ((0, 0), (0, 3 - leading.shape[1])))


def colour_disparity(disparity: Float[np.ndarray, "h w"], low: float, high: float) -> Float[np.ndarray, "h w 3"]:
    """Colour disparity [1/m] between `low` and `high`: bright is near, grey is no value (nan)."""
    return _colour(disparity, DISPARITY_MAP, low, high)


def _colour(values: Float[np.ndarray, "h w"], map_name: str, low: float, high: float) -> Float[np.ndarray, "h w 3"]:
    known = np.isfinite(values)
    shade = Normalize(low, high, clip=True)(np.where(known, values, low))
    return np.where(known[..., None], np.asarray(colormaps[map_name](shade))[..., :3], INVALID)


def depth_rows(
    images: UInt8[np.ndarray, "k h w 3"],
    truth: Float[np.ndarray, "k _ _"],
    predictions: Mapping[str, Float[np.ndarray, "k _ _"]],
) -> Figure:
    """Draw image, ground truth and each model's disparity [1/m] side by side, one image a row.

    A row has one colour scale, that of its ground truth (2nd to 98th percentile); nan is grey.
    """
    names = ["image", "ground truth", *predictions]
    figure, axes = _panels(len(images), names, images.shape[1:3], bar=True)
    for row, image in enumerate(images):
        low, high = _span(truth[row])
        panels = [truth[row], *(array[row] for array in predictions.values())]
        _show(axes[row][0], image, image.shape[:2])
        for axis, panel in zip(axes[row][1:], panels, strict=True):
            _show(axis, colour_disparity(panel, low, high), image.shape[:2])
        _bar(figure, axes[row], DISPARITY_MAP, low, high, "disparity [1/m]")
    return figure


def _span(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, [2, 98])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1e-6 + abs(float(low)))


def latent_rows(
    images: UInt8[np.ndarray, "k h w 3"],
    teacher: Float[np.ndarray, "k c rows cols"],
    predicted: Mapping[str, Float[np.ndarray, "k c rows cols"]],
    channels: int = 4,
) -> Figure:
    """Draw the first `channels` maps of the teacher, each beside the predictions by their names; nan is grey.

    All panels share one scale, symmetric about 0: the 98th percentile of the teacher's absolute values.
    """
    shown = min(channels, teacher.shape[1])
    columns = {"teacher": teacher, **predicted}
    names = ["image"]
    for channel in range(shown):
        number = f" {channel + 1}" if teacher.shape[1] > 1 else ""
        names += [f"{name}{number}" for name in columns]
    figure, axes = _panels(len(images), names, images.shape[1:3], bar=True)
    limit = _span(np.abs(teacher[:, :shown]))[1]
    for row, image in enumerate(images):
        _show(axes[row][0], image, image.shape[:2])
        for channel in range(shown):
            for axis, panel in zip(axes[row][1 + len(columns) * channel :], columns.values(), strict=False):
                colours = _colour(panel[row, channel], LATENT_MAP, -limit, limit)
                _show(axis, colours, image.shape[:2])
    _bar(figure, axes, LATENT_MAP, -limit, limit, "value (no unit)")
    return figure


def accuracy_curves(curves: Mapping[str, tuple[Float[np.ndarray, " epochs"], Float[np.ndarray, " epochs"]]]) -> Figure:
    """Draw accuracy against the epoch of a classifier: on training images in one panel, on validation images beside it.

    Args:
        curves: name -> accuracies in [0, 1] on training and on validation images; `random encoder` is drawn in grey.
    """
    figure = Figure(figsize=(PAGE_WIDTH, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for axis, place, title in zip(panels, (0, 1), ("training images", "validation images"), strict=True):
        for row, (name, each) in enumerate(curves.items()):
            epochs = np.arange(1, len(each[place]) + 1)
            colour, dash = (FAINT, (0, (5, 3))) if name == "random encoder" else (run_colour(row), "solid")
            axis.plot(epochs, 100 * each[place], color=colour, linestyle=dash, linewidth=1.8, label=name)
        _style(axis, title, "accuracy [%]" if place == 0 else "")
        axis.set_xlabel("epoch of the classifier", fontsize=8, color=FAINT)
    panels[1].legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


def neighbour_rows(
    queries: UInt8[np.ndarray, "q h w 3"],
    found: Mapping[str, UInt8[np.ndarray, "q k h w 3"]],
    alike: Mapping[str, Bool[np.ndarray, "q k"]],
) -> Figure:
    """Draw queries with the nearest images that each model finds, a row for each query and model.

    `alike` tells which have the class of the query: they have a green frame, the others an orange one.
    """
    count = next(iter(found.values())).shape[1]
    figure, axes = _panels(
        len(queries) * len(found), ["image", *(f"nearest {k + 1}" for k in range(count))], queries.shape[1:3]
    )
    for row, axis_row in enumerate(axes):
        query, place = divmod(row, len(found))
        name = list(found)[place]
        _show(axis_row[0], queries[query], queries.shape[1:3])
        axis_row[0].set_ylabel(_wrapped(name, 12), fontsize=8, color=INK)
        for axis, image, same in zip(axis_row[1:], found[name][query], alike[name][query], strict=True):
            _show(axis, image, queries.shape[1:3])
            for spine in axis.spines.values():
                spine.set(visible=True, color=SAME if same else OTHER, linewidth=2.5)
    return figure


def layer_curves(values: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Draw a figure of each block's tokens against the block's number, a line for each model."""
    figure = Figure(figsize=(0.6 * PAGE_WIDTH, 3.2), layout="constrained")
    axis: Any = figure.subplots()
    for row, (name, each) in enumerate(values.items()):
        colour, dash = (FAINT, (0, (5, 3))) if name == "random encoder" else (run_colour(row), "solid")
        axis.plot(range(1, len(each) + 1), each, "o", color=colour, linestyle=dash, linewidth=1.8, label=name)
    _style(axis, label, "")
    axis.set_xlabel("block", fontsize=8, color=FAINT)
    axis.set_xticks(range(1, max(map(len, values.values())) + 1))
    axis.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return figure


def named_bars(values: Mapping[str, float], label: str) -> Figure:
    """Draw one bar for each name, with its figure."""
    figure = Figure(figsize=(0.8 * PAGE_WIDTH, 0.9 + 0.36 * len(values)), layout="constrained")
    axis: Any = figure.subplots()
    bars = axis.barh(list(values), list(values.values()), color=run_colour(0), height=0.6)
    axis.bar_label(bars, fmt="%.3f", fontsize=8, color=INK, padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_xlabel(label, fontsize=9, color=INK)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(labelsize=9, colors=INK, length=0)
    return figure


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
        axis.axvline(value, color=INK, linewidth=1.1, linestyle=(0, (5, 3)) if place % 2 else (0, (1, 2)), label=name)
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


def batch_grid(
    images: UInt8[np.ndarray, "b h w 3"], depth: Float[np.ndarray, "b h w"] | None, columns: int = 8
) -> Figure:
    """Draw a batch, each image above its depth.

    Args:
        images: the crops as the model gets them, before normalisation.
        depth: metres, 0 = invalid (grey); drawn as disparity, one scale for the batch. None: images alone.
        columns: images side by side.
    """
    columns = min(columns, len(images))
    lines = 1 if depth is None else 2
    rows = -(-len(images) // columns) * lines
    figure, axes = _panels(rows, [""] * columns, images.shape[1:3], bar=depth is not None)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, image in enumerate(images):
        _show(axes[index // columns * lines][index % columns], image, image.shape[:2])
    if depth is not None:
        valid = np.isfinite(depth) & (depth > 0)
        disparity = np.where(valid, 1 / np.where(valid, depth, 1), np.nan)
        low, high = _span(disparity)
        for index, panel in enumerate(disparity):
            axis = axes[index // columns * 2 + 1][index % columns]
            _show(axis, colour_disparity(panel, low, high), panel.shape)
        _bar(figure, axes, DISPARITY_MAP, low, high, "disparity [1/m]")
    return figure


def _panels(rows: int, names: Sequence[str], shape: tuple[int, ...], *, bar: bool = False) -> tuple[Figure, np.ndarray]:
    width = float(np.clip((PAGE_WIDTH - 0.8 * bar) / len(names), 1.1, 2.0))
    height = width * shape[0] / shape[1]
    size = (len(names) * width + 0.8 * bar, rows * (height + 0.06) + 0.45)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=layout)
    axes = figure.subplots(rows, len(names), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(_wrapped(name, int(width * 11)), fontsize=9, color=INK, pad=4)
    return figure, axes


def _wrapped(name: str, room: int) -> str:
    return "\n".join(part for line in name.split("\n") for part in textwrap.wrap(line, room))


def _show(axis: Any, panel: np.ndarray, shape: tuple[int, ...]) -> None:
    smooth = panel.dtype == np.uint8  # photographs are resampled smoothly, cells are shown as they are
    extent = (0, shape[1], shape[0], 0)
    axis.imshow(panel, extent=extent, interpolation="antialiased" if smooth else "nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _bar(figure: Figure, axes: Any, map_name: str, low: float, high: float, label: str) -> None:
    scale = ScalarMappable(Normalize(low, high), map_name)
    length = 14 * len(np.atleast_2d(axes))
    tips: dict[str, Any] = {
        "extend": "both",
        "extendfrac": 0.6 / length,
    }  # a scale ends before the rarest values do
    bar = figure.colorbar(scale, ax=list(np.ravel(axes)), pad=0.01, aspect=length, fraction=0.06, **tips)
    bar.set_label(label, fontsize=8, color=FAINT)
    bar.ax.tick_params(labelsize=7, colors=FAINT)
    bar.outline.set_visible(False)
