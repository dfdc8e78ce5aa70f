"""Tables of everything that is read from pooled features and tokens: classification and diagnostics.

Every encoder passes over the images once, whatever tables are asked for, and its tokens are dropped before the next
one's turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from depthjepa.config import EvaluationConfig, RunConfig
from depthjepa.data.order import evenly
from depthjepa.data.transforms import as_bytes
from depthjepa.evaluation.attentive_probe import attentive
from depthjepa.evaluation.classification import ClassifierResult, chance, knn_accuracies, linear, nearest_images
from depthjepa.evaluation.diagnostics import verdict
from depthjepa.evaluation.features import Encode, Pooled
from depthjepa.evaluation.gathering import (
    RANDOM,
    Features,
    Views,
    one_pass,
    size_text,
    split_features,
    table,
    unreadable_text,
    views_text,
)
from depthjepa.faults import BadInput, nearest

TASKS = ("knn", "linear", "attentive", "diagnose")
QUERIES, SHOWN, THUMBNAIL = 4, 6, 64  # of the pictures of nearest images: rows, columns, px
Tables = dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]
ACCURACY = [
    {"key": "train_accuracy", "label": "training accuracy", "unit": "%", "better": "higher"},
    {"key": "val_accuracy", "label": "validation accuracy", "unit": "%", "better": "higher"},
]
DIAGNOSTIC_COLUMNS = [
    {"key": "rank_me", "label": "RankMe", "unit": "dimensions", "better": "higher"},
    {"key": "effective_rank", "label": "effective rank, centred", "unit": "dimensions", "better": "higher"},
    {"key": "deviation_mean", "label": "deviation a dimension", "unit": "", "better": "higher"},
    {"key": "position_share", "label": "variance that position explains", "unit": "", "better": "lower"},
    {"key": "image_share", "label": "variance that the image mean explains", "unit": "", "better": "higher"},
]


def classification_tables(config: RunConfig, encoders: Mapping[str, Encode], tasks: Sequence[str] = TASKS) -> Tables:
    """One table for each task (knn, linear, attentive, diagnose), a row for each encoder after that of chance.

    With the table of knn come pictures of nearest images (see `neighbours`); what the random encoder found has names
    that begin with `random_`. `diagnose` measures the validation images alone, and is the only task that needs no
    labels. Where one of the encoders is the random one, its table says in words which of the others are collapsed.
    """
    for task in tasks:
        if task not in TASKS:
            raise BadInput(f"there is no table {task!r}{nearest(task, TASKS)}: choose from {', '.join(TASKS)}")
    labelled = [task for task in tasks if task != "diagnose"]
    val = Views(config, "val")
    train = Views(config, "train") if labelled else None
    if train is not None and not train.source.classes:
        raise BadInput(
            f"this probe needs labels, and {config.data.root} has none: give a class folder (train/CLASS/*, "
            f"val/CLASS/*) or `scenes`"
        )
    rows: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    pictures: dict[str, np.ndarray] = {}
    for name, encode in encoders.items():
        own, shown = _rows(config, name, encode, train, val, tasks)
        for task, each in own.items():
            rows[task] += each if not rows[task] else each[-1:]  # chance once
        # The images asked about are the same for all.
        pictures |= {f"random_{key}" if name == RANDOM and key != "images" else key: shown[key] for key in shown}
    found: Tables = {}
    for task in tasks:
        if train is None or task == "diagnose":
            content = table(task, val.source, _diagnostics(config, val, rows[task]), DIAGNOSTIC_COLUMNS, rows[task])
            found[task] = content | {"verdict": _verdicts(rows[task])}, {}
        else:
            columns = _columns(task, config.evaluation)
            content = table(task, train.source, _protocol(task, config, train, val), columns, rows[task])
            found[task] = content, pictures if task == "knn" else {}
    return found


def _rows(
    config: RunConfig, name: str, encode: Encode, train: Views | None, val: Views, tasks: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, np.ndarray]]:
    """Encode once; the row of one encoder in every table, after that of chance where there is one; and pictures."""
    if train is None:
        return {"diagnose": [{"name": name, **one_pass(encode, val).diagnosis.figures()}]}, {}
    fitted, seen = split_features(encode, train, val, tokens="attentive" in tasks)
    rows: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        if task == "diagnose":
            rows[task] = [{"name": name, **seen.diagnosis.figures()}]
            continue
        guess = 100 * chance(fitted.pooled, seen.pooled)
        keys = [column["key"] for column in _columns(task, config.evaluation) if column["key"] != "train_accuracy"]
        own = _accuracies(task, config, fitted, seen)
        rows[task] = [{"name": "chance", **dict.fromkeys(keys, guess)}, {"name": name, **own}]
    return rows, neighbours(fitted, seen, train, val) if "knn" in tasks else {}


def neighbours(fitted: Features, seen: Features, train: Views, val: Views) -> dict[str, np.ndarray]:
    """A few validation images, evenly spread, and the training images whose pooled features are nearest to theirs.

    Returns `images` [queries, h, w, 3], `found` [queries, k, h, w, 3] and `alike` [queries, k]: of the query's class.
    """
    queries = torch.from_numpy(evenly(QUERIES, len(seen.numbers)))
    asked = Pooled(seen.pooled.values[queries], seen.pooled.labels[queries], ())
    near = torch.cat([places for _, places in nearest_images(fitted.pooled, asked, SHOWN)])
    found = thumbnails(train, fitted.numbers[near.flatten()])
    return {
        "images": thumbnails(val, seen.numbers[queries]),
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


def _accuracies(task: str, config: RunConfig, train: Features, val: Features) -> dict[str, float]:
    """One encoder's figures of one task: accuracies in per cent."""
    if task == "knn":
        accuracies = knn_accuracies(train.pooled, val.pooled, config.evaluation.neighbours)
        return {f"val_accuracy_{k}": 100 * accuracy for k, accuracy in accuracies.items()}
    if task == "linear":
        result: ClassifierResult = linear(train.pooled, val.pooled, config.seed)
    else:
        assert train.tokens is not None and val.tokens is not None
        result = attentive(
            (train.pooled, train.tokens),
            (val.pooled, val.tokens),
            epochs=config.evaluation.attentive_epochs,
            lr=config.evaluation.attentive_lr,
            seed=config.seed,
        )
    return {
        "train_accuracy": 100 * result.train_accuracy,
        "val_accuracy": 100 * result.val_accuracy,
        "weight_decay": result.weight_decay,
    }


