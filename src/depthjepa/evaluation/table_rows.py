"""What stands in a table of cells told from frozen tokens: readouts and guesses, asked batch by batch.

A row is asked once for a batch, however many tables (of each of several data sets, and of all) it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch
from depthjepa.evaluation.features import Encode, OfBatch, tokens_of
from depthjepa.evaluation.mean_maps import Maps, Means, Truth
from depthjepa.evaluation.readout import patch_grid

MEAN_MAP, SCENE_MAP = "mean map", "scene map"
T = TypeVar("T")


@runtime_checkable
class Row(Protocol):
    """What predicts: `look` is asked once for a batch, `tell` for each data set by itself and for all together."""

    def look(self, batch: Batch) -> Any: ...

    def tell(self, seen: Any, batch: Batch, number: int) -> Float[Tensor, "b k rows cols"]:
        """The k numbers of each cell by what was fitted on the data set with this number among the table's."""
        ...


@runtime_checkable
class Readout(Protocol):
    """From tokens to the numbers of cells."""

    def predict(
        self, tokens: Float[Tensor, "b n d"], rows: int, cols: int
    ) -> Float[Tensor, "b k cell_rows cell_cols"]: ...


@dataclass(frozen=True, slots=True)
class Guessed:
    """The mean map or the scene map of each data set, which look at no photograph."""

    maps: Sequence[Maps[Means]]
    places: Places
    by_scene: bool

    def look(self, batch: Batch) -> None:
        return None

    def tell(self, seen: None, batch: Batch, number: int) -> Float[Tensor, "b k rows cols"]:
        maps, numbers = self.maps[number], batch.index.tolist()
        return maps.scene_maps(numbers, self.places) if self.by_scene else maps.mean_maps(len(numbers))


@dataclass(frozen=True, slots=True)
class ReadOut:
    """Frozen tokens and the readouts of them."""

    encode: Encode | OfBatch
    readouts: Sequence[Readout]
    patch_size: int

    def look(self, batch: Batch) -> Float[Tensor, "b n d"]:
        return tokens_of(self.encode, batch)

    def tell(self, seen: Float[Tensor, "b n d"], batch: Batch, number: int) -> Float[Tensor, "b k rows cols"]:
        return self.readouts[number].predict(seen, *patch_grid(batch.images, self.patch_size))


@dataclass(frozen=True, slots=True)
class Answers:
    """The truth of a batch, and what every row says of it for each data set; on the CPU."""

    batch: Batch
    cells: Float[Tensor, "b k rows cols"]
    known: Bool[Tensor, "b 1 rows cols"]
    told: Mapping[str, Sequence[Float[Tensor, "b k rows cols"]]]


def answers(
    rows: Mapping[str, Row], maps: Sequence[Maps[Means]], places: Places, batches: Iterable[Batch], truth: Truth
) -> Iterator[Answers]:
    """What the mean map, the scene map and then all rows tell, batch by batch."""
    guesses = {MEAN_MAP: Guessed(maps, places, by_scene=False), SCENE_MAP: Guessed(maps, places, by_scene=True)}
    for batch in batches:
        cells, known = (each.cpu() for each in truth.cells(batch, maps[0].size))
        told: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for name, row in {**guesses, **rows}.items():
                seen = row.look(batch)
                told[name] = [row.tell(seen, batch, number).float().cpu() for number in range(len(maps))]
        yield Answers(batch, cells, known, told)


class Spread(Generic[T]):
    """An even spread of `count` of things that come one by one, of which nobody knows how many will."""

    def __init__(self, count: int) -> None:
        self._count, self._kept = count, list[tuple[int, T]]()
        self._seen, self._stride = 0, 1

    def wanted(self) -> bool:
        """Whether the next thing is to be kept by `keep`; to be asked once for each."""
        self._seen += 1
        return self._count > 0 and (self._seen - 1) % self._stride == 0

    def keep(self, thing: T) -> None:
        """Keep the thing that was wanted last."""
        self._kept.append((self._seen - 1, thing))
        if len(self._kept) > 4 * self._count:
            self._stride *= 2
            self._kept = [each for each in self._kept if each[0] % self._stride == 0]

    def chosen(self) -> list[T]:
        """At most `count` of those that were kept."""
        return [self._kept[number][1] for number in evenly(self._count, len(self._kept))]
