"""Ground truth as a teacher: depth as a fixed four-channel latent, and depth pixel by pixel.

`DepthTeacher`, the `depth` teacher of feature guidance, splits each cell (half a patch) into 2 x 2 parts, row by row;
its four channels are the mean disparities [1/m] of the parts (larger = nearer). The map is invertible, so a prediction
decodes to disparity. In a crop of zoom s things look s times nearer than they are, and pixels cannot tell the
difference: the disparity is multiplied by the zoom. In a view of the whole image (zoom 1) it is metric.

`DepthPixels` is what pixel guidance compares with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.layouts.layout import with_depth
from depthjepa.data.samples import Batch
from depthjepa.depth import Numbers, below_unmeasured, disparity, pool_valid, to_numbers, valid
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Description, luminance
from depthjepa.guidance.teachers.loading import TeacherKind
from depthjepa.losses import Latents

PARTS = 2  # of a cell, along each side


class DepthTeacher:
    """Turns the depth of a batch into latents; a part without any measured pixel is invalid."""

    def describe(self) -> Description:
        return Description("depth", PARTS**2, None, "1/m", "larger = nearer", stochastic=False, needs_depth=True)

    def to(self, device: torch.device) -> DepthTeacher:
        """Return the teacher as it is: it computes where the batch is."""
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        if batch.depth is None:
            raise BadInput(f"guidance.teacher=depth needs depth: give {with_depth()} as data.root")
        apparent = disparity(batch.depth) * batch.zoom[:, None, None, None]
        parts, share = pool_valid(apparent, valid(batch.depth), (PARTS * cells[0], PARTS * cells[1]))
        return Latents(F.pixel_unshuffle(parts, PARTS), F.pixel_unshuffle(share, PARTS) > 0)

    @property
    def has_picture(self) -> bool:
        """It can tell the image itself as it tells depth."""
        return True

    def picture(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """The image told as depth is: its luminance in four parts a cell, where depth would count."""
        parts = F.adaptive_avg_pool2d(luminance(batch.images), (PARTS * cells[0], PARTS * cells[1]))
        return Latents(F.pixel_unshuffle(parts, PARTS), self.batch_latents(batch, cells).valid)


@dataclass(frozen=True, slots=True)
class DepthPixels:
    """Turns the depth of a batch into one number a pixel; what is not measured or out of range is invalid."""

    numbers: Numbers
    nearest: float  # m
    farthest: float
    zoom_aware: bool
    sky: bool = False  # whether the highest measurement of a column bounds what nothing measured above it

    def describe(self) -> Description:
        return Description(
            "depth, pixel by pixel",
            1,
            1,
            {"metres": "m", "log": "log m", "disparity": "1/m"}[self.numbers],
            "larger = nearer" if self.numbers == "disparity" else "larger = farther",
            stochastic=False,
            needs_depth=True,
        )

    def to(self, device: torch.device) -> DepthPixels:
        """Return the teacher as it is: it computes where the batch is."""
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        if batch.depth is None:
            raise BadInput(f"guidance.kind=pixel needs depth: give {with_depth()} as data.root")
        apparent = batch.depth / batch.zoom[:, None, None, None] if self.zoom_aware else batch.depth
        known = valid(apparent, self.nearest, self.farthest)
        known_depth, bound = torch.where(known, apparent, 1.0), None
        if self.sky:
            highest, bound = below_unmeasured(apparent.clamp(self.nearest, self.farthest), valid(apparent))
            known_depth = torch.where(bound, highest, known_depth)
        return Latents(to_numbers(known_depth, self.numbers), known, bound)


def to_disparity(latents: Float[Tensor, "b 4 rows cols"]) -> Float[Tensor, "b 1 2*rows 2*cols"]:
    """Invert the latent: disparity [1/m] at four times the patch grid."""
    return F.pixel_shuffle(latents, PARTS)


def build(guidance: FeatureGuidance) -> DepthTeacher:
    """Return the teacher; raises `BadInput` for weights, of which it has none."""
    if guidance.teacher_checkpoint is not None or guidance.teacher_vae is not None:
        raise BadInput(
            f"guidance.teacher_checkpoint and guidance.teacher_vae are for teachers that are networks, not for "
            f"guidance.teacher={guidance.teacher}"
        )
    return DepthTeacher()


TEACHER = TeacherKind(build)
