"""What one tar shard holds: which of its members are samples, and where their bytes are.

A member is told by what follows the first dot of its name: `depth.png` (or another format of `pairing.DEPTH`) is depth,
`label.png` a label map, `json` may have facts, what ends in `cls` is a label, and what else an image is called is the
image.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from pydantic import BeforeValidator, ConfigDict, PositiveFloat
from pydantic.dataclasses import dataclass as configuration

from depthjepa.data.contents import PIECE, mark_of
from depthjepa.data.dataset_facts import EXACT
from depthjepa.data.depth_files import EXR, states_no_unit
from depthjepa.data.images import SUFFIXES, fault_line
from depthjepa.data.listing import ending, packed
from depthjepa.data.pairing import DEPTH
from depthjepa.faults import BadInput
from depthjepa.settings import parse_json

_PADDING = 1 << 20  # bytes; a tar ends in zeros up to a whole record, which is hardly ever larger
LABEL = 99  # bytes of a label that are read
FACTS = 1 << 16  # bytes of the largest member in which facts are looked for
DEPTH_ENDS = tuple(f"{DEPTH.one}{suffix}" for suffix in DEPTH.suffixes)
MAP_END = "label.png"
READABLE = tuple(each for each in DEPTH_ENDS if not each.endswith(EXR))  # OpenEXR reads files alone

Kind = Literal["image", "depth file", "label map", "label", "facts"]


class Maps(NamedTuple):
    """What goes with samples beside labels, as arrays; places are 0 where there is none."""

    depths: Int64[ndarray, "images 3"]  # offset and size [byte] in the image's shard, and what tells it from others
    depth_ends: ndarray  # how its name goes on after the key, as bytes: "depth.png"
    label_maps: Int64[ndarray, "images 2"]  # offset and size [byte]
    map_ends: ndarray  # as `depth_ends`
    groups: ndarray  # scenes or places, as bytes; empty: not told
    focal_lengths: Float64[ndarray, " images"]  # [px] at full width, 0: not told

    @property
    def have_depth(self) -> bool:
        """Whether any sample has depth."""
        return bool(self.depths[:, 0].any())

    @property
    def have_label_maps(self) -> bool:
        """Whether any sample has a label map."""
        return bool(self.label_maps[:, 0].any())


class Samples(NamedTuple):
    """The samples of one shard or of several, as arrays that worker processes share."""

    names: ndarray  # of the images in their shards, as bytes
    places: Int64[ndarray, "images 3"]  # number of the shard, offset and size [byte] of the image in it
    labels: Int64[ndarray, " images"]  # -1: unknown
    maps: Maps | None = None  # None: images and labels alone

    def take(self, kept: ndarray | slice) -> Samples:
        """Some of them."""
        maps = None if self.maps is None else Maps(*(column[kept] for column in self.maps))
        some = maps is not None and (maps.have_depth or maps.have_label_maps)
        return Samples(self.names[kept], self.places[kept], self.labels[kept], maps if some else None)

    def extents(self) -> tuple[Int64[ndarray, " images"], Int64[ndarray, " images"]]:
        """Where the first member of each sample that is read begins in its shard, and where the last one ends."""
        _, first, size = self.places.T
        end = first + size
        for members in () if self.maps is None else (self.maps.depths, self.maps.label_maps):
            there = members[:, 0] > 0
            first = np.where(there, np.minimum(first, members[:, 0]), first)
            end = np.where(there, np.maximum(end, members[:, 0] + members[:, 1]), end)
        return first, end


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of several shards, one after the other; the number of each is its own now."""
    places = [
        np.column_stack([np.full(len(part.names), number), part.places[:, 1:]]) for number, part in enumerate(parts)
    ]
    maps = None
    if any(part.maps is not None for part in parts):
        columns = zip(*(_none(len(part.names)) if part.maps is None else part.maps for part in parts), strict=True)
        maps = Maps(*(np.concatenate(column) for column in columns))
    names, labels = (np.concatenate([getattr(part, column) for part in parts]) for column in ("names", "labels"))
    return Samples(names, np.concatenate(places), labels, maps)


def _none(count: int) -> Maps:
    nothing, empty = np.zeros((count, 3), np.int64), np.zeros(count, "S1")
    return Maps(nothing, empty, nothing[:, :2], empty, empty, np.zeros(count))


