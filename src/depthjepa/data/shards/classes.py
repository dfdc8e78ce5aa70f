"""Classes of tar shards, of images and of pixels: their names, and what a split has to have in common with train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from depthjepa.data.images import Split
from depthjepa.data.layouts.labelled import CLASSES, listed_classes
from depthjepa.data.pairing import DEPTH, LABELS
from depthjepa.data.shards.index import ShardIndex
from depthjepa.data.shards.members import MAP_END, NO_MAPS
from depthjepa.data.shards.place import Place
from depthjepa.data.subsets import chosen_images
from depthjepa.faults import BadInput


def map_classes(place: Place) -> tuple[str, ...]:
    """Names of the classes of pixels; raises `BadInput` where `classes.txt` is missing or wrong."""
    if (content := place.content(CLASSES)) is None:
        raise BadInput(
            f"{place.base} holds label maps (.{MAP_END}), but no {CLASSES}: write the names of the classes there, one "
            f"a line, in the order of the indices in the maps"
        )
    return listed_classes(content, f"{place.base}/{CLASSES}")


def class_words(place: Place, training: ShardIndex) -> tuple[str, ...]:
    """Names of the classes: of `classes.txt`, else their indices; none without labels.

    Where there are label maps, `classes.txt` is theirs.
    Raises `BadInput` for names that are missing or come twice, and for a label beyond the last name.
    """
    labels = training.samples.labels
    highest = int(labels.max())
    if highest < 0:
        return ()
    maps = training.samples.maps
    if (maps is not None and maps.have_label_maps) or (content := place.content(CLASSES)) is None:
        return tuple(str(label) for label in range(highest + 1))
    file = f"{place.base}/{CLASSES}"
    lines = content.decode().strip().splitlines()
    words = tuple((line.split() or [""])[0] for line in lines)
    if "" in words or len(set(words)) < len(words):
        raise BadInput(f"{file} must name every class once, one a line, in the order of their indices")
    if highest >= len(words):
        member = training.member(int(labels.argmax()))
        raise BadInput(f"{member} is of class {highest}, but {file} names {len(words)} classes (0 to {len(words) - 1})")
    return words


def refuse_other_maps(index: ShardIndex, training: ShardIndex) -> None:
    """Refuse a split that has depth or label maps where train has none, or the other way."""
    own, known = (each.samples.maps or NO_MAPS for each in (index, training))
    for what, has, other in (
        (DEPTH.one, own.have_depth, known.have_depth),
        (LABELS.one, own.have_label_maps, known.have_label_maps),
    ):
        if has != other:
            lacks, having = (training, index) if has else (index, training)
            raise BadInput(
                f"{lacks.member(0)} has no {what}, but the images of {having.shards[0].name} have: both train and val "
                f"need it, or neither"
            )


def with_labels_of_training(index: ShardIndex, training: ShardIndex) -> ShardIndex:
    """Refuse labels that train has not; where train has none at all, those of validation mean nothing."""
    labels, known = index.samples.labels, training.samples.labels
    if known.max() < 0:
        return replace(index, samples=index.samples._replace(labels=np.full_like(labels, -1)))
    other = ~np.isin(labels, known)
    if other.any():
        place = int(other.argmax())
        label = int(labels[place])
        has = "no label, but the images of train have" if label < 0 else f"class {label}, which no image of train has"
        raise BadInput(f"{index.member(place)} has {has}")
    return index


def of_classes(index: ShardIndex, chosen: Sequence[int], images_per_class: int | None, split: Split) -> ShardIndex:
    """The images of the chosen labels, which become 0, 1, ...; they stay in the order of the shards."""
    at_most = images_per_class if split == "train" else None
    kept, labels = chosen_images(index.samples.labels, chosen, at_most)
    return replace(index, samples=index.samples.take(kept)._replace(labels=labels))
