"""NYUv2 as an RGB-D folder: the labelled set (Silberman et al. 2012), 1449 pairs with the official split of scenes."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8, UInt16

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.dataset_facts import DatasetFacts, EvaluationCrop
from depthjepa.data.images import Split, fault_line
from depthjepa.data.pairing import some_of
from depthjepa.data.prepare.writing import SPLITS, Prepared, millimetres, save_png, write_all
from depthjepa.faults import BadInput

# Rows 45 to 470 and columns 41 to 600 of 480 x 640, after Eigen et al. 2014: NYUv2's depth reaches no further.
EIGEN = EvaluationCrop("eigen", (45 / 480, 41 / 640, 471 / 480, 601 / 640))
RANGE = (0.001, 10.0)  # [m]
FOCAL_LENGTH = 518.8579  # [px] of the colour camera, from the data set's toolbox

LABELLED = "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat"
OFFICIAL = "http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat"

# What h5py, and SciPy's reader of MATLAB files beside its own MatReadError, are known to raise on damaged files.
READING_FAULTS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    zlib.error,
)


def prepare_nyuv2(
    source: Path, out: Path, *, splits: Path | None = None, depth: Literal["raw", "filled"] = "raw"
) -> Prepared:
    """Write the labelled set of NYUv2 as PNG files, depth in millimetres.

    `source` is `nyu_depth_v2_labeled.mat` or its folder, `splits` the official `splits.mat`, by default beside it.
    `depth` raw is what the camera measured (`rawDepths`, holes 0), filled has the holes filled in by the authors
    (`depths`). An ID is the scene's name, where the file has it, and the number of the pair in the file, from 1.

    Raises `BadInput` for files that are missing, damaged or something else.
    """
    file = source / "nyu_depth_v2_labeled.mat" if source.is_dir() else source
    beside = splits or file.parent / "splits.mat"
    if not file.is_file():
        raise BadInput(f"there is no {file}: NYUv2 is prepared from nyu_depth_v2_labeled.mat ({LABELLED})")
    with _Labelled(file, "rawDepths" if depth == "raw" else "depths") as labelled:
        numbers = _official_split(beside, len(labelled))
        names = labelled.names()
        found = sorted(
            (
                _NyuPair(split, number, f"{names[number - 1]}.png", labelled)
                for split in SPLITS
                for number in numbers[split]
            ),
            key=lambda pair: pair.number,  # in the order of the file, which is stored in pieces of several pairs
        )
        facts = DatasetFacts(
            name=f"nyuv2-{depth}",
            depth_scale=MILLIMETRES,
            range=RANGE,
            evaluation_crop=EIGEN,
            focal_length=FOCAL_LENGTH,
        )
        return write_all(out, facts, found)


class _Labelled:
    """The labelled set: an HDF5 file in MATLAB's order of axes, that is with width before height."""

    def __init__(self, path: Path, depth: str) -> None:
        import h5py

        self._path = path
        with self._reading():
            self._file = h5py.File(path, "r")
            there = sorted(self._file)
            found = [self._file.get(key) for key in ("images", depth)]
        missing = [
            key for key, part in zip(("images", depth), found, strict=True) if not isinstance(part, h5py.Dataset)
        ]
        if missing:
            raise BadInput(
                f"{path} has no {' and no '.join(missing)}; it holds {some_of(there) or 'nothing'}: "
                f"NYUv2 is prepared from nyu_depth_v2_labeled.mat ({LABELLED})"
            )
        self._images, self._depths = found
        images, depths = self._images.shape, self._depths.shape
        if len(images) != 4 or images[1] != 3 or (images[0], *images[2:]) != depths:
            raise BadInput(
                f"{path}: images are {images}, {depth} {depths}; expected (pairs, 3, width, height) and (pairs, width, "
                f"height), as in {LABELLED}"
            )
        if self._images.dtype != np.uint8:
            raise BadInput(f"{path}: images are {self._images.dtype}, expected uint8, as in {LABELLED}")

    def __enter__(self) -> _Labelled:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return int(self._images.shape[0])

    def names(self) -> list[str]:
        """Scene and number of every pair: scenes are a cell array of texts, each behind a reference."""
        numbers = [f"{number:04}" for number in range(1, len(self) + 1)]
        with self._reading():
            if "scenes" not in self._file:
                return numbers
            letters = [self._file[cell][()].reshape(-1) for cell in self._file["scenes"][()].reshape(-1)]
            scenes = [re.sub(r"[^\w-]", "_", "".join(map(chr, word))) for word in letters]
            return [f"{scene}_{number}" for scene, number in zip(scenes, numbers, strict=True)]

    def photograph(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Photograph of pair `index`, from 0."""
        with self._reading():
            pixels: UInt8[np.ndarray, "3 w h"] = self._images[index]
        return pixels.transpose(2, 1, 0)

    def millimetres(self, index: int) -> UInt16[np.ndarray, "h w"]:
        """Depth of pair `index` in millimetres, 0 = not measured, or not to be written in 16 bits."""
        with self._reading():
            metres = self._depths[index].T
        return millimetres(metres)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except READING_FAULTS as fault:
            raise BadInput(
                f"{self._path} is no HDF5 file, or is damaged or incomplete ({fault_line(fault)}): fetch it again from "
                f"{LABELLED}"
            ) from fault


@dataclass(frozen=True, slots=True)
class _NyuPair:
    split: Split
    number: int  # from 1, as in the official split
    photograph: str
    labelled: _Labelled

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Write both as PNG files; returns millimetres."""
        values = self.labelled.millimetres(self.number - 1)
        save_png(photograph, self.labelled.photograph(self.number - 1))
        save_png(beside, values)
        return values


def _official_split(path: Path, count: int) -> dict[Split, list[int]]:
    """Numbers of the pairs of each split, from 1."""
    if not path.is_file():
        raise BadInput(
            f"the official split is missing: there is no {path}; fetch it from {OFFICIAL}, or give --splits FILE"
        )
    keys: dict[Split, str] = {"train": "trainNdxs", "val": "testNdxs"}
    content = _matlab(path, tuple(keys.values()))
    if missing := [key for key in keys.values() if key not in content]:
        raise BadInput(f"{path} has no {' and no '.join(missing)}: the official split is at {OFFICIAL}")
    numbers: dict[Split, list[int]] = {}
    for split, key in keys.items():
        values = np.asarray(content[key]).reshape(-1)
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values % 1).any():
            raise BadInput(f"{path}: {key} should hold whole numbers; the official split is at {OFFICIAL}")
        numbers[split] = [int(value) for value in values]
    everything = numbers["train"] + numbers["val"]
    if outside := [number for number in everything if not 1 <= number <= count]:
        raise BadInput(f"{path} names pair {outside[0]}, but there are pairs 1 to {count}: is it of another data set?")
    if len(set(everything)) != len(everything):
        raise BadInput(f"{path} names {len(everything) - len(set(everything))} pairs twice, in one split or in both")
    return numbers


def _matlab(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Variables of a MATLAB file: version 5 to 7 through SciPy, 7.3 is HDF5."""
    import h5py
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return {name: file[name][()] for name in names if name in file}
        content: dict[str, Any] = loadmat(path, variable_names=names)
    except (*READING_FAULTS, MatReadError) as fault:
        raise BadInput(
            f"{path} is no MATLAB file, or is damaged or incomplete ({fault_line(fault)}): fetch it again "
            f"from {OFFICIAL}"
        ) from fault
    return content
