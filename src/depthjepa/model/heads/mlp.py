"""`mlp`: two linear layers on each token by itself, a number for each pixel of its patch; it reads no absent patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from depthjepa.grid import unfold_cells
from depthjepa.model.heads.head import Maps, PixelHead


class MLPHead(PixelHead):
    """Two linear layers: a token to the numbers of its patch's pixels."""

    reads_beside = False

    def __init__(self, token_width: int, outputs: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.hidden = nn.Linear(token_width, width)
        self.project = nn.Linear(width, outputs * patch**2)

    def forward(self, levels: Sequence[Maps]) -> Float[Tensor, "b outputs h w"]:
        (tokens,) = levels
        grid = (tokens.shape[2], tokens.shape[3])
        return unfold_cells(self.project(F.gelu(self.hidden(tokens.flatten(2).transpose(1, 2)))), grid, self.patch)


HEAD = MLPHead
