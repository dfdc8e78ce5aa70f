"""The table of surface normals: what a linear readout of frozen tokens knows of the slant of surfaces.

Every row tells three numbers for each patch, the components of the mean unit normal of what is seen there (x right, y
down, z forward, pointing to the camera); they are brought to unit length before angles are measured. The readout is
that of depth: two ridges, `evaluation.readout`. R² is of the numbers as they were told, over the three together: 0 for
the mean map by its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.samples import Batch
from depthjepa.evaluation.features import Encode, OfBatch
from depthjepa.evaluation.mean_maps import CellSums, Maps, Size, Truth, maps_of
from depthjepa.evaluation.readout import fit_ridges, patch_grid
from depthjepa.evaluation.surface_normals import FEWEST, WINDOW, known_normals, mean_normals
from depthjepa.evaluation.table_rows import Measure, Pictures, ReadOut, Row, judge
from depthjepa.faults import BadInput

FACTOR = 1  # cells a patch along each side
BELOW = {"below_11": 11.25, "below_22": 22.5, "below_30": 30.0}  # degrees
ANGLES = ("mean_angle", "median_angle", *BELOW)
SUMS = ("within_residual", "within_total", "between_residual", "between_total")


@dataclass(frozen=True, slots=True)
class MeanNormals:
    """The mean of every cell's unit normals over some images (shorter the more they differ)."""

    maps: Float[Tensor, "3 rows cols"]
    measured: Bool[Tensor, "rows cols"]


@dataclass(frozen=True, slots=True)
class NormalTable:
    """One row for each predictor, the guesses first.

    A row has its `name`; mean_angle and median_angle [degree] and the shares below_11, below_22 and below_30 [%], each
    within an image and then averaged over images; r2_within and r2_between; images (how many have a known normal).
    `per_image` has those errors of each judged image (nan: no known normal) and the sums of squares of `SUMS`.
    """

    data: str
    rows: list[dict[str, float | str]]
    per_image: dict[str, dict[str, Float[np.ndarray, " images"]]]
    mean_map: Float[np.ndarray, "3 rows cols"]  # of unit length
    measured: Bool[np.ndarray, "rows cols"]  # whether some training image knew the cell
    pictures: Pictures  # unit normals
    groups: tuple[str, ...]  # of the judged images; empty texts: not known
    scenes: int  # how many of the judged images have a scene map
    mixed: bool  # whether it is of several data sets


def normal_truth(share: float) -> Truth:
    """Mean unit normals of the cells that count by this `share` of their pixels."""

    def normals_of(batch: Batch) -> Float[Tensor, "b 3 h w"]:
        if batch.normals is None:
            raise BadInput("a normals probe needs views that bear their normals: read them through WithNormals")
        return batch.normals

    return Truth(
        "surface normals",
        lambda batch, size: mean_normals(normals_of(batch), size, share),
        lambda batch: known_normals(normals_of(batch)),
        share,
        mend=(
            f": a normal needs depth on {FEWEST} of the {WINDOW}² pixels around it that lie on one plane, and a focal "
            f"length (focal_length in dataset.json, or focal_length_px in groups.json)"
        ),
    )


def normal_tables(
    encoders: Mapping[str, Encode | OfBatch],
    train_batches: Callable[[], Iterable[Batch]],
    val_batches: Callable[[], Iterable[Batch]],
    places: Places,
    patch_size: int,
    share: float,
    pictures: int = 6,
) -> list[NormalTable]:
    """Fit a linear readout for every encoder on one set and score it on another, beside the mean map and the scene map.

    Batches bear normals. Where several data sets are mixed, a table for each by itself, fitted and scored on it alone,
    comes before that of all together. Raises `BadInput` where no normal is known.
    """
    truth = normal_truth(share)

    def size_of(batch: Batch) -> Size:
        rows, cols = patch_grid(batch.images, patch_size)
        return FACTOR * rows, FACTOR * cols

    def sums(size: Size) -> CellSums:
        return CellSums(size, 3)

    maps = maps_of(
        train_batches(), places, size_of, truth, sums, lambda found: MeanNormals(found.mean(), found.count > 0)
    )
    readouts = fit_ridges(encoders, train_batches(), maps, places, patch_size, truth, FACTOR)
    rows = {name: ReadOut(encode, readouts[name], patch_size) for name, encode in encoders.items()}
    return evaluate_normals(rows, maps, places, val_batches(), share, pictures)


