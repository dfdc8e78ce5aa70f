"""A linear readout of disparity from frozen tokens, and its fit from sums that never hold the tokens.

A ridge on standardised tokens predicts, for each patch, the disparity of its 2 x 2 cells as a deviation from
the training set's mean map: what position alone tells is given for nothing, and the readout is scored on what
it adds. The truth of a cell is the mean disparity [1/m] over its valid pixels; a cell without one takes no
part.

The ridge is solved from sums that are added up batch by batch (`evaluation.ridge`), each of the four outputs with its
own mask. The strength is chosen on every fifth training image (the mean map and the standardisation then come from the
other four fifths); the readout is solved again on all training images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.samples import Batch
from depthjepa.depth import disparity, pool_valid, valid
from depthjepa.evaluation.features import Encode, OfBatch, tokens_of
from depthjepa.evaluation.ridge import Ridge
from depthjepa.faults import BadInput
from depthjepa.grid import to_tokens, unfold_cells
from depthjepa.logbook import whole_file

FOLDS = 5
FACTOR = 2  # cells a patch along each side; a patch's cells are ordered row by row

Predict = Callable[[Batch], Float[Tensor, "b 1 rows cols"]]  # disparity [1/m]


@dataclass(frozen=True, slots=True)
class MeanMap:
    """The training set's mean disparity [1/m] of every cell, and the range of the cells' disparities.

    Where no training image had a measurement (`measured` is false), the value is the mean of all cells, and what is
    predicted there is nothing that was learned: such cells are drawn grey.
    """

    values: Float[Tensor, "rows cols"]
    minimum: float
    maximum: float
    measured: Bool[Tensor, "rows cols"]

    def predict(self, batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        """Give every image the mean map: the zero of a table."""
        return self.values.expand(len(batch.images), 1, -1, -1)


class CellMeans:
    """The mean of what is known of every cell, from truth that comes batch by batch."""

    def __init__(self, rows: int, cols: int) -> None:
        self.count, self.total = torch.zeros(2, rows, cols, dtype=torch.float64)
        self.minimum, self.maximum = torch.inf, 0.0

    def add(self, cells: Float[Tensor, "b 1 rows cols"], known: Bool[Tensor, "b 1 rows cols"]) -> None:
        """Take in disparities [1/m], 0 where they are not known."""
        self.count += known[:, 0].sum(0).cpu()
        self.total += cells[:, 0].double().sum(0).cpu()
        if known.any():
            values = cells[known]
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))

    def mean_map(self) -> MeanMap:
        """The mean map, which has the mean of all cells where one was never known."""
        mean = torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.total.sum() / self.count.sum())
        # Rounding to float32 must not carry a mean across the bounds that predictions are held to.
        return MeanMap(mean.float().clamp(self.minimum, self.maximum), self.minimum, self.maximum, self.count > 0)


@dataclass(frozen=True, slots=True)
class DepthReadout:
    """A linear map from a token to the disparities [1/m] of its 2 x 2 cells, added to the mean map."""

    mean_map: MeanMap
    token_mean: Float[Tensor, " d"]
    token_deviation: Float[Tensor, " d"]  # infinite for a channel that does not vary
    weight: Float[Tensor, "d 4"]
    bias: Float[Tensor, " 4"]
    strength: float

    def predict(self, tokens: Float[Tensor, "b n d"], rows: int, cols: int) -> Float[Tensor, "b 1 cell_rows cell_cols"]:
        """Disparity [1/m] at twice the grid of `rows` x `cols` tokens, within the training range.

        On a grid other than that of the training set the mean map is resized.
        """
        if tokens.shape[2] != len(self.token_mean):
            widths = f"{tokens.shape[2]} wide, and the readout was fitted on {len(self.token_mean)}"
            raise BadInput(f"the tokens are {widths}: use the encoder of the readout")
        here = tokens.device
        standard = (tokens.float() - self.token_mean.to(here)) / self.token_deviation.to(here)
        values = standard @ self.weight.to(here) + self.bias.to(here)
        mean_map = self.mean_map.values.to(here)[None, None]
        if mean_map.shape[2:] != (FACTOR * rows, FACTOR * cols):
            mean_map = resized(mean_map, self.mean_map.measured.to(here), (FACTOR * rows, FACTOR * cols))
        disparities: Tensor = mean_map + unfold_cells(values, (rows, cols), FACTOR)
        return disparities.clamp(self.mean_map.minimum, self.mean_map.maximum)

    def on(self, encode: Encode | OfBatch, patch_size: int) -> Predict:
        """Return the function from a batch to disparity: the encoder, then this readout."""

        def predict(batch: Batch) -> Float[Tensor, "b 1 cell_rows cell_cols"]:
            return self.predict(tokens_of(encode, batch), *patch_grid(batch.images, patch_size))

        return predict

    def save(self, path: Path, origin: dict[str, str] | None = None) -> None:
        """Write the readout as one safetensors file, with what it was fitted on (`origin`) as its metadata."""
        numbers = (self.mean_map.minimum, self.mean_map.maximum, self.strength)
        tensors = {
            "mean_map": self.mean_map.values,
            "measured": self.mean_map.measured,
            "token_mean": self.token_mean,
            "token_deviation": self.token_deviation,
            "weight": self.weight,
            "bias": self.bias,
            "minimum_maximum_strength": torch.tensor(numbers, dtype=torch.float64),
        }
        with whole_file(path) as file:
            file.write(to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, origin))

    @classmethod
    def load(cls, path: Path) -> DepthReadout:
        """Read what `save` wrote; raises `BadInput` for any other file.

        Older files do not say where depth was measured: everywhere, then.
        """
        try:
            tensors = load_file(path)
            minimum, maximum, strength = tensors.pop("minimum_maximum_strength").tolist()
            values, measured = tensors.pop("mean_map"), tensors.pop("measured", None)
            everywhere = torch.ones_like(values, dtype=torch.bool)
            mean_map = MeanMap(values, minimum, maximum, everywhere if measured is None else measured)
            return cls(mean_map=mean_map, strength=strength, **tensors)
        except (OSError, SafetensorError, KeyError, TypeError) as fault:
            raise BadInput(f"{path} is not a depth readout written by depthjepa: {fault}") from fault


def read_origin(path: Path) -> dict[str, str]:
    """What `DepthReadout.save` was told of the readout's origin; empty where it was told nothing.

    Raises `BadInput` for a file that is not of this format.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return dict(stored.metadata() or {})
    except (OSError, SafetensorError) as fault:
        raise BadInput(f"{path} is not a depth readout written by depthjepa: {fault}") from fault


