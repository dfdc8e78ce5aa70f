"""Classification by the vote of nearest neighbours, and pictures of the images that an encoder finds alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from depthjepa.columns import Column
from depthjepa.config.run_config import RunConfig
from depthjepa.data.images import Split
from depthjepa.data.order import evenly
from depthjepa.data.transforms import as_bytes
from depthjepa.drawing import token_figures
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.classification import chance, knn_accuracies, nearest_images
from depthjepa.evaluation.features import Pooled
from depthjepa.evaluation.gathering import RANDOM, Views, views_text
from depthjepa.evaluation.probes.task import LABELS, Measured, Rows, Section, Seen, SharedTask
from depthjepa.runs import Run, probe_files, same_images

QUERIES, SHOWN, THUMBNAIL = 4, 6, 64  # of the pictures of nearest images: rows, columns, px


def measure(config: RunConfig, seen: Mapping[Split, Seen]) -> Measured:
    """Accuracy [%] for each number of neighbours, beside chance; and what a few validation images find."""
    train, val = seen["train"].features.pooled, seen["val"].features.pooled
    accuracies = knn_accuracies(train, val, config.evaluation.neighbours)
    found: dict[str, float | str] = {f"val_accuracy_{k}": 100 * each for k, each in accuracies.items()}
    return Measured(found, {"chance": dict.fromkeys(found, 100 * chance(train, val))}, neighbours(seen))


def neighbours(seen: Mapping[Split, Seen]) -> dict[str, np.ndarray]:
    """A few validation images, evenly spread, and the training images whose pooled features are nearest to theirs.

    Returns `images` [queries, h, w, 3], `found` [queries, k, h, w, 3] and `alike` [queries, k]: of the query's class.
    """
    train, val = seen["train"], seen["val"]
    fitted, judged = train.features, val.features
    queries = torch.from_numpy(evenly(QUERIES, len(judged.numbers)))
    asked = Pooled(judged.pooled.values[queries], judged.pooled.labels[queries], ())
    near = torch.cat([places for _, places in nearest_images(fitted.pooled, asked, SHOWN)]).cpu()
    found = thumbnails(train.views, fitted.numbers[near.flatten()])
    return {
        "images": thumbnails(val.views, judged.numbers[queries]),
        "found": found.reshape(*near.shape, *found.shape[1:]),
        "alike": (fitted.pooled.labels[near] == asked.labels[:, None]).numpy(),
    }


def thumbnails(split: Views, numbers: Int64[Tensor, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Small views of images by their numbers in the source."""
    images = torch.cat([batch.images.cpu() for batch in split.chosen(numbers)])
    factor = min(1.0, THUMBNAIL / max(images.shape[-2:]))
    if factor < 1:
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    return as_bytes(images)


def protocol(config: RunConfig, views: Mapping[Split, Views], rows: Rows) -> str:
    """What the figures are of."""
    return (
        f"vote of the k nearest neighbours by cosine on mean-pooled tokens of the frozen {config.evaluation.which} "
        f"encoder; {views_text(views['train'], views['val'])}"
    )


def neighbour_figures(runs: Sequence[Run]) -> list[Captioned]:
    """Images and those that each model holds for nearest; one figure for each set of equal images."""
    seen = (
        "Validation images, and the training images whose pooled features are nearest by cosine, model by model. Green "
        "frames have the image's class, orange ones another."
    )
    failed = "a run would find what the random encoder finds: images of like colours and brightness, of any class."
    drawn = []
    for file in probe_files(runs, f"{TASK.name}*.npz"):
        for group in same_images(runs, file, "found", "alike"):
            first = group[0][1]
            found = {run.name: arrays["found"] for run, arrays in group}
            alike = {run.name: arrays["alike"] for run, arrays in group}
            if "random_found" in first:
                found[RANDOM], alike[RANDOM] = first["random_found"], first["random_alike"]
            drawn.append(Captioned(token_figures.neighbour_rows(first["images"], found, alike), seen, failed))
    return drawn


TASK = SharedTask(
    name="knn",
    title="Classification by nearest neighbours",
    about="classes by the vote of nearest neighbours",
    columns=(
        Column(
            "val_accuracy_#",
            "validation accuracy, k = #",
            "share of the validation images whose class the vote of their k nearest training images gives",
            "%",
            "higher",
        ),
    ),
    usual=True,
    guesses=("chance",),
    needs=(LABELS,),
    reads=("neighbours",),
    section=Section("What the features find alike", neighbour_figures),
    measure=measure,
    protocol=protocol,
)
