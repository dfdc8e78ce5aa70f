"""Rays against the ground and every primitive of a scene, in closed form.

A ray is written so that its parameter t is the depth along the optical axis (its component along that axis is
1), hence depth is exact to float32. Every primitive is convex: a ray enters it at the largest of the values of t
at which it enters the slabs, tube or sphere that make it up, and leaves it at the smallest (Kay and Kajiya 1986).
Only elementwise, exactly rounded operations are used: a ray's result does not depend on the rays beside it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor

from depthjepa.data.scenes.layout import ABSENT, AXLE, BOX, CYLINDER, ELLIPSOID, Camera, Layout, Primitives

TILE = 128  # rays


@dataclass(frozen=True, slots=True)
class Rays:
    """Directions in the world, one unit of depth long. A row `n` is a tile of `TILE` rays of one scene."""

    x: Float[Tensor, "n k"]
    y: Float[Tensor, "n k"]
    z: Float[Tensor, "n k"]
    scene: Int64[Tensor, " n"]
    pixel: Float[Tensor, "n 1"]  # size of a pixel at depth 1

    def of(self, rows: Int64[Tensor, " m"]) -> Rays:
        return Rays(*(getattr(self, field.name).index_select(0, rows) for field in fields(self)))


@functools.lru_cache(maxsize=8)
def ray_places(size: tuple[int, int]) -> tuple[Float[np.ndarray, "t k 2"], Int[np.ndarray, " r"]]:
    """Where rays pierce the picture: right and down of its middle, its shorter side being 1.

    Rays run through all pixel centres, then all pixel corners, but are sorted along a Z-shaped curve (Morton
    1966) and cut into tiles, so that a tile is compact and few primitives reach into it. Also returned: where in
    the sorted order each ray is.
    """
    height, width = size
    down, right = (
        np.concatenate([np.ravel(part) for part in parts])
        for parts in zip(
            np.mgrid[1 : 2 * height : 2, 1 : 2 * width : 2],
            np.mgrid[0 : 2 * height + 1 : 2, 0 : 2 * width + 1 : 2],
            strict=True,
        )
    )
    key = np.zeros(len(down), dtype=np.int64)
    for bit in range(20):
        key |= (right >> bit & 1) << 2 * bit | (down >> bit & 1) << 2 * bit + 1
    order = np.argsort(key, kind="stable")
    padded = np.resize(order, -(-len(order) // TILE) * TILE)
    padded[len(order) :] = order[-1]
    places = np.stack([right - width, down - height], axis=-1) / (2 * min(size))
    return places[padded].reshape(-1, TILE, 2), np.argsort(order, kind="stable")


def columns(values: np.ndarray, rows: Int64[Tensor, " n"]) -> list[Tensor]:
    """The numbers of each scene, or each primitive, at the given ones: one tensor [n, 1] each."""
    flat = torch.from_numpy(np.ascontiguousarray(values.reshape(len(values), -1).T))
    return list(flat.to(rows.device, torch.float32).index_select(1, rows)[..., None])


def view_rays(camera: Camera, places: np.ndarray, unit: int, device: torch.device) -> Rays:
    scene = torch.arange(len(camera.focal), device=device).repeat_interleave(len(places))
    right, down = torch.from_numpy(places).to(device, torch.float32).repeat(len(camera.focal), 1, 1).unbind(-1)
    pixel, scale = columns(np.stack([1 / (camera.focal * unit), 1 / camera.focal], axis=-1), scene)
    pitch_cosine, pitch_sine = columns(camera.pitch, scene)
    roll_cosine, roll_sine = columns(camera.roll, scene)
    across, up = right * scale, -down * scale
    level = roll_sine * across + roll_cosine * up
    x, z = roll_cosine * across - roll_sine * up, pitch_cosine - level * pitch_sine
    if camera.yaw is not None:
        yaw_cosine, yaw_sine = columns(camera.yaw, scene)
        x, z = yaw_cosine * x + yaw_sine * z, yaw_cosine * z - yaw_sine * x
    return Rays(x=x, y=level * pitch_cosine + pitch_sine, z=z, scene=scene, pixel=pixel)


Vector = tuple[Tensor, Tensor, Tensor]
Numbers = TypeVar("Numbers", np.ndarray, Tensor)


def to_camera(
    world: tuple[Numbers, Numbers, Numbers],
    yaw: tuple[Numbers, Numbers] | None,
    pitch: tuple[Numbers, Numbers],
    roll: tuple[Numbers, Numbers],
) -> tuple[Numbers, Numbers, Numbers]:
    """Turn from the world's axes to a camera's, (across, up, ahead): what `view_rays` undoes. Turns: (cosine, sine)."""
    x, y, z = world
    if yaw is not None:
        x, z = yaw[0] * x - yaw[1] * z, yaw[0] * z + yaw[1] * x
    ahead, level = pitch[1] * y + pitch[0] * z, pitch[0] * y - pitch[1] * z
    return roll[0] * x + roll[1] * level, roll[0] * level - roll[1] * x, ahead


def cast(
    layout: Layout, rays: Rays, places: Float[np.ndarray, "t k 2"] | None
) -> tuple[Float[Tensor, "n k"], Int32[Tensor, "n k"]]:
    """Depth of the nearest hit of each ray (infinite: sky) and which primitive it is (-1: the ground, or sky).

    Each tile of rays meets only the primitives whose outline in the picture reaches into it; without the places of its
    rays in the picture, all.
    """
    primitives, device = layout.primitives, rays.x.device
    height, slope = columns(np.stack([layout.camera.height, layout.camera.slope], axis=-1), rays.scene)
    fall = slope * rays.x - rays.y
    best = torch.where(fall > 0, height / fall, torch.inf)
    hit = torch.full_like(best, -1, dtype=torch.int32)
    frames, count = torch.from_numpy(_unit_frames(primitives)).to(device, torch.float32), primitives.shape.shape[1]
    tiles = len(rays.scene) // len(primitives.shape)  # of a scene
    shape_of = np.repeat(primitives.shape, tiles, axis=0)
    overlap = shape_of != ABSENT if places is None else _overlaps(layout, places).reshape(-1, count)
    for shape, interval in ((BOX, _box), (CYLINDER, _cylinder), (AXLE, _axle), (ELLIPSOID, _ellipsoid)):
        mine = overlap & (shape_of == shape)
        many = mine.sum(axis=1)
        rows = np.argsort(-many, kind="stable")[: np.count_nonzero(many)]  # those with most primitives first
        row, primitive = np.nonzero(mine[rows])
        turn = np.arange(len(row)) - (np.add.accumulate(many[rows]) - many[rows])[row]
        here = torch.from_numpy(rows).to(device)
        x, y, z, near_best, near_hit = (of.index_select(0, here) for of in (rays.x, rays.y, rays.z, best, hit))
        for number in (primitive[turn == k] for k in range(many.max())):
            n = len(number)
            which = torch.from_numpy(rows[:n] // tiles * count + number).to(device)
            xx, xz, yy, zx, zz, ox, oy, oz = frames.index_select(1, which)[..., None]
            local = (xx * x[:n] - xz * z[:n], yy * y[:n], zx * x[:n] + zz * z[:n])
            near, far = interval((ox, oy, oz), local)
            closer = (near <= torch.minimum(far, near_best[:n])) & (near > 0)
            named = torch.from_numpy(number.astype(np.int32)).to(device)[:, None]
            near_best[:n] = torch.where(closer, near, near_best[:n])
            near_hit[:n] = torch.where(closer, named, near_hit[:n])
        best[here], hit[here] = near_best, near_hit
    return best, hit


def _unit_frames(primitives: Primitives) -> Float[np.ndarray, "8 p"]:
    """Of each primitive: the five numbers that turn and scale a direction, and the camera in its unit frame."""
    (x, y, z), (a, b, c) = np.moveaxis(primitives.centre, -1, 0), np.moveaxis(primitives.half, -1, 0)
    cosine, sine = np.moveaxis(primitives.turn, -1, 0)
    scale = [cosine / a, sine / a, 1 / b, sine / c, cosine / c]
    origin = [-(cosine * x - sine * z) / a, -y / b, -(sine * x + cosine * z) / c]
    return np.stack([*scale, *origin]).reshape(8, -1)


def _overlaps(layout: Layout, places: Float[np.ndarray, "t k 2"]) -> Bool[np.ndarray, "b t p"]:
    """Whether the outline of a primitive's bounding box may reach into a tile of rays; never falsely no."""
    camera, primitives = layout.camera, layout.primitives
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=np.float64)
    x, y, z = np.moveaxis(signs * primitives.half[:, :, None], -1, 0)
    cosine, sine = np.moveaxis(primitives.turn[:, :, None], -1, 0)
    x, z = cosine * x + sine * z, cosine * z - sine * x
    x, y, z = np.moveaxis(np.stack([x, y, z], axis=-1) + primitives.centre[:, :, None], -1, 0)
    yaw, pitch, roll = (
        None if turn is None else (turn[:, None, None, 0], turn[:, None, None, 1])
        for turn in (camera.yaw, camera.pitch, camera.roll)
    )
    assert pitch is not None and roll is not None
    across, up, depth = to_camera((x, y, z), yaw, pitch, roll)
    ahead = depth > 1e-3
    scale = camera.focal[:, None, None] / np.where(ahead, depth, 1.0)
    plane = np.stack([across * scale, -up * scale], axis=-1)
    least, most = plane.min(axis=2) - 1e-6, plane.max(axis=2) + 1e-6
    beside = ~ahead.all(axis=2)[..., None]  # reaches behind the camera: anywhere in the picture
    least, most = np.where(beside, -np.inf, least)[:, None], np.where(beside, np.inf, most)[:, None]
    low, high = places.min(axis=1)[None, :, None], places.max(axis=1)[None, :, None]
    meets = (least <= high) & (most >= low)
    overlap: np.ndarray = meets[..., 0] & meets[..., 1] & ahead.any(axis=2)[:, None]
    return overlap


