"""LeRobot data sets with depth as an RGB-D folder: recordings of robots, in versions 2.x and 3.0 of the format.

`meta/info.json` names the features; frames are rows of `data/chunk-000/*.parquet`, where a feature of dtype `image` is
the content of a file (PNG photographs, TIFF or PNG depth). A depth camera is flagged `is_depth_map` in the feature's
`info`, which has `depth_unit` (mm or m), and is named as the photographs beside it with `_depth` at the end
(https://github.com/huggingface/lerobot, `docs/source/cameras.mdx`, `docs/source/video_encoding_parameters.mdx`,
`src/lerobot/datasets/io_utils.py`).

Two things are refused instead of guessed. Depth of dtype `video` was quantised to 12 bits and cut off at both ends. And
nothing says whether depth lies on the photograph: LeRobot's own RealSense camera stores both as the two sensors saw
them (`src/lerobot/cameras/realsense/camera_realsense.py` aligns nothing), so that has to be said.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from depthjepa.data.dataset_facts import UNITS
from depthjepa.data.images import DECODING_FAULTS, Split, fault_line
from depthjepa.data.pairing import some_of
from depthjepa.data.prepare.recordings import Recording, left_out, read_facts, splits_of, write_recordings
from depthjepa.data.prepare.writing import Prepared, millimetres, save_png
from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import whole_file

SOURCE = "https://github.com/huggingface/lerobot"
INFO = "meta/info.json"
VERSIONS = ("v2", "v3")
DEPTH_FLAGS = ("is_depth_map", "video.is_depth_map")
STATED = {"mm": "millimetres", "m": "metres"}  # what `depth_unit` of a feature means
ENDING = "_depth"  # of a depth camera's name, after that of the photographs
HELD_OUT = ("val", "validation")  # names of a split
EPISODES = re.compile(r"(\d+):(\d+)")  # of a split, the last one left out


def prepare_lerobot(
    source: Path,
    out: Path,
    *,
    val: str | None = None,
    every: int = 1,
    depth: str | None = None,
    photographs: str | None = None,
    depth_unit: str | None = None,
    registered: bool = False,
) -> Prepared:
    """Bring photographs and depth of a LeRobot data set together; an episode is a recording.

    `source` holds `meta/` and `data/`. Depth cameras are those that the data set flags, or `depth` names one; its
    photographs are the feature named so without `_depth`, or `photographs`. `depth_unit` is a word of `UNITS`, where
    the data set does not say it. `registered` says that depth lies on the photographs, which the data set does not.
    `val` names validation episodes (`episode_000003`), separated by commas; without it they are the data set's own, if
    it has any. Every `every`-th frame is taken. An ID is `EPISODE/FRAME`, or `EPISODE/CAMERA/FRAME` where there are
    several depth cameras. Depth becomes millimetres, as PNG files.

    Raises `BadInput` for files that are missing, damaged or something else, for videos, and for what is not said.
    """
    info = _info(source)
    cameras = _cameras(source, info, depth, photographs, depth_unit)
    if not registered:
        raise BadInput(
            f"{source}: nothing in a LeRobot data set says whether depth lies on the photographs, and its own "
            f"RealSense camera does not align them: give --registered if your recorder did"
        )
    if importlib.util.find_spec("pyarrow") is None:
        raise BadInput(f"{source}: LeRobot data sets are read with pyarrow: pip install 'depthjepa[tables]'")
    tables = _Tables(source, cameras)
    episodes = tables.episodes()
    names = {number: f"episode_{number:06}" for number in episodes}
    splits = splits_of(list(names.values()), val if val is not None else _held_out(source, info, names))
    remarks: list[str] = []
    recordings = []
    for number, rows in episodes.items():
        name = names[number]
        whole = [row for row in rows if row.whole]
        remarks += left_out(name, f"of {len(rows)} frames lack a photograph or depth", len(rows) - len(whole))
        pairs = [
            _RobotPair(
                splits[name],
                "/".join([name, *([camera.name] if len(cameras) > 1 else []), f"{row.frame:06}{camera.suffix}"]),
                tables,
                row,
                camera,
            )
            for row in whole[::every]
            for camera in cameras
        ]
        recordings.append(Recording(name=name, pairs=pairs))
    if not any(each.pairs for each in recordings):
        raise BadInput(f"{source} holds no frame with photograph and depth ({SOURCE})")
    # What was asked for is a part of the name: a folder that was made by other options is not gone on with.
    name = "-".join(["lerobot", *filter(None, (depth, photographs, depth_unit))])
    return write_recordings(out, name, [each for each in recordings if each.pairs], remarks=remarks)


@dataclass(frozen=True, slots=True)
class _Camera:
    depth: str  # the two features
    photographs: str
    scale: float  # units of its depth per metre
    suffix: str = ".png"  # of its photographs

    @property
    def name(self) -> str:
        """Short name of the camera, for IDs."""
        return self.photographs.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class _Row:
    file: Path
    group: int  # of the rows that are read together
    place: int  # in that group
    frame: int
    whole: bool  # it has photograph and depth of all cameras


@dataclass(frozen=True, slots=True)
class _RobotPair:
    split: Split
    photograph: str
    tables: _Tables
    row: _Row
    camera: _Camera

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Write the photograph as it is stored, and depth in millimetres, which are returned."""
        what = f"{self.row.file}, frame {self.row.frame} of {self.photograph.partition('/')[0]}"
        content = self.tables.content(self.row, self.camera.photographs)
        size, kind, _ = _decoded(content, f"{what}: {self.camera.photographs}")
        if {"PNG": ".png", "JPEG": ".jpg"}.get(kind) != self.camera.suffix:
            raise BadInput(
                f"{what}: {self.camera.photographs} is {kind}, not like the first photograph of the data set"
            )
        name = f"{what}: {self.camera.depth}"
        (height, width), kind, values = _decoded(self.tables.content(self.row, self.camera.depth), name)
        if values is None:
            raise BadInput(
                f"{name} is {kind} of 8 bits or of colours: depth drawn for people, of which no metres can be told; "
                f"record it as a depth map ({SOURCE})"
            )
        if (height, width) != size:
            raise BadInput(
                f"{name} is {height} x {width} pixels (height x width), its photograph {size[0]} x {size[1]}: depth "
                f"has to be registered to the photograph"
            )
        stored = millimetres(values.astype(np.float64) / self.camera.scale)
        with whole_file(photograph) as file:
            file.write(content)
        save_png(beside, stored)
        return stored


