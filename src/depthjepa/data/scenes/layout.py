"""What stands where in a rendered street: a pure function of (seed, scene index), in numpy, without pixels.

World axes: x right, y up, z forward and level, metres, the camera at the origin. The ground is the plane
`y = slope * x - height`. The camera is pitched and rolled; a street may run through the view at any angle.

The kind of the nearest object is chosen first (each block of eight scenes holds every kind once), then how
large and where in the picture it shall appear; its distance and the pitch of the camera follow. So neither the
share of the picture that an object covers nor its place tells its kind. All other objects lie beyond its centre.
Colours and patterns come from one palette for everything, drawn independently of what they cover.

Only exactly rounded operations are used (no sine, no power): angles are drawn as t = tan(angle / 2), distances
as their inverse. A scene is therefore the same to the last bit, whatever the others computed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from depthjepa.runtime import uniforms

KINDS = ("car", "truck", "pedestrian", "tree", "sign", "lamp", "bin", "barrier")
CLASSES = ("sky", "ground", "building", *KINDS)
BOX, CYLINDER, AXLE, ELLIPSOID = range(4)  # an axle is a cylinder that lies along its own x axis
ABSENT = -1

BUILDING, FIRST_KIND = CLASSES.index("building"), CLASSES.index(KINDS[0])
OTHERS = 6  # objects beyond the nearest
FRONTS = 4  # buildings on each side of the street

_SIZES = np.array(  # smallest and largest width, height, length of each kind [m]
    [
        [[1.6, 1.35, 3.6], [2.0, 1.8, 4.8]],
        [[2.1, 2.4, 5.0], [2.5, 3.6, 9.0]],
        [[0.5, 1.5, 0.32], [0.7, 1.95, 0.45]],
        [[1.6, 2.6, 1.6], [3.6, 5.5, 3.6]],
        [[0.7, 1.9, 0.12], [1.2, 2.8, 0.14]],
        [[0.6, 2.8, 0.6], [0.9, 4.2, 0.9]],
        [[0.6, 0.9, 0.6], [1.1, 1.4, 0.9]],
        [[2.0, 0.8, 0.3], [3.4, 1.2, 0.5]],
    ]
)
_ALONG_THE_ROAD = np.array([True, True, False, False, False, False, False, False])

# How a part is painted: in the object's first colour, in its second, dark, or with a dark band (windows of a car).
_FIRST, _SECOND, _DARK, _BAND = range(4)
# Parts of a building and of each kind: shape, centre (x, y, z), half size, paint. Lengths are shares of the whole
# object's width, height and length; x and z are measured from its middle, y from the ground.
_PARTS = (
    ((BOX, (0, 0.5, 0), (0.5, 0.5, 0.5), _FIRST),),  # building
    (
        (BOX, (0, 0.42, 0), (0.5, 0.24, 0.5), _FIRST),
        (BOX, (0, 0.82, -0.06), (0.44, 0.18, 0.27), _BAND),
        (AXLE, (0, 0.2, 0.31), (0.51, 0.2, 0.075), _DARK),
        (AXLE, (0, 0.2, -0.31), (0.51, 0.2, 0.075), _DARK),
    ),
    (
        (BOX, (0, 0.57, -0.13), (0.5, 0.43, 0.37), _FIRST),
        (BOX, (0, 0.45, 0.38), (0.47, 0.33, 0.12), _BAND),
        (AXLE, (0, 0.14, 0.33), (0.49, 0.14, 0.065), _DARK),
        (AXLE, (0, 0.14, -0.32), (0.49, 0.14, 0.065), _DARK),
    ),
    (
        (CYLINDER, (0, 0.25, 0), (0.33, 0.25, 0.36), _SECOND),
        (CYLINDER, (0, 0.65, 0), (0.5, 0.19, 0.5), _FIRST),
        (ELLIPSOID, (0, 0.92, 0), (0.21, 0.08, 0.33), _SECOND),
    ),
    (
        (CYLINDER, (0, 0.25, 0), (0.07, 0.25, 0.07), _SECOND),
        (ELLIPSOID, (0.06, 0.64, 0), (0.44, 0.27, 0.44), _FIRST),
        (ELLIPSOID, (-0.14, 0.79, 0.05), (0.36, 0.21, 0.36), _FIRST),
    ),
    (
        (CYLINDER, (0, 0.4, 0.2), (0.07, 0.4, 0.4), _SECOND),
        (BOX, (0, 0.79, -0.3), (0.5, 0.21, 0.2), _FIRST),
    ),
    (
        (CYLINDER, (0, 0.06, 0), (0.4, 0.06, 0.4), _SECOND),
        (CYLINDER, (0, 0.5, 0), (0.15, 0.4, 0.15), _SECOND),
        (ELLIPSOID, (0, 0.9, 0), (0.5, 0.1, 0.5), _FIRST),
    ),
    (
        (BOX, (0, 0.42, 0), (0.45, 0.42, 0.45), _FIRST),
        (BOX, (0, 0.92, 0), (0.5, 0.08, 0.5), _SECOND),
    ),
    (
        (BOX, (0, 0.72, 0), (0.5, 0.28, 0.25), _FIRST),
        (BOX, (-0.4, 0.22, 0), (0.04, 0.22, 0.5), _SECOND),
        (BOX, (0.4, 0.22, 0), (0.04, 0.22, 0.5), _SECOND),
    ),
)
_MOST_PARTS = max(len(parts) for parts in _PARTS)
_NO_PART = (ABSENT, (0, 0, 0), (1, 1, 1), _FIRST)
_PADDED = [[*parts, *[_NO_PART] * (_MOST_PARTS - len(parts))] for parts in _PARTS]
_PART_SHAPE = np.array([[part[0] for part in parts] for parts in _PADDED])
_PART_CENTRE = np.array([[part[1] for part in parts] for parts in _PADDED], dtype=np.float64)
_PART_HALF = np.array([[part[2] for part in parts] for parts in _PADDED], dtype=np.float64)
_PART_PAINT = np.array([[part[3] for part in parts] for parts in _PADDED])


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole camera. Rotations are (cosine, sine); `focal` is in units of the picture's shorter side."""

    focal: Float[np.ndarray, " b"]
    pitch: Float[np.ndarray, "b 2"]  # positive: looks up
    roll: Float[np.ndarray, "b 2"]
    height: Float[np.ndarray, " b"]  # above the ground below it [m]
    slope: Float[np.ndarray, " b"]  # rise of the ground to the right [m/m]


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
    category: Int[np.ndarray, "b p"]  # index into CLASSES
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Scenes ready to be cast: everything but the pixels."""

    labels: Int[np.ndarray, " b"]  # index into KINDS of the nearest object
    camera: Camera
    primitives: Primitives
    surroundings: Surroundings


@dataclass(frozen=True, slots=True)
class _Objects:
    """Whole objects, the nearest one first; or buildings."""

    category: Int[np.ndarray, "b o"]  # index into CLASSES
    present: Bool[np.ndarray, "b o"]
    size: Float[np.ndarray, "b o 3"]
    turn: Float[np.ndarray, "b o 2"]
    centre: Float[np.ndarray, "b o 3"]  # of the bounding box


class _Draws:
    """Uniform numbers of the scenes; each purpose has a stream of its own."""

    def __init__(self, indices: np.ndarray, seed: int) -> None:
        self.indices, self.seed = indices, seed

    def __call__(self, purpose: str, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        rows = uniforms(count, seed=self.seed, stream=f"scene/{purpose}", epoch=0, indices=self.indices)
        return rows.reshape(len(self.indices), *shape)


def arrange(indices: Int[np.ndarray, " b"], *, seed: int) -> Layout:
    """Lay out the scenes `indices` (>= 0): row by row a pure function of (seed, index)."""
    draw = _Draws(indices, seed)
    labels = _labels(indices, seed)
    street = _turn(draw("street", 2).sum(1) - 1, 0.45)
    camera, objects = _place_objects(draw, labels, street)
    buildings, free = _place_buildings(draw, camera, objects, street)
    objects = replace(objects, present=objects.present & free)
    names = (field.name for field in fields(_Objects))
    both = _Objects(*(np.concatenate([getattr(buildings, n), getattr(objects, n)], axis=1) for n in names))
    primitives = _split_into_parts(both, _paint(draw, both.category))
    return Layout(labels, camera, primitives, _surroundings(draw, street))


def _labels(indices: np.ndarray, seed: int) -> Int[np.ndarray, " b"]:
    """Every block of eight scenes holds every kind once, in random order."""
    count = len(KINDS)
    keys = uniforms(count, seed=seed, stream="scene/kinds", epoch=0, indices=indices // count)
    labels: np.ndarray = np.argsort(keys, axis=1)[np.arange(len(indices)), indices % count]
    return labels


def _between(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    return low + (high - low) * u


def _turn(u: np.ndarray, limit: float) -> np.ndarray:
    """Cosine and sine of an angle with tan(angle / 2) = limit * u, on a new last axis."""
    t = limit * u
    return np.stack([(1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)], axis=-1)


def _compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine and sine of the sum of two angles."""
    cosine = first[..., 0] * second[..., 0] - first[..., 1] * second[..., 1]
    sine = first[..., 1] * second[..., 0] + first[..., 0] * second[..., 1]
    return np.stack([cosine, sine], axis=-1)


