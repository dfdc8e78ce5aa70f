"""What depth is judged by: the log depth of the cells of a view, and what the training set tells without looking.

Truth is the natural logarithm of depth [log m], larger = farther, averaged over a cell's valid pixels. A cell counts
where at least a given share of its pixels is valid; one that does not count may hold anything. Two guesses know
no photograph: the mean map (every image is the training set's average) and the scene map (the average of the
training images of the image's own scene), which is what recognising a room is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from depthjepa.faults import BadInput

Size = tuple[int, int]  # rows and columns
Predict = Callable[[Batch], Float[Tensor, "b 1 rows cols"]]  # log depth [log m]

ALL = -1  # the part that is all data sets together


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


# what is told without looking ------------------------------------------------------------------------------


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

    def predict(self, batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        """Give every image the mean map: the zero of a table."""
        return self.values.expand(len(batch.images), 1, -1, -1)


class CellMeans:
    """The mean of what is known of every cell, from truth that comes batch by batch."""

    def __init__(self, size: Size) -> None:
        self.count, self.total = torch.zeros(2, *size, dtype=torch.float64)
        self.lowest, self.highest = torch.inf, -torch.inf

    def add(self, cells: Float[Tensor, "b 1 rows cols"], known: Bool[Tensor, "b 1 rows cols"]) -> None:
        """Take in log depths [log m] where they are known."""
        if not known.any():
            return
        self.count += known[:, 0].sum(0).cpu()
        self.total += torch.where(known, cells, 0)[:, 0].double().sum(0).cpu()
        values = cells[known]
        self.lowest, self.highest = min(self.lowest, float(values.min())), max(self.highest, float(values.max()))

    def mean_map(self) -> MeanMap:
        """The mean map, which has the mean of all cells where one was never known."""
        mean = torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.total.sum() / self.count.sum())
        nearest, farthest = (float(np.exp(each)) for each in (self.lowest, self.highest))
        return MeanMap(mean.float(), nearest, farthest, self.count > 0)

    def filled(self, mean_map: MeanMap) -> Float[Tensor, "rows cols"]:
        """The mean of every cell; where one was never known, the mean map at the level of those that were."""
        whole, known = mean_map.values.double(), self.count > 0
        own = self.total / self.count.clamp(min=1)
        level = torch.where(known, own - whole, 0).sum() / known.sum().clamp(min=1)
        return torch.where(known, own, whole + level).float()


@dataclass(frozen=True, slots=True)
class Maps:
    """What the training images of one data set (`part`), or of all together, tell without looking at a photograph."""

    name: str
    part: int
    mean: MeanMap
    scenes: Mapping[str, Float[Tensor, "rows cols"]]  # log depth [log m], of the scenes that are judged
    sets: Mapping[int, Float[Tensor, "rows cols"]]  # mean maps of the data sets that are mixed, by their numbers

    def scene_maps(self, numbers: Sequence[int], places: Places) -> Float[Tensor, "b 1 rows cols"]:
        """The map of each validation image's own scene; of its data set, or the mean map, where training has none."""
        return torch.stack([self._scene_map(number, places) for number in numbers])[:, None]

    def _scene_map(self, number: int, places: Places) -> Float[Tensor, "rows cols"]:
        own = self.scenes.get(places.val_group.get(number, ""))
        return self.sets.get(int(places.val_part[number]), self.mean.values) if own is None else own

    def knows_scene(self, numbers: Sequence[int], places: Places) -> list[bool]:
        """Whether training has the scene of each of these validation images, or data sets to tell apart."""
        return [bool(self.sets) or places.val_group.get(number, "") in self.scenes for number in numbers]


def training_maps(
    batches: Iterable[Batch], places: Places, size_of: Callable[[Batch], Size], share: float
) -> list[Maps]:
    """Maps of every data set by itself, where there are several, and last of all together, from one pass.

    Raises `BadInput` where depth is missing, nothing counts, or views differ in size.
    """
    parts = [*range(len(places.parts)), ALL] if len(places.parts) > 1 else [ALL]
    means: dict[int, CellMeans] = {}
    scenes: dict[str, tuple[int, CellMeans]] = {}
    size, seen, pixels = (0, 0), 0, 0
    for batch in batches:
        if seen and size_of(batch) != size:
            raise BadInput("a depth probe needs images of one size: set data.image_size")
        size = size_of(batch)
        cells, known = cells_of(batch, size, share)
        assert batch.depth is not None
        pixels += int(valid(batch.depth).sum())
        numbers = batch.index.tolist()
        belongs = places.train_part[numbers]
        for part in parts:
            means.setdefault(part, CellMeans(size)).add(*_of_part(cells, known, belongs, part))
        for row, number in enumerate(numbers):
            if (group := places.train_group.get(number)) is not None:
                part, found = scenes.setdefault(group, (int(belongs[row]), CellMeans(size)))
                found.add(cells[row : row + 1], known[row : row + 1])
        seen += len(numbers)
    _refuse_nothing(means, places, seen, pixels, share)
    whole = {part: each.mean_map() for part, each in means.items()}
    return [
        Maps(
            name=",".join(places.parts) if part == ALL else places.parts[part],
            part=part,
            mean=mean,
            scenes={
                group: own.filled(mean) for group, (of, own) in scenes.items() if part in (ALL, of) and own.count.any()
            },
            sets={of: each.values for of, each in whole.items() if of != ALL} if part == ALL else {},
        )
        for part, mean in whole.items()
    ]


def _of_part(cells: Tensor, known: Tensor, belongs: np.ndarray, part: int) -> tuple[Tensor, Tensor]:
    if part == ALL:
        return cells, known
    rows = torch.from_numpy(belongs == part).to(cells.device)
    return cells[rows], known[rows]


def _refuse_nothing(means: Mapping[int, CellMeans], places: Places, seen: int, pixels: int, share: float) -> None:
    empty = [part for part, each in means.items() if not each.count.any()]
    if not means or empty:
        which = "" if not means or ALL in empty else f" of {places.parts[empty[0]]}"
        if not pixels:
            raise BadInput(f"none of the {seen} training images{which} has valid depth")
        raise BadInput(
            f"no cell of the {seen} training images{which} has valid depth on {share:.0%} of its pixels: take a "
            f"smaller evaluation.cell_share (0.02 for sparse lidar)"
        )


def resized(
    maps: Float[Tensor, "b 1 rows cols"], known: Bool[Tensor, "rows cols"], size: Size
) -> Float[Tensor, "b 1 h w"]:
    """Resize maps bilinearly between cells that are known; where none is near, between all."""
    shares, everywhere = known.to(maps.dtype)[None, None], F.interpolate(maps, size, mode="bilinear")
    weights = F.interpolate(shares, size, mode="bilinear")
    values = F.interpolate(maps * shares, size, mode="bilinear")
    return torch.where((weights > 0) & (weights < 1), values / weights.clamp(min=1e-6), everywhere)
