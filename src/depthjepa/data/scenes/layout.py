"""What a rendered scene is before it has pixels: camera, primitives, paint and surroundings, in numpy.

World axes: x right, y up, z forward and level, metres, the camera at the origin. The ground is the plane
`y = slope * x - height`. The camera is pitched and rolled; a second view (two_views.py) is turned as well.

A `World` says what stands where, as a pure function of (seed, scene index): streets.py, rooms.py. Colours and patterns
come from one palette for everything, drawn independently of what they cover, and so do photographs, where there are
any (`Skins`).

Only exactly rounded operations are used (no sine, no power): angles are drawn as t = tan(angle / 2), distances
as their inverse. A scene is therefore the same to the last bit, whatever the others computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from depthjepa.runtime import uniforms

BOX, CYLINDER, AXLE, ELLIPSOID = range(4)  # an axle is a cylinder that lies along its own x axis
ABSENT = -1

# How a part is painted: in the object's first colour, in its second, dark, or with a dark band (windows of a car).
FIRST, SECOND, DARK, BAND = range(4)
Triple = tuple[int | float, int | float, int | float]
# Shape, centre (x, y, z), half size, paint. Lengths are shares of the whole object's width, height and length; x and z
# are measured from its middle, y from the ground.
Part = tuple[int, Triple, Triple, int]


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole camera. Rotations are (cosine, sine); `focal` is in units of the picture's shorter side."""

    focal: Float[np.ndarray, " b"]
    pitch: Float[np.ndarray, "b 2"]  # positive: looks up
    roll: Float[np.ndarray, "b 2"]
    height: Float[np.ndarray, " b"]  # above the ground below it [m]
    slope: Float[np.ndarray, " b"]  # rise of the ground to the right [m/m]
    yaw: Float[np.ndarray, "b 2"] | None = None  # turn to the right; None: along z, as every first view looks


@dataclass(frozen=True, slots=True)
class Paint:
    """Two colours and where the second shows: pulses across and up the surface, roughened by noise."""

    colours: Float[np.ndarray, "b p 2 3"]  # linear light, [0, 1]
    rate: Float[np.ndarray, "b p 2"]  # pulses a metre, across and up
    duty: Float[np.ndarray, "b p 2"]  # share of a period that a pulse lasts
    phase: Float[np.ndarray, "b p 2"]
    checked: Float[np.ndarray, "b p"]  # 1: second colour where one pulse is on and not the other, 0: where both are
    rough: Float[np.ndarray, "b p 3"]  # noise: amplitude and rate (1/m); brightening from bottom to top


@dataclass(frozen=True, slots=True)
class Primitives:
    """Boxes, elliptic cylinders and ellipsoids.

    A point of the world, less `centre`, turned to (cos x - sin z, y, sin x + cos z) and divided by `half`, is a
    point in the frame where the primitive is a cube of side 2, a cylinder of radius 1 and height 2, a unit sphere.
    """

    shape: Int[np.ndarray, "b p"]  # BOX, CYLINDER, AXLE, ELLIPSOID or ABSENT
    category: Int[np.ndarray, "b p"]  # index into the world's classes
    centre: Float[np.ndarray, "b p 3"]
    half: Float[np.ndarray, "b p 3"]
    turn: Float[np.ndarray, "b p 2"]
    paint: Paint


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The street's frame, the ground, the sky and the light. Colours are linear light."""

    street: Float[np.ndarray, "b 2"]  # turn of the street against the view
    middle: Float[np.ndarray, " b"]  # of the road, to the right of the camera [m]
    road: Float[np.ndarray, " b"]  # half width of the road [m]
    dash: Float[np.ndarray, "b 3"]  # rate (1/m), duty and strength of the lane marking
    ground: Float[np.ndarray, "b 3 3"]  # colours of road, verge, marking
    rough: Float[np.ndarray, "b 2"]  # amplitude and rate (1/m) of the ground's noise
    sky: Float[np.ndarray, "b 3 3"]  # colours of horizon, zenith, cloud
    cloud: Float[np.ndarray, "b 2"]  # cover and rate
    sun: Float[np.ndarray, "b 3"]  # unit vector towards the light
    light: Float[np.ndarray, "b 3"]  # colour of the direct light
    ambient: Float[np.ndarray, "b 3"]
    start: Float[np.ndarray, " b"] | None = None  # how far along the street the camera has gone [m]; None: not at all


@dataclass(frozen=True, slots=True)
class Skins:
    """Which photograph covers a surface, and how. One tile is a whole photograph; beyond it, it is mirrored."""

    number: Int[np.ndarray, "b p"]  # which photograph
    rate: Float[np.ndarray, "b p"]  # tiles a metre
    shift: Float[np.ndarray, "b p 2"]  # [tile], across and up
    share: Float[np.ndarray, "b p"]  # of the colour that is the photograph's; 0: paint alone


