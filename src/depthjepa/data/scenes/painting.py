"""Colours of what the rays of a scene meet: sky, ground, and the painted faces of primitives, in linear light.

Light is one far sun and the open sky (Lambert); nothing casts a shadow and the air is clear up to the farthest
depth that counts, so colour says nothing about distance. Patterns are integrated over the pixel in closed form
and noise fades as it becomes finer than a pixel, so nothing flickers far away. Where photographs are given they cover a
share of the paint, in its tint.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from depthjepa.data.scenes.casting import Rays, Vector, columns
from depthjepa.data.scenes.layout import AXLE, BOX, CYLINDER, ELLIPSOID, Layout, Skins
from depthjepa.data.scenes.photographs import Photographs
from depthjepa.runtime import permutation

FARTHEST = 80.0  # [m]; beyond it nothing has a depth
_HAZE = 240.0  # [m]; where the ground has taken on the colour of the horizon


def shade(
    layout: Layout,
    rays: Rays,
    depth: Float[Tensor, "n k"],
    hit: Int32[Tensor, "n k"],
    photographs: Photographs | None = None,
) -> Float[Tensor, "n 3 k"]:
    """Colour of every ray, given its depth (infinite: sky) and its primitive (-1: none).

    A layout that has skins needs the photographs that it was laid out for.
    """
    colour = depth.new_zeros(len(depth), 3, depth.shape[1])
    sky, solid = torch.isinf(depth), hit >= 0
    for where, paint in ((sky, _sky), (~(sky | solid), _ground), (solid, _surface)):
        rows = where.any(dim=1).nonzero()[:, 0]
        mask = where[rows]
        depths, numbers = torch.where(mask, depth[rows], 1), hit[rows].clamp(min=0).long()
        painted = torch.stack(paint(layout, rays.of(rows), depths, numbers, photographs), dim=1)
        colour[rows] = torch.where(mask[:, None], painted, colour[rows])
    return colour


def _sky(
    layout: Layout,
    rays: Rays,
    depth: Float[Tensor, "n k"],
    hit: Int64[Tensor, "n k"],
    photographs: Photographs | None,
) -> list[Tensor]:
    """From the horizon's colour to the zenith's, with clouds on a level far above."""
    around = layout.surroundings
    cover, rate = columns(around.cloud, rays.scene)
    horizon, zenith, cloud = (columns(around.sky[:, part], rays.scene) for part in range(3))
    up = rays.y.clamp(min=0) / torch.sqrt(rays.x * rays.x + rays.y * rays.y + rays.z * rays.z)
    spread = rate / (up + 0.15)
    x, z = rays.x * spread, rays.z * spread
    puffs = 0.65 * _noise(x, z) + 0.35 * _noise(2.7 * x, 2.7 * z)
    clouds = ((puffs - 1 + cover) * 3).clamp(0, 1)
    height = (1.6 * up).clamp(max=1)
    mixed = []
    for low, high, white in zip(horizon, zenith, cloud, strict=True):
        clear = low + (high - low) * height
        mixed.append(clear + (white - clear) * clouds)
    if layout.sky_skins is not None and photographs is not None:
        # Where clouds are spread wider, a pixel covers more of their level, and of its length as the square.
        wide = rays.pixel / (up + 0.15)
        skin = _Skin(*columns(_table(layout.sky_skins), rays.scene))
        mixed = skin.over(mixed, photographs, rays.x / (up + 0.15), rays.z / (up + 0.15), wide, wide / (up + 0.15))
    return mixed


def _ground(
    layout: Layout,
    rays: Rays,
    depth: Float[Tensor, "n k"],
    hit: Int64[Tensor, "n k"],
    photographs: Photographs | None,
) -> list[Tensor]:
    """Road, verges, edge lines and a dashed middle line in the frame of the street."""
    around = layout.surroundings
    cosine, sine = columns(around.street, rays.scene)
    middle, half = columns(np.stack([around.middle, around.road], axis=-1), rays.scene)
    rate, duty, strength = columns(around.dash, rays.scene)
    amplitude, noise_rate = columns(around.rough, rays.scene)
    x, z = rays.x * depth, rays.z * depth
    across, along = cosine * x - sine * z - middle, sine * x + cosine * z
    if around.start is not None:
        along = along + columns(around.start, rays.scene)[0]
    aside = across.abs()
    blur = rays.pixel * depth
    long = blur * (depth / columns(layout.camera.height, rays.scene)[0])  # a pixel on the ground is longer than wide

    def strip(place: Tensor | float, wide: float) -> Tensor:
        """Share of a pixel on the strip of that half width, `place` metres from the middle."""
        return ((wide - (aside - place).abs()) / blur + 0.5).clamp(0, 1) * (2 * wide / blur).clamp(max=1)

    road = ((half - aside) / blur + 0.5).clamp(0, 1)
    dashes = pulses(along * rate, duty, long * rate)
    marks = (strip(0.0, 0.08) * dashes + strip(half - 0.3, 0.07)).clamp(max=1) * strength
    grain = _noise(across * noise_rate, along * noise_rate)
    rough = 1 + amplitude * (grain - 0.5) * (1.5 - long * noise_rate).clamp(0, 1)
    up = columns(_ground_normal(layout), rays.scene)
    lights = _light(layout, rays, (up[0], up[1], up[2]))
    haze = ((depth - FARTHEST) / (_HAZE - FARTHEST)).clamp(0, 1)
    mixed = []
    inners, outers, marked, horizons = (
        columns(colours, rays.scene) for colours in (*np.moveaxis(around.ground, 1, 0), around.sky[:, 0])
    )
    if layout.ground_skins is not None and photographs is not None:
        skins = [columns(_table(layout.ground_skins)[:, part], rays.scene) for part in range(2)]
        inners, outers = (
            _Skin(*skin).over(colours, photographs, across, along, blur, long)
            for skin, colours in zip(skins, (inners, outers), strict=True)
        )
    for inner, outer, mark, horizon, light in zip(inners, outers, marked, horizons, lights, strict=True):
        base = outer + (inner - outer) * road
        lit = (base + (mark - base) * marks) * rough * light
        mixed.append(lit + (horizon - lit) * haze)
    return mixed


def _surface(
    layout: Layout,
    rays: Rays,
    depth: Float[Tensor, "n k"],
    hit: Int64[Tensor, "n k"],
    photographs: Photographs | None,
) -> list[Tensor]:
    """The painted face of the primitive each ray hits."""
    paint = layout.primitives.paint
    touched = _touched(layout, rays, depth, hit)
    shape, (half_x, _, half_z), unit, normal = touched.shape, touched.half, touched.unit, touched.normal
    (x, y, z), (nx, ny, nz) = touched.place, touched.outward
    at_hit = _Looked(layout, rays, hit)
    flat = (shape == BOX) | (shape == AXLE)
    top = (ny != 0) & (nx == 0) & (nz == 0) & (shape != ELLIPSOID)
    side = (shape == BOX) & (nx != 0)

    # Across a round surface runs a stand-in for the angle that needs no arc tangent.
    diamond = unit[0] / (unit[0].abs() + unit[2].abs() + 1e-20) * (half_x + half_z)
    across = torch.where(side, z, torch.where(flat, x, diamond))
    blur = rays.pixel * depth
    slant = (normal[0] * rays.x + normal[1] * rays.y + normal[2] * rays.z).abs().clamp(min=0.1)
    long = blur / slant
    rate_x, rate_y, duty_x, duty_y, phase_x, phase_y = at_hit(paint.rate, paint.duty, paint.phase)
    checked, amplitude, noise_rate, gradient = at_hit(paint.checked, paint.rough)
    upright = pulses(across * rate_x + phase_x, duty_x, long * rate_x)
    level = pulses(y * rate_y + phase_y, duty_y, blur * rate_y)
    both = upright * level
    second = torch.where(top, 0, both + checked * (upright + level - 3 * both))
    grain = _noise(across * noise_rate, torch.where(top, z, y) * noise_rate)
    rough = 1 + amplitude * (grain - 0.5) * (1.5 - long * noise_rate).clamp(0, 1) + gradient * unit[1]
    colours, lights = at_hit(paint.colours), _light(layout, rays, normal)
    painted = [first + (other - first) * second for first, other in zip(colours[:3], colours[3:], strict=True)]
    if layout.skins is not None and photographs is not None:
        skin, over = _Skin(*at_hit(_table(layout.skins))), torch.where(top, z, y)
        painted = skin.over(painted, photographs, across, over, long, torch.where(top, long, blur))
    return [colour * rough * light for colour, light in zip(painted, lights, strict=True)]


@dataclass(frozen=True, slots=True)
class _Skin:
    """The photograph on what each ray meets: `Skins` looked up."""

    number: Tensor
    rate: Tensor
    shift_across: Tensor
    shift_up: Tensor
    share: Tensor

    def over(
        self, paint: list[Tensor], photographs: Photographs, across: Tensor, up: Tensor, wide: Tensor, tall: Tensor
    ) -> list[Tensor]:
        """Paint under its photograph, which takes on its tint: at that place [m], over a pixel of that size [m]."""
        seen = photographs.seen(
            self.number.long().expand_as(across),
            across * self.rate + self.shift_across,
            up * self.rate + self.shift_up,
            wide * self.rate,
            tall * self.rate,
        )
        return [
            colour + (picture * (0.5 + 1.4 * colour) - colour) * self.share
            for colour, picture in zip(paint, seen, strict=True)
        ]


def _table(skins: Skins) -> Float[np.ndarray, "b p 5"]:
    """What `_Skin` holds, in its order."""
    return np.stack([skins.number, skins.rate, skins.shift[..., 0], skins.shift[..., 1], skins.share], axis=-1)


@dataclass(frozen=True, slots=True)
class _Looked:
    """Numbers of the primitive that each ray hits."""

    layout: Layout
    rays: Rays
    hit: Int64[Tensor, "n k"]

    def __call__(self, *values: np.ndarray) -> list[Tensor]:
        shape = self.layout.primitives.shape
        which = self.rays.scene[:, None] * shape.shape[1] + self.hit
        table = np.concatenate([value.reshape(shape.size, -1) for value in values], axis=1)
        columns_of = torch.from_numpy(table.T.copy()).to(which.device, torch.float32)
        return list(columns_of.index_select(1, which.view(-1)).view(-1, *which.shape))


@dataclass(frozen=True, slots=True)
class _Touched:
    """Where rays touch the primitives that they hit."""

    shape: Float[Tensor, "n k"]
    half: Vector  # half sizes [m]
    place: Vector  # in the primitive's own frame [m]
    unit: Vector  # the same in half sizes
    outward: Vector  # normal in the unit frame, of any length
    normal: Vector  # unit normal in the world


def _touched(layout: Layout, rays: Rays, depth: Float[Tensor, "n k"], hit: Int64[Tensor, "n k"]) -> _Touched:
    primitives, at_hit = layout.primitives, _Looked(layout, rays, hit)
    shape, cx, cy, cz, cosine, sine = at_hit(primitives.shape, primitives.centre, primitives.turn)
    half = at_hit(primitives.half)
    x, y, z = rays.x * depth - cx, rays.y * depth - cy, rays.z * depth - cz
    x, z = cosine * x - sine * z, sine * x + cosine * z
    unit = (x / half[0], y / half[1], z / half[2])
    outward = _unit_normal(unit, shape)
    nx, ny, nz = (each / size for each, size in zip(outward, half, strict=True))
    scale = 1 / (torch.sqrt(nx * nx + ny * ny + nz * nz) + 1e-20)
    normal = ((cosine * nx + sine * nz) * scale, ny * scale, (cosine * nz - sine * nx) * scale)
    return _Touched(shape, (half[0], half[1], half[2]), (x, y, z), unit, outward, normal)


def facing(layout: Layout, rays: Rays, depth: Float[Tensor, "n k"], hit: Int32[Tensor, "n k"]) -> Vector:
    """Unit normal, in the world, of the surface that each ray meets: of the ground where it hits no primitive."""
    up = columns(_ground_normal(layout), rays.scene)
    known = torch.where(torch.isfinite(depth), depth, 1)
    normal = _touched(layout, rays, known, hit.clamp(min=0).long()).normal
    x, y, z = (torch.where(hit >= 0, own, level) for own, level in zip(normal, up, strict=True))
    return x, y, z


def _ground_normal(layout: Layout) -> Float[np.ndarray, "b 3"]:
    tilt = 1 / np.sqrt(1 + layout.camera.slope**2)
    return np.stack([-layout.camera.slope * tilt, tilt, np.zeros_like(tilt)], axis=-1)


def _light(layout: Layout, rays: Rays, normal: Vector) -> list[Tensor]:
    """What reaches a face: the sun by the cosine of its angle, the sky by how far the face looks up."""
    around = layout.surroundings
    sun = columns(around.sun, rays.scene)
    facing = (normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2]).clamp(min=0)
    open_sky = 0.7 + 0.3 * normal[1]
    return [
        facing * direct + open_sky * scattered
        for direct, scattered in zip(
            columns(around.light, rays.scene), columns(around.ambient, rays.scene), strict=True
        )
    ]


def _unit_normal(unit: Vector, shape: Float[Tensor, "n k"]) -> Vector:
    """Outward normal, of any length, of the shape in its unit frame at a point on its surface."""
    x, y, z = unit
    size_x, size_y, size_z = x.abs(), y.abs(), z.abs()
    box, cylinder, axle = shape == BOX, shape == CYLINDER, shape == AXLE
    round_y, round_x = x * x + z * z > y * y, y * y + z * z > x * x
    keep_x = ~(box & (size_x < torch.maximum(size_y, size_z))) & ~(cylinder & ~round_y) & ~(axle & round_x)
    keep_y = ~(box & (size_y < torch.maximum(size_x, size_z))) & ~(cylinder & round_y) & ~(axle & ~round_x)
    keep_z = ~(box & (size_z < torch.maximum(size_x, size_y))) & ~(cylinder & ~round_y) & ~(axle & ~round_x)
    return x * keep_x, y * keep_y, z * keep_z


def pulses(x: Tensor, duty: Tensor, width: Tensor) -> Tensor:
    """Mean over [x - width / 2, x + width / 2] of the train of pulses that is 1 on the first `duty` of each unit."""
    width = width.clamp(min=0.02)
    ends = []
    for end in (x + 0.5 * width, x - 0.5 * width):
        whole = torch.floor(end)
        ends.append(whole * duty + torch.minimum(end - whole, duty))
    return ((ends[0] - ends[1]) / width).clamp(0, 1)


def _noise(x: Tensor, y: Tensor) -> Tensor:
    """Smooth noise in [0, 1): random numbers on a lattice that repeats after 64, blended between its points."""
    table = _lattice(x.device)
    left, low = torch.floor(x), torch.floor(y)
    u, v = x - left, y - low
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    column, row = left.int() & 63, (low.int() & 63) * 64
    next_column, next_row = (column + 1) & 63, (row + 64) & 4095
    a, b, c, d = (
        table.index_select(0, place.view(-1)).view_as(x)
        for place in (row + column, row + next_column, next_row + column, next_row + next_column)
    )
    a, c = a + (b - a) * u, c + (d - c) * u
    return a + (c - a) * v


@functools.cache
def _lattice(device: torch.device) -> Float[Tensor, " 4096"]:
    order = permutation(4096, seed=0, stream="scene/noise", epoch=0)
    return torch.from_numpy(order / 4096).to(device, torch.float32)
