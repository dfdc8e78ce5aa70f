"""What a depth teacher is, and how its latents become a guidance target.

A teacher is frozen. It gives latents [b, channels, rows, cols] at any resolution; `Whitening` brings them to twice
the patch grid, removes the training set's mean map and divides each channel by its deviation (SCIENCE: a constant
prediction then scores a known floor, and the mean map is no longer a shortcut), and clips at five deviations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.depth import pool_valid
from depthjepa.losses import feature_depth_loss, masked_mean
from depthjepa.model.heads import CELLS, Latents

CLIP = 5.0  # deviations


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


@runtime_checkable
class Teacher(Protocol):
    """A frozen source of depth latents."""

    def describe(self) -> Description: ...

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

    def apply(self, latents: Latents) -> Latents:
        """Whiten; invalid values become zero."""
        values = (latents.values - self.mean) / self.deviation[:, None, None]
        return Latents(torch.where(latents.valid, values.clamp(-CLIP, CLIP), 0.0), latents.valid)

    def undo(self, values: Float[Tensor, "b c rows cols"]) -> Float[Tensor, "b c rows cols"]:
        """Return from whitened values to the teacher's own."""
        return values * self.deviation[:, None, None] + self.mean


def on_cells(teacher: Teacher, batch: Batch, grid: tuple[int, int]) -> Latents:
    """The teacher's latents at twice the patch grid, not whitened."""
    cells = CELLS * grid[0], CELLS * grid[1]
    latents = teacher.batch_latents(batch, cells)
    if latents.values.shape[-2:] == cells:
        return latents
    if not teacher.describe().needs_depth:  # a network's latents are valid everywhere
        values = F.interpolate(latents.values, cells, mode="bilinear", antialias=True, align_corners=False)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))
    valid = latents.valid.all(1, keepdim=True)
    values, share = pool_valid(latents.values, valid, cells)
    return Latents(values, (share > 0).expand_as(values))


def fit_whitening(teacher: Teacher, batches: Iterable[Batch], grid: tuple[int, int]) -> tuple[Whitening, float]:
    """Fit the whitening on training batches.

    Returns it with the floor: the loss of the constant (zero) prediction on the same batches. A channel that does
    not vary keeps deviation 1, so that it asks for nothing.
    """
    found = [on_cells(teacher, batch, grid) for batch in batches]
    values = torch.cat([latents.values for latents in found]).double()
    valid = torch.cat([latents.valid for latents in found])
    mean = masked_mean(values.permute(1, 2, 3, 0), valid.permute(1, 2, 3, 0))
    # Where no image of the fit is valid, the channel's mean over all cells stands in.
    overall = masked_mean(values.transpose(0, 1).flatten(1), valid.transpose(0, 1).flatten(1))
    mean = torch.where(valid.any(0), mean, overall[:, None, None])
    square = torch.where(valid, (values - mean).square(), 0.0)
    variance = square.sum((0, 2, 3)) / valid.sum((0, 2, 3)).clamp(min=1)
    deviation = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
    whitening = Whitening(mean.float(), deviation.float())
    white = whitening.apply(Latents(values.float(), valid))
    floor = feature_depth_loss(torch.zeros_like(white.values), white.values, white.valid)
    return whitening, float(floor)
