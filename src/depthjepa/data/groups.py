"""Which images know one another: the scene, drive or place that each was taken in.

Frames of one place are all but copies, so whatever is held out, folded or resampled goes by groups. A group comes from
`groups.json` beside the data, or `groups` in `dataset.json`: pairs of a beginning of IDs and a group, of which the
first that fits counts. Else it is the ID up to its last `_`, or the folder that the ID lies in. Every rendered scene is
a group of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass as configuration

from depthjepa.data.order import Mixture
from depthjepa.data.samples import Chosen, Source
from depthjepa.faults import BadInput
from depthjepa.settings import STRICT, parse_json

GROUPS = "groups.json"
FOLDS = 5
BLOCKS = 25  # of consecutive images, where fewer groups than folds are known


@runtime_checkable
class Grouped(Protocol):
    """A source that knows where each of its samples was taken."""

    def group_of(self, index: int) -> str | None:
        """Group of sample `index`; None: not known."""
        ...


@configuration(frozen=True, slots=True, config=STRICT)
class GroupList:
    """What `groups.json` says: beginnings of IDs, the first that fits counts."""

    groups: tuple[tuple[str, str], ...] = ()
    focal_length_px: tuple[tuple[str, PositiveFloat], ...] = ()  # at the file's full width
    what: str = ""  # a remark for people

    def group_of(self, identity: str) -> str | None:
        """The group of an ID, None where no beginning fits."""
        return next((group for beginning, group in self.groups if identity.startswith(beginning)), None)

    def focal_length_of(self, identity: str) -> float | None:
        """The focal length [px] of an ID, None where no beginning fits."""
        return next((length for beginning, length in self.focal_length_px if identity.startswith(beginning)), None)


def read_groups(root: Path) -> GroupList | None:
    """What `groups.json` in a folder says; None without one. Raises `BadInput` for a file of another form."""
    file = root / GROUPS
    return group_list(file.read_bytes(), str(file)) if file.is_file() else None


def group_list(content: bytes, name: str) -> GroupList:
    """What the content of a `groups.json` of that name says. Raises `BadInput` for one of another form."""
    form = 'it holds {"groups": [["beginning of IDs", "group"], …]} and may hold '
    return parse_json(content, name, GroupList, form + '"focal_length_px": [["beginning of IDs", 525.0], …]')


def with_groups(listed: GroupList | None, groups: tuple[tuple[str, str], ...] | None) -> GroupList | None:
    """A list with other groups, those of `dataset.json`, where there are any."""
    if groups is None:
        return listed
    return GroupList(groups, listed.focal_length_px if listed else ())


def group_by_name(identity: str) -> str | None:
    """The group that an ID itself tells: what stands before its last `_`, else the folder it lies in; else None."""
    folder, _, name = identity.rpartition("/")
    beginning, found, _ = name.rpartition("_")
    parts = [part for part in (folder, beginning if found else "") if part]
    return "/".join(parts) or None


def told_group(identity: str, listed: GroupList | None, name: str) -> str | None:
    """The group of an ID by the list of its data set, of that `name`, or by the ID itself; None: nothing tells.

    Raises `BadInput` where the list names groups, and none fits.
    """
    if listed is None or not listed.groups:
        return group_by_name(identity)
    if (group := listed.group_of(identity)) is None:
        raise BadInput(
            f"{name}: no beginning among its groups fits the ID {identity}: add [{json.dumps(identity)}, GROUP]"
        )
    return group


def group_in(source: Source, index: int) -> str | None:
    """The group of a sample of any source; those of the parts of a mixture are told apart."""
    if isinstance(source, Chosen):
        return group_in(source.source, int(source.numbers[index]))
    if isinstance(source, Mixture):
        part, place = source.part_of(index)
        group = group_in(source.sources[part], place)
        return None if group is None else f"{source.sources[part].name}: {group}"
    return source.group_of(index) if isinstance(source, Grouped) else None


def part_in(source: Source, index: int) -> int:
    """Which of several data sets a sample comes from; 0 where there is one."""
    return source.part_of(index)[0] if isinstance(source, Mixture) else 0


@dataclass(frozen=True, slots=True)
class Division:
    """Folds of images that share nothing: of each sample by its number (-1: not used), and what they are made of."""

    fold: Int64[np.ndarray, " samples"]
    by: str  # "7 groups" or "25 blocks of consecutive images"


def divide(source: Source, numbers: Sequence[int] | Int64[np.ndarray, " images"]) -> Division:
    """Divide the samples with these numbers into five folds of groups.

    Groups go to the smallest fold, the largest group first. Where fewer than five groups are known, or of some sample
    none, 25 blocks of consecutive samples are dealt out to the folds in turn. Each data set of a mixture is divided by
    itself.
    """
    chosen = np.asarray(numbers, dtype=np.int64)
    fold, grounds = np.full(len(source), -1, dtype=np.int64), []
    parts = np.array([part_in(source, int(number)) for number in chosen])
    for part in np.unique(parts):
        own = chosen[parts == part]
        groups = [group_in(source, int(number)) for number in own]
        known = [group for group in groups if group is not None]
        if len(known) == len(groups) and len(set(known)) >= FOLDS:
            fold[own] = _dealt(known)
            grounds.append(f"{len(set(known))} groups")
        else:
            blocks = min(BLOCKS, len(own))
            fold[own] = np.arange(len(own)) * blocks // max(1, len(own)) % FOLDS
            grounds.append(f"{blocks} blocks of consecutive images")
    return Division(fold, " and ".join(dict.fromkeys(grounds)))


def _dealt(groups: Sequence[str]) -> Int64[np.ndarray, " images"]:
    names, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    of_group, filled = np.zeros(len(names), dtype=np.int64), np.zeros(FOLDS, dtype=np.int64)
    for group in np.argsort(-counts, kind="stable"):
        smallest = int(filled.argmin())
        of_group[group] = smallest
        filled[smallest] += counts[group]
    return of_group[which]


@dataclass(frozen=True, slots=True)
class Places:
    """What is known of where the images of a training and of a validation set were taken, by their numbers.

    A part is one data set of several that are mixed.
    """

    parts: tuple[str, ...]  # names of the data sets
    train_part: Int64[np.ndarray, " train"]
    val_part: Int64[np.ndarray, " val"]
    folds: Division  # of the training images
    train_group: Mapping[int, str]  # those that validation images are of, too: what others look like helps nobody
    val_group: Mapping[int, str]  # all that are known

    def together(self) -> Places:
        """The same images as those of one data set."""
        name, parts = ",".join(self.parts), (self.train_part, self.val_part)
        train, val = (np.zeros_like(part) for part in parts)
        return replace(self, parts=(name,), train_part=train, val_part=val)


def places_of(
    train: Source, train_numbers: Int64[np.ndarray, " _"], val: Source, val_numbers: Int64[np.ndarray, " _"]
) -> Places:
    """Places of the images with these numbers in two sources that are the splits of one root."""
    groups = [
        {number: group for number in numbers.tolist() if (group := group_in(source, number)) is not None}
        for source, numbers in ((train, train_numbers), (val, val_numbers))
    ]
    judged = set(groups[1].values())
    parts = train.sources if isinstance(train, Mixture) else (train,)
    return Places(
        parts=tuple(part.name for part in parts),
        train_part=_parts(train),
        val_part=_parts(val),
        folds=divide(train, train_numbers),
        train_group={number: group for number, group in groups[0].items() if group in judged},
        val_group=groups[1],
    )


def _parts(source: Source) -> Int64[np.ndarray, " samples"]:
    lengths = [len(part) for part in source.sources] if isinstance(source, Mixture) else [len(source)]
    return np.repeat(np.arange(len(lengths)), lengths)
