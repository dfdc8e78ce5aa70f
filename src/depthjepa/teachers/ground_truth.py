"""The `depth` teacher: ground-truth depth as a fixed four-channel latent.

Each cell (half a patch) is split into 2 x 2 parts; the mean disparities [1/m] of the parts are rotated by the
orthonormal Haar transform. Channel 0 is the cell's disparity (larger = nearer), 1 to 3 are its horizontal,
vertical and diagonal differences. The map is invertible, so a prediction decodes to disparity.

In a crop of zoom s things look s times nearer than they are, and pixels cannot tell the difference: the disparity is
multiplied by the zoom. In a view of the whole image (zoom 1) it is metric.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.depth import disparity, pool_valid, valid
from depthjepa.faults import BadInput
from depthjepa.model.heads import Latents
from depthjepa.teachers.latents import Description

HAAR = 0.5 * torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float32)


class DepthTeacher:
    """Turns the depth of a batch into latents; cells that hold an unmeasured part are invalid."""

    def describe(self) -> Description:
        return Description("depth", 4, None, "1/m", "larger = nearer", stochastic=False, needs_depth=True)

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        if batch.depth is None:
            raise BadInput("guidance.teacher=depth needs depth files: give an RGB-D folder or `scenes` as data.root")
        measured = valid(batch.depth)
        apparent = disparity(batch.depth) * batch.zoom[:, None, None, None]
        parts, share = pool_valid(apparent, measured, (2 * cells[0], 2 * cells[1]))
        known = F.pixel_unshuffle((share > 0).float(), 2).amin(1, keepdim=True) > 0
        values = torch.einsum("ij,bjrc->birc", HAAR.to(parts), F.pixel_unshuffle(parts, 2))
        return Latents(values, known.expand_as(values))


def to_disparity(latents: Float[Tensor, "b 4 rows cols"]) -> Float[Tensor, "b 1 2*rows 2*cols"]:
    """Invert the latent: disparity [1/m] at four times the patch grid."""
    return F.pixel_shuffle(torch.einsum("ij,bjrc->birc", HAAR.to(latents).T, latents), 2)
