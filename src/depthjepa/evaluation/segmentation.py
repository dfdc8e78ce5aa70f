"""Segmentation from frozen tokens: a linear readout of every pixel's class, and the vote of the nearest patches.

`linear`   batch norm and a 1 x 1 convolution on the last layer (DINOv2, Oquab et al. 2023; DINOv3 the same)
`linear4`  the same on four layers at equal distances, side by side

The scores are enlarged bilinearly to the labels' size, where they are judged. The loss is the cross-entropy of the
pixels that have a class, at four times the patch grid at most, with the labels of the nearest pixels: scores are smooth
between patches, and a CPU has no time for more.
For the second column a patch takes the vote of the nearest training patches (`patch_bank`), and its shares of the
classes are enlarged like the scores.

Where we differ. DINOv2 has a batch norm with a scale of its own, which a linear map behind it does not need, a loss at
the labels' size, and random crops; our views are whole images without augmentation, so that tokens are computed once.

Memory: the tokens of the training images, kept in half precision up to `tokens.KEPT_BYTES` (above, they are encoded
anew on every walk) beside the label maps; the bank, `BANK` x (width + classes) x 4 bytes; the scores of `BATCH` images
at the labels' size, classes x pixels x 4 bytes each and about three times that in the fit. Validation images stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from depthjepa.data.groups import FOLDS, Division
from depthjepa.data.layouts.layout import with_label_maps
from depthjepa.data.order import evenly
from depthjepa.data.samples import VOID, Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.evaluation.features import Encode, tokens_of
from depthjepa.evaluation.gradient_readouts import BATCH, Descent, best_readout, probed_depths
from depthjepa.evaluation.patch_bank import BANK, NEIGHBOURS, TEMPERATURE, PatchBank, patch_bank
from depthjepa.evaluation.segment_scores import LabelMap, confusion, figures_of, overlaps
from depthjepa.evaluation.tokens import ImageSet, Pairs, pairs_of
from depthjepa.faults import BadInput
from depthjepa.grid import to_map
from depthjepa.progress import task

Kind = Literal["linear", "linear4"]
KINDS: tuple[Kind, ...] = get_args(Kind)

POSITION = "most frequent class by position"
RATES = (1e-3, 1e-2, 1e-1, 1.0)  # wide tokens want small ones; those between two of them change little
ENLARGED = 4  # times the patch grid, at most, at which the loss is computed
HELD_OUT = 0  # the fold on which the rates are compared


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read out, and how; `size` is that of the views, and of the label maps that are judged."""

    kind: Kind
    classes: tuple[str, ...]
    size: tuple[int, int]
    patch_size: int
    steps: int
    seed: int = 0
    pictures: int = 6

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def fitted(self) -> tuple[int, int]:
        """The size at which scores meet labels while the readout is fitted."""
        (height, width), (rows, cols) = self.size, self.grid
        return min(height, ENLARGED * rows), min(width, ENLARGED * cols)


def layers_of(kind: Kind, blocks: int) -> list[int]:
    """The blocks (0-based) of an encoder that a readout reads."""
    return [blocks - 1] if kind == "linear" else probed_depths(blocks)


def labels_of(batch: Batch) -> LabelMap:
    """The label maps of a batch; raises `BadInput` where it has none."""
    if batch.label_map is None:
        raise BadInput(f"segmentation needs label maps, and these images have none: give {with_label_maps()}")
    return batch.label_map


def class_counts(images: ImageSet, plan: Plan) -> Int64[Tensor, "c h w"]:
    """How often each pixel of the view has each class; void has none."""
    height, width = plan.size
    pixel = torch.arange(height * width).view(height, width)
    counts = torch.zeros(len(plan.classes), height, width, dtype=torch.int64)
    for batch in images():
        labels = labels_of(batch)[:, 0].cpu().long()
        place = (labels * (height * width) + pixel)[labels != VOID]
        counts += torch.bincount(place, minlength=counts.numel()).view_as(counts)
    return counts


def position_map(counts: Int64[Tensor, "c h w"]) -> Int64[Tensor, "h w"]:
    """The most frequent class of each pixel; where none was ever met, the most frequent one of all pixels."""
    anywhere = counts.sum((1, 2)).argmax()
    return torch.where(counts.sum(0) > 0, counts.argmax(0), anywhere)


