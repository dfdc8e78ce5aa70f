"""Maps of pixels beside their photographs: their unit, how they are turned, that both have one size, what counts."""

from __future__ import annotations

import zlib
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from depthjepa.data.config import MILLIMETRES, DepthOrientation
from depthjepa.data.dataset_facts import DatasetFacts, EvaluationCrop
from depthjepa.data.depth_files import stored_depth
from depthjepa.data.images import upright
from depthjepa.depth import valid
from depthjepa.faults import BadInput

Name = Path | str  # of a file, or of what stands for one in a message

LOOKED_AT = 256  # pairs of whose files the heads are read when a source is opened


def units_per_metre(facts: DatasetFacts, asked: float) -> float:
    """File units per metre: those that `data.depth_scale` insists on, or what `dataset.json` says, or millimetres."""
    stated = facts.units_per_metre
    return stated if stated is not None and asked == MILLIMETRES else asked


def is_unit_unsaid(facts: DatasetFacts, asked: float) -> bool:
    """Whether neither `dataset.json` nor `data.depth_scale` says in which unit depth files are."""
    return facts.units_per_metre is None and asked == MILLIMETRES


def facts_mark(facts: DatasetFacts, depth_scale: float) -> int:
    """A checksum of what `dataset.json` says that changes what is learned."""
    return zlib.crc32(repr((facts, depth_scale)).encode())


def judged_depth(
    depth: Float32[Tensor, "1 h w"], limits: tuple[float, float] | None, crop: EvaluationCrop | None
) -> Float32[Tensor, "1 h w"]:
    """Depth [m] with 0 in the place of what is not within `limits` [m] or `crop`."""
    if limits is not None:
        depth = torch.where(valid(depth, *limits), depth, 0)
    if crop is None:
        return depth
    rows, columns = crop.pixels(*depth.shape[1:])
    inside = torch.zeros_like(depth)
    inside[:, rows, columns] = depth[:, rows, columns]
    return inside


def decode_depth(path: Path, depth_scale: float) -> Float32[Tensor, "1 h w"]:
    """Read a depth file as depth [m], 0 = invalid, upright by its own tag; `depth_scale` is file units per metre.

    Raises `UnreadableImage` for a damaged file and `BadInput` for one of another kind.
    """
    return _upright(*stored_depth(path, depth_scale))


def _upright(values: Shaped[np.ndarray, "rows cols"], tag: int) -> Shaped[Tensor, "1 h w"]:
    return torch.from_numpy(np.ascontiguousarray(upright(values, tag)))[None]


def fitted_map(
    paths: tuple[Name, Name],
    image: UInt8[Tensor, "3 h w"],
    values: Shaped[np.ndarray, "rows cols"],
    tags: tuple[int, int],
    declared: DepthOrientation | None,
    what: str = "depth",
) -> Shaped[Tensor, "1 h w"]:
    """A map as it lies in its file, turned to its upright photograph (see `map_tag`).

    Raises `BadInput` where nothing says how it lies, or the two are not of one size.
    """
    turned = _upright(values, map_tag(paths, tags, declared, what))
    refuse_other_size(paths, image, turned, tags, what)
    return turned


def map_tag(
    paths: tuple[Name, Name], tags: tuple[int, int], declared: DepthOrientation | None, what: str = "depth"
) -> int:
    """By which EXIF orientation the map of a pair (photograph, map) with these tags is to be turned.

    Where both have one, each is turned by its own. Where one has, `said` tells how the map lies: `stored`, as the
    camera's sensor stored the photograph, so it is turned by that tag, or `upright`. Raises `BadInput` without it;
    `what` is the map's name in the message.
    """
    photograph, own = tags
    if (photograph == 1) == (own == 1) or declared == "upright":
        return own if photograph > 1 else 1
    if declared == "stored":
        return max(tags)
    tagged, other = paths if photograph > 1 else paths[::-1]
    raise BadInput(
        f"{tagged} is to be turned (EXIF orientation {max(tags)}) and {other} has no such tag: say how the {what} "
        f"lies, data.depth_orientation=stored (as the camera's sensor stored the photograph: it is turned as well) or "
        f"data.depth_orientation=upright (it is upright already)"
    )


def refuse_other_size(
    paths: tuple[Name, Name], image: Tensor, values: Tensor, tags: tuple[int, int], what: str = "depth"
) -> None:
    """Raise `BadInput` where a map [1, h, w] is not of the size of its photograph [3, h, w], both upright."""
    if values.shape[1:] == image.shape[1:]:
        return
    photograph, path = paths
    raise BadInput(
        f"{path} is {_size_text(values)} pixels (height x width), its photograph {PurePath(photograph).name} is "
        f"{_size_text(image)}: they must have the same size"
        f"{_why_on_its_side(tags, what) if values.shape[1:] == image.shape[:0:-1] else ''}"
    )


def _size_text(pixels: Tensor) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[2]}"


def _why_on_its_side(tags: tuple[int, int], what: str) -> str:
    if max(tags) == 1:
        return "; one of them lies on its side"
    return (
        f"; once turned (EXIF orientation of the photograph {tags[0]}, of the {what} {tags[1]}; "
        "data.depth_orientation) one of them lies on its side"
    )