def _decoded(content: bytes, name: str) -> tuple[tuple[int, int], str, np.ndarray | None]:
    """Height and width, the format, and numbers where they are of one channel of more than 8 bits."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind, mode, size = str(image.format), image.mode, (image.height, image.width)
            pixels = np.array(image)
    except DECODING_FAULTS as fault:
        raise BadInput(f"{name}: {fault_line(fault)}: it is damaged; fetch the file again") from fault
    return size, kind, pixels if mode.startswith("I") or mode == "F" else None


def _info(source: Path) -> dict[str, Any]:
    what = f"a LeRobot data set has {INFO} and data/ ({SOURCE})"
    if not (source / INFO).is_file():
        raise BadInput(f"there is no {source / INFO}: {what}")
    info = read_facts(source / INFO, what)
    version, features = info.get("codebase_version"), info.get("features")
    if not isinstance(version, str) or not version.startswith(VERSIONS):
        raise BadInput(f"{source / INFO}: codebase_version={version!r}: versions 2.x and 3.0 are read")
    if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
        raise BadInput(f"{source / INFO} names no features: {what}")
    return info


def _cameras(
    source: Path, info: Mapping[str, Any], depth: str | None, photographs: str | None, unit: str | None
) -> list[_Camera]:
    """Depth cameras with their photographs, scales and suffixes."""
    features: dict[str, dict[str, Any]] = info["features"]
    images = [key for key, each in features.items() if each.get("dtype") in ("image", "video")]
    for option, key in (("--depth", depth), ("--photographs", photographs)):
        if key is not None and key not in images:
            raise BadInput(f"{option}: no images are named {key!r}{nearest(key, images)}; there are {some_of(images)}")
    flagged = [key for key in images if any(_facts(features[key]).get(flag) is True for flag in DEPTH_FLAGS)]
    chosen = flagged if depth is None else [depth]
    if not chosen:
        raise BadInput(
            f"{source / INFO} flags no depth map (is_depth_map): give --depth FEATURE, of {some_of(images) or 'none'}"
        )
    if photographs is not None and len(chosen) > 1:
        raise BadInput(f"--photographs is of one depth camera, and there are {some_of(chosen)}: give --depth as well")
    cameras = []
    for key in chosen:
        beside = photographs or key.removesuffix(ENDING)
        if beside not in images or beside == key:
            others = [each for each in images if each not in flagged]
            raise BadInput(
                f"{source / INFO} has no photographs beside {key} ({key.removesuffix(ENDING)}): give --photographs "
                f"FEATURE, one of {some_of(others) or 'none'}"
            )
        _refuse_videos(source, features, key, beside)
        cameras.append(_Camera(key, beside, _scale(source, features[key], key, unit)))
    return cameras


def _facts(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What a feature says of its images; older data sets call it `video_info`."""
    found = feature.get("info") or feature.get("video_info")
    return found if isinstance(found, dict) else {}


