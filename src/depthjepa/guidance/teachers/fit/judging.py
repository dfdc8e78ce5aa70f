"""What a fitted teacher tells of depth, beside the mean map: log depth after the best scale and shift of each image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from depthjepa.columns import Column
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.depth import align_scale_shift, metrics, valid
from depthjepa.faults import BadInput
from depthjepa.guidance.teachers.depthfm.network import DepthFM

SHOWN = 6
FACTOR = "share of pixels whose depth is wrong by less than a factor of "
COLUMNS = (
    Column("absrel", "AbsRel", "mean of |told − true depth| ÷ true depth", better="lower"),
    Column("rmselog", "RMSE log", "root of the mean squared difference of the logarithms of depth", better="lower"),
    Column("delta1", "δ1", f"{FACTOR}1.25", better="higher"),
    Column("delta2", "δ2", f"{FACTOR}1.25²", better="higher"),
    Column("delta3", "δ3", f"{FACTOR}1.25³", better="higher"),
)

Predict = Callable[[Batch], Float[Tensor, "b 1 h w"]]  # of log depth, up to scale and shift


def predictor(teacher: DepthFM, steps: int) -> Predict:
    """Log depth of a batch's images as a teacher decodes it after some Euler steps, up to scale and shift."""
    teacher = copy.copy(teacher)  # the networks are shared
    teacher.steps = steps
    return lambda batch: teacher.decode(teacher.latents(batch.images, index=batch.index)).log()


def judge(
    predictors: Mapping[str, Predict], batches: Iterable[Batch], judged: tuple[float, float], shown: int = SHOWN
) -> tuple[list[dict[str, Any]], tuple[Any, Any, dict[str, Any]]]:
    """Score predictions of log depth after the best scale and shift of each image, on depths [m] within `judged`.

    Returns a row for each predictor (absrel, rmselog, delta1 to 3: means over images) and what `figures.depth_rows`
    draws of the first images.
    """
    low, high = judged
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in predictors}
    drawn: dict[str, Tensor] = {}
    first: Batch | None = None
    for batch in batches:
        assert batch.depth is not None
        known = valid(batch.depth, low, high)
        target = torch.where(known, batch.depth, 1.0).log()
        for name, predict in predictors.items():
            aligned = align_scale_shift(predict(batch), target, known).exp()
            found[name].append(metrics(aligned, torch.where(known, batch.depth, 1.0), known, low, high))
            if first is None:
                drawn[name] = (1 / aligned.clamp(low, high))[:shown, 0].cpu()
        first = first or batch
    if first is None or first.depth is None:
        raise BadInput("there are no held-out pairs to judge a teacher on")
    rows: list[dict[str, Any]] = []
    for name, scores in found.items():
        figures = {
            column.key: float(torch.cat([score[column.key] for score in scores]).nanmean()) for column in COLUMNS
        }
        if not math.isfinite(figures["delta1"]):
            raise BadInput(f"no held-out pixel has a depth from {low:g} to {high:g} m: choose other fit.scored")
        rows.append({"name": name, **figures})
    depth = first.depth[:shown, 0].cpu()
    truth = torch.where(valid(depth, low, high), 1 / depth, torch.nan)
    return rows, (as_bytes(first.images[:shown]), truth.numpy(), {name: maps.numpy() for name, maps in drawn.items()})


def mean_log_depth(batches: Iterable[Batch], judged: tuple[float, float]) -> Float[Tensor, "1 1 h w"]:
    """Mean over images of one size of log depth [log m], pixel by pixel; the overall mean where nothing was measured.

    Depths outside of `judged` [m], from and to, take no part.

    Raises:
        BadInput: there is no image.
    """
    total, count = torch.zeros(()), torch.zeros(())
    for batch in batches:
        assert batch.depth is not None
        known = valid(batch.depth, *judged)
        total = total + torch.where(known, batch.depth, 1.0).log().mul(known).sum(0, keepdim=True)
        count = count + known.sum(0, keepdim=True)
    if not count.ndim:
        raise BadInput("there are no pairs to draw a mean map of")
    overall = total.sum() / count.sum().clamp(min=1)
    return torch.where(count > 0, total / count.clamp(min=1), overall)
