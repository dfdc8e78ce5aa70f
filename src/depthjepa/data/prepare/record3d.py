"""Recordings of the Record3D app on iPhones and iPads as an RGB-D folder.

A `.r3d` file is a zip archive: `metadata` (JSON: `w`, `h` of photographs, `dw`, `dh` of depth, `K` column by column and
`perFrameIntrinsicCoeffs` [fx, fy, cx, cy] of photographs, `poses` [qx, qy, qz, qw, x, y, z] from the camera to the
place), `rgbd/N.jpg`, `rgbd/N.depth` (float32 metres, row by row) and `rgbd/N.conf` (bytes, 0 to 2), both in LZFSE
(https://github.com/marek-simonik/record3d, issues 7, 27, 43, 93). The app's other export, EXR + JPG, is a folder
`EXR_RGBD` of `metadata.json`, `rgb/N.jpg` and `depth/N.exr`, one channel of metres (issues 53, 67, 121). Cameras are
those of ARKit, x right, y up, z backwards, as readers of both have it (`nerfstudio/process_data/record3d_utils.py` of
https://github.com/nerfstudio-project/nerfstudio, `usa/tasks/datasets/r3d.py` of https://github.com/codekansas/usa).
"""

from __future__ import annotations

import functools
import importlib.util
import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from depthjepa.data.depth_files import EXR, refuse_missing_reader, stored_depth
from depthjepa.data.images import DECODING_FAULTS, Split, fault_line
from depthjepa.data.listing import sub_folders
from depthjepa.data.prepare.poses import PoseRows, pose_of_quaternion
from depthjepa.data.prepare.recordings import Recording, by_stem, facts_of, left_out, splits_of, write_recordings
from depthjepa.data.prepare.writing import Prepared, millimetres, save_png
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput

SOURCE = "https://record3d.app (export as .r3d, or as EXR + JPG)"
ARCHIVE, EXPORT = ".r3d", "EXR_RGBD"
FRAME = re.compile(r"rgbd/(\d+)\.(jpg|depth|conf)")
ALIKE = 0.01  # by which the sides of photographs and depth may differ in their ratio
NOWHERE = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)  # the pose of all frames of the camera beside the screen
SURE = 2
# What zipfile is known to raise on damaged archives, and the decoder of LZFSE beside its own fault.
READING_FAULTS = (OSError, zipfile.BadZipFile, KeyError, EOFError, RuntimeError, NotImplementedError, zlib.error)


def prepare_record3d(
    source: Path, out: Path, *, val: str | None = None, every: int = 1, confidence: int = 0
) -> Prepared:
    """Bring photographs of Record3D to the size of their depth, by area; depth becomes millimetres, as PNG files.

    `source` is a `.r3d` file, an exported `EXR_RGBD` folder (`metadata.json`, `rgb/`, `depth/`) or one that holds it,
    or a folder of these. Every `every`-th frame is taken. Depth of which the sensor is less sure than `confidence` (0
    to 2; of `.r3d` files alone) is not measured. `val` names the validation recordings, separated by commas. An ID is
    `RECORDING/FRAME`.

    Raises `BadInput` for files that are missing, damaged or something else.
    """
    places = _places(source)
    splits = splits_of(list(places), val)
    remarks: list[str] = []
    recordings = [
        _recording(name, _opened(place, confidence), splits[name], every, confidence, remarks)
        for name, place in places.items()
    ]
    name = f"record3d-confidence{confidence}" if confidence else "record3d"
    return write_recordings(out, name, recordings, remarks=remarks)


@runtime_checkable
class _Frames(Protocol):
    """One recording, whatever it is stored in."""

    place: Path
    facts: dict[str, Any]

    def numbers(self) -> tuple[list[int], int]:
        """Numbers of frames that have everything, and how many photographs there are."""
        ...

    def photograph(self, number: int) -> bytes: ...

    def depth(self, number: int) -> Float32[np.ndarray, "h w"]:
        """Depth [m] of a frame; what is not finite is not measured."""
        ...

    def confidence(self, number: int) -> UInt8[np.ndarray, "h w"]: ...


