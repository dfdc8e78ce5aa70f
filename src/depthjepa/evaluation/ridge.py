"""Ridges from frozen tokens to targets, solved from sums that never hold the tokens.

A ridge predicts, for each of the n places of an image, the deviation of c targets from their mean at that place: what
the place alone tells is given for nothing. Where targets are deviations already (`centred`), tokens are too: their
place's mean is taken from them instead. The penalty is on weights of standardised tokens, beside a mean squared error,
and the intercept is free. A target may be unknown at some tokens and known at others.

All follows from sums over samples, in float64 and batch by batch. They are kept fold by fold, so a ridge of any folds,
and its error on any other, needs no second look at the tokens: strengths are chosen so.

Axes: b image, n place, d channel, c target, g 1 where all targets of a token are known together and else c.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

STRENGTHS = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # that are tried
ROUNDING = 1e-6  # below this share of a channel's magnitude, float32 tokens hold only rounding


@dataclass(frozen=True, slots=True)
class LinearMap:
    """What a ridge found, float64: offset + bias + weight (token - mean) / deviation."""

    offset: Float[Tensor, "#n c"]  # mean target of each place; 0 where targets are deviations from it already
    mean: Float[Tensor, "#n d"]  # of all tokens, or of those of each place
    deviation: Float[Tensor, " d"]  # infinite for a channel that does not vary
    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]

    def predict(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """Targets at all places; a map of one place serves any number of them."""
        return (tokens.double() - self.mean) / self.deviation @ self.weight.T + self.bias + self.offset


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over samples of tokens x, less a fixed `centre`, and targets y; w is 1 where a target is known, else 0.

    Tokens are standardised by all samples, also those whose targets are unknown.
    """

    centre: Float[Tensor, " d"]
    images: int
    x: Float[Tensor, "n d"]  # Σ x over images
    x_square: Float[Tensor, " d"]  # Σ x²
    known: Float[Tensor, "n g"]  # Σ w over images
    y: Float[Tensor, "n c"]  # Σ w y over images
    y_square: Float[Tensor, " c"]  # Σ w y²
    known_x: Float[Tensor, "n g d"]  # Σ w x over images
    xy: Float[Tensor, "c d"]  # Σ w x y
    xx: Float[Tensor, "g d d"]  # Σ w x xᵀ

    @classmethod
    def of(
        cls,
        tokens: Float[Tensor, "b n d"],
        targets: Float[Tensor, "b n c"],
        known: Bool[Tensor, "b n g"],
        centre: Float[Tensor, " d"],
    ) -> Sums:
        """Sum over some images; targets may be anything where they are unknown."""
        x, w = tokens.double() - centre, known.double()
        y = torch.where(known, targets.double(), 0)
        flat, whole = x.flatten(0, 1), known.all(2).flatten()
        # Where all targets are known, as they mostly are, their matrix is one and the same.
        shared = flat[whole].T @ flat[whole]
        partial = [flat[known[:, :, target].flatten() & ~whole] for target in range(known.shape[2])]
        return cls(
            centre=centre,
            images=len(x),
            x=x.sum(0),
            x_square=flat.square().sum(0),
            known=w.sum(0),
            y=y.sum(0),
            y_square=y.square().sum((0, 1)),
            known_x=torch.einsum("bnd,bng->ngd", x, w),
            xy=torch.einsum("bnd,bnc->cd", x, y),
            xx=torch.stack([shared + rows.T @ rows for rows in partial]),
        )

    def __add__(self, other: Sums) -> Sums:
        """Sums over the samples of both, which have the same centre."""
        parts = (getattr(self, name) + getattr(other, name) for name in self.__slots__[1:])
        return Sums(self.centre, *parts)

    def offset(self) -> Float[Tensor, "n c"]:
        """Mean target of every place; the mean of all where one was never known."""
        everything = self.y.sum() / self.known.expand_as(self.y).sum()
        return torch.where(self.known > 0, self.y / self.known.clamp(min=1), everything)

    def spread(self, *, shared: bool = False, centred: bool = False) -> tuple[Tensor, Float[Tensor, " d"]]:
        """Mean of x, [1, d] or with `centred` [n, d], and its deviation from that.

        A deviation is infinite for a channel that varies by rounding only. `shared`: one for all channels, the root of
        their mean variance.
        """
        samples = self.images * len(self.x)
        mean = self.x / self.images if centred else self.x.sum(0, keepdim=True) / samples
        squares = mean.square().mean(0)
        variance = (self.x_square / samples - squares).clamp(min=0)
        size = variance + squares + 2 * self.centre * mean.mean(0) + self.centre.square()
        if shared:
            variance, size = variance.mean().expand_as(variance), size.mean()
        deviation = variance.sqrt()
        return mean, torch.where(deviation > ROUNDING * size.sqrt(), deviation, torch.inf)

    def solve(
        self,
        strengths: Sequence[float],
        *,
        shared: bool = False,
        centred: bool = False,
        offset: Float[Tensor, "#n c"] | None = None,
    ) -> list[LinearMap]:
        """Minimise mean (y - prediction)² + strength ‖weight‖² for each target, once for every strength.

        `shared`: tokens are divided by one deviation, so that a channel which varies more has more say. `centred`:
        tokens are taken less their place's mean. `offset`: what is given for nothing; None: y's mean at each place.
        """
        mean, deviation = self.spread(shared=shared, centred=centred)
        offset = self.offset() if offset is None else offset
        count = self.known.sum(0).clamp(min=1)
        known_x = self.known_x - self.known[:, :, None] * mean[:, None]
        x, y = known_x.sum(0) / count[:, None], (self.y - offset * self.known).sum(0) / count
        xy = self._deviations(offset) - (self.y - offset * self.known).T @ mean.expand_as(self.x)
        xy = (xy / count[:, None] - x * y[:, None]) / deviation
        xx = (self._about(mean) / count[:, None, None] - x[:, :, None] * x[:, None, :]) / deviation[:, None] / deviation
        values, vectors = torch.linalg.eigh(xx)
        rotated = (vectors.mT @ xy[:, :, None])[:, :, 0]
        found = []
        for strength in strengths:
            weight = (vectors @ (rotated / (values.clamp(min=0) + strength))[:, :, None])[:, :, 0]
            bias = y - (weight * (x / deviation)).sum(1)
            found.append(LinearMap(offset, self.centre + mean, deviation, weight, bias))
        return found

    def _about(self, mean: Float[Tensor, "#n d"]) -> Float[Tensor, "g d d"]:
        """Σ w (x - mean) (x - mean)ᵀ."""
        means = mean.expand_as(self.x)
        cross = torch.einsum("ngd,ne->gde", self.known_x, means)
        return self.xx - cross - cross.mT + torch.einsum("ng,nd,ne->gde", self.known, means, means)

    def error(self, found: LinearMap) -> float:
        """Σ w (y - prediction)² over all targets."""
        slope = found.weight / found.deviation
        # What is predicted where x is 0.
        level = found.offset + found.bias - (found.mean - self.centre) @ slope.T
        squares = self.y_square - (level * (2 * self.y - level * self.known)).sum(0)
        explained = (slope * self._deviations(level)).sum(1)
        spread = ((slope[:, None] @ self.xx)[:, 0] * slope).sum(1)
        return float((squares - 2 * explained + spread).sum())

    def _deviations(self, level: Float[Tensor, "#n c"]) -> Float[Tensor, "c d"]:
        """Σ w x (y - level)."""
        return self.xy - (level[:, :, None] * self.known_x).sum(0)


