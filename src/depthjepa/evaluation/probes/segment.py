"""Classes of pixels from frozen features; see `evaluation.segmentation`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from depthjepa.columns import NAME, Column
from depthjepa.data.groups import divide, group_in
from depthjepa.data.samples import segment_classes
from depthjepa.drawing import figures
from depthjepa.drawing.panels import Captioned
from depthjepa.evaluation.depth_readouts import encode_layers
from depthjepa.evaluation.gathering import RANDOM, RAW, raw_patches, views_text
from depthjepa.evaluation.probes.task import LABEL_MAPS, OwnTask, Picture, Probe, Resampled, Section, Subject, Variant
from depthjepa.evaluation.segment_scores import iou_key
from depthjepa.evaluation.segmentation import (
    KINDS,
    POSITION,
    Kind,
    Plan,
    SegmentTable,
    describe,
    knn_name,
    layers_of,
    segment_table,
)
from depthjepa.faults import BadInput
from depthjepa.runs import Arrays, Run, probe_files, same_images, stored_alike

PICTURES = 6  # rows of a figure
PREDICTION = "prediction"  # of the encoder, among the arrays
KEYS = {POSITION: "position", RAW: "raw", RANDOM: "random"}  # of the baselines there
IOU = "intersection over union of the predicted and the true pixels of the class, over all validation images"


def run(subject: Subject) -> Iterable[Probe]:
    """The linear readout and the nearest patches, beside the baselines."""
    yield measured(subject, KINDS[0])


def run_asked(subject: Subject) -> Probe:
    """The same with the readout that `evaluation.segment_readout` asks for."""
    return measured(subject, subject.config.evaluation.segment_readout)


def measured(subject: Subject, kind: Kind) -> Probe:
    """The table by one kind of readout."""
    config, encoder, asked = subject.config, subject.encoder, subject.config.evaluation
    train, val = subject.train.with_label_maps(), subject.val.with_label_maps()
    names, others = segment_classes(train.source), segment_classes(val.source)
    if names != others:
        raise BadInput(f"training and validation data have other classes: {', '.join(names)} and {', '.join(others)}")
    plan = Plan(
        kind=kind,
        classes=names,
        size=config.data.size,
        patch_size=config.model.patch_size,
        steps=asked.segment_steps,
        seed=config.seed,
        pictures=asked.pictures,
    )
    blocks = encoder.depth
    layers = layers_of(plan.kind, blocks)  # of this encoder; others have as many at their own depths
    subject.refuse_shallow(f"evaluation.segment_readout={kind}", layers, f"evaluation.segment_readout={KINDS[0]}")
    encoders = {RAW: raw_patches(plan.patch_size, subject.device)}
    encoders |= {
        name: encode_layers(each, layers_of(plan.kind, each.depth), subject.device, asked.precision)
        for name, each in subject.named.items()
    }
    folds = divide(train.source, train.numbers)
    found = segment_table(encoders, train, val, folds, plan)
    protocol = (
        f"{describe(plan, folds, layers, blocks)}; frozen {asked.which} encoder; "
        f"{views_text(train, val, ', whole views')}"
    )
    variant = "" if kind == KINDS[0] else f"-{kind}"
    groups = [group_in(val.source, number) or "" for number in found.numbers]
    own, *beside = (
        kept(found, plan.classes, name, subject.random_row(name), groups) for name in (config.name, *subject.compared)
    )
    content = TASK.table(train.source, protocol, found.rows)
    return Probe(content, own, dict(zip(subject.compared, beside, strict=True)), variant=variant)


def kept(found: SegmentTable, classes: Sequence[str], name: str, random: str, groups: Sequence[str]) -> Arrays:
    """Maps and sums of a table as run folders keep them; `name` is the encoder's row, `random` that of its beginning.

    `overlaps` [images, 3, classes] are the right, the true and the predicted pixels of each class in each validation
    image, which `names` names; `knn_overlaps` are those of the nearest patches. Baselines have theirs with the words of
    `KEYS` before.
    """
    arrays: Arrays = {"images": found.images, "truth": found.truth}
    arrays |= {"classes": np.array(classes), "names": np.array(found.names), "group": np.array(groups)}
    keys = {POSITION: KEYS[POSITION], RAW: KEYS[RAW], random: KEYS[RANDOM], name: ""}
    for row, judged in found.judged.items():
        knn = row.startswith(knn_name(""))
        own = row.removeprefix(knn_name("")) if knn else row
        if own not in keys:  # another encoder's
            continue
        prefix = f"{keys[own]}_" if keys[own] else ""
        arrays[f"{prefix}{'knn_' * knn}overlaps"] = judged.overlaps.numpy().astype(np.uint32)
        if not knn:
            arrays[keys[own] or PREDICTION] = np.stack(judged.shown)
    return arrays


def resampled_iou(arrays: Mapping[str, np.ndarray], counts: Float64[np.ndarray, " images"]) -> float:
    """Mean IoU [%] where each image counts so often, over the classes that occur then."""
    right, true, predicted = np.einsum("i,ikc->kc", counts, arrays["overlaps"].astype(np.float64))
    union = true + predicted - right
    return float(100 * (right / np.where(union > 0, union, 1))[true > 0].mean())


def segment_figures(runs: Sequence[Run], images: int = PICTURES) -> list[Captioned]:
    """Photograph, truth, and what each row's linear readout predicts; one figure for each set of equal images."""
    seen = (
        "Each row is one validation image: its classes as they were labelled (grey is void, which counts nowhere), and "
        "those that a linear readout of each model's frozen features predicts, in the same colours. Raw patches are "
        "read out alike; the most frequent class by position is the same map for every image."
    )
    failed = (
        "a model's maps would look like the most frequent class by position, or be no better than those of raw patches "
        "or of the random encoder."
    )
    return [
        Captioned(_rows({run.name: arrays for run, arrays in group}, images), seen, failed)
        for file in probe_files(runs, f"{TASK.name}*.npz")
        for group in same_images(runs, file, "truth", PREDICTION, "classes", same=("images", "classes"))
    ]


