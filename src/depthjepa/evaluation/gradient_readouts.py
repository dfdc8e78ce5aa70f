"""Readouts of frozen tokens that are trained by gradient descent, whatever they tell of a pixel.

Several peak rates are tried for a part of the steps, side by side on the same batches; the best on images that none of
them saw is taken, and the readout is trained anew on all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from depthjepa import optim, runtime
from depthjepa.evaluation.tokens import Pairs
from depthjepa.faults import BadInput
from depthjepa.fitting import update, walks
from depthjepa.model.heads.head import equal_depths
from depthjepa.progress import track

BATCH = 16  # images of a step
SEARCH = 4  # the rates are compared after this part of the steps
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 1e-4

Readout = TypeVar("Readout", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Descent(Generic[Readout]):
    """How a readout is trained; `stream` names its random numbers, `what` it is called while it is at work."""

    make: Callable[[int], Readout]  # of the width of the tokens
    loss: Callable[[Readout, Float[Tensor, "b n d"], Shaped[Tensor, "b 1 h w"]], Float[Tensor, ""]]
    rates: Sequence[float]
    steps: int
    seed: int
    stream: str
    what: str


def best_readout(pairs: Pairs, aside: Bool[Tensor, " images"], descent: Descent[Readout]) -> tuple[Readout, float]:
    """Fit a readout to tokens and what goes with them; returns it with the peak rate that was chosen.

    Each rate is tried for a quarter of the steps on the images that are not `aside`; the one with the lowest loss on
    those that are is taken, and the readout is trained anew on all. Raises `BadInput` where no rate ends finite.
    """
    places, rates = torch.arange(len(aside)), descent.rates
    candidates = _trained(pairs, places[~aside], replace(descent, steps=-(-descent.steps // SEARCH)))
    losses = [_loss_on(candidate, pairs, places[aside], descent) for candidate in candidates]
    if not any(map(math.isfinite, losses)):
        raise BadInput("the losses of all rates are not finite: the encoder's features are too large to fit a readout")
    rate = rates[
        min(range(len(rates)), key=lambda number: losses[number] if math.isfinite(losses[number]) else math.inf)
    ]
    (final,) = _trained(pairs, places, replace(descent, rates=(rate,)))
    return final, rate


def _trained(pairs: Pairs, places: Int64[Tensor, " _"], descent: Descent[Readout]) -> list[Readout]:
    """Train one readout for each peak rate on the images at `places`, side by side on the same batches.

    AdamW with a linear warm-up over a tenth of the steps and a cosine to 0; the same initial weights for all.
    """
    tokens, _ = next(iter(pairs.parts([places[:1]])))
    rates, steps = descent.rates, descent.steps
    readouts: list[Readout] = []
    for _ in rates:
        with runtime.seeded(descent.seed, descent.stream):
            readouts.append(descent.make(tokens.shape[2]).to(tokens.device))
    groups = [{"params": list(readout.parameters())} for readout in readouts]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    warmup = int(WARMUP * steps)
    what = f"{descent.what}, {len(rates)} rates side by side" if len(rates) > 1 else descent.what
    for step, (tokens, target) in enumerate(track(_batches(pairs, places, descent), what, steps), 1):
        now = [optim.learning_rate(step, start=0.0, peak=rate, final=0.0, warmup=warmup, steps=steps) for rate in rates]
        update(optimizer, (descent.loss(readout, tokens, target) for readout in readouts), now)
    return [readout.eval() for readout in readouts]


def _batches(
    pairs: Pairs, places: Int64[Tensor, " _"], descent: Descent[Readout]
) -> Iterator[tuple[Float[Tensor, "b n d"], Shaped[Tensor, "b 1 h w"]]]:
    """As many batches as there are steps: walks over all images, each in an order of its own."""
    per_walk = -(-len(places) // BATCH)
    orders = walks(places, -(-descent.steps // per_walk), seed=descent.seed, stream=descent.stream)
    for walk, order in enumerate(orders):
        yield from pairs.parts(order.tensor_split(per_walk)[: descent.steps - walk * per_walk])


@torch.no_grad()
def _loss_on(readout: Readout, pairs: Pairs, places: Int64[Tensor, " _"], descent: Descent[Readout]) -> float:
    parts = torch.split(places, BATCH)
    walk = zip(parts, pairs.parts(parts), strict=True)
    return sum(float(descent.loss(readout, tokens, target)) * len(part) for part, (tokens, target) in walk) / len(
        places
    )


def probed_depths(blocks: int) -> list[int]:
    """The four blocks (0-based) that DINOv2 and DINOv3 probe: at equal distances, except for 4 in place of 5 of 24."""
    return [4, 11, 17, 23] if blocks == 24 else equal_depths(blocks, 4)
