"""`linear`: layer norm and one linear layer on each token by itself.

It is judged only where a token stands, so it can neither recover the position from padding nor fill holes by guessing
(see the shortcut, paper section 5.2).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.grid import unfold_cells
from depthjepa.model.heads.head import CELLS, Fill, LatentHead


class LinearHead(LatentHead):
    """A token to the latents of its cells."""

    reads_beside = False

    def __init__(self, fill: Fill, width: int, channels: int) -> None:
        super().__init__(fill, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, channels * CELLS**2)

    def latents(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b c rows cols"]:
        return unfold_cells(self.project(self.norm(tokens)), grid, CELLS)


HEAD = LinearHead
