"""Folders of images without labels or depth."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from depthjepa.data.config import DataConfig
from depthjepa.data.contents import file_sizes
from depthjepa.data.images import SUFFIXES, Split, decode, image_names, packed
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.samples import Sample
from depthjepa.faults import BadInput


class FlatFolder:
    """All images below a folder, in the order of their paths, without labels or depth.

    Where the folder holds both `train` and `val`, each split reads its own; else every split is all images. Without a
    split, all images are read whatever the folder holds.
    """

    classes: tuple[str, ...] = ()
    has_depth = False
    knows_focal_length = False
    keeps_samples = False

    def __init__(self, root: Path, split: Split | None = None) -> None:
        self.name = str(root)
        self._root = root
        apart = split is not None and (root / "train").is_dir() and (root / "val").is_dir()
        within = root / split if split is not None and apart else root
        names = image_names(within)
        if not names:
            raise BadInput(f"{within} holds no images (accepted: {' '.join(SUFFIXES)})")
        self._names = packed((within / name).relative_to(root).as_posix() for name in names)

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
        return Sample(image=decode(self._root / name), depth=None, label=-1, name=name)


def _matches(root: str) -> bool:
    return path_of(root).is_dir()


def _open(config: DataConfig, root: str, split: Split) -> FlatFolder:
    return FlatFolder(path_of(root), split)


def _has_validation(config: DataConfig, root: str) -> bool:
    return True  # where nothing is held out, all images


LAYOUT = DataLayout(
    noun="flat folder",
    states="is a flat folder of images",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
)
