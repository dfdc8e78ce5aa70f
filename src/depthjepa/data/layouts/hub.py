"""A data set of the Hugging Face hub, or a folder with the files of one: `hub:OWNER/NAME`, `hub:FOLDER`.

The library `datasets` fetches it, and gives each row from a table on the disk (`hub.address`). Images are taken as the
bytes or the file that they are stored as, and decoded as all others are.

Depth is a column of images of 16 bits (whole units, by default millimetres) or of floats, or a column of arrays. The
unit of floats and arrays has to be said: nothing in them says it. A TIFF of 16 bits counts as a PNG: the library itself
writes one for pixels of 16 bits that come from no file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from depthjepa.data.config import HUB_COLUMNS, MILLIMETRES, DataConfig, DepthOrientation
from depthjepa.data.depth_files import depth_array, in_each_unit, in_metres, units_of_bytes
from depthjepa.data.hub.address import SPLITS, START, address_of, name_of_split, source_name, splits_of
from depthjepa.data.hub.table import (
    NONE,
    array_of,
    columns_of,
    content_of,
    file_names,
    is_image,
    is_whole,
    labels_of,
    marks_of,
    sizes_of,
)
from depthjepa.data.images import Split, decode_bytes_with_tag, upright
from depthjepa.data.layouts.layout import DataLayout
from depthjepa.data.pixel_maps import map_tag, refuse_other_size
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.data.subsets import chosen_classes, chosen_images
from depthjepa.faults import BadInput

Units = tuple[np.ndarray, int]  # depth in units of the file [h, w], and its EXIF orientation


class HubImages:
    """The images of one split of a data set of the hub, in the order of its rows, with classes and depth where it has.

    `image`, `label` and `depth` are the columns; None: those that tell themselves by their types and names, `none` (of
    label and depth): leave it out. `depth_scale` is units per metre; `MILLIMETRES`, the default, says nothing of floats
    and arrays. Samples are upright; where one of a pair has an EXIF rotation, `depth_orientation` says how depth lies.
    `classes` takes the first N classes, or the named ones in the order given, `images_per_class` at most the first N
    images of each class, of `train` alone.

    Raises `BadInput` where the data set cannot be read, has no such split, no column of images or several that might be
    meant, where only some images have a label, and where nothing says the unit of depth.
    """

    keeps_samples = False
    knows_focal_length = False
    depth_range = None

    def __init__(
        self,
        root: str,
        split: Split,
        *,
        image: str | None = None,
        label: str | None = None,
        depth: str | None = None,
        depth_scale: float = MILLIMETRES,
        depth_orientation: DepthOrientation | None = None,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
    ) -> None:
        self.name = source_name(root)
        self._folder, self.depth_scale, self._orientation = address_of(root).folder, depth_scale, depth_orientation
        splits = splits_of(root)
        if (found := name_of_split(splits, split)) is None:
            raise BadInput(f"{self.name} has no split {' or '.join(SPLITS[split])}; it has {', '.join(splits)}")
        self._split, table = found, splits[found]
        columns = columns_of(self.name, table.features, image, label, depth)
        self.image_column, self.depth_column = columns.image, columns.depth
        self.has_depth = self.depth_column is not None
        self._depth_in_images = self.depth_column is not None and is_image(table.features[self.depth_column])
        self._table = table.select_columns(
            [each for each in (self.image_column, self.depth_column) if each]
        ).with_format("arrow")
        if not len(table):
            raise BadInput(f"{self.name} has no rows in its split {found}")
        self.classes, self.labels = labels_of(self.name, found, table, columns.label)
        self._rows = np.arange(len(table), dtype=np.int64)
        if classes is not None or images_per_class is not None:
            self._take(classes, images_per_class if split == "train" else None)
        self._files = file_names(self._table.data.column(self.image_column))
        self.ignored: Mapping[str, int] = {}
        if split == "train":
            others = [each for each in splits if each not in (found, name_of_split(splits, "val"))]
            unread = [
                each for each in table.column_names if each not in (self.image_column, columns.label, self.depth_column)
            ]
            self.ignored = {f"column {each}": 1 for each in unread} | {f"split {each}": 1 for each in others}
        self.whole_numbers = self._look_at_depth()

    def _take(self, classes: int | tuple[str, ...] | None, at_most: int | None) -> None:
        """Keep the images of some classes."""
        if not self.classes:
            key = "images_per_class" if classes is None else "classes"
            raise BadInput(f"data.{key} needs labels, and {self.name} has no column of classes that is read")
        chosen = chosen_classes(self.classes, classes, self.name)
        self._rows, self.labels = chosen_images(self.labels, [self.classes.index(word) for word in chosen], at_most)
        if classes is not None and (empty := set(range(len(chosen))) - set(self.labels.tolist())):
            raise BadInput(f"class {chosen[min(empty)]!r} has no images in the split {self._split} of {self.name}")
        self.classes = chosen

    def __len__(self) -> int:
        return len(self._rows)

    def name_of(self, index: int) -> str:
        """SPLIT/ROW of image `index`, and the name of its file where it has one."""
        row = int(self._rows[index])
        own = "" if self._files is None else os.fsdecode(self._files[row])
        return f"{self._split}/{row}{'/' * bool(own)}{own}"

    def stamps(self) -> Int64[np.ndarray, "images numbers"]:
        """Bytes of each image and of its depth, and its label.

        Of depth that is all of one size, as what is not compressed is, a checksum of some bytes.
        """
        column = self._table.data.column
        found = [sizes_of(column(self.image_column))[self._rows]]
        if self.depth_column is not None:
            sizes = sizes_of(column(self.depth_column)) if self._depth_in_images else np.zeros(1)
            found.append((marks_of(column(self.depth_column)) if (sizes == sizes[0]).all() else sizes)[self._rows])
        return np.stack([*found, self.labels], axis=1)

    def sample(self, index: int) -> Sample:
        """Decode image `index`, and its depth; raises `UnreadableImage`, and `BadInput` for depth that does not fit."""
        image, depth = self._pair(index)
        return Sample(image=image, depth=depth, label=int(self.labels[index]), name=self.name_of(index))

    def measured(self, index: int) -> tuple[Float32[Tensor, "1 h w"], Float32[Tensor, "1 h w"]]:
        """Depth [m] of image `index` as it is stored, and what counts of it: all; raises what `sample` raises."""
        _, depth = self._pair(index)
        assert depth is not None
        return depth, depth

    def _pair(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], Float32[Tensor, "1 h w"] | None]:
        row = self._table[int(self._rows[index])]
        name = f"{self.name}/{self.name_of(index)}"
        image, tag = decode_bytes_with_tag(*content_of(row[self.image_column][0].as_py(), name, self._folder))
        if self.depth_column is None:
            return image, None
        map_name = f"{name}, column {self.depth_column}"
        values, own = self._units(row, map_name)
        if self._depth_in_images and is_whole(values) != self.whole_numbers:
            others = "whole numbers of 16 bits" if self.whole_numbers else "others"
            raise BadInput(
                f"{map_name} holds {values.dtype}, and the first of the column {others}: give one unit to all"
            )
        paths = Path(name), Path(map_name)  # for messages
        turned = upright(in_metres(values, self.depth_scale), map_tag(paths, (tag, own), self._orientation))
        depth = torch.from_numpy(np.ascontiguousarray(turned))[None]
        refuse_other_size(paths, image, depth, (tag, own))
        return image, depth

    def _units(self, row: Any, name: str) -> Units:
        """Depth of a row in the units that it is stored in, and its EXIF orientation."""
        value = row[self.depth_column][0]
        if not value.is_valid:
            raise UnreadableImage(f"{name}: the row holds none")
        if not self._depth_in_images:
            return depth_array(array_of(value), name), 1
        return units_of_bytes(*content_of(value.as_py(), name, self._folder))

    def _look_at_depth(self) -> bool:
        """Whether depth is whole numbers in images, by the first map that can be read; refuses an unsaid unit."""
        for row in self._rows if self.has_depth else ():
            name = f"{self.name}/{self._split}/{row}, column {self.depth_column}"
            try:
                values, _ = self._units(self._table[int(row)], name)
            except UnreadableImage:  # training counts and names it
                continue
            except BadInput as fault:
                raise BadInput(f"{fault}; data.hub_depth={NONE} reads the images without it") from fault
            if self._depth_in_images and is_whole(values):
                return True
            if self.depth_scale == MILLIMETRES:
                raise BadInput(
                    f"{self.name}: nothing says which unit the {values.dtype} of the column {self.depth_column} are in"
                    f"{in_each_unit(in_metres(values, 1.0), f'row {row}')}: give data.depth_scale, units per metre "
                    f"(1000, its default, counts as not said: where they are millimetres, 1000.001)"
                )
            return False
        return True


def _matches(root: str) -> bool:
    return root.startswith(START)


def _open(config: DataConfig, root: str, split: Split) -> HubImages:
    return HubImages(
        root,
        split,
        image=config.hub_image,
        label=config.hub_label,
        depth=config.hub_depth,
        depth_scale=config.depth_scale,
        depth_orientation=config.depth_orientation,
        classes=config.classes,
        images_per_class=config.images_per_class,
    )


LAYOUT = DataLayout(
    noun="data set of the hub",
    states="is a data set of the Hugging Face hub",
    matches=_matches,
    open=_open,
    has_validation=lambda config, root: name_of_split(splits_of(root), "val") is not None,
    source_name=source_name,
    by_name=True,
    place=lambda root: address_of(root).folder,
    takes_subsets=True,
    reads=("depth_orientation", "depth_scale", *HUB_COLUMNS),
    may_have_depth=True,
    may_have_labels=True,
)