def _place_objects(draw: _Draws, labels: np.ndarray, street: np.ndarray) -> tuple[Camera, _Objects]:
    u = np.moveaxis(draw("objects", 1 + OTHERS, 9), 2, 0)
    kind = np.floor(u[0] * len(KINDS)).astype(np.int64)
    kind[:, 0] = labels
    size = _between(np.moveaxis(u[1:4], 0, 2), _SIZES[kind, 0], _SIZES[kind, 1])
    own = _turn(2 * u[4] - 1, 0.4)
    along = _compose(np.broadcast_to(street[:, None], own.shape), _turn(2 * u[4] - 1, 0.05))
    turn = np.where(_ALONG_THE_ROAD[kind][..., None], along, own) * np.where(u[5] < 0.5, 1.0, -1.0)[..., None]
    cosine, sine = np.abs(turn[..., 0]), np.abs(turn[..., 1])
    width = size[..., 0] * cosine + size[..., 2] * sine  # as seen from the camera
    support = (size[..., 0] * sine + size[..., 2] * cosine) / 2  # half the extent along the view

    look = draw("camera", 7).T
    height, focal = 1 / _between(look[0], 1.0, 1 / 3.0), 1 / _between(look[1], 1 / 1.3, 1 / 0.7)
    roll, slope = _turn(2 * look[2] - 1, 0.05), _between(look[3], -0.06, 0.06)

    # The nearest object: the share of the picture it takes gives its distance, its place there the pitch.
    w, h = width[:, 0], size[:, 0, 1]
    large = np.maximum(np.sqrt(w * h) / _between(look[4], 0.28, 0.65), np.maximum(w, h) / 0.85)
    front = np.maximum(focal * large, 1.2 * np.abs(h / 2 - height))
    depth = front + support[:, 0]
    across = (2 * look[5] - 1) * np.maximum(0.5 - 0.5 * focal * w / front, 0.04) * front / focal
    up = (2 * look[6] - 1) * np.maximum(0.5 - 0.5 * focal * h / front, 0.04) * front / focal
    x, y = roll[:, 0] * across - roll[:, 1] * up, roll[:, 1] * across + roll[:, 0] * up
    length = np.sqrt(y * y + depth * depth)
    sine = (slope * x - height + h / 2) / length  # of the object's elevation above the horizon
    cosine = np.sqrt(1 - sine * sine)
    pitch = np.stack([cosine * depth + sine * y, sine * depth - cosine * y], axis=-1) / length[:, None]
    camera = Camera(focal, pitch, roll, height, slope)

    # The others: beyond the nearest one's centre with all of their extent, one in each layer of disparity.
    level, rise = pitch[:, :1], pitch[:, 1:]
    nearest = depth[:, None] + 0.3 + level * support + np.abs(rise) * size[..., 1] / 2
    layer = (np.arange(1 + OTHERS) - 1 + u[6]) / OTHERS
    depths = np.maximum(1 / _between(layer, 1 / (depth[:, None] + 1), 1 / 75), nearest)
    depths[:, 0] = depth
    xs = 1.2 * (u[7] - 0.5) * depths / focal[:, None]
    xs[:, 0] = x
    ys = slope[:, None] * xs - height[:, None] + size[..., 1] / 2
    present = u[8] < 0.85
    present[:, 0] = True
    centre = np.stack([xs, ys, (depths - ys * rise) / level], axis=-1)
    return camera, _Objects(kind + FIRST_KIND, present, size, turn, centre)


