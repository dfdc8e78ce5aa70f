"""Writing an RGB-D folder from the official files of a data set; killed, it goes on.

What is written stands in `OUT.partial` until all of it is there: `OUT` is whole or absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.images import Split, image_names
from depthjepa.data.layouts.rgbd import DATASET, DatasetFacts, dataset_facts, decode_depth
from depthjepa.data.pairing import some_of
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import to_json, write_whole, writing
from depthjepa.progress import track
from depthjepa.stopping import interruptions

SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an RGB-D folder holds: pairs of each split, and the share of their pixels that has depth, in [0, 1]."""

    folder: Path
    pairs: Mapping[Split, int]
    measured: Mapping[Split, float]

    def __str__(self) -> str:
        words = {"train": "training", "val": "validation"}
        parts = (
            f"{count} {words[split]} pairs, {100 * self.measured[split]:.1f} % of their pixels measured"
            for split, count in self.pairs.items()
        )
        return f"{self.folder}: {'; '.join(parts)}"


@runtime_checkable
class Pair(Protocol):
    """One photograph and its depth, still in the official files."""

    @property
    def split(self) -> Split: ...

    @property
    def photograph(self) -> str:
        """Its name below `SPLIT/rgb`, with the suffix."""
        ...

    def write(self, photograph: Path, depth: Path) -> np.ndarray:
        """Write both files, each whole or not at all, and return the depth, in any unit.

        Raises `BadInput` where they are damaged or do not fit.
        """
        ...


def write_all(out: Path, facts: DatasetFacts, pairs: Sequence[Pair]) -> Prepared:
    """Write what is not there yet, and count what is measured; a first call leaves `out` whole or absent.

    Raises `BadInput` where `out` holds something else, and what writing a pair raises; `RunStopped` when interrupted.
    """
    out = out if out.name not in ("", "..") else out.resolve()
    folder = out if (out / DATASET).exists() else out.with_name(out.name + ".partial")
    _begin(out, folder, facts, pairs)
    counts = {split: np.zeros(3, dtype=np.int64) for split in SPLITS}  # pairs, measured pixels, pixels
    scale = facts.depth_scale or MILLIMETRES
    with interruptions() as stopping:
        for pair in track(pairs, f"pairs of {facts.name}", len(pairs)):
            if stopping():
                raise RunStopped(f"stopped; what is written stands in {folder}, and the same command goes on")
            photograph = folder / pair.split / "rgb" / pair.photograph
            depth = (folder / pair.split / "depth" / pair.photograph).with_suffix(".png")
            there = photograph.exists() and depth.exists()
            values = read_depth(depth, scale) if there else pair.write(photograph, depth)
            counts[pair.split] += np.array((1, np.count_nonzero(values), values.size))
    if folder != out:
        with writing(out):
            folder.rename(out)
    full = {split: count for split, count in counts.items() if count[0]}
    return Prepared(
        out,
        pairs={split: int(count[0]) for split, count in full.items()},
        measured={split: float(count[1] / count[2]) for split, count in full.items()},
    )


def _begin(out: Path, folder: Path, facts: DatasetFacts, pairs: Sequence[Pair]) -> None:
    """Refuse to mix two data sets, or two splits of one, in a folder; then write its facts."""
    if folder != out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} exists and was not written by this command: choose another --out")
    if (folder / DATASET).exists() and (there := dataset_facts(folder)) != facts:
        raise BadInput(f"{folder} holds {there.name}, not {facts.name}: choose another --out, or remove it")
    times = Counter(str(PurePosixPath(pair.photograph).with_suffix("")) for pair in pairs)
    if twice := sorted(name for name, count in times.items() if count > 1):
        raise BadInput(f"{len(twice)} of {len(times)} pairs come twice, in one split or in both: {some_of(twice)}")
    planned = {(pair.split, pair.photograph) for pair in pairs}
    for split in SPLITS:
        place = folder / split / "rgb"
        if place.is_dir() and (others := [name for name in image_names(place) if (split, name) not in planned]):
            raise BadInput(
                f"{place} holds {some_of(others)}, which this source or split does not have: choose another --out, or "
                f"remove {folder}"
            )
    if not (folder / DATASET).exists():
        write_whole(folder / DATASET, to_json(asdict(facts)))


def read_depth(path: Path, scale: float) -> Float[np.ndarray, "1 h w"]:
    """Read a depth file [m]; raises `BadInput`, here for a damaged one, too."""
    try:
        return decode_depth(path, scale).numpy()
    except UnreadableImage as fault:
        raise BadInput(f"{fault}: the file is damaged or incomplete; remove it, and fetch or write it again") from fault
