"""Tar shards in WebDataset's layout, read like a folder: any image at any time, by an index of the tar headers.

A shard is an uncompressed tar. Its members of one key (folder, and name up to the first dot) are one sample: an image
and, where there are labels, a `.cls` that holds the index of the class as text. Other members (`.json`, `.txt`) are
ignored. A word of the shard's name or its folder tells the split: `train-000.tar`, `photos-train-000.tar`,
`train/000.tar`; `val` and `validation` alike. Where no shard tells one, every split is all shards. `classes.txt` beside
the shards names the classes in the order of their indices, by the first word of each line.

The webdataset library reads shards as streams: it can neither resume exactly nor read one image.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from depthjepa.cache_folder import cache_folder
from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split, decode_bytes, fault_line
from depthjepa.data.layouts.layout import DataLayout, path_name, path_of
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.data.shards.index import ShardIndex, index_of
from depthjepa.data.shards.pieces import BYTES, PieceCache, divided, each_alone
from depthjepa.data.shards.place import SPLIT_WORDS, Folder, Place, is_address, of_split, tars_in
from depthjepa.data.shards.remote import Address
from depthjepa.data.subsets import chosen_classes, chosen_images
from depthjepa.faults import BadInput

CLASSES = "classes.txt"
_COMPRESSED = (".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")
_GIB = 1 << 30
# Images are fetched one by one where fewer than so many of a piece are wanted, of so many times as many bytes.
_FEW, _SPARSE = 4, 16
_ROOM = 1.5  # the least that is kept of shards that lie elsewhere, as a multiple of what is shuffled together


class TarShards:
    """The images of one split of a place of tar shards, in the order of shards and members.

    `classes` takes the first N classes, or the named ones in the order given (without `classes.txt` their names are
    their indices); the classes are those of `train` where there is one, so that labels agree between the splits.
    `images_per_class` takes at most the first N images of each class, of `train` alone.

    Raises `BadInput`, with shard and member, for what the layout forbids: see `members.scanned` and `_class_words`.
    """

    has_depth = False
    knows_focal_length = False
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
        self.classes = _class_words(place, training)
        index = _with_labels_of_training(index, training)
        if classes is not None or images_per_class is not None:
            if not self.classes:
                key = "images_per_class" if classes is None else "classes"
                raise BadInput(f"data.{key} needs labels, and the images in the shards of {self.name} have no .cls")
            chosen = chosen_classes(self.classes, classes, f"the shards of {self.name}")
            index = _subset(index, [self.classes.index(word) for word in chosen], images_per_class, split)
            if classes is not None and (empty := set(range(len(chosen))) - set(index.samples.labels.tolist())):
                raise BadInput(f"class {chosen[min(empty)]!r} has no images in the {split} shards of {self.name}")
            self.classes = chosen
        self.ignored: Mapping[str, int] = dict(index.ignored)
        self._samples = index.samples
        self._shards = shards
        self._pieces = divided(index.samples)

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
        excess = self._pieces.length[pieces].sum() / self._samples.places[indices, 2].sum()
        if len(indices) >= _FEW * len(pieces) or excess <= _SPARSE:
            return self
        alone = copy.copy(self)
        alone._pieces = each_alone(self._samples)
        return alone

    def sample(self, index: int) -> Sample:
        """Decode image `index`, named SHARD:MEMBER; raises `UnreadableImage`."""
        number, first, size = self._samples.places[index].tolist()
        name = self.name_of(index)
        try:
            content = self._place.read(self._shards[number], first, size, self._pieces.piece(index))
        except OSError as fault:
            raise UnreadableImage(f"{self._place.base}/{name}: {fault_line(fault)}") from fault
        image = decode_bytes(content, f"{self._place.base}/{name}")
        return Sample(image=image, depth=None, label=int(self.labels[index]), name=name)


# classes --------------------------------------------------------------------------------------------------


def _class_words(place: Place, training: ShardIndex) -> tuple[str, ...]:
    """Names of the classes: of `classes.txt`, else their indices; none without labels.

    Raises `BadInput` for names that are missing or come twice, and for a label beyond the last name.
    """
    labels = training.samples.labels
    highest = int(labels.max())
    if highest < 0:
        return ()
    if (content := place.content(CLASSES)) is None:
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


def _with_labels_of_training(index: ShardIndex, training: ShardIndex) -> ShardIndex:
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


def _subset(index: ShardIndex, chosen: Sequence[int], images_per_class: int | None, split: Split) -> ShardIndex:
    """The images of the chosen labels, which become 0, 1, ...; they stay in the order of the shards."""
    at_most = images_per_class if split == "train" else None
    kept, labels = chosen_images(index.samples.labels, chosen, at_most)
    return replace(index, samples=index.samples.take(kept)._replace(labels=labels))


# the row -------------------------------------------------------------------------------------------------


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
    words = [word for each in SPLIT_WORDS.values() for word in each]
    return path.is_dir() and any(tars_in(place) for place in (path, *(path / word for word in words)))


def _nearly(root: str) -> str:
    """What to say of a folder of compressed tars."""
    path = path_of(root)
    places = (path, path / "train", path / "val") if path.is_dir() else ()
    for name in sorted(each.name for place in places for each in place.glob("*.t*") if each.is_file()):
        if name.lower().endswith(_COMPRESSED):
            return (
                f"{path} holds {name}, a compressed tar: images are read in place, so unpack it to a plain .tar first "
                f"(gunzip, unxz, bunzip2 or unzstd), or into a folder"
            )
    return ""


def _open(config: DataConfig, root: str, split: Split) -> TarShards:
    return TarShards(place_of(config, root), split, config.classes, config.images_per_class)


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
    reads=("cache", "cache_gib", "window_gib"),
    may_have_labels=True,
    takes_subsets=True,
)
