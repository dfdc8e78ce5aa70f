"""What a low guidance loss can hide: measures of a teacher's map T and a predicted map P on held-out images.

A guidance loss falls fast by ways that need no look at the scene: the mean map, the mean map with an offset per image,
a blur. Each leaves a mark in a figure that the loss does not show:

floor            loss of P over the loss of the mean map
position         R² about the mean map, over all channels and for each
between, within  the same R² of the images' means, and of what varies inside images
structure        do neighbouring cells differ as the teacher's do (correlation), and by as much (energy)
specificity      is P_i nearer to T_i than to the maps of other images

All of them look at deviations from the training set's mean map, in float64, at valid cells alone: a cell without depth
or one that is not judged may hold anything. A channel counts by its variance: give whitened maps. The limits in
`Floors` were proposed from one simulation and are not calibrated on real latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.depth import pool_valid, r2_between, r2_position, r2_within
from depthjepa.faults import BadInput
from depthjepa.losses import feature_depth_loss

CANDIDATES = 50  # maps that the right one is to be found among
PERMUTATIONS = 1000
SHARED = 0.25  # two images with fewer cells in common, as a share of the first's, are not compared
FEWEST = 4  # images: with three no permutation test comes below 0.05
NOISE = 1e-6  # in units of the teacher's deviation: what is smaller is rounding

NOTHING = 0.05  # R² up to which nothing is explained
NO_GAIN = 0.95  # loss over the mean map's from which nothing is gained
CHANCE = 0.05  # p above which images may have been found by chance
SAME = 0.6  # AUC below which other images' maps are as near as the right one
ENOUGH = 0.5  # of the attainable energy: below the floor, and still not blurred
ALIGNED = 0.8  # correlation of gradients above which only their size can be wrong


@dataclass(frozen=True, slots=True)
class Floors:
    """What a prediction is to reach, and the one thing (`noise`) that it is to stay below.

    The simulation that they were proposed from has 28 x 28 maps of one shared layout and objects of each image.
    In it 0.3 of `gradient_energy` cuts through a moderate blur that keeps three quarters of R² within images; so half
    of what the teacher blurred to patches keeps is enough, where that is known.
    """

    r2_within: float = 0.3
    gradient_correlation: float = 0.4
    gradient_energy: float = 0.3
    noise: float = 1.5  # gradient energy
    specificity_auc: float = 0.95


PROPOSED = Floors()


def measure(
    teacher: Float[Tensor, "images c rows cols"],
    predicted: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """All figures of predicted maps, for `verdict`: floor_ratio and those of the functions below, and `images`.

    Raises ValueError where shapes differ or a valid cell is not finite, BadInput where too few images can be compared.
    """
    maps = teacher, predicted, valid, mean_map
    return {
        "floor_ratio": floor_ratio(*maps),
        **explained(*maps),
        **gradients(*maps),
        "attainable_energy": attainable_energy(teacher, valid, mean_map),
        **specificity(*maps, seed=seed),
        "images": float(len(teacher)),
    }


def floor_ratio(
    teacher: Float[Tensor, "images c rows cols"],
    predicted: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
) -> float:
    """Guidance loss of the prediction over that of the mean map: 1 is no gain, 0 perfect; nan if T is the mean map."""
    truth, guess, known = _deviations(teacher, predicted, valid, mean_map)
    floor = feature_depth_loss(torch.zeros_like(truth), truth, known)
    return float(feature_depth_loss(guess, truth, known) / floor) if floor > 0 else math.nan


def explained(
    teacher: Float[Tensor, "images c rows cols"],
    predicted: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
) -> dict[str, float]:
    """What is explained beyond the mean map: r2_position, channels_above_mean, r2_between, r2_within.

    R² as in `depthjepa.depth`, over all channels; an image's mean is taken in each channel. `channels_above_mean` is
    the share, of the channels that vary, whose r2_position is above 0. nan where nothing varies.
    """
    truth, guess, known = _deviations(teacher, predicted, valid, mean_map)
    nothing = truth.new_zeros(math.prod(truth.shape[2:]))
    p, t, k = (each.flatten(2) for each in (guess, truth, known))
    rows = p.flatten(0, 1), t.flatten(0, 1), k.flatten(0, 1), nothing
    of_channels = [r2_position(p[:, each], t[:, each], k[:, each], nothing) for each in range(truth.shape[1])]
    varying = [r2 for r2 in of_channels if not math.isnan(r2)]
    return {
        "r2_position": r2_position(*rows),
        "channels_above_mean": sum(r2 > 0 for r2 in varying) / len(varying) if varying else math.nan,
        "r2_between": r2_between(*rows),
        "r2_within": r2_within(*rows),
    }


def gradients(
    teacher: Float[Tensor, "images c rows cols"],
    predicted: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
) -> dict[str, float]:
    """Compare differences of neighbouring cells, both of them valid, along rows and columns.

    gradient_correlation  Σ∇T·∇P / √(Σ|∇T|² Σ|∇P|²) in [-1, 1]; 0 for a prediction without any gradient
    gradient_energy       √(Σ|∇P|² / Σ|∇T|²): 0 is flat, below 1 blurred, above 1 noisy or exaggerated

    nan if the teacher has no gradient.
    """
    truth, guess, known = _deviations(teacher, predicted, valid, mean_map)
    t, p = _slopes(truth, known), _slopes(guess, known)
    steep, found = t.square().sum(), p.square().sum()
    if steep == 0:
        return {"gradient_correlation": math.nan, "gradient_energy": math.nan}
    energy = float((found / steep).sqrt())
    correlation = float((t * p).sum() / (steep * found).sqrt()) if energy > NOISE else 0.0
    return {"gradient_correlation": correlation, "gradient_energy": energy}


def blurred_to(
    maps: Float[Tensor, "images c rows cols"], valid: Bool[Tensor, "images #c rows cols"], factor: int
) -> Float[Tensor, "images c rows cols"]:
    """Average the valid cells of blocks of `factor` x `factor`, and interpolate linearly between the blocks.

    Linearly, since steps at the borders of blocks would raise the gradient energy of a smooth map above 1. A block
    counts by its share of valid cells; what stands where no block is near is 0.
    """
    shape = maps.shape
    rows = maps.reshape(-1, 1, *shape[2:])
    known = valid.expand(shape).reshape(rows.shape)
    small = math.ceil(shape[2] / factor), math.ceil(shape[3] / factor)
    mean, share = pool_valid(rows, known, small)
    total, weight = (F.interpolate(each, shape[2:], mode="bilinear") for each in (mean * share, share))
    return (total / torch.where(weight > 0, weight, 1)).reshape(shape)


def attainable_energy(
    teacher: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
    factor: int = 2,
) -> float:
    """Gradient energy of the teacher itself, its deviation from the mean map blurred to patches of `factor` cells.

    What a prediction reaches that is right about every patch and knows nothing finer.
    """
    truth, _, known = _deviations(teacher, teacher, valid, mean_map)
    blurred = mean_map.cpu().double() + blurred_to(truth, known, factor)
    return gradients(teacher.cpu(), blurred, known, mean_map.cpu())["gradient_energy"]


def _slopes(values: Float[Tensor, "images c rows cols"], known: Bool[Tensor, "images c rows cols"]) -> Tensor:
    """Differences of all pairs of known neighbours, in one row."""
    down = values.diff(dim=2)[known[:, :, 1:] & known[:, :, :-1]]
    across = values.diff(dim=3)[known[..., 1:] & known[..., :-1]]
    return torch.cat([down, across])


class Pairs(NamedTuple):
    """Prediction i (rows) and teacher's map j (columns): distance, likeness in [-1, 1], and whether they compare."""

    distance: Float[Tensor, "images images"]
    likeness: Float[Tensor, "images images"]
    comparable: Bool[Tensor, "images images"]


