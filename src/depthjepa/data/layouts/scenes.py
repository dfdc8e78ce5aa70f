"""Rendered street scenes with exact metric depth: the data that needs no files.

scenes/layout.py says what stands where, scenes/casting.py what each ray meets, scenes/painting.py its colour; here
they become pictures and a data source.

The colour of a pixel is the mean of its centre ray (half) and of the rays through its four corners, which
neighbours share: five samples for the price of two. Depth and class belong to the centre ray alone.
A scene does not depend, to the last bit, on the batch it is rendered in.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor

from depthjepa.data.config import DataConfig
from depthjepa.data.images import Split
from depthjepa.data.layouts.layout import DataLayout
from depthjepa.data.samples import Sample
from depthjepa.data.scenes.casting import TILE, cast, columns, ray_places, view_rays
from depthjepa.data.scenes.layout import CLASSES, KINDS, Layout, arrange
from depthjepa.data.scenes.painting import FARTHEST, facing, shade
from depthjepa.faults import BadInput, nearest

NAME = "scenes"  # what data.root says for them
_RAYS = 280_000  # cast at once: 33 scenes of 64 pixels, less than 100 MB
_KEPT_TOGETHER = 32  # scenes that are rendered at once and kept
_FIRST_INDEX = {"train": 0, "val": 2**40}


@dataclass(frozen=True, slots=True)
class Rendered:
    """Pictures of scenes with what is known about every pixel."""

    images: UInt8[Tensor, "b 3 h w"]
    depth: Float32[Tensor, "b 1 h w"]  # [m] along the optical axis; 0: sky, or farther than FARTHEST
    classes: UInt8[Tensor, "b h w"]  # index into CLASSES
    labels: Int64[Tensor, " b"]  # index into KINDS: the kind of the nearest object
    focal: Float32[Tensor, " b"]  # [pixel]


class Scenes:
    """Rendered scenes as a data source. Training and validation scenes are different scenes of one seed."""

    classes, segment_classes = KINDS, CLASSES
    has_depth = True
    knows_focal_length = True
    keeps_samples = True

    def __init__(self, seed: int, split: str, count: int, size: tuple[int, int]) -> None:
        if split not in _FIRST_INDEX:
            known = " or ".join(_FIRST_INDEX)
            raise BadInput(f"scenes have no split {split!r}: use {known}{nearest(split, _FIRST_INDEX)}")
        if not 0 < count <= _FIRST_INDEX["val"]:
            raise BadInput(f"the number of scenes must be from 1 to {_FIRST_INDEX['val']}, not {count}")
        self.seed, self.split, self.count, self.size = seed, split, count, size
        self._chunks = _kept(seed, split, count, size)
        self._cast: tuple[int, Float32[Tensor, "b 3 h w"]] | None = None  # normals of the scenes last asked for

    @property
    def name(self) -> str:
        return f"{NAME}:{self.seed}"

    def __len__(self) -> int:
        return self.count

    def name_of(self, index: int) -> str:
        """A name that no scene of another seed or split has: a cache finds latents by it."""
        return f"scenes-{self.seed}/{self.split}/{index:06d}"

    def group_of(self, index: int) -> str:
        """Every scene is a place of its own."""
        return self.name_of(index)

    def focal_length_of(self, index: int) -> float:
        """Focal length [px] of the camera of scene `index`."""
        scenes, row = self._rendered(index)
        return float(scenes.focal[row])

    def sample(self, index: int) -> Sample:
        """Return scene `index` of the split, with its label map: that is known anyway.

        Scenes are rendered in chunks when first asked for, and kept: 8 bytes a pixel, for as long as the
        process lives, so that runs and probes on the same scenes render them once.
        """
        scenes, row = self._rendered(index)
        label, label_map = int(scenes.labels[row]), scenes.classes[row][None]
        return Sample(scenes.images[row], scenes.depth[row], label, self.name_of(index), label_map)

    def labelled_sample(self, index: int) -> Sample:
        """What `sample` gives."""
        return self.sample(index)

    def normals_of(self, index: int) -> Float32[Tensor, "3 h w"]:
        """Unit normals that scene `index` sees, exactly: x right, y down, z forward; 0 where there is no depth."""
        first = index // _KEPT_TOGETHER * _KEPT_TOGETHER
        if self._cast is None or self._cast[0] != first:
            numbers = np.arange(first, min(first + _KEPT_TOGETHER, self.count)) + _FIRST_INDEX[self.split]
            self._cast = first, surface_normals(numbers, seed=self.seed, size=self.size)
        return self._cast[1][index - first]

    def _rendered(self, index: int) -> tuple[Rendered, int]:
        """The chunk of scenes that `index` is in, and its row there."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        chunk, row = divmod(index, _KEPT_TOGETHER)
        if chunk not in self._chunks:
            first = chunk * _KEPT_TOGETHER
            numbers = np.arange(first, min(first + _KEPT_TOGETHER, self.count)) + _FIRST_INDEX[self.split]
            self._chunks[chunk] = render(numbers, seed=self.seed, size=self.size)
        return self._chunks[chunk], row


@functools.cache
def _kept(seed: int, split: str, count: int, size: tuple[int, int]) -> dict[int, Rendered]:
    """The chunks of one source that are rendered already; all its instances share them."""
    return {}


