"""What a depth teacher is, and how its latents become a guidance target.

A teacher is frozen. It gives latents [b, channels, rows, cols] at any resolution; they are brought to twice the patch
grid. `Whitening` removes the training set's mean map and divides each channel by its deviation, so that a constant
prediction scores a known floor and the mean map is no shortcut, and clips at five deviations. For pixel guidance the
teacher is the depth itself, pixel by pixel, and nothing is clipped: a depth that is far off is to cost what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.depth import pool_valid
from depthjepa.losses import Latents, feature_depth_loss, masked_mean

CLIP = 5.0  # deviations
CELL = 8  # pixels that a network sees a latent cell, of which a patch has two along each side: as many as DepthFM takes
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601

Centre = Literal["map", "mean", "nothing"]
Zoomed = Literal["multiplied", "log added", "unchanged"]
CANONICAL = "at a focal length of one image width"  # ends the unit of depth that a focal length turns to metres


@dataclass(frozen=True, slots=True)
class Description:
    """What a teacher's latents are."""

    name: str
    channels: int
    stride: int | None  # image pixels a latent cell; None: any resolution on demand
    unit: str
    direction: Literal["larger = nearer", "larger = farther", "undirected"]
    stochastic: bool
    needs_depth: bool  # whether it reads the batch's depth; a network reads its images
    # Of latents that are read from a cache: how those of crops differ from the teacher's own (see `commands.teach`).
    cached_crops: Mapping[str, float] | None = None
    # What a crop's zoom does to latents of metric depth; depth without a scale and features stay as they are.
    zoomed: Zoomed = "unchanged"


@runtime_checkable
class Teacher(Protocol):
    """A frozen source of depth latents."""

    def describe(self) -> Description:
        """What its latents are."""
        ...

    def to(self, device: torch.device) -> Teacher:
        """Move its networks, if it has any; returns the teacher itself."""
        ...

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """Latents of a batch at about `cells` (rows, columns), not yet whitened."""
        ...


@dataclass(frozen=True, slots=True)
class Whitening:
    """Mean map and deviation of a teacher's latents over training crops; stored with the run."""

    mean: Float[Tensor, "c rows cols"]
    deviation: Float[Tensor, " c"]

    def to(self, device: torch.device) -> Whitening:
        """Move both."""
        return Whitening(self.mean.to(device), self.deviation.to(device))

    def apply(self, latents: Latents, clip: float = CLIP) -> Latents:
        """Whiten; invalid values become zero, those that are bounds stay bounds."""
        values = (latents.values - self.mean) / self.deviation[:, None, None]
        counted = latents.valid if latents.bound is None else latents.valid | latents.bound
        return Latents(torch.where(counted, values.clamp(-clip, clip), 0.0), latents.valid, latents.bound)

    def undo(self, values: Float[Tensor, "b c rows cols"]) -> Float[Tensor, "b c rows cols"]:
        """Return from whitened values to the teacher's own."""
        return values * self.deviation[:, None, None] + self.mean


def on_cells(teacher: Teacher, batch: Batch, cells: tuple[int, int]) -> Latents:
    """The teacher's latents on `cells` (rows, columns), not whitened."""
    latents = teacher.batch_latents(batch, cells)
    if latents.values.shape[-2:] == cells:
        return latents
    if not teacher.describe().needs_depth:
        return resized(latents, cells)
    valid = latents.valid.all(1, keepdim=True)
    values, share = pool_valid(latents.values, valid, cells)
    return Latents(values, (share > 0).expand_as(values))


def resized(latents: Latents, cells: tuple[int, int]) -> Latents:
    """A network's latents on other cells, bilinear between those that are valid; valid where most of a cell is."""
    if latents.values.shape[-2:] == cells:
        return latents
    if latents.valid.all():  # of nearly all networks: what is not infinite or nan
        values = bilinear(latents.values, cells)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))
    share = bilinear(latents.valid.to(latents.values.dtype), cells)
    total = bilinear(torch.where(latents.valid, latents.values, 0.0), cells)
    known = share > 0.5
    return Latents(torch.where(known, total / torch.where(known, share, 1.0), 0.0), known)


def filled(latents: Latents) -> Float[Tensor, "b c rows cols"]:
    """The latents, and where a network says nothing its image's mean of what it says elsewhere: for a readout."""
    if latents.valid.all():
        return latents.values
    mean = masked_mean(latents.values.flatten(2), latents.valid.flatten(2))[..., None, None]
    return torch.where(latents.valid, latents.values, mean)