def refuse_unlabelled(counts: Int64[Tensor, "c h w"], images: ImageSet, classes: tuple[str, ...]) -> None:
    """Raise `BadInput` where all pixels of the training images are void, or have one class."""
    there = counts.sum((1, 2)).nonzero()[:, 0].tolist()
    if not there:
        raise BadInput(f"no pixel of the {len(images)} training images has a class: all of their label maps are void")
    if len(there) == 1:
        raise BadInput(
            f"segmentation needs at least two classes, and all pixels of the {len(images)} training images that are "
            f"not void are of one, {classes[there[0]]!r}"
        )


class SegmentReadout(nn.Module):
    """Tokens, the layers side by side, to the scores of every pixel's classes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        # Frozen tokens do not drift: their statistics are averaged over all steps.
        self.norm = nn.BatchNorm1d(width, affine=False, momentum=None)
        self.scores = nn.Conv2d(width, classes, 1)
        for parameter in self.scores.parameters():
            nn.init.normal_(parameter, std=0.01)

    def forward(
        self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int], size: tuple[int, int]
    ) -> Float[Tensor, "b c h w"]:
        normed = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        return enlarged(self.scores(to_map(normed, grid)), size)


def enlarged(maps: Float[Tensor, "b c rows cols"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Maps of the patch grid at the size of the labels, bilinearly."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def readout_loss(
    readout: SegmentReadout, tokens: Float[Tensor, "b n d"], labels: LabelMap, plan: Plan
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels of `plan.fitted` that have a class; 0 where none has."""
    scores = readout(tokens, plan.grid, plan.fitted)
    labels = F.interpolate(labels, plan.fitted, mode="nearest-exact")
    total = F.cross_entropy(scores, labels[:, 0].long(), ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


def fit(pairs: Pairs, aside: Bool[Tensor, " images"], plan: Plan) -> tuple[SegmentReadout, float]:
    """Fit a readout; returns it with the peak rate that was chosen, on the training images that are `aside`."""
    if not aside.any() or aside.all():
        raise BadInput(f"a segmentation probe needs at least {FOLDS} training images, and there are {len(aside)}")
    descent = Descent(
        make=lambda width: SegmentReadout(width, len(plan.classes)),
        loss=lambda readout, tokens, labels: readout_loss(readout, tokens, labels, plan),
        rates=RATES,
        steps=plan.steps,
        seed=plan.seed,
        stream="segment readout",
        what=f"{plan.kind} readout",
    )
    return best_readout(pairs, aside, descent)


Predict = Callable[[Tensor], Int64[Tensor, "b h w"]]  # of the tokens of a batch


@dataclass(slots=True)
class Judged:
    """What a row predicts: `overlaps` of each validation image in turn, and the maps of a few."""

    parts: list[Int64[Tensor, "b 3 c"]] = field(default_factory=list)
    shown: list[UInt8[np.ndarray, "h w"]] = field(default_factory=list)

    def add(self, truth: LabelMap, predicted: Int64[Tensor, "b h w"], classes: int, shown: list[int]) -> None:
        """Take in one batch; `shown` are the places in it that pictures show."""
        self.parts.append(overlaps(confusion(truth, predicted, classes)).cpu())
        self.shown += [predicted[place].to(torch.uint8).cpu().numpy() for place in shown]

    @property
    def overlaps(self) -> Int64[Tensor, "images 3 c"]:
        """All images."""
        return torch.cat(self.parts)


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """Rows, what each is computed from (by its name; the nearest patches' by `knn NAME`), and maps for pictures."""

    rows: list[dict[str, float | str]]
    judged: Mapping[str, Judged]
    names: tuple[str, ...]  # of the validation images
    numbers: tuple[int, ...]  # of the same in their source
    images: UInt8[np.ndarray, "k h w 3"]
    truth: UInt8[np.ndarray, "k h w"]


def segment_table(
    encoders: Mapping[str, Encode], train: ImageSet, val: ImageSet, folds: Division, plan: Plan
) -> SegmentTable:
    """Fit a readout and gather a bank for every encoder, and score them beside the position's map.

    `encoders` give the layers of `layers_of` side by side; rates are chosen on one of the `folds` of training images,
    places that the others do not show. Figures are of all validation pixels that have a class.

    Raises `BadInput` where there are no label maps, no pixel has a class, training pixels have one alone, or there
    are too few images to choose a rate: before anything is fitted.
    """
    counts, classes = class_counts(train, plan), len(plan.classes)
    refuse_unlabelled(counts, train, plan.classes)
    position, judged = position_map(counts), {POSITION: Judged()}
    shown = set(evenly(plan.pictures, len(val)).tolist())
    names, numbered, images, truth = list[str](), list[int](), list[Tensor](), list[Tensor]()
    for batch in val():
        labels, places = labels_of(batch), _shown(batch, len(names), shown)
        judged[POSITION].add(labels, position.to(labels.device).expand(len(labels), -1, -1), classes, places)
        numbered += batch.index.tolist()
        names += batch.names or tuple(str(int(index)) for index in batch.index)
        images.append(batch.images[places].cpu())
        truth.append(labels[places, 0].cpu())
    if not judged[POSITION].overlaps[:, 1].sum():
        raise BadInput(f"no pixel of the {len(val)} validation images has a class: all of their label maps are void")
    rows: list[dict[str, float | str]] = [_row(POSITION, judged[POSITION], plan)]
    for name, encode in encoders.items():
        with task(name):
            pairs, numbers = pairs_of(encode, train, labels_of)
            readout, rate = fit(pairs, torch.from_numpy(folds.fold)[numbers] == HELD_OUT, plan)
            bank = patch_bank(
                pairs, len(numbers), patch_size=plan.patch_size, classes=len(plan.classes), seed=plan.seed
            )
            judged[name], judged[knn_name(name)] = _judge(
                encode, val, (_linear(readout, plan), _nearest(bank, plan)), plan
            )
        knn = _row(name, judged[knn_name(name)], plan)
        rows.append(_row(name, judged[name], plan) | {"knn_miou": knn["miou"], "rate": f"{rate:g}"})
    shown_images, shown_truth = as_bytes(torch.cat(images)), torch.cat(truth).numpy()
    return SegmentTable(rows, judged, tuple(names), tuple(numbered), shown_images, shown_truth)


def knn_name(name: str) -> str:
    """What `SegmentTable.judged` calls the nearest patches of a row."""
    return f"knn {name}"


def _row(name: str, found: Judged, plan: Plan) -> dict[str, float | str]:
    return {"name": name, **figures_of(found.overlaps.sum(0), plan.classes)}


def _shown(batch: Batch, before: int, shown: set[int]) -> list[int]:
    return [place for place in range(len(batch.index)) if before + place in shown]


def _linear(readout: SegmentReadout, plan: Plan) -> Predict:
    return lambda tokens: readout(tokens, plan.grid, plan.size).argmax(1)


def _nearest(bank: PatchBank, plan: Plan) -> Predict:
    return lambda tokens: enlarged(to_map(bank.vote(tokens), plan.grid), plan.size).argmax(1)


@torch.no_grad()
def _judge(encode: Encode, val: ImageSet, predicts: tuple[Predict, ...], plan: Plan) -> list[Judged]:
    """Judge several readouts of one encoder in one walk over the validation images."""
    found, before = [Judged() for _ in predicts], 0
    shown = set(evenly(plan.pictures, len(val)).tolist())
    for batch in val():
        tokens, labels = tokens_of(encode, batch), labels_of(batch)
        places = _shown(batch, before, shown)
        before += len(labels)
        for one, predict in zip(found, predicts, strict=True):
            predicted = torch.cat([predict(part) for part in torch.split(tokens, BATCH)])
            one.add(labels.to(tokens.device), predicted, len(plan.classes), places)
    return found


def describe(plan: Plan, folds: Division, layers: list[int], blocks: int) -> str:
    """What a table's figures are of, for the sentence that says so; layers are counted from 1."""
    which = "layer" if len(layers) == 1 else "layers"
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return (
        f"{plan.kind} readout of {which} {', '.join(str(layer + 1) for layer in layers)} of {blocks} (batch norm, "
        f"1 x 1 convolution), its scores enlarged to the labels' size, cross-entropy at {plan.fitted[0]} x "
        f"{plan.fitted[1]} px, {plan.steps} steps of {BATCH} images, AdamW, its peak rate chosen among {rates} by a "
        f"quarter of the steps and one of {FOLDS} folds of {folds.by}; kNN: {NEIGHBOURS} nearest of at most {BANK} "
        f"training patches by cosine, temperature "
        f"{TEMPERATURE:g}; void left out, mean IoU over the classes that occur in the validation data"
    )
