"""Tar shards in WebDataset's layout, read like a folder: any image at any time, by an index of the tar headers.

A shard is an uncompressed tar. Its members of one key (folder, and name up to the first dot) are one sample: an image
and, where there are labels, a `.cls` that holds the index of the class as text; depth (`.depth.png`, and the other
formats of RGB-D folders but for EXR) and label maps (`.label.png`) of the size of the upright image; and a `.json` that
may tell `group` and `focal_length` of a sample that has either. Other members (`.txt`) are ignored.

A word of the shard's name or its folder tells the split: `train-000.tar`, `photos-train-000.tar`, `train/000.tar`;
`training`, `val`, `valid` and `validation` alike; those of `test` are not read. Where no shard tells one, every split
is all shards. `classes.txt` beside the shards names the classes in the order of their indices, by the first word of
each line; where there are label maps it names theirs, by whole lines, and those of `.cls` are called by their indices.
`dataset.json` and `groups.json` beside the shards say what they say in an RGB-D folder.

The webdataset library reads shards as streams: it can neither resume exactly nor read one image.
"""

from __future__ import annotations

import copy
import io
import os
import posixpath
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from depthjepa.cache_folder import cache_folder
from depthjepa.data.config import MILLIMETRES, DataConfig, DepthOrientation
from depthjepa.data.dataset_facts import DATASET, DatasetFacts, facts_told
from depthjepa.data.depth_files import refuse_unsaid_unit, states_no_unit, stored_depth
from depthjepa.data.groups import GROUPS, group_list, told_group, with_groups
from depthjepa.data.images import Split, decode_bytes_with_tag, fault_line, tag_of
from depthjepa.data.layouts.labelled import CLASSES, refuse_unnamed, stored_labels
from depthjepa.data.layouts.layout import DataLayout, path_name, path_of
from depthjepa.data.listing import loose_files
from depthjepa.data.order import evenly
from depthjepa.data.pairing import DEPTH, LABELS
from depthjepa.data.pixel_maps import (
    LOOKED_AT,
    facts_mark,
    fitted_map,
    is_unit_unsaid,
    judged_depth,
    map_tag,
    units_per_metre,
)
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.data.shards.classes import (
    class_words,
    map_classes,
    of_classes,
    refuse_other_maps,
    with_labels_of_training,
)
from depthjepa.data.shards.index import index_of
from depthjepa.data.shards.members import Maps, key_of
from depthjepa.data.shards.pieces import BYTES, PieceCache, Pieces, divided, each_alone
from depthjepa.data.shards.place import FOLDERS, Folder, Place, is_address, of_split, tars_in
from depthjepa.data.shards.remote import Address
from depthjepa.data.subsets import chosen_classes
from depthjepa.faults import BadInput

_COMPRESSED = (".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")
_GIB = 1 << 30
_HEAD = 1 << 17  # bytes of a file that tell its EXIF orientation
# Images are fetched one by one where fewer than so many of a piece are wanted, of so many times as many bytes.
_FEW, _SPARSE = 4, 16
_ROOM = 1.5  # the least that is kept of shards that lie elsewhere, as a multiple of what is shuffled together


