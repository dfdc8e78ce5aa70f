"""How well a map of classes agrees with the truth: confusion, intersection over union, pixel accuracy."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from depthjepa.data.samples import VOID

LabelMap = UInt8[Tensor, "b 1 h w"]  # the class of each pixel, `VOID`: none


def confusion(truth: LabelMap, predicted: Int64[Tensor, "b h w"], classes: int) -> Int64[Tensor, "b c c"]:
    """Pixels of each image by their true class (rows) and the predicted one (columns); void is not counted."""
    true, known = truth[:, 0].long(), truth[:, 0] != VOID
    image = torch.arange(len(truth), device=truth.device)[:, None, None]
    place = (image * classes + true) * classes + predicted
    return torch.bincount(place[known], minlength=len(truth) * classes**2).view(-1, classes, classes)


def overlaps(counts: Int64[Tensor, "*images c c"]) -> Int64[Tensor, "*images 3 c"]:
    """Of confusion matrices, the pixels of each class that are right, true, and predicted: all that IoU needs."""
    return torch.stack([counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)], -2)


def class_iou(found: Int64[Tensor, "*images 3 c"]) -> Float64[Tensor, "*images c"]:
    """Intersection over union of each class, in [0, 1]; nan for a class that no true pixel has."""
    right, true, predicted = found.double().unbind(-2)
    return torch.where(true > 0, right / (true + predicted - right), torch.nan)


def figures_of(found: Int64[Tensor, "3 c"], classes: tuple[str, ...]) -> dict[str, float]:
    """Mean IoU over the classes that occur in the truth, pixel accuracy, and the IoU of each of those classes [%]."""
    each = 100 * class_iou(found)
    named = {iou_key(name): float(iou) for name, iou in zip(classes, each, strict=True) if not iou.isnan()}
    accuracy = 100 * float(found[0].sum() / found[1].sum())
    return {"miou": float(each.nanmean()), "accuracy": accuracy} | named


def iou_key(name: str) -> str:
    """The key of the column of one class."""
    return f"iou_{name}"
