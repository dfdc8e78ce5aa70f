"""Folders of images sorted into classes, and subsets of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from depthjepa.data.config import DataConfig
from depthjepa.data.contents import file_sizes
from depthjepa.data.images import SUFFIXES, Split, decode, image_names, packed, sub_folders
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.samples import Sample
from depthjepa.faults import BadInput, nearest


class ClassFolder:
    """Images sorted into classes: `SPLIT/CLASS/*`, at any depth below the class.

    `classes` takes the first N classes in sorted order, or the named ones in the order given; the classes are
    those of `train`, so that labels agree between the splits. `images_per_class` takes at most the first N
    images of each class, in the order of their paths, of `train` alone: the validation images stay
    comparable.

    Raises `BadInput` for an unknown class, too many classes, and a class without images.
    """

    has_depth = False
    knows_focal_length = False
    keeps_samples = False

    def __init__(
        self,
        root: Path,
        split: Split,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
    ) -> None:
        self.name = str(root)
        self._root = root
        if not (root / split).is_dir():
            raise BadInput(f"{root} is a class folder without {split}/")
        self.classes = _chosen_classes(root, classes)
        if classes is None and (extra := set(sub_folders(root / split)) - set(self.classes)):
            raise BadInput(f"{root / split} has classes that train has not: {', '.join(sorted(extra)[:3])}")
        names: list[str] = []
        labels: list[int] = []
        for label, word in enumerate(self.classes):
            place = f"{split}/{word}"
            if not (found := image_names(root / place)):
                raise BadInput(
                    f"class {word!r} has no images in {root / split} (accepted: {' '.join(SUFFIXES)}): "
                    f"remove its folder, or name the other classes in data.classes"
                )
            if split == "train":
                found = found[:images_per_class]
            names += [f"{place}/{name}" for name in found]
            labels += [label] * len(found)
        self._names = packed(names)
        self.labels: Int64[np.ndarray, " images"] = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of image `index` below the folder."""
        return os.fsdecode(self._names[index])

    def stamps(self) -> Int64[np.ndarray, "images 1"]:
        """Bytes of each image's file."""
        return file_sizes(self._root, [os.fsdecode(name) for name in self._names])[:, None]

    def sample(self, index: int) -> Sample:
        """Decode image `index`; raises `UnreadableImage`."""
        name = self.name_of(index)
        image = decode(self._root / name)
        return Sample(image=image, depth=None, label=int(self.labels[index]), name=name)


def _chosen_classes(root: Path, classes: int | tuple[str, ...] | None) -> tuple[str, ...]:
    there = sub_folders(root / "train")
    if classes is None:
        return tuple(there)
    if isinstance(classes, int):
        if classes > len(there):
            raise BadInput(f"data.classes={classes}, but {root / 'train'} holds {len(there)} classes")
        return tuple(there[:classes])
    for word in classes:
        if word not in there:
            raise BadInput(
                f"data.classes: no class {word!r} in {root / 'train'}{nearest(word, there)}; "
                f"it holds {len(there)}: {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}"
            )
    return classes


def _matches(root: str) -> bool:
    train = path_of(root) / "train"
    return train.is_dir() and bool(sub_folders(train))


def _open(config: DataConfig, root: str, split: Split) -> ClassFolder:
    return ClassFolder(path_of(root), split, config.classes, config.images_per_class)


def _has_validation(config: DataConfig, root: str) -> bool:
    return (path_of(root) / "val").is_dir()


LAYOUT = DataLayout(
    noun="class folder",
    states="is a class folder",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    may_have_labels=True,
    takes_subsets=True,
)