@dataclass(frozen=True, slots=True)
class Layout:
    """Scenes ready to be cast: everything but the pixels. Skins are there where photographs are to cover surfaces."""

    labels: Int[np.ndarray, " b"]  # index into the kinds of the nearest object; -1: none
    camera: Camera
    primitives: Primitives
    surroundings: Surroundings
    skins: Skins | None = None  # of the primitives
    ground_skins: Skins | None = None  # of what lies within the road's width, and of what lies beside
    sky_skins: Skins | None = None  # one; tiles a unit of the clouds' level


@runtime_checkable
class Arrange(Protocol):
    """Lay out the scenes `indices` (>= 0), with skins of that many photographs: row by row a pure function."""

    def __call__(self, indices: Int[np.ndarray, " b"], *, seed: int, photographs: int = 0) -> Layout: ...


@dataclass(frozen=True, slots=True)
class World:
    """A kind of scenes: how they are laid out, and what is in them."""

    arrange: Arrange
    classes: tuple[str, ...]  # of what pixels show; the first one where nothing has a depth
    kinds: tuple[str, ...]  # of the nearest object, which labels are about; empty: no labels
    ground: int  # index into classes of the plane


@dataclass(frozen=True, slots=True)
class Objects:
    """Whole objects, each of which is one or several primitives."""

    category: Int[np.ndarray, "b o"]  # index into the world's classes
    present: Bool[np.ndarray, "b o"]
    size: Float[np.ndarray, "b o 3"]
    turn: Float[np.ndarray, "b o 2"]
    centre: Float[np.ndarray, "b o 3"]  # of the bounding box

    @classmethod
    def joined(cls, *groups: Objects) -> Objects:
        """Put groups of objects one after the other."""
        return cls(*(np.concatenate([getattr(group, each.name) for group in groups], axis=1) for each in fields(cls)))


class Shapes:
    """The parts of each kind of object, as arrays over (kind, part)."""

    def __init__(self, kinds: Sequence[Sequence[Part]]) -> None:
        self.most = max(len(parts) for parts in kinds)
        nothing: Part = (ABSENT, (0, 0, 0), (1, 1, 1), FIRST)
        padded = [[*parts, *[nothing] * (self.most - len(parts))] for parts in kinds]
        self.shape = np.array([[part[0] for part in parts] for parts in padded])
        self.centre = np.array([[part[1] for part in parts] for parts in padded], dtype=np.float64)
        self.half = np.array([[part[2] for part in parts] for parts in padded], dtype=np.float64)
        self.paint = np.array([[part[3] for part in parts] for parts in padded])


