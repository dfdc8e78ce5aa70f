"""Arrays -> matplotlib figures: losses, masks, feature colours, depth maps, teacher maps, batches.

No model and no file is known here; every function takes arrays and returns a `Figure` of its own, so that
nothing of matplotlib's global state is touched. Three conventions hold everywhere. Disparity [1/m] has one
perceptually uniform colour map (magma: bright is near), cells without a value are grey, and panels that are
to be compared share one scale; a class has the colour of its index.

Feature colours are the first three principal components of the tokens as red, green and blue, as is usual
since DINOv2 (Oquab et al. 2023, figure 1). Unlike there, models of equal width are projected on one joint
basis with one scaling and nothing is thresholded, so that equal features give equal pictures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import whole_file

DISPARITY_MAP = "magma"
DISPARITY = "disparity\n[1/m]"
LATENT_MAP = "RdBu_r"
INVALID = (0.72, 0.72, 0.72)
INK = "#1f2933"
FAINT = "#7b8794"
SAME, OTHER = "#009e73", "#d55e00"
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#5f6b6d")
PAGE_WIDTH = 10.0  # inches, as the following
TALLEST = 3.0  # a panel
BAR_WIDTH, BAR_ROOM = 0.11, 0.8  # a colour bar, and it with its figures
POINTS = 16  # of a pair of views
SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


@dataclass(frozen=True, slots=True)
class Captioned:
    """A figure, what one sees there, and what would be seen had it failed (a clause with its full stop)."""

    figure: Figure
    seen: str
    failed: str


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
    *,
    photographs: bool = True,
) -> Figure:
    """Draw image, ground truth and each model's disparity [1/m] side by side, one image a row.

    A row has one colour scale, that of its ground truth (2nd to 98th percentile). Cells that are nan are grey, and a
    line below says why: in the truth they were not measured, in predictions not in any training image. Without
    `photographs` the images are left out: their licence may be narrower than that of what is told of them.
    """
    names = [*(["image"] if photographs else []), "ground truth", *predictions]
    figure, axes = _panels(len(images), names, images.shape[1:3], bar=True)
    for row, image in enumerate(images):
        low, high = _span(truth[row])
        panels = [truth[row], *(array[row] for array in predictions.values())]
        if photographs:
            _show(axes[row][0], image, image.shape[:2])
        for axis, panel in zip(axes[row][int(photographs) :], panels, strict=True):
            _show(axis, colour_disparity(panel, low, high), image.shape[:2])
        _bar(figure, axes[row], DISPARITY_MAP, low, high, "" if row else DISPARITY)
    never = any(np.isnan(array).any() for array in predictions.values())
    if never or np.isnan(truth).any():
        beside = ["not measured in the ground truth"] + ["never measured in training in the other maps"] * never
        _explain_grey(figure, "; ".join(beside))
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
    figure, axes = _panels(len(images), names, images.shape[1:3])
    for row, image in enumerate(images):
        panels = [truth[row], *(array[row] for array in predictions.values())]
        if photographs:
            _show(axes[row][0], image, image.shape[:2])
        for axis, panel in zip(axes[row][int(photographs) :], panels, strict=True):
            _show(axis, colour_normals(panel), image.shape[:2])
    grey = "; grey: not known" if any(np.isnan(each).any() for each in (truth, *predictions.values())) else ""
    _explain(figure, f"red: faces right (x), green: up (against y), blue: the camera (against z){grey}")
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
    figure, axes = _panels(len(images), names, images.shape[1:3])
    for row, image in enumerate(images):
        panels = [colours[np.minimum(each[row], len(classes))] for each in (truth, *predictions.values())]
        for axis, panel in zip(axes[row], [image] * photographs + panels, strict=True):
            _show(axis, panel, image.shape[:2])
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
    figure, axes = _panels(len(images), names, images.shape[1:3], bar=True)
    limit = _span(np.abs(teacher[:, :shown]))[1]
    for row, image in enumerate(images):
        _show(axes[row][0], image, image.shape[:2])
        for channel in range(shown):
            for axis, panel in zip(axes[row][1 + len(columns) * channel :], columns.values(), strict=False):
                colours = _colour(panel[row, channel], LATENT_MAP, -limit, limit)
                _show(axis, colours, image.shape[:2])
    _bar(figure, axes, LATENT_MAP, -limit, limit, "value\n(no unit)")
    return figure


def neighbour_rows(
    queries: UInt8[np.ndarray, "q h w 3"],
    found: Mapping[str, UInt8[np.ndarray, "q k h w 3"]],
    alike: Mapping[str, Bool[np.ndarray, "q k"]],
) -> Figure:
    """Draw queries with the nearest images that each model finds, a row for each query and model.

    `alike` tells which have the class of the query: they have a green frame, the others an orange one.
    """
    names = ["image", *(f"nearest {place + 1}" for place in range(next(iter(found.values())).shape[1]))]
    figure, axes = _panels(len(queries) * len(found), names, queries.shape[1:3])
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


def match_rows(
    first: UInt8[np.ndarray, "k h w 3"],
    second: UInt8[np.ndarray, "k h w 3"],
    pair: Int[np.ndarray, " q"],
    query: Int[np.ndarray, " q"],
    truth: Float[np.ndarray, "q 2"],
    matches: Mapping[str, Float[np.ndarray, "q 2"]],
    grid: tuple[int, int],
) -> Figure:
    """Draw points of a first view in colours, and where they are, and are found, in the second one.

    A query is a patch of its pair's first view; places are (down, right) in patches of the `grid`.
    """
    names = ["first view", "where the points are", *matches]
    figure, axes = _panels(len(first), names, first.shape[1:3])
    for row, axis_row in enumerate(axes):
        mine = np.flatnonzero(pair == row)
        mine = mine[np.linspace(0, len(mine) - 1, min(POINTS, len(mine))).astype(int)]
        colours = colormaps["hsv"](np.linspace(0, 1, len(mine), endpoint=False))
        places = [
            np.stack(np.divmod(query[mine], grid[1]), axis=1) + 0.5,
            truth[mine],
            *(each[mine] for each in matches.values()),
        ]
        for axis, picture, place in zip(axis_row, [first[row]] + [second[row]] * (len(names) - 1), places, strict=True):
            _show(axis, picture, picture.shape[:2])
            near = (
                np.linalg.norm(place - truth[mine], axis=1) <= 2
                if axis is not axis_row[0]
                else np.ones(len(mine), bool)
            )
            across, down = place[:, 1] * picture.shape[1] / grid[1], place[:, 0] * picture.shape[0] / grid[0]
            axis.scatter(across[near], down[near], s=14, c=colours[near], edgecolors="white", linewidths=0.8)
            axis.scatter(across[~near], down[~near], s=16, c=colours[~near], marker="x", linewidths=1.2)
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
        _bar(figure, axes, DISPARITY_MAP, low, high, DISPARITY)
        if not valid.all():
            _explain_grey(figure, "not measured")
    return figure


def _explain_grey(figure: Figure, why: str) -> None:
    _explain(figure, f"grey: {why}")


def _explain(figure: Figure, text: str) -> None:
    figure.supxlabel(_wrapped(text, int(figure.get_figwidth() * 14)), fontsize=8, color=FAINT)
    figure.set_figheight(figure.get_figheight() + 0.2)


def _panels(rows: int, names: Sequence[str], shape: tuple[int, ...], *, bar: bool = False) -> tuple[Figure, np.ndarray]:
    room = BAR_ROOM if bar else 0.0
    widest = min(2.0, TALLEST * shape[1] / shape[0])
    width = float(np.clip((PAGE_WIDTH - room) / len(names), 1.1, max(1.1, widest)))
    height = width * shape[0] / shape[1]
    titles = [_wrapped(name, int(width * 11)) for name in names]
    lines = max(2 if bar else 0, *(title.count("\n") + 1 if title else 0 for title in titles))
    size = (len(names) * width + room, rows * (height + 0.06) + 0.15 + 0.15 * lines)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=layout)
    axes = figure.subplots(rows, len(names), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, color=INK, pad=4)
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


def _bar(figure: Figure, axes: Any, map_name: str, low: float, high: float, label: str = "") -> None:
    """A colour bar beside the panels of one row or of all, with its label on top: rows may be too low for one aside."""
    panels = np.atleast_2d(axes)
    width, height = figure.get_size_inches()
    height *= len(panels) / panels[0, 0].get_gridspec().nrows
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), map_name),
        ax=list(panels.flat),
        pad=0.01,
        aspect=height / BAR_WIDTH,
        fraction=1.5 * BAR_WIDTH / width,  # at most: the aspect tells the width
        extend="both",  # a scale ends before the rarest values do
        extendfrac=0.6 * BAR_WIDTH / height,
        ticks=MaxNLocator(int(np.clip(height / 0.25, 2, 8))),
    )
    # No title: the layout makes no room for the width of titles.
    spot: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    bar.ax.annotate(label, (0, 1), (0, 3), fontsize=7, color=FAINT, **spot)
    bar.ax.tick_params(labelsize=7, colors=FAINT)
    bar.outline.set(edgecolor=FAINT, linewidth=0.4)  # the brightest colours are hardly seen on white
