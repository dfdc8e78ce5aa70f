"""Arrays -> matplotlib figures: masks, depth maps, normals, classes, teacher maps, batches.

No model and no file is known here; every function takes arrays and returns a `Figure` of its own, so that
nothing of matplotlib's global state is touched. Three conventions hold everywhere. Disparity [1/m] has one
perceptually uniform colour map (magma: bright is near), cells without a value are grey, and panels that are
to be compared share one scale; a class has the colour of its index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.colors import Normalize, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from depthjepa.drawing.panels import FAINT, INK, INVALID, colour_bar, explain, explain_grey, panel_grid, show_panel

DISPARITY_MAP = "magma"
DISPARITY = "disparity\n[1/m]"
LATENT_MAP = "RdBu_r"


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
    figure, axes = panel_grid(len(images), names, images.shape[1:3])
    for row, image in enumerate(images):
        show_panel(axes[row][0], image, image.shape[:2])
        for column, mask in enumerate([context[row], *targets[row]], start=1):
            show_panel(axes[row][column], _veil(image, mask), image.shape[:2])
            axes[row][column].set_xlabel(f"{mask.mean():.0%}", fontsize=8, color=FAINT, labelpad=2)
    return figure


def _veil(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "rows cols"]) -> Float[np.ndarray, "h w 3"]:
    (h, w), (rows, cols) = image.shape[:2], mask.shape
    seen = mask[np.arange(h) * rows // h][:, np.arange(w) * cols // w, None]
    return np.where(seen, image / 255, 0.93)


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
    *,
    photographs: bool = True,
) -> Figure:
    """Draw image, ground truth and each model's disparity [1/m] side by side, one image a row.

    A row has one colour scale, that of its ground truth (2nd to 98th percentile). Cells that are nan are grey, and a
    line below says why: in the truth they were not measured, in predictions not in any training image. Without
    `photographs` the images are left out: their licence may be narrower than that of what is told of them.
    """
    names = [*(["image"] if photographs else []), "ground truth", *predictions]
    figure, axes = panel_grid(len(images), names, images.shape[1:3], bar=True)
    for row, image in enumerate(images):
        low, high = _span(truth[row])
        panels = [truth[row], *(array[row] for array in predictions.values())]
        if photographs:
            show_panel(axes[row][0], image, image.shape[:2])
        for axis, panel in zip(axes[row][int(photographs) :], panels, strict=True):
            show_panel(axis, colour_disparity(panel, low, high), image.shape[:2])
        colour_bar(figure, axes[row], DISPARITY_MAP, low, high, "" if row else DISPARITY)
    never = any(np.isnan(array).any() for array in predictions.values())
    if never or np.isnan(truth).any():
        beside = ["not measured in the ground truth"] + ["never measured in training in the other maps"] * never
        explain_grey(figure, "; ".join(beside))
    return figure


def normal_rows(
    images: UInt8[np.ndarray, "k h w 3"],
    truth: Float[np.ndarray, "k 3 _ _"],
    predictions: Mapping[str, Float[np.ndarray, "k 3 _ _"]],
    *,
    photographs: bool = True,
) -> Figure:
    """Draw image, true surface normals and each model's side by side, one image a row.

    All have the colours of `colour_normals`, which a line below explains; nan is grey. `photographs` as in
    `depth_rows`.
    """
    names = [*(["image"] if photographs else []), "ground truth", *predictions]
    figure, axes = panel_grid(len(images), names, images.shape[1:3])
    for row, image in enumerate(images):
        panels = [truth[row], *(array[row] for array in predictions.values())]
        if photographs:
            show_panel(axes[row][0], image, image.shape[:2])
        for axis, panel in zip(axes[row][int(photographs) :], panels, strict=True):
            show_panel(axis, colour_normals(panel), image.shape[:2])
    grey = "; grey: not known" if any(np.isnan(each).any() for each in (truth, *predictions.values())) else ""
    explain(figure, f"red: faces right (x), green: up (against y), blue: the camera (against z){grey}")
    return figure


def colour_normals(normals: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "h w 3"]:
    """Colour unit normals (x right, y down, z forward) by (n + 1) / 2 of right, up and towards the camera.

    Normals point to the camera, so blue is above one half: a wall that is looked at straight is light blue, the ground
    green. nan is grey.
    """
    colours = np.moveaxis((normals * np.array([1, -1, -1])[:, None, None] + 1) / 2, 0, -1)
    return np.where(np.isfinite(colours), np.clip(colours, 0, 1), INVALID)


def _span(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, [2, 98])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1e-6 + abs(float(low)))


def class_colours(count: int) -> Float[np.ndarray, "count 3"]:
    """The colour of each class by its index, whatever the others are: `tab20` without its greys, then hues apart."""
    strong_then_pale = [place for place in (*range(0, 20, 2), *range(1, 20, 2)) if place not in (14, 15)]
    first = np.array([colormaps["tab20"](place)[:3] for place in strong_then_pale])
    number = np.arange(max(0, count - len(first)))
    hue = number * 0.618034 % 1  # by the golden ratio, so that neighbours are never alike
    further = hsv_to_rgb(np.stack([hue, 0.55 + 0.15 * (number % 3), 0.95 - 0.15 * (number % 4)], axis=-1))
    return np.concatenate([first, further])[:count]


def label_rows(
    images: UInt8[np.ndarray, "k h w 3"],
    truth: UInt8[np.ndarray, "k h w"],
    predictions: Mapping[str, UInt8[np.ndarray, "k h w"]],
    classes: Sequence[str],
    *,
    photographs: bool = True,
) -> Figure:
    """Draw image, true classes and each model's side by side, one image a row, with a legend of those that are there.

    What is no index of a class is void: grey. Without `photographs` the images are left out.
    """
    colours = np.concatenate([class_colours(len(classes)), [INVALID]])
    names = [*(["image"] if photographs else []), "ground truth", *predictions]
    figure, axes = panel_grid(len(images), names, images.shape[1:3])
    for row, image in enumerate(images):
        panels = [colours[np.minimum(each[row], len(classes))] for each in (truth, *predictions.values())]
        for axis, panel in zip(axes[row], [image] * photographs + panels, strict=True):
            show_panel(axis, panel, image.shape[:2])
    maps = [truth, *predictions.values()]
    there = np.unique(np.concatenate([np.unique(np.minimum(each, len(classes))) for each in maps]))
    _legend(figure, [(*classes, "void")[place] for place in there], colours[there])
    return figure


def _legend(figure: Figure, names: Sequence[str], colours: np.ndarray) -> None:
    """Names with their colours below all panels, in as many columns as have room."""
    columns = max(1, int(figure.get_figwidth() / (0.4 + 0.075 * max(map(len, names)))))
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.16 * rows)
    figure.legend(
        handles=[Patch(facecolor=colour, label=name) for name, colour in zip(names, colours, strict=True)],
        loc="outside lower center",
        ncols=min(columns, len(names)),
        fontsize=7,
        labelcolor=INK,
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )


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
    figure, axes = panel_grid(len(images), names, images.shape[1:3], bar=True)
    limit = _span(np.abs(teacher[:, :shown]))[1]
    for row, image in enumerate(images):
        show_panel(axes[row][0], image, image.shape[:2])
        for channel in range(shown):
            for axis, panel in zip(axes[row][1 + len(columns) * channel :], columns.values(), strict=False):
                colours = _colour(panel[row, channel], LATENT_MAP, -limit, limit)
                show_panel(axis, colours, image.shape[:2])
    colour_bar(figure, axes, LATENT_MAP, -limit, limit, "value\n(no unit)")
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
    figure, axes = panel_grid(rows, [""] * columns, images.shape[1:3], bar=depth is not None)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, image in enumerate(images):
        show_panel(axes[index // columns * lines][index % columns], image, image.shape[:2])
    if depth is not None:
        valid = np.isfinite(depth) & (depth > 0)
        disparity = np.where(valid, 1 / np.where(valid, depth, 1), np.nan)
        low, high = _span(disparity)
        for index, panel in enumerate(disparity):
            axis = axes[index // columns * 2 + 1][index % columns]
            show_panel(axis, colour_disparity(panel, low, high), panel.shape)
        colour_bar(figure, axes, DISPARITY_MAP, low, high, DISPARITY)
        if not valid.all():
            explain_grey(figure, "not measured")
    return figure
