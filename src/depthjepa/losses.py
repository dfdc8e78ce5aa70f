"""Losses as pure functions. Each refuses silent broadcasting and states its reduction.

Means are taken inside an image first and over images last, so that a batch split over processes or accumulated
from parts gives the same loss as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Latents:
    """What a teacher says of a batch, on a grid of cells (or pixel by pixel), and where it says something.

    Invalid values may be anything, except where `bound` says that the truth is at least as far as they are.
    """

    values: Float[Tensor, "b c rows cols"]
    valid: Bool[Tensor, "b c rows cols"]
    bound: Bool[Tensor, "b c rows cols"] | None = None


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


def visible_loss(
    prediction: Float[Tensor, "b m c d"], target: Float[Tensor, "b c d"], distance: Float[Tensor, "b m c"]
) -> Float[Tensor, ""]:
    """Smooth-L1 between what the predictor says of visible patches and their own target embeddings.

    A patch counts 1 / sqrt(distance) to the nearest hidden one (V-JEPA 2.1: the
    context loss), so that the encoder keeps what is there without being rewarded for copying far from any mask. A patch
    that is hidden as well, as the released sampler has them now and then, counts as the nearest ones do. Mean over the
    width, the patches and the predictor's sequences (one a target block).
    """
    _same_shape(prediction[..., 0], distance)
    _same_shape(prediction[:, 0], target)
    token = F.smooth_l1_loss(prediction, target[:, None].expand_as(prediction), reduction="none").mean(-1)
    return (token / distance.clamp(min=1).sqrt()).mean()


def pixel_loss(
    prediction: Float[Tensor, "b m k pixels"],
    patches: Float[Tensor, "b m k pixels"],
    valid: Bool[Tensor, "b m k"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error to patches of which mean and deviation are removed (MAE, He et al. 2022, `norm_pix`)."""
    _same_shape(prediction, patches)
    # (patch - mean) / sqrt(variance + 1e-6) in one pass: MAE's variance is over n - 1 values, a layer norm's over n.
    share = 1 - 1 / patches.shape[-1]
    normal = F.layer_norm(patches, patches.shape[-1:], eps=1e-6 * share) * share**0.5
    token = F.mse_loss(prediction, normal, reduction="none").mean(-1)
    return token.mean() if valid is None else masked_mean(token, valid).mean()


