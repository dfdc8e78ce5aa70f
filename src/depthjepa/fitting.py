"""Fitting small networks to data that stand still: readouts, classifiers, compact teachers; `training` is for runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from depthjepa.faults import RunStopped
from depthjepa.runtime import permutation


def update(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Float[Tensor, ""]],
    rates: Sequence[float] | float,
    clip: float | None = None,
) -> Float[Tensor, ""]:
    """Take one step down the sum of the losses, also inside of `torch.no_grad`; returns the sum.

    `losses` are asked for one by one, and each one's graph is gone before the next is asked for: an iterator of many
    holds the memory of one. `rates` are the learning rates of the optimiser's groups, one each or one for all; `clip`
    is the largest norm of the whole gradient. Where that is not finite no weight changes, and `RunStopped` is raised.
    """
    groups = optimizer.param_groups
    for group, rate in zip(groups, [rates] * len(groups) if isinstance(rates, float) else rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    taken: list[Tensor] = []
    with torch.enable_grad():
        for loss in losses:
            torch.autograd.backward(loss)
            taken.append(loss.detach())
    total = torch.stack(taken).sum()
    if clip is not None:
        norm = nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group["params"]], clip)
        if not norm.isfinite():
            raise RunStopped(f"the loss is {total.item():.3g}, and the norm of its gradient {norm.item():.3g}")
    optimizer.step()
    return total


def walks(
    places: Int64[Tensor, " images"], epochs: int, *, seed: int, stream: str
) -> Iterator[Int64[Tensor, " images"]]:
    """The places of a set in a new order each epoch, a pure function of (seed, stream, epoch)."""
    for epoch in range(epochs):
        yield places[torch.from_numpy(permutation(len(places), seed=seed, stream=stream, epoch=epoch))]