def _place_buildings(
    draw: _Draws, camera: Camera, objects: _Objects, street: np.ndarray
) -> tuple[_Objects, Bool[np.ndarray, "b o"]]:
    """Rows of houses on both, one or no side of the street, perhaps one across its end.

    The camera and the nearest object stand between the rows, so nothing hides it. Returned with the buildings:
    which objects stand free of them.
    """
    cosine, sine = street[:, :1], street[:, 1:]
    lateral = cosine * objects.centre[..., 0] - sine * objects.centre[..., 2]
    forward = sine * objects.centre[..., 0] + cosine * objects.centre[..., 2]
    reach = (objects.size[..., 0] + objects.size[..., 2]) / 2
    rows, fronts = draw("rows", 2, 3), draw("fronts", 2, FRONTS, 4)
    side = np.array([-1.0, 1.0])
    edge = np.maximum(1.0, side * lateral[:, :1] + reach[:, :1]) + _between(rows[..., 0], 0.2, 5.0)
    there = rows[..., 1] < 0.75

    length = _between(fronts[..., 0], 5.0, 16.0)
    gap = np.maximum(0.0, 10 * fronts[..., 1] - 4)
    deep = np.full_like(length, 9.0)
    stop = _between(rows[..., 2], -8.0, 10.0)[..., None] + np.cumsum(length + gap, axis=2)
    outward = side[:, None] * (edge[..., None] + 1.5 * fronts[..., 2] + deep / 2)
    sunk = 3.0  # below the ground, which may fall away along the front
    tall = _between(fronts[..., 3], 3.0, 15.0) + sunk
    many = (len(street), 2 * FRONTS)

    last = draw("end", 3).T
    end = np.maximum(forward[:, 0] + reach[:, 0], 0) + _between(last[0], 8.0, 45.0)
    closed = last[1] < 0.5
    left, right = edge[:, 0], edge[:, 1]
    size = np.concatenate(
        [
            np.stack([deep, tall, length], axis=-1).reshape(*many, 3),
            np.stack([left + right + 24, _between(last[2], 4.0, 18.0) + sunk, np.full_like(end, 9.0)], -1)[:, None],
        ],
        axis=1,
    )
    aside = np.concatenate([outward.reshape(many), (right - left)[:, None] / 2], axis=1)
    ahead = np.concatenate([(stop - length / 2).reshape(many), end[:, None] + 4.5], axis=1)
    x, z = cosine * aside + sine * ahead, cosine * ahead - sine * aside
    y = camera.slope[:, None] * x - camera.height[:, None] + size[..., 1] / 2 - sunk
    present = np.concatenate([np.repeat(there, FRONTS, axis=1), closed[:, None]], axis=1)
    category = np.full(present.shape, BUILDING)
    turn = np.broadcast_to(street[:, None], (*present.shape, 2))
    beside = (side[:, None] * lateral[:, None] + reach[:, None] < edge[..., None]) | ~there[..., None]
    free = beside.all(axis=1) & ((forward + reach < end[:, None]) | ~closed[:, None])
    return _Objects(category, present, size, turn, np.stack([x, y, z], axis=-1)), free