def bilinear(values: Float[Tensor, "b c _rows _cols"], size: tuple[int, int]) -> Float[Tensor, "b c rows cols"]:
    """Images or latents at another size (rows, columns), antialiased; those that have it stay as they are."""
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)


def first_target(latents: Latents, targets: int) -> Latents:
    """Of several targets whose channels stand side by side, what the teacher itself says."""
    return Latents(latents.values.chunk(targets, 1)[0], latents.valid.chunk(targets, 1)[0], latents.bound)


def latents_loss(prediction: Float[Tensor, "b c rows cols"], target: Latents) -> Tensor:
    """The loss of feature guidance."""
    return feature_depth_loss(prediction, target.values, target.valid)


@dataclass
class Target:
    """What guides: the teacher's latents of a batch, whitened by what it said of the training set.

    `cells` are their rows and columns; `compare` is the loss that judges them, for the floor. Without a whitening (not
    fitted, not restored) there is no target.
    """

    teacher: Teacher
    cells: tuple[int, int]
    centre: Centre = "map"
    clip: float = CLIP
    compare: Callable[[Tensor, Latents], Tensor] = latents_loss
    whitening: Whitening | None = None
    floor: float | None = None  # the loss of predicting the mean map

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit whitening and floor on training batches; see `fit_whitening`."""
        self.whitening, self.floor = fit_whitening(
            self.teacher, batches, self.cells, centre=self.centre, clip=self.clip, loss=self.compare
        )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Latents:
        """Whitened latents of a batch."""
        assert self.whitening is not None, "fit or restore the whitening first"
        return self.whitening.apply(on_cells(self.teacher, batch, self.cells), self.clip)


def fit_whitening(
    teacher: Teacher,
    batches: Iterable[Batch],
    cells: tuple[int, int],
    *,
    centre: Centre = "map",
    clip: float = CLIP,
    loss: Callable[[Tensor, Latents], Tensor] = latents_loss,
) -> tuple[Whitening, float]:
    """Fit the whitening on training batches.

    Returns it with the floor: the loss of predicting the mean map on the same batches. A channel that does not vary
    keeps deviation 1, so that it asks for nothing. `centre` is what whitening takes away: the mean map, one mean, or
    nothing (nor is anything divided then).
    """
    found = [on_cells(teacher, batch, cells) for batch in batches]
    whitening, mean = whitening_of(found, centre)
    everywhere = torch.ones(1, *mean.shape, dtype=torch.bool, device=mean.device)
    guess = whitening.apply(Latents(mean.float()[None], everywhere), clip).values
    sizes = [len(each.values) for each in found]
    losses = [float(loss(guess.expand_as(each.values), whitening.apply(each, clip))) for each in found]
    return whitening, sum(size * each for size, each in zip(sizes, losses, strict=True)) / sum(sizes)


def whitening_of(found: Sequence[Latents], centre: Centre = "map") -> tuple[Whitening, Float[Tensor, "c rows cols"]]:
    """Whitening by what a teacher said of some batches, and its mean map there (float64)."""
    device, shape = found[0].values.device, found[0].values.shape[1:]
    total, count, square = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
    for latents in found:
        total += torch.where(latents.valid, latents.values, 0.0).double().sum(0)
        count += latents.valid.sum(0)
    overall = total.sum((1, 2)) / count.sum((1, 2)).clamp(min=1)
    mean = total / count.clamp(min=1)
    # Where no image of the fit is valid, the channel's mean over all cells stands in.
    mean = torch.where(count > 0, mean, overall[:, None, None])
    taken = overall[:, None, None].expand(shape) if centre == "mean" else mean
    for latents in found:
        square += torch.where(latents.valid, (latents.values.double() - taken).square(), 0.0).sum(0)
    variance = square.sum((1, 2)) / count.sum((1, 2)).clamp(min=1)
    deviation = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
    if centre == "nothing":
        taken, deviation = torch.zeros_like(mean), torch.ones_like(deviation)
    return Whitening(taken.float().contiguous(), deviation.float()), mean


def luminance(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Brightness of RGB images in [0, 1]."""
    weights = torch.tensor(LUMINANCE, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)