def specificity(
    teacher: Float[Tensor, "images c rows cols"],
    predicted: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
    *,
    candidates: int = CANDIDATES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, float]:
    """Tell whether a prediction is of its own image, once the mean map and each image's mean are taken away.

    specificity_auc   share of pairs i, j in which P_i is nearer to T_i than to T_j (mean squared difference over the
                      cells that both images have); ties count half
    retrieval_top1    how often T_i is the most alike to P_i (correlation over these cells) among `candidates` maps, or
                      among all if they are fewer: the mean over every draw of the others, ties broken by chance
    retrieval_chance  what retrieval_top1 is by chance
    retrieval_p       chance that the mean correlation of matched maps is reached when the teacher's images are
                      permuted (one-sided, at least 1 / (permutations + 1))

    The distance is hard on predictions of low contrast, which lie nearer to a flat image's map; correlation is blind to
    contrast. Raises BadInput where fewer than 4 images can be compared with another.
    """
    pairs = _compare(*_deviations(teacher, predicted, valid, mean_map))
    own = torch.eye(len(teacher), dtype=torch.bool)
    others = pairs.comparable & ~own
    kept = others.any(1)
    if kept.sum() < FEWEST:
        raise BadInput(
            f"{int(kept.sum())} of {len(teacher)} images share enough valid cells with another to be compared; "
            f"give at least {FEWEST}"
        )
    scale = NOISE * pairs.distance[others].mean()
    gap = pairs.distance - pairs.distance.diagonal()[:, None]
    nearer = (gap > scale).double() + 0.5 * (gap.abs() <= scale).double()

    ahead = pairs.likeness - pairs.likeness.diagonal()[:, None]
    better, tied = ((others & (ahead > NOISE)).sum(1), (others & (ahead.abs() <= NOISE)).sum(1))
    found, chance = [], []
    for count, above, equal in zip(*(each[kept].tolist() for each in (others.sum(1), better, tied)), strict=True):
        drawn = min(candidates - 1, count)
        # Hypergeometric, summed over the places that the right map takes among its equals.
        ways = math.comb(count - above + 1, drawn + 1) - math.comb(count - above - equal, drawn + 1)
        found.append(ways / ((equal + 1) * math.comb(count, drawn)))
        chance.append(1 / (drawn + 1))
    return {
        "specificity_auc": float(nearer[others].mean()),
        "retrieval_top1": sum(found) / len(found),
        "retrieval_chance": sum(chance) / len(chance),
        "retrieval_p": _permuted(Pairs(*(each[kept][:, kept] for each in pairs)), permutations, seed),
    }


