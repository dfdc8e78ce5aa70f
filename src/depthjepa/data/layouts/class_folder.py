"""Folders of images sorted into classes, and subsets of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from depthjepa.data.config import DataConfig
from depthjepa.data.contents import file_sizes
from depthjepa.data.images import SUFFIXES, Split, decode
from depthjepa.data.kept_folders import Identity, real_folder
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.listing import (
    beside_splits,
    folders_above,
    in_words,
    list_images,
    loose_images,
    packed,
    split_folders,
    sub_folders,
    unpacked,
)
from depthjepa.data.samples import Sample
from depthjepa.data.subsets import chosen_classes
from depthjepa.faults import BadInput


class ClassFolder:
    """Images sorted into classes: `SPLIT/CLASS/*`, at any depth below the class.

    `classes` takes the first N classes in sorted order, or the named ones in the order given; the classes are
    those of `train`, so that labels agree between the splits (`valid` and `validation` are `val`).
    `images_per_class` takes at most the first N images of each class, in the order of their paths, of `train`
    alone: the validation images stay comparable.

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
        places = split_folders(root)
        for needed in ("train", split):
            if needed not in places:
                raise BadInput(f"{root} is a class folder without {needed}/")
        within = root / places[split]
        there = _classes_there(within)
        training = there if split == "train" else _classes_there(root / places["train"])
        self.classes = chosen_classes(list(training), classes, root / places["train"])
        if classes is None and (extra := set(there) - set(self.classes)):
            raise BadInput(f"{within} has classes that train has not: {', '.join(sorted(extra)[:3])}")
        read = {*there.values(), real_folder(within), *folders_above(within)}
        ignored = Counter(beside_splits(root, places) if split == "train" else {})
        if loose := loose_images(within):
            ignored[f"images right in {within.name}/"] += len(loose)
        names: list[str] = []
        labels: list[int] = []
        for label, word in enumerate(self.classes):
            place = f"{places[split]}/{word}"
            listing = list_images(root / place, read) if word in there else None
            if listing is None or not listing.names:
                held = listing and in_words(listing.ignored)
                raise BadInput(
                    f"class {word!r} has no images in {within} (accepted: {' '.join(SUFFIXES)}"
                    f"{f'; there are {held}' if held else ''}): "
                    f"remove its folder, or name the other classes in data.classes"
                )
            found = listing.names
            ignored.update(listing.ignored)
            if split == "train":
                found = found[:images_per_class]
            names += [f"{place}/{name}" for name in found]
            labels += [label] * len(found)
        self.ignored: Mapping[str, int] = ignored
        self._names = packed(names)
        self.labels: Int64[np.ndarray, " images"] = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of image `index` below the folder."""
        return os.fsdecode(self._names[index])

    def stamps(self) -> Int64[np.ndarray, "images 1"]:
        """Bytes of each image's file."""
        return file_sizes(self._root, unpacked(self._names))[:, None]

    def sample(self, index: int) -> Sample:
        """Decode image `index`; raises `UnreadableImage`."""
        name = self.name_of(index)
        image = decode(self._root / name)
        return Sample(image=image, depth=None, label=int(self.labels[index]), name=name)


def _classes_there(place: Path) -> dict[str, Identity]:
    """The class folders of a split by their names; raises `BadInput` where it has none, or two are one folder."""
    there = sub_folders(place)
    if not there:
        loose = loose_images(place)
        lie = f"{len(loose)} images lie in it without any ({loose[0]}, …)" if loose else "it holds no images"
        raise BadInput(
            f"{place} has no class folders; {lie}: sort them into {place.name}/CLASS/ by the data set's list "
            f"of labels, or move {place.name}/ away to train without validation data"
        )
    folders: dict[Identity, str] = {}
    for name in there:
        other = folders.setdefault(real_folder(place / name), name)
        if other != name:
            raise BadInput(f"classes {other!r} and {name!r} of {place} are one folder: one is a link to it")
    return {name: folder for folder, name in folders.items()}


def _matches(root: str) -> bool:
    folder = path_of(root)
    train = split_folders(folder).get("train") if folder.is_dir() else None
    return train is not None and bool(sub_folders(folder / train))


def _open(config: DataConfig, root: str, split: Split) -> ClassFolder:
    return ClassFolder(path_of(root), split, config.classes, config.images_per_class)


def _has_validation(config: DataConfig, root: str) -> bool:
    return "val" in split_folders(path_of(root))


LAYOUT = DataLayout(
    noun="class folder",
    states="is a class folder",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    may_have_labels=True,
    takes_subsets=True,
)
