"""The depth table, version 2: what a linear readout of frozen tokens knows of a scene, beside guesses without a look.

Every row predicts the log depth [log m, larger = farther] of the same cells, two by two in a patch. All R² are of log
depth, and 0 for the mean map by their definition (`depthjepa.depth`); errors in metres are of the cells, with
predictions clamped to the range of the training set. Version 1 told disparity with one ridge whose strength was chosen
on single frames; its figures do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.samples import Batch
from depthjepa.depth import align_scale_shift, between_sums, metrics, within_sums
from depthjepa.evaluation.depth_cells import MeanMap, Predict, depth_truth, training_maps
from depthjepa.evaluation.features import Encode, OfBatch
from depthjepa.evaluation.mean_maps import Maps, Size
from depthjepa.evaluation.readout import FACTOR, DepthReadout, fit_readouts, patch_grid
from depthjepa.evaluation.table_rows import Errors, Measure, Pictures, ReadOut, Row, judge

SUMS = ("within_residual", "within_total", "between_residual", "between_total", "beyond_residual", "beyond_total")


@dataclass(frozen=True, slots=True)
class Told:
    """A row that predicts the cells itself, whatever the data set: a network trained for it end to end."""

    predict: Predict

    def look(self, batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        return self.predict(batch)

    def tell(self, seen: Float[Tensor, "b 1 rows cols"], batch: Batch, number: int) -> Float[Tensor, "b 1 rows cols"]:
        return seen


@dataclass(frozen=True, slots=True)
class DepthScore:
    """Figures over a set of images, and the same image by image.

    `figures`: r2_within, r2_within_median, r2_between, r2_position, r2_beyond_scene; the errors of `depth.metrics` of
    the cells, averaged over images; aligned_absrel, aligned_rmse [m] and aligned_delta1 after the best scale and shift
    of log depth in each image; images (how many have valid depth). nan: not to be told.
    `per_image` (float64, nan: no valid depth) holds the errors, and the sums of squares of `SUMS`: r2_within of any
    resample of images is 1 - Σ within_residual / Σ within_total.
    """

    figures: dict[str, float]
    per_image: dict[str, Float[np.ndarray, " images"]]


@dataclass(frozen=True, slots=True)
class DepthTable:
    """One row for each predictor, the guesses first; `name` and the figures of its score."""

    data: str
    rows: list[dict[str, float | str]]
    scores: dict[str, DepthScore]
    readouts: dict[str, DepthReadout]
    mean_map: MeanMap
    pictures: Pictures
    groups: tuple[str, ...]  # of the judged images; empty texts: not known
    scenes: int  # how many of the judged images have a scene map
    mixed: bool  # whether it is of several data sets


def depth_table(
    encoders: Mapping[str, Encode | OfBatch],
    train_batches: Callable[[], Iterable[Batch]],
    val_batches: Callable[[], Iterable[Batch]],
    places: Places,
    patch_size: int,
    share: float,
    pictures: int = 6,
    others: Mapping[str, Predict] | None = None,
) -> DepthTable:
    """The table of all data sets together; see `depth_tables`."""
    return depth_tables(encoders, train_batches, val_batches, places, patch_size, share, pictures, others)[-1]


def depth_tables(
    encoders: Mapping[str, Encode | OfBatch],
    train_batches: Callable[[], Iterable[Batch]],
    val_batches: Callable[[], Iterable[Batch]],
    places: Places,
    patch_size: int,
    share: float,
    pictures: int = 6,
    others: Mapping[str, Predict] | None = None,
    apart: Mapping[str, tuple[OfBatch, Callable[[], Iterable[Batch]]]] | None = None,
) -> list[DepthTable]:
    """Fit a linear readout for every encoder on one set and score it on another, beside the mean map and the scene map.

    Where several data sets are mixed, a table for each by itself, fitted and scored on it alone, comes before that of
    all together. The training images are read twice (their depth first), the others once, in fixed views of one
    size; each encoder sees each image once. A cell counts where `share` of its pixels has depth. `others` are further
    rows which predict the cells' log depth [log m] themselves, such as a network trained for it end to end. Those
    `apart` come with the training images that they are fitted on: some of all, where asking about all takes long.
    """

    def size_of(batch: Batch) -> Size:
        rows, cols = patch_grid(batch.images, patch_size)
        return FACTOR * rows, FACTOR * cols

    maps = training_maps(train_batches(), places, size_of, share)
    readouts: dict[str, list[DepthReadout]] = {}
    for name, (encode, some) in (apart or {}).items():
        readouts |= fit_readouts({name: encode}, some(), maps, places, patch_size, share)
    readouts |= fit_readouts(encoders, train_batches(), maps, places, patch_size, share)
    named = {name: encode for name, (encode, _) in (apart or {}).items()} | dict(encoders)
    rows: dict[str, Row] = {name: ReadOut(encode, readouts[name], patch_size) for name, encode in named.items()}
    rows |= {name: Told(predict) for name, predict in (others or {}).items()}
    tables = evaluate_depth(rows, maps, places, val_batches(), share, pictures)
    for number, table in enumerate(tables):
        table.readouts.update({name: own[number] for name, own in readouts.items()})
    return tables


def evaluate_depth(
    rows: Mapping[str, Row],
    maps: Sequence[Maps[MeanMap]],
    places: Places,
    batches: Iterable[Batch],
    share: float = 0.0,
    pictures: int = 0,
) -> list[DepthTable]:
    """Score every row on the cells of `maps`, after the mean map and the scene map of each data set; see `judge`."""
    found = judge(rows, maps, places, batches, depth_truth(share), MEASURE, pictures)
    return [
        DepthTable(
            data=each.maps.name,
            rows=[{"name": name, **figures} for name, figures in each.figures.items()],
            scores={name: DepthScore(figures, each.per_image[name]) for name, figures in each.figures.items()},
            readouts={},
            mean_map=each.maps.mean,
            pictures=each.pictures,
            groups=each.groups,
            scenes=each.scenes,
            mixed=bool(each.maps.sets),
        )
        for each in found
    ]


def _errors_on(maps: Maps[MeanMap], places: Places, numbers: Sequence[int]) -> Errors:
    """What gives the errors and sums of squares of each of these images, by their own scenes' maps too."""
    scene, has_scene = maps.scene_maps(numbers, places), torch.tensor(maps.knows_scene(numbers, places))
    return lambda guess, truth, known: _errors(guess, truth, known, maps.mean, scene, has_scene)