def _compare(
    truth: Float[Tensor, "images c rows cols"],
    guess: Float[Tensor, "images c rows cols"],
    known: Bool[Tensor, "images c rows cols"],
) -> Pairs:
    """Compare every prediction with every teacher's map, on the cells that both have, where both have mean 0.

    Both are deviations from the mean map, 0 where not known. Memory grows with images² and with the maps, not with
    their product. A prediction that is flat there has likeness 0.
    """
    size = len(truth), len(truth)
    spread_t, spread_p, common, cells = (truth.new_zeros(size) for _ in range(4))
    for channel in range(truth.shape[1]):
        k = known[:, channel].flatten(1).double()
        # Each image's own mean goes first, so that sums of squares keep their digits.
        t, p = (_centred(each[:, channel].flatten(1), k) for each in (truth, guess))
        count = k @ k.T
        cells += count
        sum_t, sum_p, divisor = k @ t.T, p @ k.T, count.clamp(min=1)
        spread_t += k @ t.square().T - sum_t.square() / divisor
        spread_p += p.square() @ k.T - sum_p.square() / divisor
        common += p @ t.T - sum_t * sum_p / divisor
    comparable = (cells > 0) & (cells >= SHARED * cells.diagonal()[:, None])
    flat = NOISE**2 * spread_t.mean()
    varies = (spread_t > flat) & (spread_p > flat)
    likeness = torch.where(varies, common / torch.where(varies, spread_t * spread_p, 1).sqrt(), 0)
    return Pairs((spread_t + spread_p - 2 * common) / cells.clamp(min=1), likeness, comparable)


def _permuted(pairs: Pairs, permutations: int, seed: int) -> float:
    """One-sided p of the mean likeness of matched maps under permutations of the teacher's images."""
    images = len(pairs.likeness)
    order = torch.rand(permutations, images, generator=torch.Generator().manual_seed(seed)).argsort(1)
    order = torch.cat([torch.arange(images)[None], order])
    row = torch.arange(images)
    counts = pairs.comparable[row, order]
    means = torch.where(counts, pairs.likeness[row, order], 0).sum(1) / counts.sum(1).clamp(min=1)
    return float((means >= means[0] - NOISE).double().mean())


