"""A linear readout of k numbers of a cell from frozen tokens in two parts, and its fit from sums that hold no token.

Log depth is one number of 2 x 2 cells a patch, a normal is three of one. With t the numbers of a cell less the training
set's mean map, `between` is t's mean over an image's cells and `within` is the rest: how far away an image is, and how
it is built. Each has a ridge of its own, so that neither is paid for with the other:

between   from the mean of an image's tokens
within    from each token, less its image's mean and less what tokens have in common at its position; the cells of a
          patch each have their own mask

Their sum with the mean map is the prediction. Strengths are chosen on folds of images that share no place
(`data.groups`); the mean map, the place means of tokens and their standardisation come from the other folds then.

Its ridges are solved from sums that are added up batch by batch (`evaluation.ridge`): memory grows with the width of
tokens squared and not with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from depthjepa.data.groups import FOLDS, Places
from depthjepa.data.samples import Batch
from depthjepa.evaluation.depth_cells import MeanMap, depth_truth, resized
from depthjepa.evaluation.features import Encode, OfBatch, tokens_of
from depthjepa.evaluation.mean_maps import ALL, Maps, Means, Truth
from depthjepa.evaluation.ridge import LinearMap, Ridge
from depthjepa.faults import BadInput
from depthjepa.grid import to_map, to_tokens, unfold_cells
from depthjepa.logbook import whole_file

FACTOR = 2  # cells a patch along each side; a patch's cells are ordered row by row
STRENGTHS = (1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # that are tried
VERSION = "2"  # of the format, and of what it predicts: version 1 told disparity


@dataclass(frozen=True, slots=True)
class TwoRidges:
    """From tokens to k numbers of `factor` x `factor` cells a patch: the mean map, and a map for each of two parts."""

    mean: Float[Tensor, "k rows cols"]
    measured: Bool[Tensor, "rows cols"]
    between: LinearMap  # to k numbers
    within: LinearMap  # to k numbers of each cell of a patch
    strengths: tuple[float, float]
    factor: int

    def predict(self, tokens: Float[Tensor, "b n d"], rows: int, cols: int) -> Float[Tensor, "b k cell_rows cell_cols"]:
        """The numbers at `factor` times the grid of `rows` x `cols` tokens.

        On a grid other than that of the training set, the mean map and what tokens have in common are resized.
        """
        if tokens.shape[2] != self.within.weight.shape[1]:
            widths = f"{tokens.shape[2]} wide, and the readout was fitted on {self.within.weight.shape[1]}"
            raise BadInput(f"the tokens are {widths}: use the encoder of the readout")
        here, (high, wide), factor = tokens.device, self.measured.shape, self.factor
        values = self.mean.to(here)[None]
        common = self.within.mean
        if (high, wide) != (factor * rows, factor * cols):
            values = resized(values, self.measured.to(here), (factor * rows, factor * cols))
            maps = to_map(common[None], (high // factor, wide // factor))
            common = to_tokens(F.interpolate(maps, (rows, cols), mode="bilinear", align_corners=False))[0]
        mean = tokens.mean(1, keepdim=True)
        between = _on(self.between, here).predict(mean).repeat_interleave(factor**2, 2)
        predicted = _on(replace(self.within, mean=common), here).predict(tokens - mean) + between
        return values + unfold_cells(predicted.float(), (rows, cols), factor)


@dataclass(frozen=True, slots=True)
class DepthReadout:
    """From tokens to log depth [log m] of 2 x 2 cells a patch: the mean map, and a map for each of the two parts."""

    mean_map: MeanMap
    between: LinearMap
    within: LinearMap
    strengths: tuple[float, float]

    def predict(self, tokens: Float[Tensor, "b n d"], rows: int, cols: int) -> Float[Tensor, "b 1 cell_rows cell_cols"]:
        """Log depth [log m] at twice the grid of `rows` x `cols` tokens.

        On a grid other than that of the training set, the mean map and what tokens have in common are resized.
        """
        whole = TwoRidges(self.mean_map.maps, self.mean_map.measured, self.between, self.within, self.strengths, FACTOR)
        return whole.predict(tokens, rows, cols)

    def save(self, path: Path, origin: Mapping[str, str] | None = None) -> None:
        """Write the readout as one safetensors file, with what it was fitted on (`origin`) as its metadata."""
        tensors = {"mean_map": self.mean_map.values, "measured": self.mean_map.measured}
        tensors |= {
            f"{part}.{name}": getattr(found, name)
            for part, found in (("between", self.between), ("within", self.within))
            for name in LinearMap.__slots__
        }
        numbers = (self.mean_map.nearest, self.mean_map.farthest, *self.strengths)
        tensors["nearest_farthest_strengths"] = torch.tensor(numbers, dtype=torch.float64)
        with whole_file(path) as file:
            content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            file.write(to_bytes(content, {**(origin or {}), "version": VERSION}))

    @classmethod
    def load(cls, path: Path) -> DepthReadout:
        """Read what `save` wrote; raises `BadInput` for any other file, and for one of version 1."""
        if read_origin(path).get("version") != VERSION:
            raise BadInput(
                f"{path} is a depth readout of the first version, which told disparity: fit it anew with "
                f"`depthjepa probe RUN depth`"
            )
        try:
            tensors = load_file(path)
            nearest, farthest, *strengths = tensors["nearest_farthest_strengths"].tolist()
            mean_map = MeanMap(tensors["mean_map"], nearest, farthest, tensors["measured"])
            between, within = (
                LinearMap(**{name: tensors[f"{part}.{name}"] for name in LinearMap.__slots__})
                for part in ("between", "within")
            )
            return cls(mean_map, between, within, (strengths[0], strengths[1]))
        except (OSError, SafetensorError, KeyError, IndexError) as fault:
            raise BadInput(f"{path} is not a depth readout written by depthjepa: {fault}") from fault


def _on(found: LinearMap, here: torch.device) -> LinearMap:
    return LinearMap(*(getattr(found, name).to(here) for name in LinearMap.__slots__))


def read_origin(path: Path) -> dict[str, str]:
    """What `DepthReadout.save` was told of the readout's origin; empty where it was told nothing.

    Raises `BadInput` for a file that is not of this format.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return dict(stored.metadata() or {})
    except (OSError, SafetensorError) as fault:
        raise BadInput(f"{path} is not a depth readout written by depthjepa: {fault}") from fault