def _errors(
    guess: Float[Tensor, "b 1 rows cols"],
    truth: Float[Tensor, "b 1 rows cols"],
    known: Bool[Tensor, "b 1 rows cols"],
    mean_map: MeanMap,
    scene: Float[Tensor, "b 1 rows cols"],
    has_scene: Bool[Tensor, " b"],
) -> dict[str, Float[Tensor, " b"]]:
    """Errors and sums of squares of each image."""
    flat = guess.flatten(1), truth.flatten(1), known.flatten(1)
    aligned = align_scale_shift(guess, truth, known)
    metres = torch.where(known, truth.exp(), 0)
    bounds = mean_map.nearest, mean_map.farthest
    errors = metrics(guess.exp(), metres, known, *bounds)
    aligned_errors = metrics(aligned.exp(), metres, known, *bounds)
    found = errors | {f"aligned_{name}": aligned_errors[name] for name in ("absrel", "rmse", "delta1")}
    sums = [*within_sums(*flat, mean_map.values.flatten()), *between_sums(*flat, mean_map.values.flatten())]
    less = scene.flatten(1)
    beyond = within_sums(flat[0] - less, flat[1] - less, flat[2], torch.zeros_like(less[0]))
    nothing = torch.full_like(beyond[0], torch.nan)
    sums += [torch.where(has_scene, each, nothing) for each in beyond]
    none = ~flat[2].any(1)
    return found | {name: torch.where(none, torch.nan, each) for name, each in zip(SUMS, sums, strict=True)}


def figures_of(per_image: Mapping[str, Float[np.ndarray, " images"]]) -> dict[str, float]:
    """Figures of a set of images from those of each; see `DepthScore`. Any resample of images can be told so."""
    sums = {name: np.nansum(per_image[name]) for name in SUMS}
    kept = {name: each for name, each in per_image.items() if name not in SUMS}
    residual, total = per_image["within_residual"], per_image["within_total"]
    varies = total > 0  # nan is not
    return {
        "r2_within": _explained(sums["within_residual"], sums["within_total"]),
        "r2_within_median": float(np.median(1 - residual[varies] / total[varies])) if varies.any() else float("nan"),
        "r2_between": _explained(sums["between_residual"], sums["between_total"]),
        "r2_position": _explained(
            sums["within_residual"] + sums["between_residual"], sums["within_total"] + sums["between_total"]
        ),
        "r2_beyond_scene": _explained(sums["beyond_residual"], sums["beyond_total"]),
        **{name: float(np.nanmean(each)) if np.isfinite(each).any() else float("nan") for name, each in kept.items()},
        "images": float(np.isfinite(per_image["absrel"]).sum()),
    }


def _explained(residual: float, total: float) -> float:
    return float(1 - residual / total) if total > 0 else float("nan")


def _disparity(logs: Float[Tensor, "b 1 rows cols"], maps: Maps[MeanMap]) -> Float[Tensor, "b rows cols"]:
    """Disparity [1/m] within the range of the training set."""
    return 1 / logs[:, 0].exp().clamp(maps.mean.nearest, maps.mean.farthest)


MEASURE = Measure(
    errors=_errors_on,
    figures=figures_of,
    true_maps=lambda logs: (-logs[:, 0]).exp(),
    told_maps=_disparity,
)