class Ridge:
    """The sums of each fold of a set's images, filled batch by batch, and the ridges that follow from them.

    `strengths` are tried by `choose`; `centred` as in `Sums.solve`.
    """

    def __init__(self, strengths: Sequence[float] = STRENGTHS, *, centred: bool = False) -> None:
        self.strengths, self.centred = tuple(strengths), centred
        self.folds: dict[int, Sums] = {}
        self._centre: Tensor | None = None

    def add(
        self,
        tokens: Float[Tensor, "b n d"],
        targets: Float[Tensor, "b n c"],
        fold: Int64[Tensor, " b"],
        known: Bool[Tensor, "b n g"] | None = None,
    ) -> None:
        """Take in some images, each of which belongs to a fold; `known` is True where targets count, None: all do."""
        if not len(tokens):
            return
        if self._centre is None:  # near the mean, so that sums of squares keep their digits
            self._centre = tokens.double().mean((0, 1))
        here = tokens.device
        if known is None:
            known = torch.ones(*tokens.shape[:2], 1, dtype=torch.bool)
        targets, fold, known = targets.to(here), fold.to(here), known.to(here)
        for number in sorted(set(fold.tolist())):
            chosen = fold == number
            sums = Sums.of(tokens[chosen], targets[chosen], known[chosen], self._centre)
            self.folds[number] = self.folds[number] + sums if number in self.folds else sums

    def without(self, *folds: int) -> Sums:
        """Sums over all other folds."""
        return reduce(add, (sums for number, sums in self.folds.items() if number not in folds))

    def choose(self, held: Iterable[int] | None = None) -> float:
        """The strength with the least squared error on the folds `held` (None: each), of ridges of all but that fold.

        Place means and standardisation come from the other folds as well.
        """
        errors = torch.zeros(len(self.strengths), dtype=torch.float64)
        whole = self.without()
        for number in self.folds if held is None else held:
            others = self.without(number)
            # The mean map that targets are deviations from is that of all folds: bring it to that of the others.
            offset = others.offset() - whole.offset() if self.centred else None
            found = others.solve(self.strengths, centred=self.centred, offset=offset)
            errors += torch.tensor([self.folds[number].error(each) for each in found], dtype=torch.float64)
        return self.strengths[int(errors.argmin())]

    def solve(self, strength: float) -> LinearMap:
        """The ridge of all folds."""
        whole = self.without()
        nothing = torch.zeros_like(whole.y[:1]) if self.centred else None
        return whole.solve([strength], centred=self.centred, offset=nothing)[0]
