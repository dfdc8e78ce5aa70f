"""What depth is judged by: the log depth of the cells of a view, and what the training set tells without looking.

Truth is the natural logarithm of depth [log m], larger = farther, averaged over a cell's valid pixels. A cell counts
where at least a given share of its pixels is valid; one that does not count may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.samples import Batch
from depthjepa.depth import pool_valid, valid
from depthjepa.evaluation.mean_maps import CellSums, Maps, Size, Truth, maps_of
from depthjepa.faults import BadInput

Predict = Callable[[Batch], Float[Tensor, "b 1 rows cols"]]  # log depth [log m]


def cells_of(
    batch: Batch, size: Size, share: float = 0.0
) -> tuple[Float[Tensor, "b 1 rows cols"], Bool[Tensor, "b 1 rows cols"]]:
    """Log depth [log m] of each cell (0 where it does not count), and where it counts.

    `share` of a cell's pixels have to be valid, and at least one. Cells of the size of the images are their pixels.
    """
    if batch.depth is None:
        raise BadInput(f"a depth probe needs depth, and these images have none: give {with_depth()}")
    known = valid(batch.depth)
    logs = torch.where(known, torch.where(known, batch.depth, 1).log(), 0)
    if tuple(logs.shape[2:]) == size:
        return logs, known
    cells, shares = pool_valid(logs, known, size)
    counted = (shares > 0) & (shares >= share - 1e-6)  # 0.25 of 16 pixels is 4 of them, whatever they are rounded to
    return torch.where(counted, cells, 0), counted


@dataclass(frozen=True, slots=True)
class MeanMap:
    """The mean log depth [log m] of every cell over some images, and the range [m] of the cells' depths.

    Where no image had a measurement (`measured` is false), the value is the mean of all cells, and what is predicted
    there is nothing that was learned: such cells are drawn grey.
    """

    values: Float[Tensor, "rows cols"]
    nearest: float
    farthest: float
    measured: Bool[Tensor, "rows cols"]

    @property
    def maps(self) -> Float[Tensor, "1 rows cols"]:
        """The values as those of one quantity."""
        return self.values[None]


class CellMeans(CellSums):
    """The mean log depth [log m] of what is known of every cell, and the range."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.lowest, self.highest = torch.inf, -torch.inf

    def add(self, cells: Float[Tensor, "b 1 rows cols"], known: Bool[Tensor, "b 1 rows cols"]) -> None:
        """Take in log depths [log m] where they are known."""
        super().add(cells, known)
        if known.any():
            values = cells[known]
            self.lowest, self.highest = min(self.lowest, float(values.min())), max(self.highest, float(values.max()))

    def mean_map(self) -> MeanMap:
        """The mean map, which has the mean of all cells where one was never known."""
        nearest, farthest = (float(np.exp(each)) for each in (self.lowest, self.highest))
        return MeanMap(self.mean()[0], nearest, farthest, self.count > 0)


def training_maps(
    batches: Iterable[Batch], places: Places, size_of: Callable[[Batch], Size], share: float
) -> list[Maps[MeanMap]]:
    """Maps of the log depth of every data set and of all together; see `mean_maps.maps_of`."""
    return maps_of(batches, places, size_of, depth_truth(share), CellMeans, CellMeans.mean_map)


def depth_truth(share: float) -> Truth:
    """Log depth of the cells that count by this `share` of their pixels."""

    def known_pixels(batch: Batch) -> Bool[Tensor, "b 1 h w"]:
        assert batch.depth is not None
        return valid(batch.depth)

    return Truth("depth", lambda batch, size: cells_of(batch, size, share), known_pixels, share)


def resized(
    maps: Float[Tensor, "b 1 rows cols"], known: Bool[Tensor, "rows cols"], size: Size
) -> Float[Tensor, "b 1 h w"]:
    """Resize maps bilinearly between cells that are known; where none is near, between all."""
    shares, everywhere = known.to(maps.dtype)[None, None], F.interpolate(maps, size, mode="bilinear")
    weights = F.interpolate(shares, size, mode="bilinear")
    values = F.interpolate(maps * shares, size, mode="bilinear")
    return torch.where((weights > 0) & (weights < 1), values / weights.clamp(min=1e-6), everywhere)