def _refuse_videos(source: Path, features: Mapping[str, Mapping[str, Any]], depth: str, photographs: str) -> None:
    if features[depth].get("dtype") == "video":
        raise BadInput(
            f"{source / INFO}: {depth} is a video: its depth is quantised to 12 bits and cut off at both ends, "
            f"so what was not measured reads as a distance; record with --dataset.video=false, which keeps depth"
        )
    if features[photographs].get("dtype") == "video":
        raise BadInput(
            f"{source / INFO}: {photographs} is a video, which is not read here; record with --dataset.video=false, "
            f"which keeps images"
        )


def _scale(source: Path, feature: Mapping[str, Any], key: str, unit: str | None) -> float:
    """Units of a depth camera per metre."""
    said = _facts(feature).get("depth_unit")
    if said is not None and said not in STATED:
        raise BadInput(f"{source / INFO}: depth_unit={said!r} of {key} should be {' or '.join(STATED)}")
    if said is None and unit is None:
        raise BadInput(f"{source / INFO} does not say the unit of {key}: give --depth-unit, one of {', '.join(UNITS)}")
    if said is not None and unit not in (None, STATED[said]):
        raise BadInput(f"{source / INFO} says {STATED[said]} of {key}: leave out --depth-unit {unit}")
    return UNITS[STATED[said] if said is not None else str(unit)]


def _held_out(source: Path, info: Mapping[str, Any], names: Mapping[int, str]) -> str | None:
    """The data set's own validation episodes, as `--val` would name them; None without any."""
    splits = info.get("splits")
    text = next((splits[word] for word in HELD_OUT if word in splits), None) if isinstance(splits, dict) else None
    if text is None:
        return None
    found = EPISODES.fullmatch(str(text))
    if found is None:
        raise BadInput(f"{source / INFO}: the split {text!r} is not of the form FIRST:END; give --val EPISODE,EPISODE")
    return ",".join(name for number, name in names.items() if int(found[1]) <= number < int(found[2])) or None


