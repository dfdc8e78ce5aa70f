"""What a training set tells of k quantities of the cells of a view without looking at a photograph.

The mean map is the average of every cell over all images; the scene map is that over the training images of an image's
own scene, which is what recognising the scene is worth. Several data sets that are mixed have maps of their own, and
others of all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput

Size = tuple[int, int]  # rows and columns
ALL = -1  # the part that is all data sets together


@dataclass(frozen=True, slots=True)
class Truth:
    """What is to be told of the cells of a view: k numbers each, all known where a cell counts."""

    noun: str  # "depth", for messages
    cells: Callable[[Batch, Size], tuple[Float[Tensor, "b k rows cols"], Bool[Tensor, "b 1 rows cols"]]]
    pixels: Callable[[Batch], Bool[Tensor, "b 1 h w"]]  # where it is known, before cells are made
    share: float  # of a cell's pixels, from which on it counts
    mend: str = ""  # what a refusal says where nothing is known


@runtime_checkable
class Means(Protocol):
    """Mean maps with what else is known of them."""

    @property
    def maps(self) -> Float[Tensor, "k rows cols"]: ...

    @property
    def measured(self) -> Bool[Tensor, "rows cols"]: ...


M_co = TypeVar("M_co", bound=Means, covariant=True)
S = TypeVar("S", bound="CellSums")


class CellSums:
    """The mean of what is known of every cell, from truth that comes batch by batch."""

    def __init__(self, size: Size, values: int = 1) -> None:
        self.count = torch.zeros(*size, dtype=torch.float64)
        self.total = torch.zeros(values, *size, dtype=torch.float64)

    def add(self, cells: Float[Tensor, "b k rows cols"], known: Bool[Tensor, "b 1 rows cols"]) -> None:
        """Take in cells where they are known."""
        if not known.any():
            return
        self.count += known[:, 0].sum(0).cpu()
        self.total += torch.where(known, cells, 0).double().sum(0).cpu()

    def mean(self) -> Float[Tensor, "k rows cols"]:
        """The mean of every cell; the mean of all cells where one was never known."""
        everywhere = self.total.sum((1, 2), keepdim=True) / self.count.sum()
        return torch.where(self.count > 0, self.total / self.count.clamp(min=1), everywhere).float()

    def filled(self, whole: Float[Tensor, "k rows cols"]) -> Float[Tensor, "k rows cols"]:
        """The mean of every cell; where one was never known, the `whole` map at the level of those that were."""
        level, known = whole.double(), self.count > 0
        own = self.total / self.count.clamp(min=1)
        shift = torch.where(known, own - level, 0).sum((1, 2), keepdim=True) / known.sum().clamp(min=1)
        return torch.where(known, own, level + shift).float()


@dataclass(frozen=True, slots=True)
class Maps(Generic[M_co]):
    """What the training images of one data set (`part`), or of all together, tell without looking at a photograph."""

    name: str
    part: int
    mean: M_co
    scenes: Mapping[str, Float[Tensor, "k rows cols"]]  # of the scenes that are judged
    sets: Mapping[int, Float[Tensor, "k rows cols"]]  # mean maps of the data sets that are mixed, by their numbers

    @property
    def size(self) -> Size:
        """Rows and columns of cells."""
        rows, cols = self.mean.maps.shape[1:]
        return rows, cols

    def mean_maps(self, images: int) -> Float[Tensor, "b k rows cols"]:
        """The mean map of so many images: the zero of a table."""
        return self.mean.maps.expand(images, -1, -1, -1)

    def scene_maps(self, numbers: Sequence[int], places: Places) -> Float[Tensor, "b k rows cols"]:
        """The map of each validation image's own scene; of its data set, or the mean map, where training has none."""
        return torch.stack([self._scene_map(number, places) for number in numbers])

    def _scene_map(self, number: int, places: Places) -> Float[Tensor, "k rows cols"]:
        own = self.scenes.get(places.val_group.get(number, ""))
        return self.sets.get(int(places.val_part[number]), self.mean.maps) if own is None else own

    def knows_scene(self, numbers: Sequence[int], places: Places) -> list[bool]:
        """Whether training has the scene of each of these validation images, or data sets to tell apart."""
        return [bool(self.sets) or places.val_group.get(number, "") in self.scenes for number in numbers]

    def own(self, numbers: Sequence[int], places: Places) -> Bool[Tensor, " b"]:
        """Which of these validation images are of its data set."""
        if self.part == ALL:
            return torch.ones(len(numbers), dtype=torch.bool)
        return torch.from_numpy(places.val_part[list(numbers)] == self.part)


def maps_of(
    batches: Iterable[Batch],
    places: Places,
    size_of: Callable[[Batch], Size],
    truth: Truth,
    sums: Callable[[Size], S],
    mean_of: Callable[[S], M_co],
) -> list[Maps[M_co]]:
    """Maps of every data set by itself, where there are several, and last of all together, from one pass.

    `sums` begins to average the cells of a view of some size, and `mean_of` tells what came out.

    Raises `BadInput` where the truth is missing, nothing counts, or views differ in size.
    """
    parts = [*range(len(places.parts)), ALL] if len(places.parts) > 1 else [ALL]
    means: dict[int, S] = {}
    scenes: dict[str, tuple[int, S]] = {}
    size, seen, pixels = (0, 0), 0, 0
    for batch in batches:
        if seen and size_of(batch) != size:
            raise BadInput(f"a {truth.noun} probe needs images of one size: set data.image_size")
        size = size_of(batch)
        cells, known = truth.cells(batch, size)
        pixels += int(truth.pixels(batch).sum())
        numbers = batch.index.tolist()
        belongs = places.train_part[numbers]
        means = means or {part: sums(size) for part in parts}
        for part, found in means.items():
            found.add(*_of_part(cells, known, belongs, part))
        for row, number in enumerate(numbers):
            if (group := places.train_group.get(number)) is not None:
                if group not in scenes:
                    scenes[group] = int(belongs[row]), sums(size)
                scenes[group][1].add(cells[row : row + 1], known[row : row + 1])
        seen += len(numbers)
    _refuse_nothing(means, places, seen, pixels, truth)
    whole = {part: each.mean() for part, each in means.items()}
    return [
        Maps(
            name=",".join(places.parts) if part == ALL else places.parts[part],
            part=part,
            mean=mean_of(each),
            scenes={
                group: own.filled(whole[part])
                for group, (of, own) in scenes.items()
                if part in (ALL, of) and own.count.any()
            },
            sets={of: each for of, each in whole.items() if of != ALL} if part == ALL else {},
        )
        for part, each in means.items()
    ]


def _of_part(cells: Tensor, known: Tensor, belongs: np.ndarray, part: int) -> tuple[Tensor, Tensor]:
    if part == ALL:
        return cells, known
    rows = torch.from_numpy(belongs == part).to(cells.device)
    return cells[rows], known[rows]


def _refuse_nothing(means: Mapping[int, CellSums], places: Places, seen: int, pixels: int, truth: Truth) -> None:
    empty = [part for part, each in means.items() if not each.count.any()]
    if not means or empty:
        which = "" if not means or ALL in empty else f" of {places.parts[empty[0]]}"
        if not pixels:
            raise BadInput(f"none of the {seen} training images{which} has valid {truth.noun}{truth.mend}")
        raise BadInput(
            f"no cell of the {seen} training images{which} has valid {truth.noun} on {truth.share:.0%} of its pixels: "
            f"take a smaller evaluation.cell_share (0.02 for sparse lidar)"
        )