def render(
    indices: Int[np.ndarray, " b"], *, seed: int, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Rendered:
    """Render the scenes `indices` (>= 0) at `size` (height, width): a pure function of (seed, index, size).

    The scene itself depends on (seed, index) alone: another size samples the same view more finely or coarsely.
    The view is fixed on the picture's shorter side; a longer side shows more of the scene.
    """
    height, width = size
    if min(size) < 1:
        raise BadInput(f"the size of a scene must be at least 1x1 pixel, not {height}x{width}")
    if len(indices) == 0:
        raise BadInput("there are no scenes to render: the list of indices is empty")
    together = _together(size)
    chunks = [
        picture(arrange(indices[first : first + together], seed=seed), size, torch.device(device))
        for first in range(0, len(indices), together)
    ]
    if len(chunks) == 1:
        return chunks[0]
    return Rendered(*(torch.cat([getattr(chunk, field.name) for chunk in chunks]) for field in fields(Rendered)))


def picture(layout: Layout, size: tuple[int, int], device: torch.device) -> Rendered:
    """Cast and paint the scenes of a layout, all at once."""
    (height, width), scenes, pixels = size, len(layout.labels), size[0] * size[1]
    places, back = ray_places(size)
    rays = view_rays(layout.camera, places, min(size), device)
    depth, hit = cast(layout, rays, places)
    colour = shade(layout, rays, depth, hit)

    order = torch.from_numpy(back).to(device)
    colour = colour.view(scenes, -1, 3, TILE).transpose(1, 2).reshape(scenes, 3, -1).index_select(2, order)
    centre = colour[:, :, :pixels].view(scenes, 3, height, width)
    corner = colour[:, :, pixels:].view(scenes, 3, height + 1, width + 1)
    upper, lower = corner[:, :, :-1], corner[:, :, 1:]
    corners = (upper[..., :-1] + upper[..., 1:]) + (lower[..., :-1] + lower[..., 1:])
    linear = centre * 0.5 + corners * 0.125
    images = (linear.clamp(0, 1).sqrt() * 255 + 0.5).to(torch.uint8)  # a square root stands for sRGB's curve

    depth = depth.view(scenes, -1).index_select(1, order[:pixels])
    hit = hit.view(scenes, -1).index_select(1, order[:pixels]).long()
    seen = depth <= FARTHEST
    category = torch.from_numpy(layout.primitives.category).to(device).gather(1, hit.clamp(min=0))
    classes = torch.where(hit >= 0, category, CLASSES.index("ground")) * seen
    return Rendered(
        images=images,
        depth=torch.where(seen, depth, 0).view(scenes, 1, height, width),
        classes=classes.to(torch.uint8).view(scenes, height, width),
        labels=torch.from_numpy(layout.labels).to(device),
        focal=torch.from_numpy(layout.camera.focal * min(size)).to(device, torch.float32),
    )


def surface_normals(indices: Int[np.ndarray, " b"], *, seed: int, size: tuple[int, int]) -> Float32[Tensor, "b 3 h w"]:
    """Unit normals of what the pixels' centre rays of the scenes `indices` meet, in the frame of the camera.

    x is right, y down, z forward, so that normals, which point to the camera, have a z below 0 where it looks straight
    at them. 0 where `render` gives no depth.
    """
    together = _together(size)
    chunks = (indices[first : first + together] for first in range(0, len(indices), together))
    return torch.cat([_normals(arrange(chunk, seed=seed), size) for chunk in chunks])


def _together(size: tuple[int, int]) -> int:
    """Scenes that are cast at once."""
    height, width = size
    return max(1, _RAYS // (height * width + (height + 1) * (width + 1)))


def _normals(layout: Layout, size: tuple[int, int]) -> Float32[Tensor, "b 3 h w"]:
    (height, width), places = size, ray_places(size)
    rays = view_rays(layout.camera, places[0], min(size), torch.device("cpu"))
    depth, hit = cast(layout, rays, places[0])
    x, y, z = facing(layout, rays, depth, hit)
    cosine, sine = columns(layout.camera.pitch, rays.scene)
    level, ahead = cosine * y - sine * z, sine * y + cosine * z
    cosine, sine = columns(layout.camera.roll, rays.scene)
    normals = torch.stack([cosine * x + sine * level, sine * x - cosine * level, ahead])
    seen = torch.where(depth <= FARTHEST, normals, 0).view(3, len(layout.labels), -1)
    order = torch.from_numpy(places[1][: height * width])
    return seen.index_select(2, order).view(3, -1, height, width).transpose(0, 1)


# the row -------------------------------------------------------------------------------------------------


def _matches(root: str) -> bool:
    return root.partition(":")[0] == NAME


def _seed(root: str) -> int:
    word, colon, seed = root.partition(":")
    if word != NAME or (colon and not seed.isdecimal()):
        raise BadInput(f"data.root={root!r} are no rendered scenes: write {NAME} or {NAME}:SEED, as in {NAME}:3")
    return int(seed or 0)


def _open(config: DataConfig, root: str, split: Split) -> Scenes:
    return Scenes(_seed(root), split, config.scenes_train if split == "train" else config.scenes_val, config.size)


def _has_validation(config: DataConfig, root: str) -> bool:
    return True


def _source_name(root: str) -> str:
    return f"{NAME}:{_seed(root)}"


LAYOUT = DataLayout(
    noun="rendered scenes",
    states="is rendered scenes",
    matches=_matches,
    open=_open,
    has_validation=_has_validation,
    reads=("scenes_train", "scenes_val"),
    may_have_depth=True,
    may_have_labels=True,
    may_have_label_maps=True,
    source_name=_source_name,
    by_name=True,
)
