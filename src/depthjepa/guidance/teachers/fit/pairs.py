"""Depth drawn as grey images, and latents of crops with those of their depth.

A depth map is drawn as the logarithm of depth / zoom [m] (what a crop's pixels can tell, see `Batch`), `nearest`
as -1 and `farthest` as 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from depthjepa import runtime
from depthjepa.data.samples import Batch
from depthjepa.depth import valid
from depthjepa.guidance.teachers.depthfm.network import STRIDE
from depthjepa.guidance.teachers.fit.config import FitConfig


@dataclass(frozen=True, slots=True)
class Pairs:
    """Latents of crops and of their depth maps, and how much each cell counts (its share of measured pixels)."""

    image: Float[Tensor, "n 4 rows cols"]
    depth: Float[Tensor, "n 4 rows cols"]
    weight: Float[Tensor, "n 1 rows cols"]

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Put pairs one after the other."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def chosen(self, numbers: Int[np.ndarray, " k"], scale: float, device: torch.device) -> Pairs:
        """Some of the pairs in float32, their latents times `scale`."""
        image, depth, weight = (
            part[torch.from_numpy(numbers)].to(device, torch.float32) for part in (self.image, self.depth, self.weight)
        )
        return Pairs(image * scale, depth * scale, weight)


def depth_picture(batch: Batch, config: FitConfig) -> tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b 1 h w"]]:
    """Draw the depth of a batch as grey images in [-1, 1], larger = farther; and tell which pixels count.

    Values outside of `nearest` to `farthest` are clamped. Pixels without a measurement take the value of the nearest
    one that has (and do not count), or are far away (and count).
    """
    assert batch.depth is not None
    known = valid(batch.depth)
    low, high = math.log(config.nearest), math.log(config.farthest)
    metres = torch.where(known, batch.depth, 1.0) / batch.zoom[:, None, None, None]
    drawn = (2 * (metres.log() - low) / (high - low) - 1).clamp(-1, 1)
    if config.holes == "farthest":
        drawn, known = torch.where(known, drawn, 1.0), torch.ones_like(known)
    else:
        drawn = _filled(drawn, known)
    return drawn.expand(-1, 3, -1, -1).contiguous(), known


def _filled(values: Float[Tensor, "b 1 h w"], known: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Give unknown pixels the value of the nearest known one; an image without any becomes 0."""
    from scipy.ndimage import distance_transform_edt  # every command reads this module's configuration, few need this

    filled = torch.zeros_like(values)
    for row, (map_, mask) in enumerate(zip(values.cpu(), known.cpu().numpy(), strict=True)):
        if mask.any():
            places = distance_transform_edt(~mask[0], return_distances=False, return_indices=True)
            filled[row, 0] = map_[0, torch.from_numpy(places[0]).long(), torch.from_numpy(places[1]).long()].to(values)
    return filled


@torch.no_grad()
def encode_pair(autoencoder: Any, batch: Batch, config: FitConfig) -> Pairs:
    """Latents of a batch's crops and depth maps as the autoencoder gives them (not scaled), float16 on the CPU."""
    drawn, known = depth_picture(batch, config)
    with runtime.precision(config.precision, drawn.device):
        image, depth = (autoencoder.encode(each).latent_dist.mode() for each in (batch.images * 2 - 1, drawn))
    image, depth = image.half().cpu(), depth.half().cpu()
    return Pairs(image, depth, F.avg_pool2d(known.float(), STRIDE).half().cpu())