class TarShards:
    """The images of one split of a place of tar shards, in the order of shards and members.

    `classes` takes the first N classes, or the named ones in the order given (without `classes.txt` their names are
    their indices); the classes are those of `train` where there is one, so that labels agree between the splits.
    `images_per_class` takes at most the first N images of each class, of `train` alone.

    Raises `BadInput`, with shard and member, for what the layout forbids: see `members.scanned` and `shards.classes`.
    """

    has_depth = False
    knows_focal_length: bool = False
    keeps_samples = False

    def __init__(
        self,
        place: Place,
        split: Split,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
    ) -> None:
        self.name = place.name
        self._place, there = place, place.shards()
        if not (shards := of_split(there, split)):
            raise BadInput(f"{self.name} holds no tar shards of {split} ({split}-*.tar, or {split}/*.tar)")
        index = index_of(place, shards)
        training_shards = of_split(there, "train")
        training = index_of(place, training_shards) if training_shards and training_shards != shards else index
        refuse_other_maps(index, training)
        self.classes = class_words(place, training)
        index = with_labels_of_training(index, training)
        if classes is not None or images_per_class is not None:
            if not self.classes:
                key = "images_per_class" if classes is None else "classes"
                raise BadInput(f"data.{key} needs labels, and the images in the shards of {self.name} have no .cls")
            chosen = chosen_classes(self.classes, classes, f"the shards of {self.name}")
            index = of_classes(index, [self.classes.index(word) for word in chosen], images_per_class, split)
            if classes is not None and (empty := set(range(len(chosen))) - set(index.samples.labels.tolist())):
                raise BadInput(f"class {chosen[min(empty)]!r} has no images in the {split} shards of {self.name}")
            self.classes = chosen
        self.ignored: Mapping[str, int] = dict(index.ignored)
        self._samples = index.samples
        self._shards = shards
        self._pieces = divided(index.samples)
        self._alone: Pieces | None = None  # what is fetched in place of pieces that are not at hand

    def __len__(self) -> int:
        return len(self._samples.labels)

    @property
    def labels(self) -> Int64[ndarray, " images"]:
        """Index of the class of each image; -1: unknown."""
        return self._samples.labels

    def name_of(self, index: int) -> str:
        """SHARD:MEMBER of image `index`."""
        shard = self._shards[self._samples.places[index, 0]].name
        return f"{shard}:{os.fsdecode(self._samples.names[index])}"

    def stamps(self) -> Int64[ndarray, "images 2"]:
        """Bytes of each image in its shard, and its label: an open index knows both."""
        return np.stack([self._samples.places[:, 2], self.labels], axis=1)

    def pieces(self) -> Int64[ndarray, " images"] | None:
        """The piece of each image (see `Windowed`)."""
        return None if self._place.window_bytes is None else self._pieces.of_sample

    @property
    def window(self) -> int:
        """Pieces that are shuffled among themselves."""
        return max(1, (self._place.window_bytes or 0) // BYTES)

    def for_few(self, indices: Int64[ndarray, " few"]) -> TarShards:
        """The same, to read these images alone: each by itself where their pieces hold much more than they are."""
        if self._place.window_bytes is None or not len(indices):
            return self
        pieces = np.unique(self._pieces.of_sample[indices])
        excess = self._pieces.length[pieces].sum() / each_alone(self._samples.take(indices)).length.sum()
        if len(indices) >= _FEW * len(pieces) or excess <= _SPARSE:
            return self
        alone = copy.copy(self)
        alone._alone = each_alone(self._samples)
        return alone

    def sample(self, index: int) -> Sample:
        """Decode image `index`, named SHARD:MEMBER; raises `UnreadableImage`."""
        return self._tagged(index)[0]

    def _tagged(self, index: int) -> tuple[Sample, int]:
        """What `sample` gives, and the EXIF orientation by which the image was turned."""
        name = self._full_name(index)
        image, tag = decode_bytes_with_tag(self._content(index, self._samples.places[index, 1:], name), name)
        return Sample(image=image, depth=None, label=int(self.labels[index]), name=self.name_of(index)), tag

    def _full_name(self, index: int, end: bytes = b"") -> str:
        """For messages, of the image or of the member of its sample whose name ends so after the key."""
        if not end:
            return f"{self._place.base}/{self.name_of(index)}"
        shard = self._shards[self._samples.places[index, 0]].name
        return f"{self._place.base}/{shard}:{key_of(os.fsdecode(self._samples.names[index]))}.{os.fsdecode(end)}"

    def _content(self, index: int, place: Int64[ndarray, " 2"], name: str, most: int | None = None) -> bytes:
        """A member of sample `index` by its offset and size, or its first `most` bytes; raises `UnreadableImage`."""
        first, size = place.tolist()
        shard, length = self._shards[self._samples.places[index, 0]], size if most is None else min(size, most)
        piece = self._pieces.piece(index)
        if self._alone is not None and not self._place.holds(shard, piece):
            piece = self._alone.piece(index)
        try:
            return self._place.read(shard, first, length, piece)
        except OSError as fault:
            raise UnreadableImage(f"{name}: {fault_line(fault)}") from fault


class MappedShards(TarShards):
    """Images of shards that have label maps, or may have them (`segment_classes`), and know their scenes.

    `depth_orientation` says how maps lie where one member of a sample has an EXIF rotation.

    Raises `BadInput` beside what `TarShards` does for what is wrong with the files that lie beside the shards, and for
    samples at an address whose members lie far apart; on reading for a map that does not fit its image.
    """

    def __init__(
        self,
        place: Place,
        split: Split,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
        depth_orientation: DepthOrientation | None = None,
    ) -> None:
        super().__init__(place, split, classes, images_per_class)
        self._orientation, self._listed_in = depth_orientation, f"{place.base}/{CLASSES}"
        self.segment_classes = map_classes(place) if self._maps.have_label_maps else ()
        self._facts = _facts(place)
        groups = place.content(GROUPS)
        listed = None if groups is None else group_list(groups, f"{place.base}/{GROUPS}")
        self._listed = with_groups(listed, self._facts.groups)
        if place.window_bytes is not None:
            self._refuse_scattered()

    @property
    def _maps(self) -> Maps:
        assert self._samples.maps is not None, "these shards hold images alone"
        return self._samples.maps

    def _refuse_scattered(self) -> None:
        """All members of a sample are fetched together, so little else may lie between them."""
        first, end = self._samples.extents()
        apart = end - first - self._samples.places[:, 2] - self._maps.depths[:, 1] - self._maps.label_maps[:, 1]
        if apart.max() > BYTES:
            raise BadInput(
                f"{self._full_name(int(apart.argmax()))} lies {apart.max() / 1e6:.0f} MB from other members of its "
                f"sample: at an address they have to follow one another, as WebDataset writes them; write the shards "
                f"anew in the order of their names, or copy them to a disk, where any order will do"
            )

    def stamps(self) -> Int64[ndarray, "images numbers"]:
        """What `TarShards.stamps` tells, and the bytes of each label map."""
        own = super().stamps()
        return np.column_stack([own, self._maps.label_maps[:, 1]]) if self.segment_classes else own

    def group_of(self, index: int) -> str | None:
        """Scene or place of sample `index`, by its own `.json`, `dataset.json`, `groups.json` or its key.

        None: nothing tells. Raises `BadInput` where those beside the shards name groups, and none fits.
        """
        own = os.fsdecode(self._maps.groups[index])
        return own or told_group(self._identity(index), self._listed, self.name)

    def _identity(self, index: int) -> str:
        """ID of a sample: its key."""
        return posixpath.normpath(key_of(os.fsdecode(self._samples.names[index])))

    def labelled_sample(self, index: int) -> Sample:
        """The sample with its label map; raises what `sample` raises, and `BadInput` for a map that does not fit."""
        sample, tag = self._tagged(index)
        name = self._full_name(index, self._maps.map_ends[index])
        content = self._content(index, self._maps.label_maps[index], name)
        values, own = stored_labels(io.BytesIO(content), name)
        refuse_unnamed(values, name, self.segment_classes, self._listed_in)
        names = self._full_name(index), name
        label_map = fitted_map(names, sample.image, values, (tag, own), self._orientation, LABELS.one)
        return replace(sample, label_map=label_map)


class DepthShards(MappedShards):
    """Images of shards with depth, read as that of an RGB-D folder (`rgbd.PairedFolder`).

    Raises `BadInput` beside what `MappedShards` does for depth of several formats, for a unit that nothing says, and on
    a disk for unclear rotations (of some samples spread evenly; else of each when it is read).
    """

    has_depth = True

    def __init__(
        self,
        place: Place,
        split: Split,
        classes: int | tuple[str, ...] | None = None,
        images_per_class: int | None = None,
        depth_orientation: DepthOrientation | None = None,
        depth_scale: float = MILLIMETRES,
    ) -> None:
        super().__init__(place, split, classes, images_per_class, depth_orientation)
        self.depth_scale = units_per_metre(self._facts, depth_scale)
        self.depth_range = self._facts.range
        self._crop = self._facts.evaluation_crop if split == "val" else None
        self.knows_focal_length = self._facts.focal_length is not None or bool((self._maps.focal_lengths > 0).all())
        self._refuse_several_formats()
        first = self._depth_name(0)
        self.whole_numbers = not states_no_unit(first)
        if not self.whole_numbers and is_unit_unsaid(self._facts, depth_scale):
            refuse_unsaid_unit(io.BytesIO(self._depth_content(0)), place.base, first)
        if depth_orientation is None and place.window_bytes is None:
            self._refuse_unclear_rotations()

    def focal_length_of(self, index: int) -> float | None:
        """Focal length [px] at the full width of image `index`; None: not known."""
        if own := float(self._maps.focal_lengths[index]):
            return own
        listed = None if self._listed is None else self._listed.focal_length_of(self._identity(index))
        return self._facts.focal_length if listed is None else listed

    def stamps(self) -> Int64[ndarray, "images numbers"]:
        """What others tell, the bytes of depth, and a checksum of what `dataset.json` says of all.

        Of depth that is no PNG, a checksum of some of its bytes.
        """
        facts = np.full(len(self), facts_mark(self._facts, self.depth_scale))
        return np.column_stack([super().stamps(), self._maps.depths[:, 2], facts])

    def measured(self, index: int) -> tuple[Float32[Tensor, "1 h w"], Float32[Tensor, "1 h w"]]:
        """Depth [m] of sample `index` as it stands in its member, and what counts of it; raises as `sample` does."""
        _, _, depth = self._pair(index)
        return depth, judged_depth(depth, self.depth_range, self._crop)

    def _tagged(self, index: int) -> tuple[Sample, int]:
        sample, tag, depth = self._pair(index)
        return replace(sample, depth=judged_depth(depth, self.depth_range, self._crop)), tag

    def _pair(self, index: int) -> tuple[Sample, int, Float32[Tensor, "1 h w"]]:
        sample, tag = super()._tagged(index)
        name = self._depth_name(index)
        values, own = stored_depth(io.BytesIO(self._depth_content(index)), self.depth_scale, name)
        names = self._full_name(index), name
        return sample, tag, fitted_map(names, sample.image, values, (tag, own), self._orientation)

    def _depth_name(self, index: int) -> str:
        return self._full_name(index, self._maps.depth_ends[index])

    def _depth_content(self, index: int, most: int | None = None) -> bytes:
        return self._content(index, self._maps.depths[index, :2], self._depth_name(index), most)

    def _refuse_several_formats(self) -> None:
        _, firsts = np.unique(np.char.lower(self._maps.depth_ends), return_index=True)
        names = [self._depth_name(number) for number in sorted(firsts.tolist())]
        formats = {next(each for each in DEPTH.formats if name.lower().endswith(each)): name for name in names}
        if len(formats) > 1:
            raise BadInput(f"{' and '.join(formats.values())} are of several formats: keep depth to one of them")

    def _refuse_unclear_rotations(self) -> None:
        for index in evenly(LOOKED_AT, len(self)).tolist():
            names = self._full_name(index), self._depth_name(index)
            head = io.BytesIO(self._content(index, self._samples.places[index, 1:], names[0], _HEAD))
            own = tag_of(io.BytesIO(self._depth_content(index, _HEAD)), names[1]) if self.whole_numbers else 1
            map_tag(names, (tag_of(head, names[0]), own), None)


def _facts(place: Place) -> DatasetFacts:
    """What `dataset.json` beside the shards says."""
    folders = dict.fromkeys(("", *(posixpath.dirname(shard.name) for shard in place.shards())))
    contents = {name: place.content(name) for name in (posixpath.join(folder, DATASET) for folder in folders)}
    told = [(f"{place.base}/{name}", content) for name, content in contents.items() if content is not None]
    return facts_told(told, place.base)


def place_of(config: DataConfig, root: str) -> Place:
    """Where the shards of a root lie."""
    if not is_address(root):
        return Folder(path_of(root))
    if config.cache_gib < _ROOM * config.window_gib:
        raise BadInput(
            f"data.cache_gib={config.cache_gib:g} is too little for data.window_gib={config.window_gib:g}: what is "
            f"shuffled together would be fetched again and again; take data.cache_gib={_ROOM * config.window_gib:g}"
        )
    cache = path_of(config.cache) if config.cache else cache_folder() / "shards"
    return Address(root, PieceCache(cache, int(config.cache_gib * _GIB)), int(config.window_gib * _GIB))


def _matches(root: str) -> bool:
    if is_address(root):
        return True
    path = path_of(root)
    if path.suffix == ".tar" and path.is_file():
        return True
    return path.is_dir() and any(tars_in(place) for place in (path, *(path / word for word in FOLDERS)))


def _nearly(root: str) -> str:
    """What to say of a folder of compressed tars."""
    path = path_of(root)
    places = (path, path / "train", path / "val") if path.is_dir() else ()
    for name in sorted(name for place in places if place.is_dir() for name in loose_files(place, _COMPRESSED)):
        return (
            f"{path} holds {name}, a compressed tar: images are read in place, so unpack it to a plain .tar first "
            f"(gunzip, unxz, bunzip2 or unzstd), or into a folder"
        )
    return ""


def _open(config: DataConfig, root: str, split: Split) -> TarShards:
    place, chosen = place_of(config, root), (config.classes, config.images_per_class)
    shards = of_split(place.shards(), split)
    maps = index_of(place, shards).samples.maps if shards else None
    if maps is None:
        return TarShards(place, split, *chosen)
    if not maps.have_depth:
        return MappedShards(place, split, *chosen, config.depth_orientation)
    return DepthShards(place, split, *chosen, config.depth_orientation, config.depth_scale)


def _has_validation(config: DataConfig, root: str) -> bool:
    return bool(of_split(place_of(config, root).shards(), "val"))


LAYOUT = DataLayout(
    noun="tar shards",
    states="holds tar shards",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    nearly=_nearly,
    source_name=lambda root: root if is_address(root) else path_name(root),
    place=lambda root: None if is_address(root) else path_of(root),
    reads=("cache", "cache_gib", "window_gib", "depth_orientation", "depth_scale"),
    may_have_depth=True,
    may_have_labels=True,
    may_have_label_maps=True,
    takes_subsets=True,
)