def _columns(task: str, evaluation: EvaluationConfig) -> list[dict[str, str]]:
    if task != "knn":
        return ACCURACY
    return [
        {"key": f"val_accuracy_{k}", "label": f"validation accuracy, k = {k}", "unit": "%", "better": "higher"}
        for k in evaluation.neighbours
    ]


def _protocol(task: str, config: RunConfig, train: Views, val: Views) -> str:
    encoder = f"tokens of the frozen {config.evaluation.which} encoder"
    if task == "knn":
        how = f"vote of the k nearest neighbours by cosine on mean-pooled {encoder}"
    elif task == "linear":
        how = (
            f"linear classifier on standardised mean-pooled {encoder}, its strength chosen on a fifth of the training "
            f"data"
        )
    else:
        how = (
            f"attentive pooling by one query and linear classifier on standardised {encoder}, "
            f"{config.evaluation.attentive_epochs} epochs at {config.evaluation.attentive_lr:g}, its weight decay "
            f"chosen on a fifth of the training data"
        )
    return f"{how}; {views_text(train, val)}"


def _diagnostics(config: RunConfig, val: Views, rows: Sequence[Mapping[str, Any]]) -> str:
    widths = ", ".join(sorted({f"{row['width']:.0f}" for row in rows}))
    return (
        f"mean-pooled tokens (rank, deviation) and single tokens (shares of variance) of the frozen "
        f"{config.evaluation.which} encoder's last layer, layer-normalised as prediction targets are, on "
        f"{val.used} images at {size_text(config)}; width {widths}{unreadable_text(val)}"
    )


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is collapsed against the random encoder; each sentence names its encoder where there are several."""
    figures = {row["name"]: {key: value for key, value in row.items() if key != "name"} for row in rows}
    baseline = figures.pop(RANDOM, None)
    if baseline is None:
        return []
    return [
        sentence if len(figures) == 1 else f"{name}: {sentence}"
        for name, own in figures.items()
        for sentence in verdict(own, baseline)
    ]
