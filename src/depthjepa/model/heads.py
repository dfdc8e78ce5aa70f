"""Heads: from the reassembled token grid to the teacher's latents, or to depth.

`conv` is the paper's small CNN (section 4.2.3); it reads the whole grid, holes included, and is judged on every
cell. `linear` reads each token by itself (layer norm, one linear layer) and is judged only where a token stands:
it can neither recover the position from padding nor fill holes by guessing (see the shortcut, paper section 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from depthjepa.grid import to_map, unfold_cells

CELLS = 2  # the teacher's latents have this many cells a patch along each side


@dataclass(frozen=True, slots=True)
class Latents:
    """What a teacher says of a batch, at twice the patch grid's resolution; invalid values may be anything."""

    values: Float[Tensor, "b c rows cols"]
    valid: Bool[Tensor, "b c rows cols"]


class GuidanceHead(nn.Module):
    """Project the token grid to `channels` latents, [b, n, d] and coverage [b, n] to [b, channels, 2rows, 2cols].

    Patches without a token are zero, or one learned token (`fill`).
    """

    def __init__(
        self, kind: Literal["linear", "conv"], fill: Literal["zero", "learned"], width: int, channels: int
    ) -> None:
        super().__init__()
        self.kind = kind
        self.fill = nn.Parameter(torch.zeros(1, 1, width)) if fill == "learned" else None
        if kind == "linear":
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.project = nn.Linear(width, channels * CELLS**2)
        else:
            hidden = min(width, 256)
            self.gather = nn.Conv2d(width, hidden, 3, padding=1)
            self.refine = nn.Conv2d(hidden, hidden, 3, padding=1)
            self.project_cells = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(
        self, tokens: Float[Tensor, "b n d"], coverage: Float[Tensor, "b n"], grid: tuple[int, int]
    ) -> Float[Tensor, "b c rows cols"]:
        if self.fill is not None:
            tokens = torch.where(coverage[..., None] > 0, tokens, self.fill.to(tokens.dtype))
        if self.kind == "linear":
            return unfold_cells(self.project(self.norm(tokens)), grid, CELLS)
        maps = F.gelu(self.gather(to_map(tokens, grid)))
        maps = F.interpolate(maps, scale_factor=CELLS, mode="bilinear", align_corners=False)
        latents: Tensor = self.project_cells(F.gelu(self.refine(maps)))
        return latents

    def judged(self, coverage: Float[Tensor, "b n"], grid: tuple[int, int]) -> Bool[Tensor, "b 1 rows cols"]:
        """Cells on which the head's output counts."""
        covered = to_map(coverage[..., None], grid) > 0
        covered = covered.repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3)
        return covered if self.kind == "linear" else torch.ones_like(covered)
