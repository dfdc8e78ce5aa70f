"""Tar shards in WebDataset's layout, read like a folder: any image at any time, by an index of the tar headers.

A shard is an uncompressed tar. Its members of one key (folder, and name up to the first dot) are one sample: an image
and, where there are labels, a `.cls` that holds the index of the class as text. Other members (`.json`, `.txt`) are
ignored. A word of the shard's name or its folder tells the split: `train-000.tar`, `photos-train-000.tar`,
`train/000.tar`; `val` and `validation` alike. Where no shard tells one, every split is all shards. `classes.txt` beside
the shards names the classes in the order of their indices, by the first word of each line.

The webdataset library reads shards as streams: it can neither resume exactly nor read one image.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from depthjepa.data.config import DataConfig
from depthjepa.data.images import SUFFIXES, Split, decode_bytes, ending, fault_line, loose_files, packed
from depthjepa.data.layouts.layout import DataLayout, path_of
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.faults import BadInput, nearest

_SPLIT_WORDS: dict[Split, set[str]] = {"train": {"train"}, "val": {"val", "valid", "validation"}}
_COMPRESSED = (".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")
_PADDING = 1 << 20  # bytes; a tar ends in zeros up to a whole record, which is hardly ever larger


class TarShards:
    """The images of one split of a folder of tar shards, or of a single tar, in the order of shards and members.

    `classes` takes the first N classes, or the named ones in the order given (without `classes.txt` their names are
    their indices); the classes are those of `train` where there is one, so that labels agree between the splits.
    `images_per_class` takes at most the first N images of each class, of `train` alone.

    Raises `BadInput`, with shard and member, for what the layout forbids: see `_members` and `_class_words`.
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
        self._folder = root if root.is_dir() else root.parent
        if not (paths := shard_paths(root, split)):
            raise BadInput(f"{root} holds no tar shards of {split} ({split}-*.tar, or {split}/*.tar)")
        index = _indexed(paths)
        training_paths = shard_paths(root, "train")
        training = _indexed(training_paths) if training_paths and training_paths != paths else index
        self.classes = _class_words(self._folder / "classes.txt", training)
        index = _with_labels_of_training(index, training)
        if classes is not None or images_per_class is not None:
            chosen = _chosen_classes(root, self.classes, classes)
            index = _subset(index, [self.classes.index(word) for word in chosen], images_per_class, split)
            if classes is not None and (empty := set(range(len(chosen))) - set(index.labels.tolist())):
                raise BadInput(f"class {chosen[min(empty)]!r} has no images in the {split} shards of {root}")
            self.classes = chosen
        self.ignored: Mapping[str, int] = dict(index.ignored)
        self.labels: Int64[ndarray, " images"] = index.labels
        self._shards = packed(path.relative_to(self._folder).as_posix() for path in paths)
        self._names, self._places = index.names, index.places

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """SHARD:MEMBER of image `index`."""
        return f"{os.fsdecode(self._shards[self._places[index, 0]])}:{os.fsdecode(self._names[index])}"

    def stamps(self) -> Int64[ndarray, "images 2"]:
        """Bytes of each image in its shard, and its label: an open index knows both."""
        return np.stack([self._places[:, 2], self.labels], axis=1)

    def sample(self, index: int) -> Sample:
        """Decode image `index`, named SHARD:MEMBER; raises `UnreadableImage`.

        The shard is opened for each image: that costs 3 microseconds of some 200, and workers share no open files.
        """
        number, offset, size = self._places[index].tolist()
        shard = os.fsdecode(self._shards[number])
        name = self.name_of(index)
        try:
            opened = os.open(self._folder / shard, os.O_RDONLY)
            try:
                content = os.pread(opened, size, offset)
            finally:
                os.close(opened)
        except OSError as fault:
            raise UnreadableImage(f"{self._folder / name}: {fault_line(fault)}") from fault
        image = decode_bytes(content, f"{self._folder / name}")
        return Sample(image=image, depth=None, label=int(self.labels[index]), name=name)


# which shards ---------------------------------------------------------------------------------------------


def shard_paths(root: Path, split: Split) -> list[Path]:
    """Return the shards of a split, sorted; all shards where none tells its split; none where it has none."""
    if not root.is_dir():
        return [root]
    by_split = {known: _shards_of(root, words) for known, words in _SPLIT_WORDS.items()}
    return by_split[split] if any(by_split.values()) else sorted(_tars(root))