def resized(
    maps: Float[Tensor, "b 1 rows cols"], known: Bool[Tensor, "rows cols"], size: tuple[int, int]
) -> Float[Tensor, "b 1 h w"]:
    """Resize maps bilinearly between cells that are known; where none is near, between all."""
    shares, everywhere = known.to(maps.dtype)[None, None], F.interpolate(maps, size, mode="bilinear")
    weights = F.interpolate(shares, size, mode="bilinear")
    values = F.interpolate(maps * shares, size, mode="bilinear")
    return torch.where((weights > 0) & (weights < 1), values / weights.clamp(min=1e-6), everywhere)


def patch_grid(images: Float[Tensor, "b 3 h w"], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patch grid; refuses images that patches do not divide."""
    h, w = images.shape[2:]
    if h % patch_size or w % patch_size:
        raise BadInput(f"images of {h} x {w} pixels do not divide into patches of {patch_size}")
    return h // patch_size, w // patch_size


def cells_of(
    batch: Batch, rows: int, cols: int
) -> tuple[Float[Tensor, "b 1 rows cols"], Bool[Tensor, "b 1 rows cols"]]:
    """True disparity [1/m] of each cell (0 where unknown), and where it is known."""
    if batch.depth is None:
        raise BadInput(f"a depth probe needs depth, and these images have none: give {with_depth()}")
    cells, share = pool_valid(disparity(batch.depth), valid(batch.depth), (rows, cols))
    return cells, share > 0


def fit_readout(encode: Encode, batches: Iterable[Batch], patch_size: int) -> DepthReadout:
    """Fit the linear readout of one encoder; see `fit_readouts`."""
    return fit_readouts({"encoder": encode}, batches, patch_size)[1]["encoder"]


def fit_readouts(
    encoders: Mapping[str, Encode | OfBatch], batches: Iterable[Batch], patch_size: int
) -> tuple[MeanMap, dict[str, DepthReadout]]:
    """Fit the training set's mean map and the linear readout of every encoder in one pass.

    Raises `BadInput` where depth is missing, sizes differ, or there are too few images to choose a strength.
    """
    ridges = {name: Ridge() for name in encoders}
    means: CellMeans | None = None
    grid, seen, measured = (0, 0), 0, 0
    enough = [False, False]  # is any depth known of the images that are fitted, and of those held out
    for batch in batches:
        if seen and patch_grid(batch.images, patch_size) != grid:
            raise BadInput("a depth probe needs images of one size: set data.image_size")
        grid = patch_grid(batch.images, patch_size)
        cells, known = cells_of(batch, FACTOR * grid[0], FACTOR * grid[1])
        means = means or CellMeans(*cells.shape[2:])
        means.add(cells, known)
        aside = torch.arange(seen, seen + len(cells), device=cells.device) % FOLDS == FOLDS // 2
        enough = [enough[fold] or bool(known[aside == fold].any()) for fold in (0, 1)]
        targets, counted = (to_tokens(F.pixel_unshuffle(each, FACTOR)) for each in (cells.double(), known.float()))
        for name, encode in encoders.items():
            ridges[name].add(tokens_of(encode, batch), targets, aside.long(), counted.bool())
        seen += len(cells)
        measured += int(known.flatten(1).any(1).sum())
    if means is None or not all(enough):
        raise BadInput(
            f"a depth probe needs at least {FOLDS} images with valid depth, one of every {FOLDS} in their order among "
            f"them, and {measured} of {seen} have any"
        )
    mean_map = means.mean_map()
    return mean_map, {name: _readout(ridge, mean_map) for name, ridge in ridges.items()}


def _readout(ridge: Ridge, mean_map: MeanMap) -> DepthReadout:
    """Choose the strength on the images held out, then solve on all of them."""
    strength = ridge.choose(held=[1])
    found = ridge.solve(strength)
    return DepthReadout(
        mean_map=mean_map,
        token_mean=found.mean.float().cpu(),
        token_deviation=found.deviation.float().cpu(),
        weight=found.weight.T.float().cpu().contiguous(),
        bias=found.bias.float().cpu(),
        strength=strength,
    )
