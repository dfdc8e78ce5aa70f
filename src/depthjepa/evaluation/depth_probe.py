"""The depth table: what a linear readout of frozen tokens knows of the scene, beside the mean map.

Every row predicts the disparity [1/m, larger = nearer] of the same cells, two by two in a patch, and is
clamped to the training set's range; metres are the inverse of a cell's disparity. The mean map scores exactly
0 in each of the three R² (they are defined in `depthjepa.depth`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.depth import align_scale_shift, metrics, r2_between, r2_position, r2_within, within_sums
from depthjepa.evaluation.features import Encode, OfBatch
from depthjepa.evaluation.readout import DepthReadout, MeanMap, Predict, cells_of, fit_readouts
from depthjepa.faults import BadInput


@dataclass(frozen=True, slots=True)
class DepthScore:
    """Figures over a set of images, and the same image by image.

    `figures`: r2_within, r2_position, r2_between; the errors of `depth.metrics` of the cells, averaged over
    images; aligned_absrel, aligned_rmse [m] and aligned_delta1 after the best scale and shift of disparity in each
    image; images (how many have valid depth).
    `per_image` (float64, nan: no valid depth) holds the errors, and the sums of squares within_residual and
    within_total: r2_within of any resample of images is 1 - Σ within_residual / Σ within_total.
    """

    figures: dict[str, float]
    per_image: dict[str, Float[np.ndarray, " images"]]


@dataclass(frozen=True, slots=True)
class Pictures:
    """The first images of a set, their true disparity [1/m] (nan where unknown) and each row's prediction."""

    images: UInt8[np.ndarray, "k h w 3"]
    truth: Float[np.ndarray, "k rows cols"]
    predictions: dict[str, Float[np.ndarray, "k rows cols"]]


@dataclass(frozen=True, slots=True)
class DepthTable:
    """One row for each encoder, after that of the mean map; `name` and the figures of its score."""

    rows: list[dict[str, float | str]]
    scores: dict[str, DepthScore]
    readouts: dict[str, DepthReadout]
    mean_map: MeanMap
    pictures: Pictures


def depth_table(
    encoders: Mapping[str, Encode | OfBatch],
    train_batches: Callable[[], Iterable[Batch]],
    val_batches: Callable[[], Iterable[Batch]],
    patch_size: int,
    pictures: int = 6,
    others: Mapping[str, Predict] | None = None,
) -> DepthTable:
    """Fit a linear readout for every encoder on one set and score it on another, beside the mean map.

    Each set is passed once, in fixed views of one size. `others` are further rows which predict the cells'
    disparity [1/m] themselves, such as a network trained for it end to end (the supervised row).
    """
    mean_map, readouts = fit_readouts(encoders, train_batches(), patch_size)
    predictors: dict[str, Predict] = {"mean map": mean_map.predict}
    predictors |= {name: readouts[name].on(encode, patch_size) for name, encode in encoders.items()}
    predictors |= others or {}
    scores, shown = evaluate_depth(predictors, mean_map, val_batches(), pictures)
    rows: list[dict[str, float | str]] = [{"name": name, **score.figures} for name, score in scores.items()]
    return DepthTable(rows, scores, readouts, mean_map, shown)


def evaluate_depth(
    predictors: Mapping[str, Predict], mean_map: MeanMap, batches: Iterable[Batch], pictures: int = 0
) -> tuple[dict[str, DepthScore], Pictures]:
    """Score every predictor on the cells of `mean_map` in one pass; keep an even spread of the images for pictures.

    Raises `BadInput` where depth is missing or a prediction is not finite.
    """
    truths: list[Tensor] = []
    masks: list[Tensor] = []
    guesses: dict[str, list[Tensor]] = {name: [] for name in predictors}
    shown: list[tuple[int, Tensor]] = []  # every `stride`-th image with its place; how many will come is not known
    seen, stride = 0, 1
    for batch in batches:
        cells, known = cells_of(batch, *mean_map.values.shape)
        truths.append(cells.cpu())
        masks.append(known.cpu())
        for name, predict in predictors.items():
            with torch.no_grad():
                guess = predict(batch).float().cpu().clamp(mean_map.minimum, mean_map.maximum)
            if not torch.isfinite(guess).all():
                raise BadInput(f"{name} predicts disparities that are not finite")
            guesses[name].append(guess)
        places = range(seen, seen + len(batch.images)) if pictures else range(0)
        # A copy: a view of one image would keep its whole batch.
        shown += [(place, batch.images[place - seen].to("cpu", copy=True)) for place in places if place % stride == 0]
        seen += len(batch.images)
        while len(shown) > 4 * pictures:
            stride *= 2
            shown = shown[::2]
    if not masks or not any(known.any() for known in masks):
        raise BadInput("there are no images with valid depth to evaluate on")
    truth, known = torch.cat(truths), torch.cat(masks)
    joined = {name: torch.cat(parts) for name, parts in guesses.items()}
    scores = {name: _score(guess, truth, known, mean_map) for name, guess in joined.items()}
    kept = [shown[number] for number in evenly(pictures, len(shown))]
    chosen = [place for place, _ in kept]
    images = torch.stack([image for _, image in kept]) if kept else torch.empty(0, 3, 1, 1)
    drawn = Pictures(
        images=as_bytes(images),
        truth=torch.where(known, truth, torch.nan)[chosen, 0].numpy(),
        predictions={name: guess[chosen, 0].numpy() for name, guess in joined.items()},
    )
    return scores, drawn


def _score(
    guess: Float[Tensor, "images 1 rows cols"],
    truth: Float[Tensor, "images 1 rows cols"],
    known: Bool[Tensor, "images 1 rows cols"],
    mean_map: MeanMap,
) -> DepthScore:
    flat = guess.flatten(1), truth.flatten(1), known.flatten(1), mean_map.values.flatten()
    aligned = align_scale_shift(guess, truth, known).clamp(mean_map.minimum, mean_map.maximum)
    metres = torch.where(known, 1 / torch.where(known, truth, 1), 0)
    nearest, farthest = 1 / mean_map.maximum, 1 / mean_map.minimum
    errors = metrics(1 / guess, metres, known, nearest, farthest)
    aligned_errors = metrics(1 / aligned, metres, known, nearest, farthest)
    averaged = errors | {f"aligned_{name}": aligned_errors[name] for name in ("absrel", "rmse", "delta1")}
    residual, total = within_sums(*flat)
    sums = {"within_residual": residual, "within_total": total}
    figures = {
        "r2_within": r2_within(*flat),
        "r2_position": r2_position(*flat),
        "r2_between": r2_between(*flat),
        **{name: float(each.nanmean()) for name, each in averaged.items()},
        "images": float(known.flatten(1).any(1).sum()),
    }
    return DepthScore(figures, {name: each.numpy() for name, each in (averaged | sums).items()})
