"""What a head is: from tokens on the patch grid to latents (paper, 4.2.3), or to numbers for every pixel (4.2.2).

A head is a file beside this one that ends in its class, `HEAD`, and a row in `table`. The paper gives no widths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from depthjepa.grid import to_map

CELLS = 2  # latent cells a patch along each side

Fill = Literal["zero", "learned"]
Maps = Float[Tensor, "b c rows cols"]


class LatentHead(nn.Module, ABC):
    """Tokens [b, n, d] and their coverage [b, n] to latents [b, channels, 2 rows, 2 cols].

    Patches without a token are zero, or one learned token (`fill`).
    """

    reads_beside: ClassVar[bool]  # whether it reads beside a patch: then holes reach what it says, and all cells count

    def __init__(self, fill: Fill, width: int) -> None:
        super().__init__()
        self.fill = nn.Parameter(torch.zeros(1, 1, width)) if fill == "learned" else None

    def forward(
        self, tokens: Float[Tensor, "b n d"], coverage: Float[Tensor, "b n"], grid: tuple[int, int]
    ) -> Float[Tensor, "b c rows cols"]:
        if self.fill is not None:
            tokens = torch.where(coverage[..., None] > 0, tokens, self.fill.to(tokens.dtype))
        return self.latents(tokens, grid)

    @abstractmethod
    def latents(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b c rows cols"]:
        """Latents of all patches."""

    def judged(self, coverage: Float[Tensor, "b n"], grid: tuple[int, int]) -> Bool[Tensor, "b 1 rows cols"]:
        """Cells on which the head's output counts."""
        covered = to_map(coverage[..., None], grid) > 0
        covered = covered.repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3)
        return torch.ones_like(covered) if self.reads_beside else covered


class PixelHead(nn.Module, ABC):
    """Token maps, one a level, to numbers for every pixel, [b, outputs, rows * patch, cols * patch].

    Made of the tokens' width, the outputs, the patch [px] and the width of the hidden layers.
    """

    reads_beside: ClassVar[bool] = True  # whether it reads beside a patch, absent ones included
    levels: ClassVar[int] = 1  # depths of a network whose tokens it reads

    @abstractmethod
    def forward(self, levels: Sequence[Maps]) -> Float[Tensor, "b outputs h w"]: ...


def equal_depths(blocks: int, count: int) -> list[int]:
    """Some blocks (0-based) at equal distances, the last one among them: four of 12 are 2, 5, 8, 11, as in DINOv2."""
    return [max(0, -(-blocks * (level + 1) // count) - 1) for level in range(count)]
