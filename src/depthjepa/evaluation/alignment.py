"""What features have in common with a teacher's maps: linear CKA, less position and chance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.faults import BadInput

SHUFFLES = 10  # of the teacher's images, for the baseline


def cka_selectivity(
    features: Float[Tensor, "images n d"],
    cells: Float[Tensor, "images n values"],
    valid: Bool[Tensor, "images n"] | None = None,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> dict[str, float]:
    """How much tokens have in common with the teacher's cells of their own image, beyond position and chance.

    `cells` holds the teacher's values of each patch (of a map at twice the patch grid:
    `to_tokens(F.pixel_unshuffle(maps, 2))`); a patch counts where `valid`, which is everywhere if not given.

    cka              linear CKA (Kornblith et al. 2019), ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), of features X and cells Y, from each of
                     which its mean over images at every position is taken; 0 if the features do not vary then
    cka_shuffled     the same, mean over shuffles in which every image has the teacher's cells of another
    cka_selectivity  their difference: 0 for features that know the position alone, at most 1

    Raises BadInput for fewer than two images; ValueError where shapes differ or a valid value is not finite. nan if
    the cells do not vary over images.
    """
    if features.shape[:2] != cells.shape[:2]:
        raise ValueError(f"shapes must agree: {tuple(features.shape[:2])} and {tuple(cells.shape[:2])}")
    if len(features) < 2:
        raise BadInput("CKA needs at least two images")
    known = torch.ones(features.shape[:2], dtype=torch.bool) if valid is None else valid.cpu()
    x, y = (each.cpu().double() for each in (features, cells))
    left = _without_position(x, known)
    real = _cka(left, _without_position(y, known))
    generator = torch.Generator().manual_seed(seed)
    shuffled = 0.0
    for _ in range(shuffles):
        # One cycle through all images in random order: none keeps its own.
        order = torch.randperm(len(x), generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        both = known & known[other]
        mine = left if both.equal(known) else _without_position(x, both)
        shuffled += _cka(mine, _without_position(y[other], both)) / shuffles
    return {"cka": real, "cka_shuffled": shuffled, "cka_selectivity": real - shuffled}


class Centred(NamedTuple):
    """Samples X less their position's mean, and ‖XᵀX‖; 0 where that is rounding alone."""

    values: Float[Tensor, "samples d"]
    norm: float


def _cka(left: Centred, right: Centred) -> float:
    if not right.norm:
        return math.nan
    return float((left.values.T @ right.values).square().sum()) / (left.norm * right.norm) if left.norm else 0.0


def _without_position(values: Float[Tensor, "images n d"], known: Bool[Tensor, "images n"]) -> Centred:
    """Take the mean over images from each position; 0 where not known."""
    safe = torch.where(known[..., None], values, 0)
    if not torch.isfinite(safe).all():
        raise ValueError("at valid patches features and cells must be finite")
    mean = safe.sum(0) / known.sum(0).clamp(min=1)[:, None]
    left = torch.where(known[..., None], safe - mean, 0).flatten(0, 1)
    norm = float((left.T @ left).norm())
    # Features are mostly float32 numbers: what is equal for all images may differ in its last digit.
    rounding = float(safe.square().sum()) * torch.finfo(torch.float32).eps ** 2
    return Centred(left, norm if norm > rounding else 0.0)