NO_MAPS = _none(0)


def key_of(name: str) -> str:
    """The key of a sample, by the name of any of its members: all up to the first dot after its folder."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def scanned(file: io.FileIO | io.BytesIO, name: str) -> tuple[Samples, Counter[str]]:
    """The samples of one shard in the order of its images, and how often other members were passed over.

    A member that is a link to an earlier one has that one's content, as tar writes files that are one on the disk.
    30 microseconds a member.

    Raises `BadInput` for a file that is no tar or is cut short, a tar without images, a key with two members of a kind,
    what goes with an image without one, a label that is no number, facts of another form, and depth in EXR.
    """
    members = _walked(file, name)
    found, ignored = members.found, members.ignored
    images = found["image"]
    needing: tuple[Kind, ...] = ("label", "depth file", "label map")
    for what in needing:
        if lonely := found[what].keys() - images.keys():
            raise BadInput(
                f"{name}: {found[what][min(lonely)].name} is a {what} without an image ({' '.join(SUFFIXES)})"
            )
    if not images:
        raise BadInput(f"{name} holds no images (accepted: {' '.join(SUFFIXES)})")
    labels = members.contents["label"]
    values = {key: _label(each, f"{name}: {found['label'][key].name}") for key, each in labels.items()}
    mapped = found["depth file"].keys() | found["label map"].keys()
    facts = {}
    for key, each in members.contents["facts"].items():
        if key in mapped:
            facts[key] = parse_json(each, f"{name}: {found['facts'][key].name}", SampleFacts)
        else:
            ignored[ending(found["facts"][key].name)] += 1
    samples = Samples(
        packed(member.name for member in images.values()),
        np.array([(0, member.offset_data, member.size) for member in images.values()], np.int64),
        np.array([values.get(key, -1) for key in images], np.int64),
        _maps(images, found, members.marks, facts) if mapped else None,
    )
    return samples, ignored


@dataclass(frozen=True, slots=True)
class _Members:
    """What is read of a shard, by the keys of its samples."""

    found: dict[Kind, dict[str, tarfile.TarInfo]]
    contents: dict[Kind, dict[str, bytes]]  # of labels and facts
    marks: dict[str, int] = field(default_factory=dict)  # of depth
    ignored: Counter[str] = field(default_factory=Counter)

    def take(self, file: io.FileIO | io.BytesIO, member: tarfile.TarInfo, name: str) -> None:
        """Keep a member with its content as its name says, or count that it was passed over."""
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, kind = f"{folder}/{stem}", _kind(extension.lower()) if stem else None
        content = _content(file, member, kind)
        if kind is None or (kind == "facts" and not _may_tell(content)):
            self.ignored[ending(base) if stem else "hidden"] += 1
            return
        if (other := self.found[kind].setdefault(key, member)) is not member:
            raise BadInput(
                f"{name}: {other.name} and {member.name} are two {_WORDS[kind]} of one sample (the name up to its "
                f"first dot is the key of a sample)"
            )
        if kind in self.contents:
            self.contents[kind][key] = content
        if kind == "depth file":
            self.marks[key] = _mark(file, member, name)


def _walked(file: io.FileIO | io.BytesIO, name: str) -> _Members:
    """Go through a shard from one header to the next; raises `BadInput` where it does not end as a tar does."""
    members = _Members({kind: {} for kind in _WORDS}, {"label": {}, "facts": {}})
    files: dict[str, tarfile.TarInfo] = {}  # by their names, those that links mean too
    last = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                last = member.name
                if member.isdir():
                    continue
                if member.islnk() or member.issym():
                    folder = posixpath.dirname(member.name)
                    meant = member.linkname if member.islnk() else posixpath.join(folder, member.linkname)
                    if (target := files.get(posixpath.normpath(meant))) is None:
                        members.ignored["link to what the tar does not hold before it"] += 1
                        continue
                    member.size, member.offset_data = target.size, target.offset_data
                elif not member.isreg():
                    members.ignored["pipe, socket or device"] += 1
                    continue
                files[posixpath.normpath(member.name)] = member
                members.take(file, member, name)
            file.seek(shard.offset)
            last_bytes = file.read(_PADDING)
    except (tarfile.TarError, OSError) as fault:
        what = "is no uncompressed tar" if last is None else f"is cut short or damaged at {last}"
        raise BadInput(f"{name} {what}: {fault_line(fault)}") from fault
    if len(last_bytes) < tarfile.BLOCKSIZE or any(last_bytes):  # tarfile ends at such a place without a word
        raise BadInput(f"{name} is cut short or damaged after {last}: the tar's end mark is not there")
    return members


_WORDS: dict[Kind, str] = {
    "image": "images",
    "depth file": "depth files",
    "label map": "label maps",
    "label": "labels",
    "facts": "files of facts",
}


def _group_name(value: object) -> object:
    if value == "":
        raise ValueError("should be the name of a scene or place")
    return str(value) if type(value) is int else value


@configuration(frozen=True, slots=True, config=ConfigDict(**{**EXACT, "extra": "ignore"}))
class SampleFacts:
    """What the `.json` of a sample may say of it, among other things."""

    group: Annotated[str | None, BeforeValidator(_group_name)] = None  # scene or place
    focal_length: PositiveFloat | None = None  # [px] at the full width of the upright image


_KEYS = tuple(f'"{key}"'.encode() for key in SampleFacts.__dataclass_fields__)


def _kind(extension: str) -> Kind | None:
    """What a member is to its sample, by what follows the first dot of its name, in small letters."""
    if extension in DEPTH_ENDS:
        return "depth file"
    if extension == MAP_END:
        return "label map"
    if extension == "json":
        return "facts"
    if extension.rpartition(".")[2] == "cls":
        return "label"
    return "image" if f".{extension}".endswith(SUFFIXES) else None


def _content(file: io.FileIO | io.BytesIO, member: tarfile.TarInfo, kind: Kind | None) -> bytes:
    """What is read of a label, and of facts that are no larger than `FACTS`; nothing of any other member."""
    most = {"label": LABEL, "facts": member.size if member.size <= FACTS else 0}.get(str(kind), 0)
    if not most:
        return b""
    file.seek(member.offset_data)
    return file.read(min(member.size, most))


def _may_tell(content: bytes) -> bool:
    """Whether a `.json` may say something of a sample: those of all others are not kept until it is known whose."""
    return any(key in content for key in _KEYS)


def _mark(file: io.FileIO | io.BytesIO, member: tarfile.TarInfo, name: str) -> int:
    """What tells depth from others of its name: the size of what is compressed, else a checksum of some bytes."""
    if not member.name.lower().endswith(READABLE):
        raise BadInput(
            f"{name}: {member.name} is EXR, which is read from folders alone: in a shard depth is one of "
            f"{', '.join(f'KEY.{each}' for each in READABLE)}"
        )
    if not states_no_unit(member.name):
        return member.size

    def piece_at(place: int) -> bytes:
        file.seek(member.offset_data + place)
        return file.read(min(PIECE, member.size))

    return mark_of(member.size, piece_at)


def _label(content: bytes, name: str) -> int:
    text = content.decode(errors="replace").strip()
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadInput(f"{name} holds {text[:20]!r}, not the index of a class (0, 1, ...)")
    return int(text)


def _maps(
    images: Mapping[str, tarfile.TarInfo],
    found: Mapping[Kind, Mapping[str, tarfile.TarInfo]],
    marks: Mapping[str, int],
    facts: Mapping[str, SampleFacts],
) -> Maps:
    """What goes with the images of a shard."""
    depths, label_maps = ([found[kind].get(key) for key in images] for kind in ("depth file", "label map"))
    told = [facts.get(key, SampleFacts()) for key in images]
    return Maps(
        depths=np.column_stack([_places(depths), [marks.get(key, 0) for key in images]]),
        depth_ends=_ends(depths),
        label_maps=_places(label_maps),
        map_ends=_ends(label_maps),
        groups=packed(each.group or "" for each in told),
        focal_lengths=np.array([each.focal_length or 0 for each in told], np.float64),
    )


def _places(members: Sequence[tarfile.TarInfo | None]) -> Int64[ndarray, "images 2"]:
    return np.array([(0, 0) if each is None else (each.offset_data, each.size) for each in members], np.int64)


def _ends(members: Sequence[tarfile.TarInfo | None]) -> ndarray:
    """How the names of members go on after their keys, as bytes; empty for none."""
    return packed("" if each is None else posixpath.basename(each.name).partition(".")[2] for each in members)
