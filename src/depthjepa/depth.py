"""Depth as numbers: validity, disparity, pooling to cells, alignment, and the measures of a depth map.

Depth is metres along the optical axis, larger = farther, 0 (or anything not finite) = invalid. Disparity is
1/depth in 1/m, larger = nearer. Validity is always a mask: a value where the mask is false is replaced
before any arithmetic, so that whatever stands there (0, garbage, nan) reaches no result and no gradient.

Per-image errors follow Eigen et al. 2014 (NeurIPS, section 4.1) and the practice of NYUv2 and KITTI
evaluations: each is computed within an image and averaged over images, never over pooled pixels.
The R² measures split what a prediction explains into the part that the mean map and an offset per image
explain (which needs no knowledge of the scene's structure) and the part within images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def valid(depth: Float[Tensor, "*shape"], minimum: float = 1e-3, maximum: float = math.inf) -> Bool[Tensor, "*shape"]:
    """Tell where a depth [m] is finite and within [minimum, maximum]."""
    return torch.isfinite(depth) & (depth >= minimum) & (depth <= maximum)


def disparity(
    depth: Float[Tensor, "*shape"], minimum: float = 1e-3, maximum: float = math.inf
) -> Float[Tensor, "*shape"]:
    """Return 1/depth [1/m, larger = nearer] where the depth [m] is valid, else 0; gradients are finite."""
    known = valid(depth, minimum, maximum)
    return torch.where(known, 1 / torch.where(known, depth, 1), 0)


Numbers = Literal["metres", "log", "disparity"]


def to_numbers(depth: Float[Tensor, "*shape"], numbers: Numbers) -> Float[Tensor, "*shape"]:
    """Depth [m], above 0, as a network is to say it: metres, their natural logarithm, or disparity [1/m]."""
    if numbers == "metres":
        return depth
    return depth.log() if numbers == "log" else 1 / depth


def to_metres(
    values: Float[Tensor, "*shape"], numbers: Numbers, nearest: float, farthest: float
) -> Float[Tensor, "*shape"]:
    """Invert `to_numbers`; whatever the values are, the depth is within [nearest, farthest] m."""
    if numbers == "metres":
        return values.clamp(nearest, farthest)
    if numbers == "log":
        return values.clamp(math.log(nearest), math.log(farthest)).exp()
    return 1 / values.clamp(1 / farthest, 1 / nearest)


def below_unmeasured(
    depth: Float[Tensor, "b 1 h w"], valid: Bool[Tensor, "b 1 h w"]
) -> tuple[Float[Tensor, "b 1 h w"], Bool[Tensor, "b 1 h w"]]:
    """Return the depth of each column's highest measurement, and where nothing was measured above it.

    In a photograph taken upright what lies there is sky, or the upper part of what was measured: no nearer, as a rule.
    A column without a measurement has depth 1 and no such place.
    """
    rows = torch.arange(depth.shape[2], device=depth.device)[:, None]
    first = torch.where(valid, rows, depth.shape[2]).amin(2, keepdim=True)
    some = first < depth.shape[2]
    highest = depth.gather(2, torch.where(some, first, 0))
    return torch.where(some, highest, 1.0).expand_as(depth), some & (rows < first)


def pool_valid(
    values: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b 1 h w"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b c rows cols"], Float[Tensor, "b 1 rows cols"]]:
    """Average the valid pixels of each cell of a grid of `size` = (rows, cols).

    Cells need not divide the image: their borders are those of adaptive average pooling, which lets
    neighbours share a pixel row rather than leave one out.

    Returns the mean over a cell's valid pixels (0 where it has none) and the share of valid pixels in [0, 1].
    """
    share = F.adaptive_avg_pool2d(valid.to(values.dtype), size)
    total = F.adaptive_avg_pool2d(torch.where(valid, values, 0), size)
    return total / torch.where(share > 0, share, 1), share


def align_scale_shift(
    prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b 1 h w"], valid: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, "b 1 h w"]:
    """Map each image's prediction by the scale and shift that fit the target best (least squares).

    The affine-invariant protocol (Ranftl et al. 2020, equation 4). The scale may be negative. A prediction
    that is constant on the valid pixels becomes their mean target (scale 0); an image without valid pixels
    is returned as it is. The map is applied to every pixel, valid or not.
    """
    _refuse_broadcasting(prediction, target, valid)
    count = valid.sum((1, 2, 3), keepdim=True)
    known_prediction = torch.where(valid, prediction, 0).double()
    known_target = torch.where(valid, target, 0).double()
    mean_prediction = known_prediction.sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
    mean_target = known_target.sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
    deviation = torch.where(valid, known_prediction - mean_prediction, 0)
    variance = deviation.square().sum((1, 2, 3), keepdim=True)
    covariance = (deviation * known_target).sum((1, 2, 3), keepdim=True)
    # Rounding leaves a constant map a variance of this order: it says nothing.
    noise = count * (torch.finfo(prediction.dtype).eps * mean_prediction).square()
    varies = variance > noise
    scale = torch.where(varies, covariance / torch.where(varies, variance, 1), 0)
    scale = torch.where(count > 0, scale, 1)
    shift = torch.where(count > 0, mean_target - scale * mean_prediction, 0)
    # The scale of a constant map is 0; what stands at its invalid pixels must not turn 0 * inf into nan.
    scaled = torch.where(scale == 0, 0, scale * prediction.double())
    return (scaled + shift).to(prediction.dtype)


def metrics(
    prediction: Float[Tensor, "b 1 h w"],
    target: Float[Tensor, "b 1 h w"],
    valid: Bool[Tensor, "b 1 h w"],
    minimum: float = 1e-3,
    maximum: float = math.inf,
) -> dict[str, Float[Tensor, " b"]]:
    """Compare depth maps p and g [m] image by image, on the valid pixels; p is first clamped to the range.

    absrel   mean |p - g| / g
    sqrel    mean (p - g)² / g                          [m]
    rmse     √ mean (p - g)²                            [m]
    rmselog  √ mean (ln p - ln g)²
    log10    mean |log10 p - log10 g|
    silog    100 √ (mean d² - (mean d)²), d = ln p - ln g
    deltaK   share of pixels with max(p/g, g/p) < 1.25^K, K = 1, 2, 3

    Each is a float64 tensor [b], nan for an image without valid pixels: average over images with `nanmean`.
    Raises ValueError where a valid pixel's target is not above 0 or its prediction is not finite, since an
    average that leaves nan out would hide it.
    """
    _refuse_broadcasting(prediction, target, valid)
    p = torch.where(valid, prediction.clamp(minimum, maximum), 1).double()
    g = torch.where(valid, target, 1).double()
    if not (torch.isfinite(p).all() and torch.isfinite(g).all() and (g > 0).all()):
        raise ValueError("at valid pixels the depth must be above 0 and the prediction finite")
    count = valid.sum((1, 2, 3))

    def mean(values: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
        return torch.where(valid, values, 0).sum((1, 2, 3)) / count  # 0 / 0 = nan where nothing is valid

    logarithm = torch.log(p) - torch.log(g)
    spread = logarithm - mean(logarithm)[:, None, None, None]
    ratio = torch.maximum(p / g, g / p)
    return {
        "absrel": mean((p - g).abs() / g),
        "sqrel": mean((p - g).square() / g),
        "rmse": mean((p - g).square()).sqrt(),
        "rmselog": mean(logarithm.square()).sqrt(),
        "log10": mean(logarithm.abs()) / math.log(10),
        "silog": 100 * mean(spread.square()).sqrt(),
        "delta1": mean((ratio < 1.25).double()),
        "delta2": mean((ratio < 1.25**2).double()),
        "delta3": mean((ratio < 1.25**3).double()),
    }


def r2_within(
    prediction: Float[Tensor, "b cells"],
    target: Float[Tensor, "b cells"],
    valid: Bool[Tensor, "b cells"],
    mean_map: Float[Tensor, " cells"],
) -> float:
    """Share of the variance inside images that the prediction explains, beyond the training mean map.

    The mean map is taken from prediction and target, then from each image its mean over valid cells;
    1 - SS_res / SS_tot over all valid cells of all images. 1 is perfect; the mean map scores exactly 0, and
    so does, up to rounding, the mean map with any offset per image; another image's map is negative. nan if
    nothing varies.
    """
    residual, total = within_sums(prediction, target, valid, mean_map)
    return _explained(residual.sum(), total.sum())


def within_sums(
    prediction: Float[Tensor, "b cells"],
    target: Float[Tensor, "b cells"],
    valid: Bool[Tensor, "b cells"],
    mean_map: Float[Tensor, " cells"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Residual and total sum of squares of each image in `r2_within`, to be kept, added or resampled."""
    truth, guess = (_within(each) for each in _deviations(prediction, target, valid, mean_map))
    return (truth - guess).square().nansum(1), truth.square().nansum(1)


