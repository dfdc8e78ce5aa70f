"""What features say, as figures: principal colours, nearest images, the same point in two views.

Feature colours are the first three principal components of the tokens as red, green and blue, as is usual
since DINOv2 (Oquab et al. 2023, figure 1). Unlike there, models of equal width are projected on one joint
basis with one scaling and nothing is thresholded, so that equal features give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure

from depthjepa.drawing.panels import INK, panel_grid, show_panel, wrapped

SAME, OTHER = "#009e73", "#d55e00"
POINTS = 16  # of a pair of views


def feature_pca(images: UInt8[np.ndarray, "k h w 3"], tokens: Mapping[str, Float[np.ndarray, "k _ _ _"]]) -> Figure:
    """Draw images beside the principal colours of their tokens, one model a column (`principal_colours`)."""
    figure, axes = panel_grid(len(images), ["image", *tokens], images.shape[1:3])
    colours = principal_colours(tokens)
    for row, image in enumerate(images):
        for axis, panel in zip(axes[row], [image, *(array[row] for array in colours.values())], strict=True):
            show_panel(axis, panel, image.shape[:2])
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


def neighbour_rows(
    queries: UInt8[np.ndarray, "q h w 3"],
    found: Mapping[str, UInt8[np.ndarray, "q k h w 3"]],
    alike: Mapping[str, Bool[np.ndarray, "q k"]],
) -> Figure:
    """Draw queries with the nearest images that each model finds, a row for each query and model.

    `alike` tells which have the class of the query: they have a green frame, the others an orange one.
    """
    names = ["image", *(f"nearest {place + 1}" for place in range(next(iter(found.values())).shape[1]))]
    figure, axes = panel_grid(len(queries) * len(found), names, queries.shape[1:3])
    for row, axis_row in enumerate(axes):
        query, place = divmod(row, len(found))
        name = list(found)[place]
        show_panel(axis_row[0], queries[query], queries.shape[1:3])
        axis_row[0].set_ylabel(wrapped(name, 12), fontsize=8, color=INK)
        for axis, image, same in zip(axis_row[1:], found[name][query], alike[name][query], strict=True):
            show_panel(axis, image, queries.shape[1:3])
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
    figure, axes = panel_grid(len(first), names, first.shape[1:3])
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
            show_panel(axis, picture, picture.shape[:2])
            near = (
                np.linalg.norm(place - truth[mine], axis=1) <= 2
                if axis is not axis_row[0]
                else np.ones(len(mine), bool)
            )
            across, down = place[:, 1] * picture.shape[1] / grid[1], place[:, 0] * picture.shape[0] / grid[0]
            axis.scatter(across[near], down[near], s=14, c=colours[near], edgecolors="white", linewidths=0.8)
            axis.scatter(across[~near], down[~near], s=16, c=colours[~near], marker="x", linewidths=1.2)
    return figure