class _Tables:
    """Frames of a data set, in rows of Parquet files; the rows that were read last are kept."""

    def __init__(self, source: Path, cameras: list[_Camera]) -> None:
        self._source, self._cameras = source, cameras
        self._columns = list(dict.fromkeys(key for each in cameras for key in (each.photographs, each.depth)))
        self._kept: tuple[tuple[Path, int], Any] | None = None

    def episodes(self) -> dict[int, list[_Row]]:
        """Rows of each episode in the order of their frames; sets the suffixes of the cameras' photographs."""
        import pyarrow

        files = sorted((self._source / "data").glob("*/*.parquet"))
        if not files:
            raise BadInput(
                f"{self._source}/data holds no Parquet files (chunk-000/…): fetch the data set again ({SOURCE})"
            )
        found: dict[int, list[_Row]] = {}
        for path in files:
            try:
                self._read(path, found)
            except (OSError, pyarrow.ArrowException) as fault:
                raise BadInput(f"{path} is damaged or incomplete: {fault_line(fault)}; fetch it again") from fault
        self._name_suffixes(found)
        return {number: sorted(rows, key=lambda row: row.frame) for number, rows in sorted(found.items())}

    def content(self, row: _Row, column: str) -> bytes:
        """The content of an image file."""
        import pyarrow

        place = row.file, row.group
        if self._kept is None or self._kept[0] != place:
            try:
                group = _parquet(row.file).read_row_group(row.group, columns=self._columns)
            except (OSError, pyarrow.ArrowException) as fault:
                raise BadInput(f"{row.file} is damaged or incomplete: {fault_line(fault)}; fetch it again") from fault
            self._kept = place, group
        found = self._kept[1].column(column)[row.place].as_py()
        if found["bytes"] is not None:
            return bytes(found["bytes"])
        path = self._source / str(found["path"])
        try:
            return path.read_bytes()
        except OSError as fault:
            raise BadInput(
                f"{row.file}: {column} of frame {row.frame} is the file {path}, which cannot be read: {fault.strerror}"
            ) from fault

    def _read(self, path: Path, found: dict[int, list[_Row]]) -> None:
        """Add the rows of a file."""
        import pyarrow

        file = _parquet(path)
        if missing := [
            name for name in ("episode_index", "frame_index", *self._columns) if name not in file.schema_arrow.names
        ]:
            raise BadInput(f"{path} has no {missing[0]}; it has {some_of(file.schema_arrow.names)}")
        for name in self._columns:
            kind = file.schema_arrow.field(name).type
            if not pyarrow.types.is_struct(kind) or {"bytes", "path"} - {field.name for field in kind}:
                raise BadInput(
                    f"{path}: {name} does not hold images ({kind}), as features of dtype image do ({SOURCE})"
                )
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["episode_index", "frame_index"])
            whole = np.logical_and.reduce([_stored(file, group, name) for name in self._columns])
            columns = (table.column(name).to_pylist() for name in ("episode_index", "frame_index"))
            for place, (episode, frame) in enumerate(zip(*columns, strict=True)):
                found.setdefault(int(episode), []).append(_Row(path, group, place, int(frame), bool(whole[place])))

    def _name_suffixes(self, found: Mapping[int, list[_Row]]) -> None:
        first = next((row for rows in found.values() for row in rows if row.whole), None)
        for number, camera in enumerate(self._cameras if first is not None else []):
            assert first is not None
            _, kind, _ = _decoded(self.content(first, camera.photographs), f"{first.file}: {camera.photographs}")
            if kind not in ("PNG", "JPEG"):
                raise BadInput(f"{first.file}: {camera.photographs} is {kind}; photographs are PNG or JPEG")
            suffix = ".png" if kind == "PNG" else ".jpg"
            self._cameras[number] = _Camera(camera.depth, camera.photographs, camera.scale, suffix)


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path)


def _stored(file: Any, group: int, name: str) -> Bool[np.ndarray, " rows"]:
    """Which of the rows that are read together have an image: its content, or the name of a file."""
    chunks = file.metadata.row_group(group)
    statistics = {
        chunk.path_in_schema: chunk.statistics for chunk in (chunks.column(n) for n in range(chunks.num_columns))
    }
    known = statistics.get(f"{name}.bytes")
    if known is not None and known.has_null_count and known.null_count == 0:  # as usual, told without reading images
        return np.ones(chunks.num_rows, dtype=bool)
    images = file.read_row_group(group, columns=[name]).column(name).combine_chunks()
    stored, named = (~np.asarray(images.field(part).is_null(), dtype=bool) for part in ("bytes", "path"))
    there: Bool[np.ndarray, " rows"] = (stored | named) & ~np.asarray(images.is_null(), dtype=bool)
    return there
