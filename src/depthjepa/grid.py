"""The patch grid: the only index arithmetic of the project.

Patches are numbered in raster order (row by row). Tokens [b, n, d] and maps [b, d, rows, cols] are two views of
the same thing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor


def patchify(images: Shaped[Tensor, "b c h w"], patch: int) -> Shaped[Tensor, "b n pixels"]:
    """Cut images into patches of `patch` x `patch` pixels; each is flattened as (channel, row, column).

    That is the order of a convolution's weight, so a linear layer on these rows is a patch embedding.
    """
    b, c, h, w = images.shape
    rows, cols = h // patch, w // patch
    cut = images.reshape(b, c, rows, patch, cols, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(b, rows * cols, c * patch * patch)


def gather(tokens: Float[Tensor, "b n d"], index: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Take the tokens at `index`, image by image."""
    b, n, d = tokens.shape
    # Whole rows of a matrix: on a CPU fifteen times as fast as `Tensor.gather`, which looks every number up.
    rows = index + n * torch.arange(b, device=index.device)[:, None]
    return tokens.reshape(b * n, d).index_select(0, rows.flatten()).view(b, -1, d)


def reassemble(
    tokens: Float[Tensor, "b t d"],
    index: Int64[Tensor, "b t"],
    cells: int,
    valid: Bool[Tensor, "b t"] | None = None,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
    """Put tokens back at their patch indices; where several fall on one patch, their mean.

    Returns the grid (zero where no token fell; paper, section 4.2.3) and the coverage: how many tokens fell on
    each patch. Tokens with `valid` false are left out.
    """
    weight = torch.ones_like(index, dtype=tokens.dtype) if valid is None else valid.to(tokens.dtype)
    kept = tokens if valid is None else torch.where(valid[..., None], tokens, 0)
    b, _, d = tokens.shape
    coverage = tokens.new_zeros(b, cells).scatter_add(1, index, weight)
    total = tokens.new_zeros(b, cells, d).scatter_add(1, index[..., None].expand(-1, -1, d), kept)
    return total / coverage.clamp(min=1)[..., None], coverage


def to_map(tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b d rows cols"]:
    """Lay tokens out on their grid of (rows, columns)."""
    b, _, d = tokens.shape
    return tokens.transpose(1, 2).reshape(b, d, *grid)


def to_tokens(maps: Float[Tensor, "b d rows cols"]) -> Float[Tensor, "b n d"]:
    """Flatten maps to tokens in raster order."""
    return maps.flatten(2).transpose(1, 2)


def unfold_cells(tokens: Float[Tensor, "b n values"], grid: tuple[int, int], factor: int) -> Tensor:
    """Spread `channels * factor**2` values of each patch over `factor` x `factor` cells of the map.

    Values are ordered (channel, row, column). Returns [b, channels, factor * rows, factor * cols].
    """
    return torch.nn.functional.pixel_shuffle(to_map(tokens, grid), factor)


def distance_to_nearest(
    index: Int64[Tensor, "b c"],
    others: Int64[Tensor, "b m k"],
    columns: int,
    valid: Bool[Tensor, "b m k"] | None = None,
) -> Float[Tensor, "b m c"]:
    """Distance, in patches, from each patch of `index` to the nearest patch of each block of `others`."""
    here = torch.stack([index // columns, index % columns], -1).float()
    there = torch.stack([others // columns, others % columns], -1).float()
    distance = torch.cdist(here[:, None], there)
    if valid is not None:
        distance = torch.where(valid[:, :, None], distance, torch.inf)
    return distance.min(-1).values