def _shards_of(root: Path, words: set[str]) -> list[Path]:
    beside = [path for path in _tars(root) if words & set(re.split(r"[-_.]", path.stem.lower()))]
    return sorted([*beside, *(path for word in words for path in _tars(root / word))])


def _tars(folder: Path) -> list[Path]:
    names = loose_files(folder, (".tar",)) if folder.is_dir() else []
    return [path for name in names if name.endswith(".tar") and (path := folder / name).is_file()]


# what is in them ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the images of several shards are: arrays, which worker processes share."""

    shards: tuple[Path, ...]
    names: ndarray  # of the members, as bytes
    places: Int64[ndarray, "images 3"]  # number of the shard, offset and size [byte] of the image in it
    labels: Int64[ndarray, " images"]  # -1: unknown
    ignored: Mapping[str, int]  # members that are not read, in words

    def member(self, index: int) -> str:
        """SHARD:MEMBER, for messages."""
        return f"{self.shards[self.places[index, 0]]}:{os.fsdecode(self.names[index])}"


def _indexed(paths: Sequence[Path]) -> _Index:
    """Index shards; raises `BadInput` for what `_members` refuses, and where only some images have a label.

    30 microseconds a member, so an index stays for as long as its files are unchanged: training and probes share it.
    """
    stats = [path.stat() for path in paths]
    return _index_of(tuple(paths), tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@functools.lru_cache(maxsize=8)
def _index_of(paths: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> _Index:
    names, places, labels = [], [], []
    ignored: Counter[str] = Counter()
    for number, path in enumerate(paths):
        for name, offset, size, label in _members(path, ignored):
            names.append(name)
            places.append((number, offset, size))
            labels.append(label)
    index = _Index(paths, packed(names), np.array(places, np.int64), np.array(labels, np.int64), ignored)
    if (index.labels < 0).any() and (index.labels >= 0).any():
        without = index.member(int(index.labels.argmin()))
        raise BadInput(f"{without} has no label, but other images have: give all of them a .cls, or none")
    return index


def _members(path: Path, ignored: Counter[str]) -> list[tuple[str, int, int, int]]:
    """Name, offset, size and label (-1: none) of the images of one shard, in their order; others are counted.

    A member that is a link to an earlier one has that one's content, as tar writes files that are one on the disk.

    Raises `BadInput` for a file that is no tar or is cut short, a tar without images, a key with two images or two
    labels, a label without an image, and one that is no number.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    contents: dict[str, bytes] = {}
    files: dict[str, tarfile.TarInfo] = {}  # by their names, those that links mean too
    last = None
    try:
        with path.open("rb", buffering=0) as file, tarfile.open(path, "r:") as shard:
            for member in shard:
                last = member.name
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if member.isdir():
                    continue
                if member.islnk() or member.issym():
                    meant = member.linkname if member.islnk() else posixpath.join(folder, member.linkname)
                    if (target := files.get(posixpath.normpath(meant))) is None:
                        ignored["link to what the tar does not hold before it"] += 1
                        continue
                    member.size, member.offset_data = target.size, target.offset_data
                elif not member.isreg():
                    ignored["pipe, socket or device"] += 1
                    continue
                files[posixpath.normpath(member.name)] = member
                key = f"{folder}/{stem}"
                is_label = extension.lower().rpartition(".")[2] == "cls"
                if not stem or (not is_label and not base.lower().endswith(SUFFIXES)):
                    ignored[ending(base) if stem else "hidden"] += 1
                    continue
                known = labels if is_label else images
                if key in known:
                    raise BadInput(
                        f"{path}: {known[key].name} and {member.name} are two {'labels' if is_label else 'images'} of "
                        f"one sample (the name up to its first dot is the key of a sample)"
                    )
                known[key] = member
                if is_label:
                    contents[key] = os.pread(file.fileno(), min(member.size, 99), member.offset_data)
            last_bytes = os.pread(file.fileno(), _PADDING, shard.offset)
    except (tarfile.TarError, OSError) as fault:
        what = "is no uncompressed tar" if last is None else f"is cut short or damaged at {last}"
        raise BadInput(f"{path} {what}: {fault_line(fault)}") from fault
    if len(last_bytes) < tarfile.BLOCKSIZE or any(last_bytes):  # tarfile ends at such a place without a word
        raise BadInput(f"{path} is cut short or damaged after {last}: the tar's end mark is not there")
    if not images:
        raise BadInput(f"{path} holds no images (accepted: {' '.join(SUFFIXES)})")
    if lonely := labels.keys() - images.keys():
        raise BadInput(f"{path}: {labels[min(lonely)].name} is a label without an image ({' '.join(SUFFIXES)})")
    values = {key: _label(content, f"{path}: {labels[key].name}") for key, content in contents.items()}
    return [(member.name, member.offset_data, member.size, values.get(key, -1)) for key, member in images.items()]


def _label(content: bytes, name: str) -> int:
    text = content.decode(errors="replace").strip()
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadInput(f"{name} holds {text[:20]!r}, not the index of a class (0, 1, ...)")
    return int(text)


# classes --------------------------------------------------------------------------------------------------


def _class_words(file: Path, training: _Index) -> tuple[str, ...]:
    """Names of the classes: of `classes.txt`, else their indices; none without labels.

    Raises `BadInput` for names that are missing or come twice, and for a label beyond the last name.
    """
    highest = int(training.labels.max())
    if highest < 0:
        return ()
    if not file.is_file():
        return tuple(str(label) for label in range(highest + 1))
    lines = file.read_text(encoding="utf-8").strip().splitlines()
    words = tuple((line.split() or [""])[0] for line in lines)
    if "" in words or len(set(words)) < len(words):
        raise BadInput(f"{file} must name every class once, one a line, in the order of their indices")
    if highest >= len(words):
        member = training.member(int(training.labels.argmax()))
        raise BadInput(f"{member} is of class {highest}, but {file} names {len(words)} classes (0 to {len(words) - 1})")
    return words


def _with_labels_of_training(index: _Index, training: _Index) -> _Index:
    """Refuse labels that train has not; where train has none at all, those of validation mean nothing."""
    if training.labels.max() < 0:
        return replace(index, labels=np.full_like(index.labels, -1))
    other = ~np.isin(index.labels, training.labels)
    if other.any():
        place = int(other.argmax())
        label = int(index.labels[place])
        has = "no label, but the images of train have" if label < 0 else f"class {label}, which no image of train has"
        raise BadInput(f"{index.member(place)} has {has}")
    return index


def _chosen_classes(root: Path, there: tuple[str, ...], classes: int | tuple[str, ...] | None) -> tuple[str, ...]:
    if not there:
        key = "images_per_class" if classes is None else "classes"
        raise BadInput(f"data.{key} needs labels, and the images in the shards of {root} have no .cls")
    if classes is None:
        return there
    if isinstance(classes, int):
        if classes > len(there):
            raise BadInput(f"data.classes={classes}, but the shards of {root} have {len(there)} classes")
        return there[:classes]
    for word in classes:
        if word not in there:
            raise BadInput(
                f"data.classes: no class {word!r} in the shards of {root}{nearest(word, there)}; "
                f"they have {len(there)}: {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}"
            )
    return classes


def _subset(index: _Index, chosen: Sequence[int], images_per_class: int | None, split: Split) -> _Index:
    """The images of the chosen labels, which become 0, 1, ...; they stay in the order of the shards."""
    at_most = images_per_class if split == "train" else None
    by_class = [np.flatnonzero(index.labels == label)[:at_most] for label in chosen]
    kept = np.sort(np.concatenate(by_class))
    renamed = np.empty(max(*chosen, int(index.labels.max())) + 1, dtype=np.int64)
    renamed[chosen] = np.arange(len(chosen))
    return replace(index, names=index.names[kept], places=index.places[kept], labels=renamed[index.labels[kept]])


# the row -------------------------------------------------------------------------------------------------


def _matches(root: str) -> bool:
    path = path_of(root)
    if path.suffix == ".tar" and path.is_file():
        return True
    words = [word for each in _SPLIT_WORDS.values() for word in each]
    return path.is_dir() and any(_tars(place) for place in (path, *(path / word for word in words)))


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
    return TarShards(path_of(root), split, config.classes, config.images_per_class)


def _has_validation(config: DataConfig, root: str) -> bool:
    return bool(shard_paths(path_of(root), "val"))


LAYOUT = DataLayout(
    noun="tar shards",
    states="holds tar shards",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    nearly=_nearly,
    may_have_labels=True,
    takes_subsets=True,
)