def _slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where a ray enters and leaves |x| <= 1. A ray exactly along the slab is tilted by nothing that shows."""
    inverse = 1 / (direction + 1e-30)
    middle, reach = -origin * inverse, inverse.abs()
    return middle - reach, middle + reach


def _box(origin: Vector, ray: Vector) -> tuple[Tensor, Tensor]:
    (x0, x1), (y0, y1), (z0, z1) = map(_slab, origin, ray)
    return torch.maximum(torch.maximum(x0, y0), z0), torch.minimum(torch.minimum(x1, y1), z1)


def _tube(ox: Tensor, oz: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Enter and leave x^2 + z^2 <= 1; not a number where it is missed. The cross product keeps thin, far ones exact."""
    cross = ox * z - oz * x
    inverse = 1 / (x * x + z * z)
    middle = -(ox * x + oz * z) * inverse
    reach = torch.sqrt(x * x + z * z - cross * cross) * inverse
    return middle - reach, middle + reach


def _cylinder(origin: Vector, ray: Vector) -> tuple[Tensor, Tensor]:
    (x0, x1), (y0, y1) = _tube(origin[0], origin[2], ray[0], ray[2]), _slab(origin[1], ray[1])
    return torch.maximum(x0, y0), torch.minimum(x1, y1)


def _axle(origin: Vector, ray: Vector) -> tuple[Tensor, Tensor]:
    (y0, y1), (x0, x1) = _tube(origin[1], origin[2], ray[1], ray[2]), _slab(origin[0], ray[0])
    return torch.maximum(x0, y0), torch.minimum(x1, y1)


def _ellipsoid(origin: Vector, ray: Vector) -> tuple[Tensor, Tensor]:
    (ox, oy, oz), (x, y, z) = origin, ray
    a, b, c = oy * z - oz * y, oz * x - ox * z, ox * y - oy * x
    squared = x * x + y * y + z * z
    inverse = 1 / squared
    middle = -(ox * x + oy * y + oz * z) * inverse
    reach = torch.sqrt(squared - (a * a + b * b + c * c)) * inverse
    return middle - reach, middle + reach
