"""`cnn`: gathers along the width (1 x 1), projects to the pixels of a patch, then two 3 x 3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.model.heads.head import Maps, PixelHead

PIXEL_CHANNELS = 16  # at full resolution


class CNNHead(PixelHead):
    """Gather along the width, project to pixels, two convolutions."""

    def __init__(self, token_width: int, outputs: int, patch: int, width: int) -> None:
        super().__init__()
        self.gather = nn.Conv2d(token_width, width, 1)
        self.to_pixels = nn.ConvTranspose2d(width, PIXEL_CHANNELS, patch, stride=patch)
        self.refine = nn.Conv2d(PIXEL_CHANNELS, PIXEL_CHANNELS, 3, padding=1)
        self.project = nn.Conv2d(PIXEL_CHANNELS, outputs, 3, padding=1)

    def forward(self, levels: Sequence[Maps]) -> Float[Tensor, "b outputs h w"]:
        (maps,) = levels
        maps = F.gelu(self.to_pixels(F.gelu(self.gather(maps))))
        projected: Tensor = self.project(F.gelu(self.refine(maps)))
        return projected


HEAD = CNNHead