def patch_grid(images: Float[Tensor, "b 3 h w"], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patch grid; refuses images that patches do not divide."""
    h, w = images.shape[2:]
    if h % patch_size or w % patch_size:
        raise BadInput(f"images of {h} x {w} pixels do not divide into patches of {patch_size}")
    return h // patch_size, w // patch_size


class _Fit:
    """The two ridges of one encoder on one data set."""

    def __init__(self) -> None:
        self.between, self.within = Ridge(STRENGTHS), Ridge(STRENGTHS, centred=True)

    def add(self, tokens: Tensor, targets: _Targets, fold: Tensor) -> None:
        mean = tokens.mean(1, keepdim=True)
        self.between.add(mean, targets.between, fold, targets.counted.flatten(1).any(1)[:, None, None])
        self.within.add(tokens - mean, targets.within, fold, targets.counted)

    def solved(self, maps: Maps[Means], factor: int) -> TwoRidges:
        strengths = self.between.choose(), self.within.choose()
        found = (ridge.solve(each) for ridge, each in zip((self.between, self.within), strengths, strict=True))
        between, within = (_on(each, torch.device("cpu")) for each in found)
        return TwoRidges(maps.mean.maps, maps.mean.measured, between, within, strengths, factor)


@dataclass(frozen=True, slots=True)
class _Targets:
    """What the two parts of some images are to be, and which cells c of each patch count, all k numbers together.

    The ridge takes a mask for all numbers of a patch, or one for each: several numbers of several cells are not fitted.
    """

    between: Float[Tensor, "b 1 k"]
    within: Float[Tensor, "b n kc"]
    counted: Bool[Tensor, "b n c"]


def _targets(
    cells: Float[Tensor, "b k rows cols"], known: Bool[Tensor, "b 1 rows cols"], mean: Tensor, factor: int
) -> _Targets:
    deviation = torch.where(known, cells.double() - mean.to(cells.device), 0)
    between = deviation.sum((2, 3)) / known.sum((2, 3)).clamp(min=1)
    within = torch.where(known, deviation - between[:, :, None, None], 0)
    patches, counted = (to_tokens(F.pixel_unshuffle(each, factor)) for each in (within, known.float()))
    return _Targets(between[:, None], patches, counted.bool())


def fit_readouts(
    encoders: Mapping[str, Encode | OfBatch],
    batches: Iterable[Batch],
    maps: Sequence[Maps[MeanMap]],
    places: Places,
    patch_size: int,
    share: float,
) -> dict[str, list[DepthReadout]]:
    """Fit a readout of log depth for every encoder on each data set of `maps`; see `fit_ridges`."""
    found = fit_ridges(encoders, batches, maps, places, patch_size, depth_truth(share), FACTOR)
    return {
        name: [
            DepthReadout(each.mean, ridges.between, ridges.within, ridges.strengths)
            for each, ridges in zip(maps, own, strict=True)
        ]
        for name, own in found.items()
    }


def fit_ridges(
    encoders: Mapping[str, Encode | OfBatch],
    batches: Iterable[Batch],
    maps: Sequence[Maps[Means]],
    places: Places,
    patch_size: int,
    truth: Truth,
    factor: int,
) -> dict[str, list[TwoRidges]]:
    """Fit the two ridges for every encoder on each data set of `maps`, in one pass over the training images.

    The truth is of `factor` x `factor` cells a patch, which is 1 where it is of several numbers. Raises `BadInput`
    where there are too few images to choose a strength.
    """
    fits = {name: [_Fit() for _ in maps] for name in encoders}
    folds_with = [list[int]() for _ in maps]  # folds of the images that have any truth
    seen = 0
    for batch in batches:
        rows, cols = patch_grid(batch.images, patch_size)
        cells, known = truth.cells(batch, (factor * rows, factor * cols))
        numbers = batch.index.tolist()
        fold, belongs = torch.from_numpy(places.folds.fold[numbers]), torch.from_numpy(places.train_part[numbers])
        some = known.flatten(1).any(1).cpu()
        chosen = [some if each.part == ALL else some & (belongs == each.part) for each in maps]
        targets = [
            _targets(cells[own], known[own], each.mean.maps, factor) for own, each in zip(chosen, maps, strict=True)
        ]
        for own, folds in zip(chosen, folds_with, strict=True):
            folds += fold[own].tolist()
        seen += len(numbers)
        for name, encode in encoders.items():
            tokens = tokens_of(encode, batch)
            for fit, own, wanted in zip(fits[name], chosen, targets, strict=True):
                fit.add(tokens[own.to(tokens.device)], wanted, fold[own])
    for part, folds in zip(maps, folds_with, strict=True):
        if len(folds) < FOLDS or len(set(folds)) < 2:
            raise BadInput(
                f"a {truth.noun} probe of {part.name} needs at least {FOLDS} training images with valid {truth.noun}, "
                f"of 2 or more places: of {seen} images {len(folds)} have any, in {len(set(folds))} of {FOLDS} folds "
                f"of {places.folds.by}"
            )
    return {name: [fit.solved(each, factor) for fit, each in zip(own, maps, strict=True)] for name, own in fits.items()}
