"""Heads: from tokens on the patch grid to a teacher's latents (paper, 4.2.3), or to numbers for every pixel (4.2.2).

To latents, two cells a patch along each side:

`linear`    layer norm and one linear layer on each token by itself; it is judged only where a token stands, so it can
            neither recover the position from padding nor fill holes by guessing (see the shortcut, paper section 5.2)
`conv`      the paper's small CNN; it reads the whole grid, holes included, and is judged on every cell

To pixels:

`mlp`       two linear layers on each token by itself: a number for each pixel of its patch
`cnn`       gathers along the width (1 x 1), projects to the pixels of a patch, then two 3 x 3 convolutions
`deep-cnn`  five convolutions that look at 3 x 3 places each; most of the first four enlarge the map, up to the image
`dpt`       DINOv2's dense prediction module (Oquab et al. 2024, after Ranftl et al. 2021) on four depths of a network

The paper calls DINOv2 hierarchical. It is not: its ViT is flat as I-JEPA's, and the module makes its pyramid by
resizing. What differs is that I-JEPA has no class token to add to each patch, so the module's readout step is left
out. Convolutions read absent patches (zeros, or a learned token); `mlp` never does.

The paper gives no widths. `width` is that of the hidden layers, at most the token's; the published DPT has 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from depthjepa.grid import to_map, unfold_cells

FeatureHead = Literal["linear", "conv"]
PixelHead = Literal["mlp", "cnn", "deep-cnn", "dpt"]

CELLS = 2  # latent cells a patch along each side

DPT_LEVELS = 4
PIXEL_CHANNELS = 16  # of the cnn head at full resolution
STAGES = 4  # convolutions of the deep-cnn head before the last

Maps = Float[Tensor, "b c rows cols"]


def dpt_depths(blocks: int) -> list[int]:
    """Four blocks (0-based) at equal distances, the last one among them: 2, 5, 8, 11 of 12, as in DINOv2.

    Of ViT-L's 24 blocks DINOv2 reads 4 in place of 5; see `probed_depths`.
    """
    return [max(0, -(-blocks * (level + 1) // DPT_LEVELS) - 1) for level in range(DPT_LEVELS)]


def probed_depths(blocks: int) -> list[int]:
    """The four blocks (0-based) that DINOv2 and DINOv3 probe: at equal distances, except for 4 in place of 5 of 24."""
    return [4, 11, 17, 23] if blocks == 24 else dpt_depths(blocks)


def expected_depth(scores: Float[Tensor, "b bins h w"], centres: Float[Tensor, " bins"]) -> Float[Tensor, "b 1 h w"]:
    """Mean of the bins' centres [m], weighted (relu(score) + 0.1) / sum (DINOv2, after AdaBins)."""
    weights = F.relu(scores) + 0.1
    depth: Tensor = torch.einsum("bkhw,k->bhw", weights, centres) / weights.sum(1)
    return depth[:, None]


class LatentHead(nn.Module):
    """Project the token grid to `channels` latents, [b, n, d] and coverage [b, n] to [b, channels, 2rows, 2cols].

    Patches without a token are zero, or one learned token (`fill`).
    """

    def __init__(self, kind: FeatureHead, fill: Literal["zero", "learned"], width: int, channels: int) -> None:
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


class MLPHead(nn.Module):
    """Two linear layers: a token to the numbers of its patch's pixels."""

    def __init__(self, token_width: int, outputs: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.hidden = nn.Linear(token_width, width)
        self.project = nn.Linear(width, outputs * patch**2)

    def forward(self, levels: Sequence[Maps]) -> Float[Tensor, "b outputs h w"]:
        (tokens,) = levels
        grid = (tokens.shape[2], tokens.shape[3])
        return unfold_cells(self.project(F.gelu(self.hidden(tokens.flatten(2).transpose(1, 2)))), grid, self.patch)


class CNNHead(nn.Module):
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


class DeepCNNHead(nn.Module):
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


class DPTHead(nn.Module):
    """Four levels, resized to 4, 2, 1 and 1/2 times the patch grid, fused from the deepest up to 8 times the grid.

    `token_width`: of all levels, or of each.
    """

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


# From token maps (a list, one a level) to [b, outputs, rows * patch, cols * patch].
PIXEL_HEADS: dict[PixelHead, type[MLPHead | CNNHead | DeepCNNHead | DPTHead]] = {
    "mlp": MLPHead,
    "cnn": CNNHead,
    "deep-cnn": DeepCNNHead,
    "dpt": DPTHead,
}
