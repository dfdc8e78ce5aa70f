"""Losses as pure functions. Each refuses silent broadcasting and states its reduction.

Means are taken inside an image first and over images last, so that a batch split over processes or accumulated
from parts gives the same loss as the whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def latent_loss(
    prediction: Float[Tensor, "b m k d"],
    target: Float[Tensor, "b m k d"],
    valid: Bool[Tensor, "b m k"] | None = None,
) -> Float[Tensor, ""]:
    """Smooth-L1 (beta 1) between predicted and target embeddings, as in the released I-JEPA code (its paper: L2).

    Mean over the width and the valid tokens of each target block, then over blocks and images. Where all blocks
    have one length this is the mean over all elements.
    """
    _same_shape(prediction, target)
    if valid is None:
        return F.smooth_l1_loss(prediction, target)
    _same_shape(prediction[..., 0], valid)
    safe = torch.where(valid[..., None], target, prediction.detach())
    token = F.smooth_l1_loss(prediction, safe, reduction="none").mean(-1)
    return masked_mean(token, valid).mean()


def feature_depth_loss(
    prediction: Float[Tensor, "b c rows cols"],
    target: Float[Tensor, "b c rows cols"],
    valid: Bool[Tensor, "b c rows cols"],
) -> Float[Tensor, ""]:
    """Smooth-L1 (beta 1) between projected features and the teacher's whitened latents (paper, section 4.2.3).

    Mean over the valid cells of each image, then over images; an image without any counts as zero.
    """
    _same_shape(prediction, target)
    _same_shape(prediction, valid)
    # Values are made safe before the arithmetic: an invalid cell may hold anything.
    safe = torch.where(valid, target, prediction.detach())
    return masked_mean(F.smooth_l1_loss(prediction, safe, reduction="none").flatten(1), valid.flatten(1)).mean()


def masked_mean(values: Float[Tensor, "*batch k"], valid: Bool[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Mean over the valid values of the last axis; zero where none is valid."""
    _same_shape(values, valid)
    total = torch.where(valid, values, torch.zeros_like(values)).sum(-1)
    return total / valid.sum(-1).clamp(min=1)


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")
