"""Signs of collapse in frozen features, each as a figure that is to be read beside a random encoder's.

Features can collapse in two ways. In few dimensions: RankMe (Garrido et al. 2023, equation 1), and the same
count for centred features, since a large common component alone brings RankMe down to 1. Or onto positions:
the tokens depend on where a patch lies and not on the image, which makes predicting them easy and useless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.evaluation.features import Encode, iterate_tokens
from depthjepa.faults import BadInput

EPSILON = 1e-7  # of RankMe
DEAD = 1e-3  # a dimension below this share of the features' magnitude does not vary
LOW_RANK = 0.05  # of what the width and the number of images allow
POSITION = 0.9


class TokenShares(NamedTuple):
    """Shares of the tokens' variance in [0, 1]: explained by position, by the image's mean."""

    position: float
    image: float


def rank_me(features: Float[Tensor, "images d"]) -> float:
    """RankMe: exp of the entropy of the singular values' shares (plus 1e-7), from 1 to min(images, d).

    As in the paper the features are not centred. 0 if all of them are 0.
    """
    values = torch.linalg.svdvals(features.double())
    if values[0] == 0:
        return 0.0
    shares = values / values.sum() + EPSILON
    return float((-shares * shares.log()).sum().exp())


def effective_rank(features: Float[Tensor, "images d"]) -> float:
    """RankMe of the centred features: how many dimensions tell images apart. 0 if they are all the same."""
    centred = features.double() - features.double().mean(0)
    # Rounding of a float32 mean of equal features is no dimension.
    noise = torch.finfo(torch.float32).eps * features.double().square().mean().sqrt()
    return rank_me(centred) if centred.square().mean().sqrt() > noise else 0.0


def deviation(features: Float[Tensor, "images d"]) -> dict[str, float]:
    """Deviation of every dimension over images, in units of the features' root mean square.

    Returns its mean and minimum over dimensions, and the share of dimensions below 0.001 (1 for features
    that are all 0).
    """
    magnitude = features.double().square().mean().sqrt()
    each = features.double().std(0) / (magnitude if magnitude > 0 else 1)
    return {
        "deviation_mean": float(each.mean()),
        "deviation_minimum": float(each.min()),
        "dead_dimensions": float((each < DEAD).double().mean()),
    }


class TokenVariance:
    """Split the variance of tokens over images and positions, per channel and summed over channels, batch by batch.

    position: Σ of squares of the mean over images at each position, less what chance leaves there with
    finitely many images (the residual mean square times positions - 1; exact however the tokens of an image
    depend on each other), over the total; image: Σ of squares of the images' means over the total, not
    corrected. Streaming, float64.
    """

    def __init__(self) -> None:
        self.images, self.total, self.by_image = 0, 0.0, 0.0
        self.centre: Tensor | None = None
        self.at_position = torch.zeros(0, 0)

    def add(self, tokens: Float[Tensor, "_ n d"]) -> None:
        """Take one batch in."""
        if self.centre is None:  # near the mean, so that sums of squares keep their digits
            self.centre = tokens.double().mean((0, 1))
            self.at_position = torch.zeros_like(tokens[0], dtype=torch.float64)
        deviations = tokens.double() - self.centre
        self.images += len(tokens)
        self.at_position += deviations.sum(0)
        self.total += float(deviations.square().sum())
        self.by_image += float(deviations.mean(1).square().sum())

    def shares(self) -> TokenShares:
        """The shares of all batches; nan if nothing varies. Needs two images and two positions."""
        images, positions = self.images, len(self.at_position)
        if images < 2 or positions < 2:
            raise BadInput("the share of positions needs at least two images and two patches")
        grand = float(self.at_position.sum(0).square().sum()) / (images * positions)
        position = float(self.at_position.square().sum()) / images - grand
        image = positions * self.by_image - grand
        total = self.total - grand
        if total <= 0:
            return TokenShares(math.nan, math.nan)
        chance = (total - position - image) / (images - 1)
        return TokenShares(max(0.0, position - chance) / total, image / total)


def token_shares(batches: Iterable[Float[Tensor, "_ n d"]]) -> TokenShares:
    """Shares of the variance of tokens; see `TokenVariance`."""
    variance = TokenVariance()
    for tokens in batches:
        variance.add(tokens)
    return variance.shares()


class Diagnosis:
    """The figures of an encoder on a set of images, from its tokens batch by batch."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.variance = TokenVariance()

    def add(self, tokens: Float[Tensor, "_ n d"]) -> None:
        """Take one batch in."""
        self.means.append(tokens.mean(1).cpu())
        self.variance.add(tokens)

    @property
    def features(self) -> Float[Tensor, "images d"]:
        """The mean over the tokens of each image."""
        return torch.cat(self.means)

    def figures(self) -> dict[str, float]:
        """rank_me, effective_rank, deviation_mean, deviation_minimum, dead_dimensions (of the mean over
        tokens), position_share, image_share (of tokens), width and images.
        """
        shares = self.variance.shares()
        features = self.features
        return {
            "rank_me": rank_me(features),
            "effective_rank": effective_rank(features),
            **deviation(features),
            "position_share": shares.position,
            "image_share": shares.image,
            "width": float(features.shape[1]),
            "images": float(features.shape[0]),
        }


def diagnose(encode: Encode, batches: Iterable[Batch]) -> dict[str, float]:
    """Measure an encoder on a set of images in one pass; see `Diagnosis.figures`."""
    diagnosis = Diagnosis()
    for _, tokens in iterate_tokens(encode, batches):
        diagnosis.add(tokens)
    return diagnosis.figures()


def verdict(figures: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    """Say in words what is collapsed, each with its figure and that of the baseline (a random encoder).

    An empty list: nothing is.
    """
    faults = []
    possible = min(figures["width"], figures["images"] - 1)
    if figures["effective_rank"] < LOW_RANK * possible:
        faults.append(
            f"dimensional collapse: the pooled features use {figures['effective_rank']:.1f} of "
            f"{possible:.0f} possible dimensions (random encoder: {baseline['effective_rank']:.1f})"
        )
    if figures["dead_dimensions"] > 0.5:
        faults.append(
            f"{figures['dead_dimensions']:.0%} of the dimensions hardly vary over images "
            f"(random encoder: {baseline['dead_dimensions']:.0%})"
        )
    if not figures["position_share"] <= POSITION:
        faults.append(
            f"position collapse: {figures['position_share']:.1%} of the tokens' variance depends on the "
            f"position alone (random encoder: {baseline['position_share']:.1%})"
        )
    return faults
