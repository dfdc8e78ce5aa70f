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
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.depth import align_scale_shift, between_sums, metrics, within_sums
from depthjepa.evaluation.depth_cells import MeanMap, Predict, depth_truth, training_maps
from depthjepa.evaluation.features import Encode, OfBatch
from depthjepa.evaluation.mean_maps import Maps, Size
from depthjepa.evaluation.readout import FACTOR, DepthReadout, fit_readouts, patch_grid
from depthjepa.evaluation.table_rows import MEAN_MAP, SCENE_MAP, ReadOut, Row, Spread, answers
from depthjepa.faults import BadInput

SUMS = ("within_residual", "within_total", "between_residual", "between_total", "beyond_residual", "beyond_total")


# rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """A row that predicts the cells itself, whatever the data set: a network trained for it end to end."""

    predict: Predict

    def look(self, batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        return self.predict(batch)

    def tell(self, seen: Float[Tensor, "b 1 rows cols"], batch: Batch, number: int) -> Float[Tensor, "b 1 rows cols"]:
        return seen


# tables ---------------------------------------------------------------------------------------------------


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
class Pictures:
    """An even spread of images, their true disparity [1/m] (nan where unknown) and each row's prediction."""

    images: UInt8[np.ndarray, "k h w 3"]
    truth: Float[np.ndarray, "k rows cols"]
    predictions: dict[str, Float[np.ndarray, "k rows cols"]]


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
    """Score every row on the cells of `maps` in one pass, after the mean map and the scene map of each data set.

    Nothing is kept of an image but its figures, and an even spread of them for pictures. Raises `BadInput` where depth
    is missing or a prediction is not finite.
    """
    judges = [_Judge(each, places, pictures) for each in maps]
    for found in answers(rows, maps, places, batches, depth_truth(share)):
        for number, judge in enumerate(judges):
            told = {name: each[number] for name, each in found.told.items()}
            judge.add(found.batch, found.cells, found.known, told)
    return [judge.table() for judge in judges]


class _Judge:
    """Takes in the predictions for one data set, or for all of them, batch by batch."""

    def __init__(self, maps: Maps[MeanMap], places: Places, pictures: int) -> None:
        self.maps, self.places = maps, places
        self.numbers: list[int] = []
        self.scores: dict[str, list[dict[str, Tensor]]] = {}
        self.shown = Spread[tuple[Tensor, Tensor, dict[str, Tensor]]](pictures)

    def add(self, batch: Batch, cells: Tensor, known: Tensor, told: Mapping[str, Tensor]) -> None:
        numbers = batch.index.tolist()
        own = self.maps.own(numbers, self.places)
        if not own.any():
            return
        self.numbers += [number for number, mine in zip(numbers, own.tolist(), strict=True) if mine]
        scene = self.maps.scene_maps(numbers, self.places)[own]
        has_scene = torch.tensor(self.maps.knows_scene(numbers, self.places))[own]
        truth, counted = cells[own], known[own]
        for name, guess in told.items():
            if not torch.isfinite(guess[own]).all():
                raise BadInput(f"{name} predicts depths that are not finite")
            found = _errors(guess[own], truth, counted, self.maps.mean, scene, has_scene)
            self.scores.setdefault(name, []).append(found)
        self._keep(batch.images[own.to(batch.images.device)], truth, counted, {n: g[own] for n, g in told.items()})

    def _keep(self, images: Tensor, truth: Tensor, known: Tensor, told: Mapping[str, Tensor]) -> None:
        nearest, farthest = self.maps.mean.nearest, self.maps.mean.farthest
        for row in range(len(images)):
            if self.shown.wanted():
                disparity = torch.where(known[row, 0], (-truth[row, 0]).exp(), torch.nan)
                clamped = {name: 1 / guess[row, 0].exp().clamp(nearest, farthest) for name, guess in told.items()}
                # A copy: a view of one image would keep its whole batch.
                self.shown.keep((images[row].to("cpu", copy=True), disparity, clamped))

    def table(self) -> DepthTable:
        groups = tuple(self.places.val_group.get(number, "") for number in self.numbers)
        scenes = sum(self.maps.knows_scene(self.numbers, self.places))
        scores = {
            name: score_of({key: np.concatenate([each[key].numpy() for each in parts]) for key in parts[0]})
            for name, parts in self.scores.items()
        }
        if not scores or not scores[MEAN_MAP].figures["images"]:
            raise BadInput(f"there are no validation images with valid depth in {self.maps.name} to evaluate on")
        if not scenes:  # the mean map under another name says nothing
            nothing = dict.fromkeys(scores[SCENE_MAP].figures, float("nan"))
            scores[SCENE_MAP] = DepthScore(nothing, scores[SCENE_MAP].per_image)
        rows: list[dict[str, float | str]] = [{"name": name, **score.figures} for name, score in scores.items()]
        return DepthTable(
            self.maps.name, rows, scores, {}, self.maps.mean, self._drawn(), groups, scenes, bool(self.maps.sets)
        )

    def _drawn(self) -> Pictures:
        kept, size = self.shown.chosen(), self.maps.size
        images = torch.stack([image for image, _, _ in kept]) if kept else torch.empty(0, 3, 1, 1)
        return Pictures(
            images=as_bytes(images),
            truth=np.stack([truth.numpy() for _, truth, _ in kept]) if kept else np.empty((0, *size)),
            predictions={
                name: np.stack([told[name].numpy() for *_, told in kept]) if kept else np.empty((0, *size))
                for name in self.scores
            },
        )


# figures --------------------------------------------------------------------------------------------------


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


def score_of(per_image: Mapping[str, Float[np.ndarray, " images"]]) -> DepthScore:
    """Figures of a set of images from those of each; see `DepthScore`. Any resample of images can be scored so."""
    sums = {name: np.nansum(per_image[name]) for name in SUMS}
    kept = {name: each for name, each in per_image.items() if name not in SUMS}
    residual, total = per_image["within_residual"], per_image["within_total"]
    varies = total > 0  # nan is not
    figures = {
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
    return DepthScore(figures, dict(per_image))


def _explained(residual: float, total: float) -> float:
    return float(1 - residual / total) if total > 0 else float("nan")
