"""`dpt`: DINOv2's dense prediction module (Oquab et al. 2024, after Ranftl et al. 2021) on four depths of a network.

The paper calls DINOv2 hierarchical. It is not: its ViT is flat as I-JEPA's, and the module makes its pyramid by
resizing. What differs is that I-JEPA has no class token to add to each patch, so the module's readout step is left
out. The published module is 256 wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.model.heads.head import Maps, PixelHead

DPT_LEVELS = 4


class DPTHead(PixelHead):
    """Four levels, resized to 4, 2, 1 and 1/2 times the patch grid, fused from the deepest up to 8 times the grid.

    `token_width`: of all levels, or of each.
    """

    levels = DPT_LEVELS

    def __init__(self, token_width: int | Sequence[int], outputs: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        widths = [token_width] * DPT_LEVELS if isinstance(token_width, int) else list(token_width)
        narrow = [max(8, wide >> (3 - level)) for level, wide in enumerate(widths)]
        self.narrow = nn.ModuleList(nn.Conv2d(wide, channels, 1) for wide, channels in zip(widths, narrow, strict=True))
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(narrow[0], narrow[0], 4, stride=4),
                nn.ConvTranspose2d(narrow[1], narrow[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(narrow[3], narrow[3], 3, stride=2, padding=1),
            ]
        )
        self.bring = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in narrow)
        self.fuse = nn.ModuleList(Fusion(width, both=level < DPT_LEVELS - 1) for level in range(DPT_LEVELS))
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.project = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, levels: Sequence[Float[Tensor, "b _ rows cols"]]) -> Float[Tensor, "b outputs h w"]:
        rows, columns = levels[0].shape[-2:]
        steps = zip(levels, self.narrow, self.resize, self.bring, strict=True)
        pyramid = [bring(resize(narrow(maps))) for maps, narrow, resize, bring in steps]
        merged = None
        for level in reversed(range(DPT_LEVELS)):
            # Twice as fine each time; odd grids make the halves meet by size instead.
            size = pyramid[level - 1].shape[-2:] if level else (8 * rows, 8 * columns)
            merged = self.fuse[level](pyramid[level], merged, size)
        maps = F.relu(self.refine(merged))
        projected: Tensor = self.project(maps)
        return F.interpolate(projected, (rows * self.patch, columns * self.patch), mode="bilinear", align_corners=False)


class Fusion(nn.Module):
    """Add a level to what comes from the deeper ones, refine, enlarge."""

    def __init__(self, width: int, *, both: bool) -> None:
        super().__init__()
        self.level = Residual(width) if both else None
        self.joint = Residual(width)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, level: Maps, deeper: Maps | None, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        joined = level if deeper is None or self.level is None else deeper + self.level(level)
        maps = F.interpolate(self.joint(joined), size, mode="bilinear", align_corners=True)
        projected: Tensor = self.project(maps)
        return projected


class Residual(nn.Module):
    """Two convolutions with activations before them, and a way around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Maps) -> Maps:
        return maps + torch.as_tensor(self.second(F.relu(self.first(F.relu(maps)))))


HEAD = DPTHead
