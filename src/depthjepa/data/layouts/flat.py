"""Folders of images without labels or depth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from depthjepa.data.config import DataConfig
from depthjepa.data.contents import file_sizes
from depthjepa.data.images import SUFFIXES, Split, decode
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.listing import beside_splits, in_words, list_images, packed, split_folders, unpacked
from depthjepa.data.samples import Sample
from depthjepa.faults import BadInput


class FlatFolder:
    """All images below a folder, in the order of their paths, without labels or depth.

    Where the folder holds `train` beside `val` (or `valid`, `validation`) or `test`, each split reads its own, and
    `test` is left out; else every split is all images. Without a split, all images are read whatever the folder holds.

    Raises `BadInput` where there are no images, no `val` of a folder that is divided, or a `val` or `test` alone.
    """

    classes: tuple[str, ...] = ()
    has_depth = False
    knows_focal_length = False
    keeps_samples = False

    def __init__(self, root: Path, split: Split | None = None) -> None:
        self.name = str(root)
        self._root = root
        places = {} if split is None else _splits(root)
        if split is not None and places and split not in places:
            raise BadInput(f"{root} has no {split}/ beside {' and '.join(f'{name}/' for name in places.values())}")
        within = root / places[split] if split is not None and places else root
        listing = list_images(within)
        if not listing.names:
            held = in_words(listing.ignored)
            raise BadInput(
                f"{within} holds no images (accepted: {' '.join(SUFFIXES)}{f'; there are {held}' if held else ''})"
            )
        self.ignored: Mapping[str, int] = {
            **listing.ignored,
            **(beside_splits(root, places) if split == "train" and places else {}),
        }
        below = "" if within == root else f"{within.name}/"
        self._names = packed(below + name for name in listing.names)

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
        return Sample(image=decode(self._root / name), depth=None, label=-1, name=name)


def _splits(root: Path) -> dict[str, str]:
    """The folders of the splits, none where the folder is not divided."""
    places = split_folders(root)
    if places and "train" not in places:
        name = next(iter(places.values()))
        raise BadInput(
            f"{root} holds {name}/ and no train/: move the training images into train/, or rename {name}/ where its "
            f"images are for training too"
        )
    return places if len(places) > 1 else {}


def _matches(root: str) -> bool:
    return path_of(root).is_dir()


def _open(config: DataConfig, root: str, split: Split) -> FlatFolder:
    return FlatFolder(path_of(root), split)


def _has_validation(config: DataConfig, root: str) -> bool:
    places = _splits(path_of(root))
    return not places or "val" in places  # where nothing is held out, all images


LAYOUT = DataLayout(
    noun="flat folder",
    states="is a flat folder of images",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
)