@dataclass(frozen=True, slots=True)
class _PhonePair:
    split: Split
    photograph: str
    frames: _Frames
    number: int
    least: int  # confidence

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Write the photograph in the size of its depth, and the depth; returns millimetres."""
        metres = self.frames.depth(self.number)
        if self.least:
            metres = np.where(self.frames.confidence(self.number) >= self.least, metres, np.float32(0))
        what = f"{self.frames.place}: photograph {self.number}"
        try:
            with Image.open(io.BytesIO(self.frames.photograph(self.number))) as image:
                tag, size, pixels = image.getexif().get(274, 1), image.size, image.convert("RGB")
        except DECODING_FAULTS as fault:
            raise BadInput(f"{what}: {fault_line(fault)}: it is damaged; export the recording again") from fault
        height, width = metres.shape
        if tag not in (0, 1) or size[0] < width or abs(size[0] * height / (size[1] * width) - 1) > ALIKE:
            raise BadInput(
                f"{what} is {size[1]} x {size[0]} pixels (height x width), its depth {height} x {width}: it should "
                f"be of the same view, and not smaller"
            )
        values = millimetres(metres)
        save_png(photograph, np.array(pixels.resize((width, height), Image.Resampling.BOX)))
        save_png(beside, values)
        return values


def _places(source: Path) -> dict[str, Path]:
    """Files and exported folders by the names of their recordings."""
    what = f"Record3D is prepared from a {ARCHIVE} file, a folder {EXPORT}, or a folder of them ({SOURCE})"
    if not source.exists():
        raise BadInput(f"there is no {source}: {what}")
    if source.is_file():
        return {source.stem: source}
    if (own := _exported(source)) is not None:
        place = source.resolve()
        return {place.parent.name if place.name == EXPORT else place.name: own}
    archives = by_stem(source, (ARCHIVE,))
    exports = {name: own for name in sub_folders(source) if (own := _exported(source / name)) is not None}
    if twice := sorted(archives.keys() & exports.keys()):
        raise BadInput(f"{source} holds two recordings named {twice[0]}: {twice[0]}{ARCHIVE} and {twice[0]}/")
    if not archives and not exports:
        raise BadInput(f"{source} holds no recording: {what}")
    return dict(sorted({**archives, **exports}.items()))


def _exported(place: Path) -> Path | None:
    """The folder of an export as EXR + JPG: the place, or `EXR_RGBD` in it."""
    return next((each for each in (place, place / EXPORT) if (each / "metadata.json").is_file()), None)


def _opened(place: Path, confidence: int) -> _Frames:
    if place.is_dir():
        if confidence:
            raise BadInput(f"{place} has no confidence: leave out --confidence, or export the recording as {ARCHIVE}")
        return _Export(place)
    return _Archive(place, confidence)


def _recording(name: str, frames: _Frames, split: Split, every: int, confidence: int, remarks: list[str]) -> Recording:
    numbers, photographs = frames.numbers()
    if not numbers:
        raise BadInput(f"{frames.place} holds no frame with photograph and depth; {SOURCE}")
    remarks += left_out(name, f"of {photographs} photographs have no depth of their number", photographs - len(numbers))
    pairs = [_PhonePair(split, f"{name}/{number:06}.png", frames, number, confidence) for number in numbers[::every]]
    poses = _poses(frames, pairs)
    if len(poses) < len(pairs):
        remarks.append(f"{name}: {len(pairs) - len(poses)} of {len(pairs)} pairs have no pose")
    return Recording(name=name, pairs=pairs, poses=poses, focal_length=_focal_length(frames, numbers[0]))


def _poses(frames: _Frames, pairs: Sequence[_PhonePair]) -> dict[str, PoseRows]:
    told = frames.facts.get("poses")
    if told is None:
        return {}
    rows = [_floats(each, 7) for each in told] if isinstance(told, list) else [None]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        raise BadInput(f"{frames.place}: poses in its metadata should be lists of seven numbers; {SOURCE}")
    if all(tuple(row) == NOWHERE for row in known):
        return {}  # of the camera beside the screen no pose is known
    found = {
        pair.photograph: pose_of_quaternion(known[pair.number][:4], known[pair.number][4:], y_up=True)
        for pair in pairs
        if pair.number < len(known)
    }
    return {photograph: pose for photograph, pose in found.items() if pose is not None}


def _focal_length(frames: _Frames, first: int) -> float | None:
    """Focal length [px] at the width of the depth: the median of the frames, else that of all."""
    matrix, each = _floats(frames.facts.get("K"), 9), frames.facts.get("perFrameIntrinsicCoeffs")
    rows = [_floats(row, 4) for row in each] if isinstance(each, list) else []
    own = [row[0] for row in rows if row is not None] or ([] if matrix is None else [matrix[0]])
    if not own:
        return None
    focal, width = float(np.median(own)), _floats([frames.facts.get("w")], 1)
    if width is None or width[0] <= 0 or focal <= 0:
        raise BadInput(f"{frames.place}: w and K in its metadata should be larger than 0; {SOURCE}")
    return float(focal * frames.depth(first).shape[1] / width[0])


def _floats(row: object, count: int) -> list[float] | None:
    """A list of so many numbers; None for anything else."""
    if not isinstance(row, list) or len(row) != count:
        return None
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in row):
        return None
    return [float(each) for each in row]


@functools.lru_cache(maxsize=2)
def _zip_of(place: Path) -> zipfile.ZipFile:
    """An archive that is read from; a folder may hold more of them than a process may have open."""
    return zipfile.ZipFile(place)


class _Archive:
    """A `.r3d` file."""

    def __init__(self, place: Path, confidence: int) -> None:
        if importlib.util.find_spec("lzfse") is None:
            raise BadInput(f"{place}: {ARCHIVE} files are read with lzfse: pip install 'depthjepa[record3d]'")
        self.place, self._needed = place, {"jpg", "depth", *(("conf",) if confidence else ())}
        try:
            _zip_of(place)
        except READING_FAULTS as fault:
            raise BadInput(f"{place} is no {ARCHIVE} file, or is damaged: {fault_line(fault)}; {SOURCE}") from fault
        self.facts = facts_of(self._read("metadata"), f"{place}: metadata", f"it should be of {SOURCE}")
        height, width = self.facts.get("dh", self.facts.get("h")), self.facts.get("dw", self.facts.get("w"))
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise BadInput(f"{place}: dw and dh in its metadata should be whole numbers larger than 0; {SOURCE}")
        self._size = height, width

    def numbers(self) -> tuple[list[int], int]:
        there: dict[int, set[str]] = {}
        for name in _zip_of(self.place).namelist():
            if (found := FRAME.fullmatch(name)) is not None:
                there.setdefault(int(found[1]), set()).add(found[2])
        whole = sorted(number for number, kinds in there.items() if kinds >= self._needed)
        return whole, sum("jpg" in kinds for kinds in there.values())

    def photograph(self, number: int) -> bytes:
        return self._read(f"rgbd/{number}.jpg")

    def depth(self, number: int) -> Float32[np.ndarray, "h w"]:
        return self._plain(f"rgbd/{number}.depth", np.dtype("<f4")).astype(np.float32)

    def confidence(self, number: int) -> UInt8[np.ndarray, "h w"]:
        values = self._plain(f"rgbd/{number}.conf", np.dtype(np.uint8))
        if values.max() > SURE:
            raise BadInput(f"{self.place}: rgbd/{number}.conf does not hold confidences from 0 to {SURE}")
        return values

    def _plain(self, name: str, kind: np.dtype) -> np.ndarray:
        import lzfse

        height, width = self._size
        try:
            content = lzfse.decompress(self._read(name))
        except (lzfse.error, MemoryError) as fault:
            raise BadInput(f"{self.place}: {name} is damaged, or not of LZFSE; export the recording again") from fault
        if len(content) != height * width * kind.itemsize:
            raise BadInput(
                f"{self.place}: {name} holds {len(content)} bytes, and {height} x {width} pixels (height x width, of "
                f"its metadata) are {height * width * kind.itemsize}"
            )
        return np.frombuffer(content, dtype=kind).reshape(height, width)

    def _read(self, name: str) -> bytes:
        try:
            return _zip_of(self.place).read(name)
        except READING_FAULTS as fault:
            raise BadInput(f"{self.place}: {name} is missing or damaged: {fault_line(fault)}; {SOURCE}") from fault


class _Export:
    """A folder of an export as EXR + JPG."""

    def __init__(self, place: Path) -> None:
        refuse_missing_reader(str(place / f"depth/0{EXR}"))
        self.place = place
        path = place / "metadata.json"
        self.facts = facts_of(path.read_bytes(), str(path), f"it should be of {SOURCE}")
        if missing := [part for part in ("rgb", "depth") if not (place / part).is_dir()]:
            raise BadInput(f"{place} has no {missing[0]}/, which an export as EXR + JPG has; {SOURCE}")
        self._photographs = self._numbered("rgb", (".jpg", ".jpeg", ".png"))
        self._depths = self._numbered("depth", (EXR,))

    def _numbered(self, part: str, suffixes: tuple[str, ...]) -> dict[int, Path]:
        found = by_stem(self.place / part, suffixes)
        return {int(stem): path for stem, path in found.items() if stem.isdecimal()}

    def numbers(self) -> tuple[list[int], int]:
        return sorted(self._photographs.keys() & self._depths.keys()), len(self._photographs)

    def photograph(self, number: int) -> bytes:
        return self._photographs[number].read_bytes()

    def depth(self, number: int) -> Float32[np.ndarray, "h w"]:
        try:
            return stored_depth(self._depths[number], 1.0)[0]
        except UnreadableImage as fault:
            raise BadInput(f"{fault}: the file is damaged; export the recording again") from fault

    def confidence(self, number: int) -> UInt8[np.ndarray, "h w"]:
        raise BadInput(f"{self.place} has no confidence of frame {number}")