class Draws:
    """Uniform numbers of scenes; each purpose has a stream of its own."""

    def __init__(self, indices: np.ndarray, seed: int) -> None:
        self.indices, self.seed = indices, seed

    def __call__(self, purpose: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        rows = uniforms(count, seed=self.seed, stream=f"scene/{purpose}", epoch=0, indices=self.indices)
        return rows.reshape(len(self.indices), *shape)


def between(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    return low + (high - low) * u


def turn_of(u: np.ndarray, limit: float) -> np.ndarray:
    """Cosine and sine of an angle with tan(angle / 2) = limit * u, on a new last axis."""
    t = limit * u
    return np.stack([(1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)], axis=-1)


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine and sine of the sum of two angles."""
    cosine = first[..., 0] * second[..., 0] - first[..., 1] * second[..., 1]
    sine = first[..., 1] * second[..., 0] + first[..., 0] * second[..., 1]
    return np.stack([cosine, sine], axis=-1)


def palette(u: np.ndarray, darkest: float = 0.12, brightest: float = 0.92, vivid: float = 0.85) -> np.ndarray:
    """Colours in linear light from five uniform numbers each (last axis): value, saturation, red, green, blue."""
    value, saturation = between(u[..., :1], darkest, brightest), vivid * u[..., 1:2] * u[..., 1:2]
    display = np.clip(value + saturation * (u[..., 2:] - 0.5), 0.03, 1.0)
    linear: np.ndarray = display * display
    return linear


def patterns(draw: Draws, calm: Bool[np.ndarray, "b o"]) -> Paint:
    """One pattern an object: plain, upright stripes, level stripes, checks or a grid; mostly a grid on what is calm.

    What is calm (walls) has paler colours, and patterns three times as wide.
    """
    count = calm.shape[1]
    u = np.moveaxis(draw("pattern", count, 11), 2, 0)
    large, colours = calm[..., None], draw("colours", count, 2, 5)
    choice = np.where(calm & (u[1] < 0.75), 4, np.searchsorted([0.35, 0.5, 0.65, 0.85], u[0]))
    plain, upright, level, checked = (choice[..., None] == kind for kind in range(4))
    always = level & np.array([True, False]) | upright & np.array([False, True])
    share = between(np.stack([u[2], u[3]], axis=-1), 0.35, 0.65)
    rate = np.where(large, 0.22, 0.7) * between(np.stack([u[4], u[5]], axis=-1), 0.9, 2.2)
    return Paint(
        colours=np.where(large[..., None], palette(colours, 0.15, 0.7, vivid=0.4), palette(colours)),
        rate=rate,
        duty=np.where(plain, 0.0, np.where(always, 1.0, np.where(checked, 0.5, share))),
        phase=np.stack([u[6], u[7]], axis=-1),
        checked=checked[..., 0].astype(np.float64),
        rough=np.stack([0.6 * u[8], between(u[9], 0.4, 5.0), between(u[10], -0.3, 0.3)], axis=-1),
    )


def object_skins(draw: Draws, size: Float[np.ndarray, "b o 3"], photographs: int) -> tuple[Skins, Skins]:
    """Skins of the first and the second colour of objects, so large that a face shows half a photograph to two."""
    first, second = np.moveaxis(draw("skins", size.shape[1], 2, 5), 2, 0)
    across = size.max(axis=2)
    return _skins(first, 0.5 / across, 2.0 / across, photographs), _skins(
        second, 0.5 / across, 2.0 / across, photographs
    )


def wide_skins(draw: Draws, purpose: str, count: int, least: float, most: float, photographs: int) -> Skins:
    """Skins of what has no size of its own, ground and sky: a tile is `least` to `most` metres wide."""
    return _skins(draw(purpose, count, 5), 1 / most, 1 / least, photographs)


def _skins(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray, photographs: int) -> Skins:
    """From five uniform numbers each (last axis). A quarter stay painted; of the others half and more is photograph."""
    return Skins(
        number=np.floor(u[..., 0] * photographs).astype(np.int64),
        rate=between(u[..., 1], low, high),
        shift=2 * u[..., 2:4],
        share=np.where(u[..., 4] < 0.25, 0.0, between(u[..., 4], 1 / 3, 1.0)),
    )


def primitives_of(objects: Objects, kind: Int[np.ndarray, "b o"], shapes: Shapes, paint: Paint) -> Primitives:
    """Split objects into their parts: `kind` is each one's index into the shapes."""
    cosine, sine = objects.turn[..., :1], objects.turn[..., 1:]
    offset = (shapes.centre[kind] - np.array([0.0, 0.5, 0.0])) * objects.size[:, :, None]
    turned = [
        cosine * offset[..., 0] + sine * offset[..., 2],
        offset[..., 1],
        cosine * offset[..., 2] - sine * offset[..., 0],
    ]
    half = shapes.half[kind] * objects.size[:, :, None]
    style = shapes.paint[kind]
    first, second = paint.colours[:, :, None, 0], paint.colours[:, :, None, 1]
    dark = 0.08 * second
    colours = [np.choose(style[..., None], of) for of in ((first, second, dark, first), (second, first, dark, dark))]
    band = (style == BAND)[..., None]
    once = np.stack([np.zeros_like(half[..., 1]), 0.5 / half[..., 1]], axis=-1)

    def parts(values: np.ndarray) -> np.ndarray:
        return _of_parts(values, shapes.most)

    return Primitives(
        shape=parts(np.where(objects.present[..., None], shapes.shape[kind], ABSENT)),
        category=parts(objects.category[..., None]),
        centre=parts(objects.centre[:, :, None] + np.stack(turned, axis=-1)),
        half=parts(half),
        turn=parts(objects.turn[:, :, None]),
        paint=Paint(
            colours=parts(np.stack(colours, axis=-2)),
            rate=parts(np.where(band, once, paint.rate[:, :, None])),
            duty=parts(np.where(band, np.array([1.0, 0.6]), paint.duty[:, :, None])),
            phase=parts(np.where(band, np.array([0.0, 0.32]), paint.phase[:, :, None])),
            checked=parts(np.where(band[..., 0], 0.0, paint.checked[:, :, None])),
            rough=parts(paint.rough[:, :, None]),
        ),
    )


def part_skins(first: Skins, second: Skins, kind: Int[np.ndarray, "b o"], shapes: Shapes) -> Skins:
    """The skins of the parts of objects; of what is dark, a fifth of the share."""
    style = shapes.paint[kind]
    chosen = []
    for each in fields(Skins):
        one, other = (np.expand_dims(getattr(skins, each.name), 2) for skins in (first, second))
        of_second = (style == SECOND).reshape(*style.shape, *(1,) * (one.ndim - 3))
        chosen.append(np.where(of_second, other, one))
    number, rate, shift, share = chosen
    share = np.where(style == DARK, 0.2, 1.0) * share
    return Skins(*(_of_parts(values, shapes.most) for values in (number, rate, shift, share)))


def _of_parts(values: np.ndarray, most: int) -> np.ndarray:
    """From [b, object, part or 1, ...] to [b, object * part, ...]."""
    scenes, count = values.shape[:2]
    shape = (scenes, count, most, *values.shape[3:])
    return np.broadcast_to(values, shape).reshape(scenes, count * most, *values.shape[3:])