def r2_between(
    prediction: Float[Tensor, "b cells"],
    target: Float[Tensor, "b cells"],
    valid: Bool[Tensor, "b cells"],
    mean_map: Float[Tensor, " cells"],
) -> float:
    """Share of the variance of image means (of the deviation from the mean map) that is explained.

    An image counts by its valid cells, so that the sums of squares of `r2_within` and of this measure add up
    to those of `r2_position`.
    """
    residual, total = between_sums(prediction, target, valid, mean_map)
    return _explained(residual.sum(), total.sum())


def between_sums(
    prediction: Float[Tensor, "b cells"],
    target: Float[Tensor, "b cells"],
    valid: Bool[Tensor, "b cells"],
    mean_map: Float[Tensor, " cells"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Residual and total sum of squares of each image in `r2_between`, to be kept, added or resampled."""
    deviations = _deviations(prediction, target, valid, mean_map)
    truth, guess = (each - _within(each) for each in deviations)
    return (truth - guess).square().nansum(1), truth.square().nansum(1)


def r2_position(
    prediction: Float[Tensor, "b cells"],
    target: Float[Tensor, "b cells"],
    valid: Bool[Tensor, "b cells"],
    mean_map: Float[Tensor, " cells"],
) -> float:
    """1 - Σ(T - P)² / Σ(T - mean map)² over valid cells: what is explained beyond the position."""
    truth, guess = _deviations(prediction, target, valid, mean_map)
    return _explained((truth - guess).square().nansum(), truth.square().nansum())


def _deviations(
    prediction: Float[Tensor, "b cells"],
    target: Float[Tensor, "b cells"],
    valid: Bool[Tensor, "b cells"],
    mean_map: Float[Tensor, " cells"],
) -> tuple[Float[Tensor, "b cells"], Float[Tensor, "b cells"]]:
    """Deviations of target and prediction from the mean map in float64; nan where invalid."""
    _refuse_broadcasting(prediction, target, valid, mean_map[None].expand(len(target), -1))
    if not torch.isfinite(torch.where(valid, prediction - target, 0)).all():
        raise ValueError("at valid cells prediction and target must be finite")
    return (
        torch.where(valid, target.double() - mean_map.double(), torch.nan),
        torch.where(valid, prediction.double() - mean_map.double(), torch.nan),
    )


def _within(deviation: Float[Tensor, "b cells"]) -> Float[Tensor, "b cells"]:
    return deviation - deviation.nanmean(1, keepdim=True)


def _explained(residual: Float[Tensor, ""], total: Float[Tensor, ""]) -> float:
    return float(1 - residual / total) if total > 0 else math.nan


def _refuse_broadcasting(first: Tensor, *others: Tensor) -> None:
    for other in others:
        if other.shape != first.shape:
            raise ValueError(f"shapes must agree: {tuple(first.shape)} and {tuple(other.shape)}")