def show(runs: Mapping[str, Path], photographs: bool) -> Figure:
    """The maps of `probe RUN segment` side by side."""
    return _rows(stored_alike(runs, TASK.name, "images", "classes"), photographs=photographs)


def _rows(group: Mapping[str, Arrays], most: int = PICTURES, *, photographs: bool = True) -> Figure:
    first = next(iter(group.values()))
    maps = {name: arrays[PREDICTION] for name, arrays in group.items()}
    maps |= {name: first[key] for name, key in reversed(KEYS.items()) if key in first}
    shown = {name: each[:most] for name, each in maps.items()}
    return figures.label_rows(
        first["images"][:most], first["truth"][:most], shown, first["classes"].tolist(), photographs=photographs
    )


TASK = OwnTask(
    name="segment",
    title="Segmentation from frozen features",
    about="the class of each pixel by a linear readout, and by the nearest patches",
    columns=(
        Column(
            "miou",
            "mIoU",
            "mean of the classes' IoU by the linear readout, over the classes that occur in the validation data",
            "%",
            "higher",
        ),
        Column(
            "knn_miou",
            "mIoU, nearest patches",
            "the same where a patch takes the labels of the training patches nearest to it: nothing is trained",
            "%",
            "higher",
        ),
        Column(
            "accuracy",
            "pixel accuracy",
            "share of the validation pixels that have a class whose class the linear readout gives",
            "%",
            "higher",
        ),
        Column(iou_key(NAME), f"{NAME} IoU", IOU, "%", "higher"),
        Column("rate", "rate", "peak learning rate of the readout, chosen on a fifth of the training images"),
    ),
    usual=True,
    guesses=(POSITION, RAW),
    needs=(LABEL_MAPS,),
    reads=("segment_readout", "segment_steps"),
    resampled=Resampled("miou", resampled_iou),
    section=Section("Segmentation read out of the features", segment_figures, maps=True),
    picture=Picture("maps of `probe RUN segment`", show, photographs=True),
    variant=Variant(
        lambda config: config.evaluation.segment_readout != KINDS[0],
        f"evaluation.segment_readout={KINDS[1]}",
        run_asked,
    ),
    run=run,
)
