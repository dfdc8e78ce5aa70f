"""`conv`: the paper's small CNN; it reads the whole grid, holes included, and is judged on every cell."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.grid import to_map
from depthjepa.model.heads.head import CELLS, Fill, LatentHead

WIDEST = 256


class ConvHead(LatentHead):
    """Gather, enlarge, refine, project: three convolutions that look at 3 x 3 places each."""

    reads_beside = True

    def __init__(self, fill: Fill, width: int, channels: int) -> None:
        super().__init__(fill, width)
        hidden = min(width, WIDEST)
        self.gather = nn.Conv2d(width, hidden, 3, padding=1)
        self.refine = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.project_cells = nn.Conv2d(hidden, channels, 3, padding=1)

    def latents(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b c rows cols"]:
        maps = F.gelu(self.gather(to_map(tokens, grid)))
        maps = F.interpolate(maps, scale_factor=CELLS, mode="bilinear", align_corners=False)
        latents: Tensor = self.project_cells(F.gelu(self.refine(maps)))
        return latents


HEAD = ConvHead
