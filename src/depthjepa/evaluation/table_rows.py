"""What stands in a table of cells told from frozen tokens: readouts and guesses, asked and judged batch by batch.

A row is asked once for a batch, however many tables (of each of several data sets, and of all) it stands in. What cells
hold (log depth, normals) and by which errors it is judged is the caller's (`mean_maps.Truth`, `Measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from depthjepa.data.groups import Places
from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.evaluation.features import Encode, OfBatch, tokens_of
from depthjepa.evaluation.mean_maps import Maps, Means, Truth
from depthjepa.evaluation.readout import patch_grid
from depthjepa.faults import BadInput

MEAN_MAP, SCENE_MAP = "mean map", "scene map"
T = TypeVar("T")
M = TypeVar("M", bound=Means)


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


Errors = Callable[[Tensor, Tensor, Tensor], dict[str, Float[Tensor, " b"]]]  # of prediction, truth, what is known
Figures = Callable[[Mapping[str, Float[np.ndarray, " images"]]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Measure(Generic[M]):
    """How predictions of cells are judged and drawn."""

    # Of some validation images, by their numbers: what gives the errors and sums of squares of each.
    errors: Callable[[Maps[M], Places, Sequence[int]], Errors]
    figures: Figures  # of a set of images, from those of each: any resample can be told so
    true_maps: Callable[[Float[Tensor, "b k rows cols"]], Float[Tensor, "b ..."]]  # as pictures show them
    told_maps: Callable[[Float[Tensor, "b k rows cols"], Maps[M]], Float[Tensor, "b ..."]]


@dataclass(frozen=True, slots=True)
class Pictures:
    """An even spread of images, what is true of their cells (nan where unknown) and what each row tells."""

    images: UInt8[np.ndarray, "k h w 3"]
    truth: Float[np.ndarray, "k ..."]
    predictions: dict[str, Float[np.ndarray, "k ..."]]


@dataclass(frozen=True, slots=True)
class Judged(Generic[M]):
    """What every row is worth on one data set, or on all together; the guesses come first."""

    maps: Maps[M]
    figures: dict[str, dict[str, float]]
    per_image: dict[str, dict[str, Float[np.ndarray, " images"]]]
    pictures: Pictures
    groups: tuple[str, ...]  # of the judged images; empty texts: not known
    scenes: int  # how many of the judged images have a scene map


def judge(
    rows: Mapping[str, Row],
    maps: Sequence[Maps[M]],
    places: Places,
    batches: Iterable[Batch],
    truth: Truth,
    measure: Measure[M],
    pictures: int,
) -> list[Judged[M]]:
    """Score the mean map, the scene map and all rows on the cells of `maps`, in one pass over the images.

    Nothing is kept of an image but its figures, and an even spread of them for pictures. Raises `BadInput` where the
    truth is missing or a prediction is not finite.
    """
    guesses = {MEAN_MAP: Guessed(maps, places, by_scene=False), SCENE_MAP: Guessed(maps, places, by_scene=True)}
    judges = [_Judge(each, places, truth, measure, pictures) for each in maps]
    for batch in batches:
        cells, known = (each.cpu() for each in truth.cells(batch, maps[0].size))
        predicted: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for name, row in {**guesses, **rows}.items():
                seen = row.look(batch)
                predicted[name] = [row.tell(seen, batch, number).float().cpu() for number in range(len(maps))]
        for number, each in enumerate(judges):
            each.add(batch, cells, known, {name: of_set[number] for name, of_set in predicted.items()})
    return [each.judged() for each in judges]


class _Judge(Generic[M]):
    """Takes in the predictions for one data set, or for all of them, batch by batch."""

    def __init__(self, maps: Maps[M], places: Places, truth: Truth, measure: Measure[M], pictures: int) -> None:
        self.maps, self.places, self.truth, self.measure = maps, places, truth, measure
        self.numbers: list[int] = []
        self.found: dict[str, list[dict[str, Tensor]]] = {}
        self.shown = Spread[tuple[Tensor, Tensor, dict[str, Tensor]]](pictures)
        self.any_known = False

    def add(self, batch: Batch, cells: Tensor, known: Tensor, predicted: Mapping[str, Tensor]) -> None:
        numbers = batch.index.tolist()
        own = self.maps.own(numbers, self.places)
        if not own.any():
            return
        mine = [number for number, is_own in zip(numbers, own.tolist(), strict=True) if is_own]
        self.numbers += mine
        truth, counted = cells[own], known[own]
        self.any_known |= bool(counted.any())
        guesses = {name: guess[own] for name, guess in predicted.items()}
        errors = self.measure.errors(self.maps, self.places, mine)
        for name, guess in guesses.items():
            if not torch.isfinite(guess).all():
                raise BadInput(f"{name} predicts values of {self.truth.noun} that are not finite")
            self.found.setdefault(name, []).append(errors(guess, truth, counted))
        images = batch.images[own.to(batch.images.device)]
        for row in range(len(images)):
            if self.shown.wanted():
                one = slice(row, row + 1)
                drawn = self.measure.true_maps(torch.where(counted[one], truth[one], torch.nan))[0]
                shown = {name: self.measure.told_maps(guess[one], self.maps)[0] for name, guess in guesses.items()}
                # A copy: a view of one image would keep its whole batch.
                self.shown.keep((images[row].to("cpu", copy=True), drawn, shown))

    def judged(self) -> Judged[M]:
        if not self.any_known:
            what = f"valid {self.truth.noun} in {self.maps.name}"
            raise BadInput(f"there are no validation images with {what} to judge by")
        per_image = {
            name: {key: np.concatenate([each[key].numpy() for each in parts]) for key in parts[0]}
            for name, parts in self.found.items()
        }
        figures = {name: self.measure.figures(each) for name, each in per_image.items()}
        scenes = sum(self.maps.knows_scene(self.numbers, self.places))
        if not scenes:  # the mean map under another name says nothing
            figures[SCENE_MAP] = dict.fromkeys(figures[SCENE_MAP], float("nan"))
        groups = tuple(self.places.val_group.get(number, "") for number in self.numbers)
        return Judged(self.maps, figures, per_image, self._drawn(), groups, scenes)

    def _drawn(self) -> Pictures:
        kept = self.shown.chosen()
        if not kept:
            nothing = np.empty((0, *self.maps.size))
            return Pictures(as_bytes(torch.empty(0, 3, 1, 1)), nothing, dict.fromkeys(self.found, nothing))
        return Pictures(
            images=as_bytes(torch.stack([image for image, _, _ in kept])),
            truth=np.stack([truth.numpy() for _, truth, _ in kept]),
            predictions={name: np.stack([told[name].numpy() for *_, told in kept]) for name in self.found},
        )