def _split_into_parts(objects: _Objects, paint: Paint) -> Primitives:
    kind = objects.category - BUILDING
    scenes, count = kind.shape
    cosine, sine = objects.turn[..., :1], objects.turn[..., 1:]
    offset = (_PART_CENTRE[kind] - np.array([0.0, 0.5, 0.0])) * objects.size[:, :, None]
    turned = [
        cosine * offset[..., 0] + sine * offset[..., 2],
        offset[..., 1],
        cosine * offset[..., 2] - sine * offset[..., 0],
    ]

    def parts(values: np.ndarray) -> np.ndarray:
        shape = (scenes, count, _MOST_PARTS, *values.shape[3:])
        return np.broadcast_to(values, shape).reshape(scenes, count * _MOST_PARTS, *values.shape[3:])

    half = _PART_HALF[kind] * objects.size[:, :, None]
    style = _PART_PAINT[kind]
    first, second = paint.colours[:, :, None, 0], paint.colours[:, :, None, 1]
    dark = 0.08 * second
    colours = [np.choose(style[..., None], of) for of in ((first, second, dark, first), (second, first, dark, dark))]
    band = (style == _BAND)[..., None]
    once = np.stack([np.zeros_like(half[..., 1]), 0.5 / half[..., 1]], axis=-1)
    return Primitives(
        shape=parts(np.where(objects.present[..., None], _PART_SHAPE[kind], ABSENT)),
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


def _palette(u: np.ndarray, darkest: float = 0.12, brightest: float = 0.92, vivid: float = 0.85) -> np.ndarray:
    """Colours in linear light from five uniform numbers each (last axis): value, saturation, red, green, blue."""
    value, saturation = _between(u[..., :1], darkest, brightest), vivid * u[..., 1:2] * u[..., 1:2]
    display = np.clip(value + saturation * (u[..., 2:] - 0.5), 0.03, 1.0)
    linear: np.ndarray = display * display
    return linear


def _paint(draw: _Draws, category: np.ndarray) -> Paint:
    """One pattern an object: plain, upright stripes, level stripes, checks or a grid; mostly a grid on buildings."""
    count = category.shape[1]
    u = np.moveaxis(draw("pattern", count, 11), 2, 0)
    building, colours = (category == BUILDING)[..., None], draw("colours", count, 2, 5)
    choice = np.where(building[..., 0] & (u[1] < 0.75), 4, np.searchsorted([0.35, 0.5, 0.65, 0.85], u[0]))
    plain, upright, level, checked = (choice[..., None] == kind for kind in range(4))
    always = level & np.array([True, False]) | upright & np.array([False, True])
    share = _between(np.stack([u[2], u[3]], axis=-1), 0.35, 0.65)
    rate = np.where(building, 0.22, 0.7) * _between(np.stack([u[4], u[5]], axis=-1), 0.9, 2.2)
    return Paint(
        colours=np.where(building[..., None], _palette(colours, 0.15, 0.7, vivid=0.4), _palette(colours)),
        rate=rate,
        duty=np.where(plain, 0.0, np.where(always, 1.0, np.where(checked, 0.5, share))),
        phase=np.stack([u[6], u[7]], axis=-1),
        checked=checked[..., 0].astype(np.float64),
        rough=np.stack([0.6 * u[8], _between(u[9], 0.4, 5.0), _between(u[10], -0.3, 0.3)], axis=-1),
    )


def _surroundings(draw: _Draws, street: np.ndarray) -> Surroundings:
    u = draw("surroundings", 15).T
    colours = draw("light", 8, 5)
    sky = _palette(colours[:, 3:6], darkest=0.2, brightest=0.95, vivid=0.3)
    sky = sky * (1 - u[14, :, None, None] * np.array([0.3, 0.12, 0.0]))  # from overcast to blue
    ground = _palette(colours[:, :3], darkest=0.15, brightest=0.9, vivid=0.3)
    ground[:, 2] = _palette(colours[:, 2], darkest=0.75, vivid=0.3)  # markings are bright
    tint = np.sqrt(_palette(colours[:, 6:], darkest=0.6, vivid=0.4))
    around, elevation = _turn(2 * u[0] - 1, 1.0), _turn(_between(u[1], 0.15, 0.75), 1.0)
    behind = np.where(u[2] < 0.5, 1.0, -1.0)
    level = elevation[:, :1] * around * behind[:, None]
    return Surroundings(
        street=street,
        middle=_between(u[3], -5.0, 5.0),
        road=_between(u[4], 2.5, 6.0),
        dash=np.stack([_between(u[5], 0.1, 0.3), _between(u[6], 0.3, 1.0), np.floor(u[7] + 0.75)], axis=-1),
        ground=ground,
        rough=np.stack([0.4 * u[8], _between(u[9], 0.3, 3.0)], axis=-1),
        sky=sky,
        cloud=np.stack([u[10], _between(u[11], 0.5, 3.0)], axis=-1),
        sun=np.stack([level[:, 1], elevation[:, 1], level[:, 0]], axis=-1),
        light=tint[:, 0] * _between(u[12], 0.2, 0.9)[:, None],
        ambient=tint[:, 1] * _between(u[13], 0.35, 0.65)[:, None],
    )