def variance_loss(vectors: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """How far the deviation of each channel over the batch falls short of 1: mean over channels of relu(1 - deviation).

    VICReg (Bardes et al. 2022, equation 1) on I-JEPA's pooled tokens, as C-JEPA (Mo and Tong 2024) has it.
    """
    return F.relu(1 - (vectors.var(0) + 1e-4).sqrt()).mean()


def covariance_loss(vectors: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Squared covariances between different channels over the batch, summed and divided by their number d.

    VICReg (Bardes et al. 2022, equations 3 and 4).
    """
    centred = vectors - vectors.mean(0)
    covariance = centred.T @ centred / (len(vectors) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / vectors.shape[1]


def gaussian_loss(
    vectors: Float[Tensor, "b d"],
    directions: Float[Tensor, "d slices"],
    images: int | None = None,
    points: int = 17,
    reach: float = 5.0,
) -> Float[Tensor, ""]:
    """How far the batch is from an isotropic standard normal, seen along directions of length 1 (SIGReg).

    The Epps-Pulley statistic of each projection: the squared distance between the empirical characteristic function
    and exp(-t^2 / 2), weighted by exp(-t^2 / 2) and integrated over [-reach, reach] by the trapezoid rule; the mean
    over directions, times the number of vectors (Balestriero and LeCun 2025, LeJEPA; written from its equations), or
    of the `images` that they are of, so that one weight serves few vectors and many.
    """
    projected = vectors @ directions
    place = torch.linspace(-reach, reach, points, device=vectors.device, dtype=vectors.dtype)
    normal = torch.exp(-place.square() / 2)
    angles = projected[..., None] * place
    real, imaginary = angles.cos().mean(0), angles.sin().mean(0)
    distance = ((real - normal).square() + imaginary.square()) * normal
    return (len(vectors) if images is None else images) * torch.trapezoid(distance, place, dim=-1).mean()


def position_free(tokens: Float[Tensor, "b n d"], present: Bool[Tensor, "b n"]) -> Float[Tensor, "k d"]:
    """The tokens that are there, one after the other, less the mean over the batch of what stands at their position.

    A code of the position alone is nothing then, and the same tokens all over an image are as good as different ones.
    They are stretched so that their variance is the unbiased one within positions; one that stands alone at its
    position is 0.
    """
    shown = present.sum(0)
    mean = torch.where(present[..., None], tokens, 0.0).sum(0) / shown.clamp(min=1)[:, None]
    rows = (tokens - mean)[present]
    freedom = (len(rows) - (shown > 0).sum()).clamp(min=1)
    return rows * ((len(rows) - 1) / freedom).sqrt()


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


def depth_loss(
    prediction: Float[Tensor, "b 1 h w"],
    target: Float[Tensor, "b 1 h w"],
    valid: Bool[Tensor, "b 1 h w"],
    kind: Literal["l1", "sig", "ssi"] = "l1",
    gradient: float = 0.0,
) -> Float[Tensor, ""]:
    """Compare depth maps, in whatever numbers stand for depth, on the valid pixels of each image; then over images.

    `l1`: mean absolute difference (paper, section 4.2.2). `sig`: of logarithms, see `sig_loss`. `ssi`: mean absolute
    difference of maps that `standardised` has freed from scale and shift. `gradient` is the weight of
    `gradient_loss` on the same numbers. An image without a valid pixel counts as zero.
    """
    _same_shape(prediction, target)
    _same_shape(prediction, valid)
    # Values are made safe before the arithmetic: an invalid pixel may hold anything.
    target = torch.where(valid, target, prediction.detach())
    if kind == "ssi":
        prediction, target = standardised(prediction, valid), standardised(target, valid)
    difference = prediction - target
    if kind == "sig":
        loss = sig_loss(difference.flatten(1), valid.flatten(1))
    else:
        loss = masked_mean(difference.abs().flatten(1), valid.flatten(1)).mean()
    return loss + gradient * gradient_loss(difference, valid) if gradient else loss


def sig_loss(difference: Float[Tensor, "b k"], valid: Bool[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Root of variance + 0.15 mean^2 of differences of log depth: mostly the error after the best scale.

    The scale-invariant loss of Eigen et al. 2014 as AdaBins and DINOv2 have it, where the pixels of a batch are pooled;
    here it is taken in each image, then averaged. DINOv2 moreover adds 1 mm to both depths before the logarithm,
    divides the variance by the number of pixels less one, and leaves it out for the first 100 steps.
    """
    mean = masked_mean(difference, valid)
    variance = masked_mean((difference - mean[:, None]).square(), valid)
    # Without what is added the root of an image that is fitted to the last digit, or has no pixels, had no slope.
    root = (variance + 0.15 * mean.square() + 1e-8).sqrt()
    return torch.where(valid.any(1), root, 0.0).mean()


def bound_loss(
    prediction: Float[Tensor, "b 1 h w"], bound: Float[Tensor, "b 1 h w"], where: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    """How far the prediction falls short of its lower bound: mean over the places `where`, then over images."""
    _same_shape(prediction, bound)
    _same_shape(prediction, where)
    short = F.relu(torch.where(where, bound - prediction, 0.0))
    return masked_mean(short.flatten(1), where.flatten(1)).mean()


def standardised(values: Float[Tensor, "b 1 h w"], valid: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Free maps from their median and mean distance from it over valid pixels (Ranftl et al. 2020, eq. 5 and 6)."""
    flat, known = values.flatten(1), valid.flatten(1)
    median = torch.where(known, flat, torch.nan).nanmedian(1, keepdim=True).values.nan_to_num()
    centred = flat - median
    spread = masked_mean(centred.abs(), known)[:, None]
    return (centred / spread.clamp(min=1e-6)).view_as(values)


def gradient_loss(
    difference: Float[Tensor, "b 1 h w"], valid: Bool[Tensor, "b 1 h w"], scales: int = 4
) -> Float[Tensor, ""]:
    """Mean absolute slope of the difference between neighbouring pixels, at full size and every 2nd, 4th and 8th pixel.

    It is small where edges lie where they should (Li and Snavely 2018; Ranftl et al. 2020, equation 11). Mean over the
    pairs of valid neighbours of each image along both axes, then over scales and images.
    """
    difference = torch.where(valid, difference, 0.0)
    total = difference.new_zeros(())
    for scale in range(scales):
        step = 2**scale
        part, known = difference[..., ::step, ::step], valid[..., ::step, ::step]
        down = (part[..., 1:, :] - part[..., :-1, :]).abs().flatten(1)
        across = (part[..., 1:] - part[..., :-1]).abs().flatten(1)
        both_down = (known[..., 1:, :] & known[..., :-1, :]).flatten(1)
        both_across = (known[..., 1:] & known[..., :-1]).flatten(1)
        slopes = torch.cat([down, across], 1)
        total = total + masked_mean(slopes, torch.cat([both_down, both_across], 1)).mean()
    return total / scales


def masked_mean(values: Float[Tensor, "*batch k"], valid: Bool[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Mean over the valid values of the last axis; zero where none is valid."""
    _same_shape(values, valid)
    total = torch.where(valid, values, torch.zeros_like(values)).sum(-1)
    return total / valid.sum(-1).clamp(min=1)


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")
