"""`deep-cnn`: five convolutions of 3 x 3 places; most of the first four enlarge the map, up to the image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.model.heads.head import Maps, PixelHead

STAGES = 4  # convolutions before the last


class DeepCNNHead(PixelHead):
    """Five convolutions, the last at the image's resolution; the four before it enlarge the map by `enlargements`.

    A convolution that enlarges has weights of its own for each of the cells that a place becomes. Between 3 x 3
    convolutions the map could be enlarged bilinearly as well, but then the head says little that is finer than the map
    halfway: eight images that it was to learn by heart stayed at an R2 within images of 0.92, where this has 0.98.
    """

    def __init__(self, token_width: int, outputs: int, patch: int, width: int) -> None:
        super().__init__()
        widths = [token_width, *(max(16, width >> stage) for stage in range(STAGES))]
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 3 * factor, stride=factor, padding=factor)
            for (before, after), factor in zip(pairwise(widths), enlargements(patch), strict=True)
        )
        self.project = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, levels: Sequence[Maps]) -> Float[Tensor, "b outputs h w"]:
        (maps,) = levels
        for convolution in self.convolutions:
            maps = F.gelu(convolution(maps))
        projected: Tensor = self.project(maps)
        return projected


def enlargements(patch: int) -> list[int]:
    """Four whole numbers in ascending order whose product is `patch`: 1, 2, 2, 2 for 8 and 1, 1, 2, 7 for 14."""
    factors, divisor = list[int](), 2
    while patch > 1:
        if patch % divisor:
            divisor += 1
        else:
            factors.append(divisor)
            patch //= divisor
    while len(factors) > STAGES:  # the two smallest as one
        factors = sorted([factors[0] * factors[1], *factors[2:]])
    return [1] * (STAGES - len(factors)) + factors


HEAD = DeepCNNHead
