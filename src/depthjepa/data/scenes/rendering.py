"""Rendered scenes as pictures with exact metric depth, classes and normals.

A world (streets.py, rooms.py) says what stands where, casting.py what each ray meets, painting.py its colour; here
they become pictures.

The colour of a pixel is the mean of its centre ray (half) and of the rays through its four corners, which
neighbours share: five samples for the price of two. Depth and class belong to the centre ray alone.
A scene does not depend, to the last bit, on the batch it is rendered in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor

from depthjepa.data.scenes.casting import TILE, cast, columns, ray_places, to_camera, view_rays
from depthjepa.data.scenes.layout import Layout, World
from depthjepa.data.scenes.painting import FARTHEST, facing, shade
from depthjepa.data.scenes.photographs import Photographs
from depthjepa.data.scenes.streets import STREETS
from depthjepa.faults import BadInput

_RAYS = 280_000  # cast at once: 33 scenes of 64 pixels, less than 100 MB


@dataclass(frozen=True, slots=True)
class Rendered:
    """Pictures of scenes with what is known about every pixel."""

    images: UInt8[Tensor, "b 3 h w"]
    depth: Float32[Tensor, "b 1 h w"]  # [m] along the optical axis; 0: nothing, or farther than FARTHEST
    classes: UInt8[Tensor, "b h w"]  # index into the world's classes
    labels: Int64[Tensor, " b"]  # index into the world's kinds: the nearest object's; -1: none
    focal: Float32[Tensor, " b"]  # [pixel]


def render(
    indices: Int[np.ndarray, " b"],
    *,
    seed: int,
    size: tuple[int, int],
    world: World = STREETS,
    photographs: Photographs | None = None,
    device: torch.device | str = "cpu",
) -> Rendered:
    """Render the scenes `indices` (>= 0) at `size` (height, width): a pure function of all that is given.

    The scene itself depends on (seed, index) alone: another size samples the same view more finely or coarsely.
    The view is fixed on the picture's shorter side; a longer side shows more of the scene.
    """
    height, width = size
    if min(size) < 1:
        raise BadInput(f"the size of a scene must be at least 1x1 pixel, not {height}x{width}")
    if len(indices) == 0:
        raise BadInput("there are no scenes to render: the list of indices is empty")
    device, count = torch.device(device), 0 if photographs is None else len(photographs)
    photographs = None if photographs is None else photographs.to(device)
    layouts = (world.arrange(part, seed=seed, photographs=count) for part in _parts(indices, size))
    chunks = [picture(layout, size, device, world, photographs) for layout in layouts]
    if len(chunks) == 1:
        return chunks[0]
    return Rendered(*(torch.cat([getattr(chunk, field.name) for chunk in chunks]) for field in fields(Rendered)))


def picture(
    layout: Layout,
    size: tuple[int, int],
    device: torch.device,
    world: World = STREETS,
    photographs: Photographs | None = None,
) -> Rendered:
    """Cast and paint the scenes of a layout, all at once."""
    (height, width), scenes, pixels = size, len(layout.labels), size[0] * size[1]
    places, back = ray_places(size)
    rays = view_rays(layout.camera, places, min(size), device)
    depth, hit = cast(layout, rays, places)
    colour = shade(layout, rays, depth, hit, photographs)

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
    classes = torch.where(hit >= 0, category, world.ground) * seen
    return Rendered(
        images=images,
        depth=torch.where(seen, depth, 0).view(scenes, 1, height, width),
        classes=classes.to(torch.uint8).view(scenes, height, width),
        labels=torch.from_numpy(layout.labels).to(device),
        focal=torch.from_numpy(layout.camera.focal * min(size)).to(device, torch.float32),
    )


def surface_normals(
    indices: Int[np.ndarray, " b"], *, seed: int, size: tuple[int, int], world: World = STREETS
) -> Float32[Tensor, "b 3 h w"]:
    """Unit normals of what the pixels' centre rays of the scenes `indices` meet, in the frame of the camera.

    x is right, y down, z forward, so that normals, which point to the camera, have a z below 0 where it looks straight
    at them. 0 where `render` gives no depth.
    """
    return torch.cat([_normals(world.arrange(part, seed=seed), size) for part in _parts(indices, size)])


def _parts(indices: Int[np.ndarray, " b"], size: tuple[int, int]) -> Iterator[Int[np.ndarray, " part"]]:
    """The scenes, as many at a time as are cast at once."""
    height, width = size
    together = max(1, _RAYS // (height * width + (height + 1) * (width + 1)))
    return (indices[first : first + together] for first in range(0, len(indices), together))


def _normals(layout: Layout, size: tuple[int, int]) -> Float32[Tensor, "b 3 h w"]:
    (height, width), places = size, ray_places(size)
    rays = view_rays(layout.camera, places[0], min(size), torch.device("cpu"))
    depth, hit = cast(layout, rays, places[0])
    pitch, roll = (
        (turn[0], turn[1]) for turn in (columns(each, rays.scene) for each in (layout.camera.pitch, layout.camera.roll))
    )
    across, up, ahead = to_camera(facing(layout, rays, depth, hit), None, pitch, roll)
    normals = torch.stack([across, -up, ahead])
    seen = torch.where(depth <= FARTHEST, normals, 0).view(3, len(layout.labels), -1)
    order = torch.from_numpy(places[1][: height * width])
    return seen.index_select(2, order).view(3, -1, height, width).transpose(0, 1)