def evaluate_normals(
    rows: Mapping[str, Row],
    maps: Sequence[Maps[MeanNormals]],
    places: Places,
    batches: Iterable[Batch],
    share: float = 0.0,
    pictures: int = 0,
) -> list[NormalTable]:
    """Score every row on the cells of `maps`, after the mean map and the scene map of each data set; see `judge`."""
    found = judge(rows, maps, places, batches, normal_truth(share), MEASURE, pictures)
    return [
        NormalTable(
            data=each.maps.name,
            rows=[{"name": name, **figures} for name, figures in each.figures.items()],
            per_image=each.per_image,
            mean_map=F.normalize(each.maps.mean.maps, dim=0).numpy(),
            measured=each.maps.mean.measured.numpy(),
            pictures=each.pictures,
            groups=each.groups,
            scenes=each.scenes,
            mixed=bool(each.maps.sets),
        )
        for each in found
    ]


def errors(
    guess: Float[Tensor, "b 3 rows cols"],
    truth: Float[Tensor, "b 3 rows cols"],
    known: Bool[Tensor, "b 1 rows cols"],
    mean: Float[Tensor, "3 rows cols"],
) -> dict[str, Float[Tensor, " b"]]:
    """Angular errors and sums of squares of each image; nan where it has no known cell.

    The angle is between unit vectors, by half their difference (the cosine of a small angle has lost it to rounding).
    """
    first, second = (F.normalize(each.double(), dim=1) for each in (guess, truth))
    half = ((first - second).norm(dim=1) / 2).clamp(max=1)
    angles = torch.where(known[:, 0], 2 * half.asin().rad2deg(), torch.nan).flatten(1)
    found = {"mean_angle": angles.nanmean(1), "median_angle": angles.nanquantile(0.5, 1)}
    none = angles.isnan()
    for name, bound in BELOW.items():
        found[name] = 100 * torch.where(none, torch.nan, (angles < bound).double()).nanmean(1)
    empty = none.all(1)
    for kind, each in (("residual", truth - guess), ("total", truth - mean)):
        level, rest = _parts(each.double(), known)
        found |= {f"within_{kind}": rest, f"between_{kind}": level}
    return {name: torch.where(empty, torch.nan, each) for name, each in found.items()}


def _parts(
    values: Float[Tensor, "b 3 rows cols"], known: Bool[Tensor, "b 1 rows cols"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Sums of squares of each image's mean over known cells, at every one of them, and of the rest."""
    count = known.sum((2, 3), keepdim=True)
    level = torch.where(known, values, 0).sum((2, 3), keepdim=True) / count.clamp(min=1)
    rest = torch.where(known, values - level, 0)
    return (count * level.square()).sum((1, 2, 3)), rest.square().sum((1, 2, 3))


def figures_of(per_image: Mapping[str, Float[np.ndarray, " images"]]) -> dict[str, float]:
    """Figures of a set of images from those of each; see `NormalTable`. Any resample of images can be told so."""
    judged = np.isfinite(per_image["mean_angle"])
    figures = {name: float(per_image[name][judged].mean()) if judged.any() else float("nan") for name in ANGLES}
    for name in ("within", "between"):
        residual, total = (float(np.nansum(per_image[f"{name}_{each}"])) for each in ("residual", "total"))
        figures[f"r2_{name}"] = 1 - residual / total if total > 0 else float("nan")
    return figures | {"images": float(judged.sum())}


MEASURE: Measure[MeanNormals] = Measure(
    errors=lambda maps, places, numbers: partial(errors, mean=maps.mean.maps),
    figures=figures_of,
    true_maps=lambda normals: normals,
    told_maps=lambda normals, maps: F.normalize(normals, dim=1),
)
