"""Recordings of Intel RealSense cameras as an RGB-D folder, as Open3D's tools write them.

`color/00000.jpg` and `depth/00000.png`, registered to the photograph, beside `intrinsic.json` with `depth_scale`, units
per metre, and `intrinsic_matrix`, nine numbers column by column
(https://github.com/isl-org/Open3D, `cpp/open3d/t/io/sensor/RGBDVideoReader.cpp` and `RGBDVideoMetadata.h`). The older
`examples/python/reconstruction_system/sensors/realsense_recorder.py` writes `camera_intrinsic.json` without a scale,
which then has to be said. Poses are in neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from depthjepa.data.images import SUFFIXES, Split, upright_size
from depthjepa.data.pairing import some_of
from depthjepa.data.prepare.recordings import (
    LinkedPair,
    Recording,
    by_stem,
    folders_of,
    left_out,
    read_facts,
    splits_of,
    write_recordings,
)
from depthjepa.data.prepare.writing import Prepared
from depthjepa.faults import BadInput

SOURCE = "https://www.open3d.org/docs/latest/tutorial/sensor/realsense.html"
PHOTOGRAPHS, DEPTHS = "color", "depth"
CAMERAS = "intrinsic.json", "camera_intrinsic.json"
DRAWN = "extract the recording with Open3D's RSBagReader.save_frames (rs-convert -p writes pictures)"


def prepare_realsense(
    source: Path, out: Path, *, val: str | None = None, every: int = 1, depth_scale: float | None = None
) -> Prepared:
    """Bring photographs and depth of one number together; the values of the depth stay as they are.

    `source` is a recording (`color/`, `depth/`, `intrinsic.json`), or a folder of several, of one depth scale.
    `depth_scale` is units per metre, where no `intrinsic.json` says it. `val` names the validation recordings,
    separated by commas, and every `every`-th frame is taken. An ID is `RECORDING/FRAME`. Files are hard links where the
    file system has them, else copies.

    Raises `BadInput` for files that are missing, damaged or something else, and where no scale is known.
    """
    places = folders_of(
        source,
        lambda place: all((place / part).is_dir() for part in (PHOTOGRAPHS, DEPTHS)),
        f"a RealSense recording has {PHOTOGRAPHS}/ beside {DEPTHS}/ and {CAMERAS[0]}, as Open3D writes it ({SOURCE})",
    )
    splits = splits_of(list(places), val)
    cameras = {name: _camera(place) for name, place in places.items()}
    scale = _scale({name: camera.scale for name, camera in cameras.items()}, depth_scale)
    remarks: list[str] = []
    recordings = [
        Recording(
            name=name,
            pairs=_pairs(name, place, splits[name], every, scale, cameras[name], remarks),
            focal_length=cameras[name].focal_length,
        )
        for name, place in places.items()
    ]
    return write_recordings(out, "realsense", recordings, scale=scale, remarks=remarks)


@dataclass(frozen=True, slots=True)
class _Camera:
    path: Path | None
    focal_length: float | None = None  # [px]
    size: tuple[int, int] | None = None  # height and width
    scale: float | None = None  # file units per metre


def _camera(place: Path) -> _Camera:
    path = next((place / name for name in CAMERAS if (place / name).is_file()), None)
    if path is None:
        return _Camera(None)
    said = read_facts(path, f"it should be as Open3D writes it ({SOURCE})")
    matrix, scale, height, width = (said.get(key) for key in ("intrinsic_matrix", "depth_scale", "height", "width"))
    focal = matrix[0] if isinstance(matrix, list) and len(matrix) == 9 else None
    if not (_positive(focal) and _positive(height) and _positive(width) and (scale is None or _positive(scale))):
        raise BadInput(
            f"{path} should hold width, height, intrinsic_matrix (nine numbers, fx first) and depth_scale (units per "
            f"metre), as Open3D writes it ({SOURCE})"
        )
    return _Camera(path, float(focal), (int(height), int(width)), None if scale is None else float(scale))


def _positive(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _scale(said: dict[str, float | None], given: float | None) -> float:
    """File units per metre of all recordings."""
    if given is not None and not _positive(given):
        raise BadInput(f"--depth-scale {given:g} should be units of depth per metre, above 0")
    known = {name: scale for name, scale in said.items() if scale is not None}
    scales = sorted({*known.values(), *([] if given is None else [given])})
    if len(scales) > 1:
        raise BadInput(
            f"depth scales differ ({', '.join(f'{scale:g}' for scale in scales)} units a metre; in {CAMERAS[0]}, or "
            f"--depth-scale): prepare recordings of one scale at a time"
        )
    if given is None and len(known) < len(said):
        silent = [name for name in said if name not in known]
        raise BadInput(
            f"nothing says how many units of depth are a metre in {some_of(silent)} (depth_scale in {CAMERAS[0]}): "
            f"give --depth-scale, 1000 where the camera's depth unit is 0.001 m"
        )
    if scales[0] < 1:
        raise BadInput(
            f"a depth scale of {scales[0]:g} units a metre is the other way round: give --depth-scale "
            f"{1 / scales[0]:g}, units per metre"
        )
    return scales[0]


def _pairs(
    name: str, place: Path, split: Split, every: int, scale: float, camera: _Camera, remarks: list[str]
) -> Sequence[LinkedPair]:
    photographs, depths = by_stem(place / PHOTOGRAPHS, SUFFIXES), by_stem(place / DEPTHS, (".png",))
    both = [stem for stem in photographs if stem in depths]
    if not both:
        raise BadInput(f"{place}: no photograph of {PHOTOGRAPHS}/ has depth of its name (.png) in {DEPTHS}/")
    remarks += left_out(
        name, f"of {len(photographs)} photographs have no depth of their name", len(photographs) - len(both)
    )
    size = upright_size(photographs[both[0]])
    if camera.size is not None and size is not None and size != camera.size:
        raise BadInput(
            f"{photographs[both[0]]} is {size[0]} x {size[1]} pixels (height x width), and {camera.path} is of "
            f"{camera.size[0]} x {camera.size[1]}: are they of one recording?"
        )
    return [
        LinkedPair(split, f"{name}/{photographs[stem].name}", photographs[stem], depths[stem], scale, SOURCE, DRAWN)
        for stem in both[::every]
    ]