def _centred(values: Float[Tensor, "b cells"], weight: Float[Tensor, "b cells"]) -> Float[Tensor, "b cells"]:
    """Less the weighted mean of each row; 0 where the weight is."""
    mean = (values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return (values - mean) * weight


def verdict(figures: Mapping[str, float], floors: Floors = PROPOSED) -> list[str]:
    """Say in words by which shortcut or fault the figures of `measure` came about, the most damning first.

    One failure has one sentence, though it spoils several figures; only wrong offsets can stand beside another fault.
    An empty list: nothing was found. The limits are proposals from one simulation, not calibrated: a figure that lies
    near one is no proof.
    """
    named = _shortcut(figures, floors)
    faults = [named] if named else []
    position, within = figures["r2_position"], figures["r2_within"]
    if within > floors.r2_within and position <= NOTHING:
        faults.append(
            f"wrong offsets: R² is {within:.2f} within images, but {position:.2f} about the mean map, since the means "
            f"of images are off (R² between images {figures['r2_between']:.2f})"
        )
    if faults:
        return faults
    short = [
        f"{label} {figures[name]:.2f} (wanted above {least:.2f})"
        for name, label, least in (
            ("r2_position", "R² about the mean map", NOTHING),
            ("r2_within", "R² within images", floors.r2_within),
            ("gradient_correlation", "correlation of gradients", floors.gradient_correlation),
            ("specificity_auc", "AUC of the right image", floors.specificity_auc),
            ("channels_above_mean", "share of channels above the mean map", 0.5),
        )
        if not figures[name] > least
    ]
    return [f"weak, with no shortcut that has a name: {'; '.join(short)}; these limits are proposals"] if short else []


def _shortcut(figures: Mapping[str, float], floors: Floors) -> str:
    position, within, between = figures["r2_position"], figures["r2_within"], figures["r2_between"]
    correlation, energy = figures["gradient_correlation"], figures["gradient_energy"]
    auc, found, p = figures["specificity_auc"], figures["retrieval_top1"], figures["retrieval_p"]
    attainable = figures.get("attainable_energy", 1.0)
    flat = energy <= min(floors.gradient_energy, ENOUGH * attainable)
    if math.isnan(energy) or math.isnan(position):
        return "undecided: the teacher's maps do not vary about the mean map"
    if flat and within <= floors.r2_within and (position <= NOTHING or figures["floor_ratio"] >= NO_GAIN):
        return (
            f"predicts the mean map, or no better: the loss is {figures['floor_ratio']:.2f} of the mean map's, R² "
            f"about it {position:.2f}"
        )
    if flat and within <= NOTHING:
        return (
            f"an offset per image alone: R² between images {between:.2f}, within images {within:.2f}; nothing is said "
            "of where things are"
        )
    if correlation < -floors.gradient_correlation:
        return (
            f"inverted: gradients correlate by {correlation:.2f} with the teacher's, as when nearer is taken for "
            "farther"
        )
    if energy > floors.noise:
        kind = "exaggerated contrast" if correlation > ALIGNED else "noise"
        return (
            f"{kind}: gradients have {energy:.2f} times the teacher's size and correlate by {correlation:.2f} with it"
        )
    # A map that explains something of its own image is weak, but not another one's.
    strange = p > CHANCE or (auc < SAME and correlation < floors.gradient_correlation)
    if not flat and strange and within <= NOTHING:
        return (
            f"another image's map, or one map for all: sharp (gradient energy {energy:.2f}), but the right image is "
            f"found in {found:.0%} of cases (chance {figures['retrieval_chance']:.0%}), AUC {auc:.2f}; the mean "
            f"correlation with its own target against those with others': p = {p:.3f}"
        )
    if flat:
        return (
            f"blurred: gradients have {energy:.2f} times the teacher's size (the teacher itself, blurred to patches, "
            f"{attainable:.2f}), R² within images {within:.2f}"
        )
    return ""


class Deviations(NamedTuple):
    """Teacher and prediction less the mean map, float64, 0 where not known; and where they are."""

    truth: Float[Tensor, "images c rows cols"]
    guess: Float[Tensor, "images c rows cols"]
    known: Bool[Tensor, "images c rows cols"]


def _deviations(
    teacher: Float[Tensor, "images c rows cols"],
    predicted: Float[Tensor, "images c rows cols"],
    valid: Bool[Tensor, "images #c rows cols"],
    mean_map: Float[Tensor, "c rows cols"],
) -> Deviations:
    shape = teacher.shape
    one = (shape[0], 1, *shape[2:])
    if predicted.shape != shape or mean_map.shape != shape[1:] or valid.shape not in (shape, one):
        raise ValueError(
            f"shapes must agree: {tuple(shape)}, {tuple(predicted.shape)}, {tuple(valid.shape)} and a mean map of "
            f"{tuple(mean_map.shape)}"
        )
    known = valid.cpu().expand(shape)
    truth, guess = (
        torch.where(known, each.cpu().double() - mean_map.cpu().double(), 0) for each in (teacher, predicted)
    )
    if not (torch.isfinite(truth).all() and torch.isfinite(guess).all()):
        raise ValueError("at valid cells teacher, prediction and mean map must be finite")
    return Deviations(truth, guess, known)
