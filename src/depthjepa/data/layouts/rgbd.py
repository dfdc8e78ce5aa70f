"""Folders of photographs with measured depth: `SPLIT/rgb/ID.*` beside `SPLIT/depth/ID.png`, or both without SPLIT.

A depth file is a 16-bit grey PNG of the same size as the upright photograph; metres along the optical axis
are its value divided by `depth_scale` (1000: millimetres), and 0 means that nothing was measured. Other formats, whose
unit has to be said, are `data.depth_files`. What else a data set says of its depth stands in `dataset.json`
(`data.dataset_facts`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from depthjepa.data.config import MILLIMETRES, DataConfig, DepthOrientation
from depthjepa.data.contents import file_marks, file_sizes
from depthjepa.data.dataset_facts import dataset_facts
from depthjepa.data.depth_files import EXR, NPY, refuse_missing_reader, refuse_unsaid_unit, states_no_unit, stored_depth
from depthjepa.data.groups import GroupList, read_groups, told_group, with_groups
from depthjepa.data.images import DECODING_FAULTS, Split, decode_with_tag, tag_of
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.listing import list_images, loose_images, packed, sub_folders, unpacked
from depthjepa.data.order import evenly
from depthjepa.data.pairing import DEPTH, PHOTOGRAPHS, held_out, identity, is_undivided, paired, place_of
from depthjepa.data.pixel_maps import (
    LOOKED_AT,
    facts_mark,
    fitted_map,
    is_unit_unsaid,
    judged_depth,
    map_tag,
    units_per_metre,
)
from depthjepa.data.samples import Sample
from depthjepa.data.two_views import Pose, TwoViews, match_by_depth, partner
from depthjepa.faults import BadInput

# How others call the two folders.
DEPTH_WORDS = ("depth", "Depth", "DEPTH", "depths", "depth_maps", "depth_map", "depthmaps", "disparity")
COLOUR_WORDS = ("rgb", "rgbs", "color", "colour", "colors", "image", "images", "img", "imgs", "photo", "photos", "left")


class PairedFolder:
    """RGB-D pairs of one split, in the order of their names.

    Pairs stand in `SPLIT/rgb` and `SPLIT/depth`. Where there is no `val/`, they may stand in `rgb` and `depth` right
    below the folder, and `val_prefixes` (beginnings of IDs) or `val_list` (a file with one ID or beginning a line) say
    which of them are validation data; the others are training data. Without them all are training data.

    `depth_scale` is file units per metre; `MILLIMETRES`, the default, leaves it to `dataset.json` where that says
    another, and any other value is insisted on. Depth beyond the range of `dataset.json` is invalid, and so is depth
    outside of its evaluation crop in validation data. `focal_length` is in pixels at full width, None: unknown. Samples
    are upright; where one file of a pair has an EXIF rotation, `depth_orientation` says how depth lies (`map_tag`).

    Raises `BadInput` when photographs and depth files do not pair up, when the validation data are unclear, when a
    rotation is (of some pairs spread evenly, and of each when it is read), when nothing says the unit of depth files
    that are no PNG, and on reading when a depth file has another size or does not hold depth.
    """

    classes: tuple[str, ...] = ()
    has_depth = True
    keeps_samples = False

    def __init__(
        self,
        root: Path,
        split: Split,
        depth_scale: float = MILLIMETRES,
        *,
        depth_orientation: DepthOrientation | None = None,
        val_prefixes: Sequence[str] | None = None,
        val_list: str | Path | None = None,
    ) -> None:
        self.name = str(root)
        self._root = root
        self._facts = dataset_facts(root)
        self.focal_length = self._facts.focal_length
        self.depth_scale = units_per_metre(self._facts, depth_scale)
        self.depth_range = self._facts.range
        self._crop = self._facts.evaluation_crop if split == "val" else None
        divided = val_prefixes is not None or val_list is not None
        self._place = place_of(root, split, DEPTH, divided=divided)
        self._below = f"{(self._place / PHOTOGRAPHS).as_posix()}/"
        names = paired(root / self._place, DEPTH)
        if divided:
            validation = held_out((identity(name) for name, _ in names), root, val_prefixes, val_list)
            names = [pair for pair in names if (identity(pair[0]) in validation) == (split == "val")]
        self._names = packed(name for name, _ in names)
        self._depth_names = packed(name for _, name in names)
        self._orientation = depth_orientation
        self.whole_numbers = not (names and states_no_unit(names[0][1]))
        if not self.whole_numbers:
            first = root / self._place / DEPTH.folder / names[0][1]
            refuse_missing_reader(str(first))
            if is_unit_unsaid(self._facts, depth_scale):
                refuse_unsaid_unit(first, root)
        if depth_orientation is None:
            for index in evenly(LOOKED_AT, len(self)):  # the others are looked at when they are decoded
                paths = self._paths(int(index))
                own = 1 if states_no_unit(paths[1].name) else tag_of(paths[1])  # others may have none
                map_tag(paths, (tag_of(paths[0]), own), None)

    @property
    def ignored(self) -> Mapping[str, int]:
        """What lies among photographs and depth files and is neither, listed anew."""
        folder = self._root / self._place
        return Counter(list_images(folder / "rgb").ignored) + Counter(
            list_images(folder / "depth", suffixes=DEPTH.suffixes).ignored
        )

    @cached_property
    def knows_focal_length(self) -> bool:
        """Whether the focal length of every pair is known, by `dataset.json` or `groups.json`."""
        if self.focal_length is not None:
            return True
        beginnings = tuple(each for each, _ in self._listed.focal_length_px) if self._listed is not None else ()
        return bool(beginnings) and all(identity(os.fsdecode(name)).startswith(beginnings) for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def group_of(self, index: int) -> str | None:
        """Scene or place of pair `index`, by `groups.json`, `dataset.json` or its ID; None: nothing tells.

        Raises `BadInput` where the files name groups, and none fits.
        """
        return told_group(identity(os.fsdecode(self._names[index])), self._listed, self.name)

    def focal_length_of(self, index: int) -> float | None:
        """Focal length [px] at the full width of pair `index`; None: not known."""
        listed = self._listed
        own = None if listed is None else listed.focal_length_of(identity(os.fsdecode(self._names[index])))
        return self.focal_length if own is None else own

    def tells_pairs(self) -> bool:
        """Whether `dataset.json` has poses of the cameras of this split, whose places and focal lengths are known.

        Raises `BadInput` where its poses are of other IDs.
        """
        if self._facts.poses and not self._poses and len(self):
            given, own = next(iter(self._facts.poses)), identity(os.fsdecode(self._names[0]))
            raise BadInput(
                f"{self.name}: the poses of dataset.json are of none of its pairs: {given} there, {own} here"
            )
        return any(
            self.focal_length_of(number) is not None for poses in self._poses_by_group.values() for number in poses
        )

    def two_views(self, index: int) -> TwoViews | None:
        """Pair `index` beside another picture of its group that was taken near it, matched by the depth of both.

        None without a pose, a group, a focal length or such a picture. Raises what `sample` raises.
        """
        same = self._poses_by_group.get(self.group_of(index) or "", {})
        other = partner(index, same) if index in same else None
        if other is None:
            return None
        lengths = self.focal_length_of(index), self.focal_length_of(other)
        if lengths[0] is None or lengths[1] is None:
            return None
        one, two = self.sample(index), self.sample(other)
        assert one.depth is not None and two.depth is not None
        match = match_by_depth((one.depth, two.depth), (lengths[0], lengths[1]), (same[index], same[other]))
        apart, turned = same[index].apart(same[other]), same[index].turned(same[other])
        return TwoViews(one.image, two.image, match, apart, turned)

    @cached_property
    def _poses_by_group(self) -> dict[str, dict[int, Pose]]:
        """Poses of the cameras by the numbers of the pairs, for each group: others have axes of their own."""
        groups: dict[str, dict[int, Pose]] = {}
        for number, pose in self._poses.items():
            if (group := self.group_of(number)) is not None:
                groups.setdefault(group, {})[number] = pose
        return groups

    @cached_property
    def _poses(self) -> dict[int, Pose]:
        """Poses of the cameras, by the numbers of the pairs."""
        poses = self._facts.poses or {}
        names = (identity(os.fsdecode(name)) for name in self._names)
        return {number: Pose.of(poses[name]) for number, name in enumerate(names) if name in poses}

    @cached_property
    def _listed(self) -> GroupList | None:
        """Groups and focal lengths beside the data."""
        return with_groups(read_groups(self._root), self._facts.groups)

    def name_of(self, index: int) -> str:
        """Path of photograph `index` below the folder."""
        return f"{self._below}{os.fsdecode(self._names[index])}"

    def stamps(self) -> Int64[np.ndarray, "pairs 3"]:
        """Bytes of each photograph and its depth file, and a checksum of what `dataset.json` says of all.

        Of depth that is no PNG, a checksum of some of its bytes.
        """
        names, depths = unpacked(self._names), unpacked(self._depth_names)
        folder = self._root / self._place
        # The sizes of files that are not compressed say little.
        marks = file_sizes if self.whole_numbers else file_marks
        facts = np.full(len(names), facts_mark(self._facts, self.depth_scale))
        sizes = [file_sizes(folder / "rgb", names), marks(folder / "depth", depths), facts]
        return np.stack(sizes, axis=1)

    def sample(self, index: int) -> Sample:
        """Decode pair `index`; raises `UnreadableImage`, and `BadInput` for depth that does not fit."""
        return self.tagged(index)[0]

    def tagged(self, index: int) -> tuple[Sample, int]:
        """What `sample` gives, and the EXIF orientation by which the photograph was turned."""
        image, tag, depth = self._pair(index)
        return Sample(image=image, depth=self._judged(depth), label=-1, name=self.name_of(index)), tag

    def measured(self, index: int) -> tuple[Float32[Tensor, "1 h w"], Float32[Tensor, "1 h w"]]:
        """Depth [m] of pair `index` as it stands in the file, and what counts of it; raises what `sample` raises."""
        _, _, depth = self._pair(index)
        return depth, self._judged(depth)

    def _pair(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], int, Float32[Tensor, "1 h w"]]:
        paths = self._paths(index)
        image, tag = decode_with_tag(paths[0])
        values, own = stored_depth(paths[1], self.depth_scale)
        return image, tag, fitted_map(paths, image, values, (tag, own), self._orientation)

    def _paths(self, index: int) -> tuple[Path, Path]:
        """The photograph and the depth file of pair `index`."""
        place = self._root / self._place
        names = os.fsdecode(self._names[index]), os.fsdecode(self._depth_names[index])
        return place / "rgb" / names[0], place / "depth" / names[1]

    def _judged(self, depth: Float32[Tensor, "1 h w"]) -> Float32[Tensor, "1 h w"]:
        return judged_depth(depth, self._facts.range, self._crop)


def _has_splits(folder: Path) -> bool:
    return any((folder / split / PHOTOGRAPHS).is_dir() for split in ("train", "val"))


def _matches(root: str) -> bool:
    folder = path_of(root)
    return _has_splits(folder) or is_undivided(folder, DEPTH)


def _nearly(root: str) -> str:
    """What to say of photographs under another name beside their depth, which would be read as images themselves."""
    top = path_of(root)
    if not top.is_dir():
        return ""
    below = [top / name for name in sub_folders(top)]
    for place in (top, *below, *(folder / name for folder in below for name in sub_folders(folder))):
        there = any(os.path.isdir(f"{place}/{word}") for word in DEPTH_WORDS)  # noqa: PTH112 (classes are thousands)
        beside = sub_folders(place) if there else []
        maps = next((name for name in beside if name in DEPTH_WORDS), "")
        others = [name for name in beside if name.lower() in COLOUR_WORDS]
        if maps and (others or _holds_depth(place / maps)):
            renamed = {others[0] if others else "the folder of the photographs": "rgb", maps: "depth"}
            words = [f"{name}{'/' * (' ' not in name)} to {new}/" for name, new in renamed.items() if name != new]
            what = f" beside {others[0]}/" if others else ", which holds depth maps"
            advice = [f"rename {' and '.join(words)}"] * bool(words)
            advice += [f"move them right below {top}, or below its train/ and val/"] * (
                place not in (top, top / "train", top / "val")
            )
            return (
                f"{place} holds {maps}/{what}, and an RGB-D folder has rgb/ beside depth/: {', '.join(advice)}; to "
                f"train on all of these files as images without depth, give data.kind=folder"
            )
    return ""


def _holds_depth(folder: Path) -> bool:
    """Whether the first image of a folder is of one channel of 16 bits, or of floats; other formats of depth are."""
    if any(path.suffix.lower() in (EXR, NPY) for path in folder.iterdir()):
        return True
    try:
        first = next(iter(loose_images(folder)), None)
        if first is None:
            return False
        with Image.open(folder / first) as image:
            return image.mode.startswith("I") or image.mode == "F"
    except DECODING_FAULTS:
        return False


def _open(config: DataConfig, root: str, split: Split) -> PairedFolder:
    return PairedFolder(
        path_of(root),
        split,
        config.depth_scale,
        depth_orientation=config.depth_orientation,
        val_prefixes=config.val_prefixes,
        val_list=config.val_list,
    )


def _has_validation(config: DataConfig, root: str) -> bool:
    folder = path_of(root)
    return config.divides_pairs or (not is_undivided(folder, DEPTH) and (folder / "val").is_dir())


LAYOUT = DataLayout(
    noun="RGB-D folder",
    states="is an RGB-D folder",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    reads=("depth_orientation", "depth_scale"),
    nearly=_nearly,
    may_have_depth=True,
    pairs="RGB-D pairs",
)
