"""Folders of photographs with measured depth: `SPLIT/rgb/ID.*` beside `SPLIT/depth/ID.png`.

A depth file is a 16-bit grey PNG of the same size as the upright photograph; metres along the optical axis
are its value divided by `depth_scale` (1000: millimetres), and 0 means that nothing was measured.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from depthjepa.data.images import DECODING_FAULTS, SUFFIXES, Split, decode, fault_line, image_names, packed
from depthjepa.data.samples import Sample, UnreadableImage
from depthjepa.faults import BadInput


class PairedFolder:
    """RGB-D pairs of one split, in the order of their names.

    Raises `BadInput` when photographs and depth files do not pair up, and on reading when a depth file has
    another size or is not 16-bit grey.
    """

    classes: tuple[str, ...] = ()
    has_depth = True

    def __init__(self, root: Path, split: Split, depth_scale: float) -> None:
        self.name = str(root)
        self._root = root
        self._split = split
        self._depth_scale = depth_scale
        for part in ("rgb", "depth"):
            if not (root / split / part).is_dir():
                raise BadInput(
                    f"{root} is read as an RGB-D folder, but has no {split}/{part}/ "
                    f"(needed: {split}/rgb/ID.jpg and {split}/depth/ID.png)"
                )
        self._names = packed(_paired(root / split))

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str:
        """Path of photograph `index` below the folder."""
        return f"{self._split}/rgb/{os.fsdecode(self._names[index])}"

    def sample(self, index: int) -> Sample:
        """Decode pair `index`; raises `UnreadableImage`, and `BadInput` for depth that does not fit."""
        name = os.fsdecode(self._names[index])
        image = decode(self._root / self._split / "rgb" / name)
        path = self._root / self._split / "depth" / PurePosixPath(name).with_suffix(".png")
        depth = decode_depth(path, self._depth_scale)
        if depth.shape[1:] != image.shape[1:]:
            raise BadInput(
                f"{path} is {depth.shape[1]} x {depth.shape[2]} pixels (height x width), its photograph "
                f"{name} is {image.shape[1]} x {image.shape[2]}: they must have the same size"
            )
        return Sample(image=image, depth=depth, label=-1, name=self.name_of(index))


def decode_depth(path: Path, depth_scale: float) -> Float32[Tensor, "1 h w"]:
    """Read a 16-bit grey PNG as depth [m], 0 = invalid; `depth_scale` is file units per metre.

    Raises `UnreadableImage` for a damaged file and `BadInput` for one of another kind.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except DECODING_FAULTS as fault:
        raise UnreadableImage(f"{path}: {fault_line(fault)}") from fault
    # Pillow calls 16-bit grey I;16; its versions before 11 call it I.
    if not mode.startswith("I") or image.format != "PNG":
        raise BadInput(
            f"{path} is {image.format} of mode {mode}; depth must be a grey PNG of 16 bits, metres x "
            f"data.depth_scale ({depth_scale:g}), 0 = invalid (in 8 bits the metres are lost)"
        )
    return torch.from_numpy(values.astype(np.float32) / np.float32(depth_scale))[None]


def _paired(folder: Path) -> list[str]:
    photographs = image_names(folder / "rgb")
    depths = image_names(folder / "depth")
    if not photographs:
        raise BadInput(f"{folder / 'rgb'} holds no images (accepted: {' '.join(SUFFIXES)})")
    if others := [name for name in depths if not name.endswith(".png")]:
        raise BadInput(f"depth must be 16-bit .png files, but {folder / 'depth'} holds {_some(others)}")
    stems = [str(PurePosixPath(name).with_suffix("")) for name in photographs]
    twice = sorted({stem for stem, following in pairwise(stems) if stem == following})
    if twice:
        raise BadInput(f"{folder / 'rgb'} holds several photographs of one name: {_some(twice)}")
    with_depth = {str(PurePosixPath(name).with_suffix("")) for name in depths}
    faults = []
    if lonely := [stem for stem in stems if stem not in with_depth]:
        faults.append(f"{len(lonely)} of {len(stems)} photographs have no depth: {_some(lonely)}")
    if lonely := sorted(with_depth - set(stems)):
        faults.append(f"{len(lonely)} of {len(with_depth)} depth files have no photograph: {_some(lonely)}")
    if faults:
        raise BadInput(f"{folder}: rgb/ and depth/ do not pair up; {'; '.join(faults)}")
    return photographs


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
