"""What one tar shard holds: which of its members are samples, and where their bytes are."""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from depthjepa.data.images import SUFFIXES, ending, fault_line, packed
from depthjepa.faults import BadInput

_PADDING = 1 << 20  # bytes; a tar ends in zeros up to a whole record, which is hardly ever larger
LABEL = 99  # bytes of a label that are read


class Samples(NamedTuple):
    """The samples of one shard or of several, as arrays that worker processes share."""

    names: ndarray  # of the images in their shards, as bytes
    places: Int64[ndarray, "images 3"]  # number of the shard, offset and size [byte] of the image in it
    labels: Int64[ndarray, " images"]  # -1: unknown

    def take(self, kept: ndarray | slice) -> Samples:
        """Some of them."""
        return Samples(*(column[kept] for column in self))


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of several shards, one after the other; the number of each is its own now."""
    numbered = [
        part._replace(places=np.column_stack([np.full(len(part.names), number), part.places[:, 1:]]))
        for number, part in enumerate(parts)
    ]
    return Samples(*(np.concatenate(columns) for columns in zip(*numbered, strict=True)))


def scanned(file: io.FileIO | io.BytesIO, name: str) -> tuple[Samples, Counter[str]]:
    """The samples of one shard in the order of its images, and how often other members were passed over.

    A member that is a link to an earlier one has that one's content, as tar writes files that are one on the disk.
    30 microseconds a member.

    Raises `BadInput` for a file that is no tar or is cut short, a tar without images, a key with two images or two
    labels, a label without an image, and one that is no number.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    contents: dict[str, bytes] = {}
    files: dict[str, tarfile.TarInfo] = {}  # by their names, those that links mean too
    ignored: Counter[str] = Counter()
    last = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as shard:
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
                        f"{name}: {known[key].name} and {member.name} are two {'labels' if is_label else 'images'} of "
                        f"one sample (the name up to its first dot is the key of a sample)"
                    )
                known[key] = member
                if is_label:
                    file.seek(member.offset_data)
                    contents[key] = file.read(min(member.size, LABEL))
            file.seek(shard.offset)
            last_bytes = file.read(_PADDING)
    except (tarfile.TarError, OSError) as fault:
        what = "is no uncompressed tar" if last is None else f"is cut short or damaged at {last}"
        raise BadInput(f"{name} {what}: {fault_line(fault)}") from fault
    if len(last_bytes) < tarfile.BLOCKSIZE or any(last_bytes):  # tarfile ends at such a place without a word
        raise BadInput(f"{name} is cut short or damaged after {last}: the tar's end mark is not there")
    if not images:
        raise BadInput(f"{name} holds no images (accepted: {' '.join(SUFFIXES)})")
    if lonely := labels.keys() - images.keys():
        raise BadInput(f"{name}: {labels[min(lonely)].name} is a label without an image ({' '.join(SUFFIXES)})")
    values = {key: _label(content, f"{name}: {labels[key].name}") for key, content in contents.items()}
    return (
        Samples(
            packed(member.name for member in images.values()),
            np.array([(0, member.offset_data, member.size) for member in images.values()], np.int64),
            np.array([values.get(key, -1) for key in images], np.int64),
        ),
        ignored,
    )


def _label(content: bytes, name: str) -> int:
    text = content.decode(errors="replace").strip()
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadInput(f"{name} holds {text[:20]!r}, not the index of a class (0, 1, ...)")
    return int(text)
