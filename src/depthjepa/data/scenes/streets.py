"""Streets: what stands where, a pure function of (seed, scene index).

A street may run through the view at any angle. The kind of the nearest object is chosen first (each block of eight
scenes holds every kind once), then how large and where in the picture it shall appear; its distance and the pitch of
the camera follow. So neither the share of the picture that an object covers nor its place tells its kind. All other
objects lie beyond its centre.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from depthjepa.data.scenes.layout import (
    AXLE,
    BAND,
    BOX,
    CYLINDER,
    DARK,
    ELLIPSOID,
    FIRST,
    SECOND,
    Camera,
    Draws,
    Layout,
    Objects,
    Shapes,
    Surroundings,
    World,
    between,
    compose,
    object_skins,
    palette,
    part_skins,
    patterns,
    primitives_of,
    turn_of,
    wide_skins,
)
from depthjepa.runtime import uniforms

KINDS = ("car", "truck", "pedestrian", "tree", "sign", "lamp", "bin", "barrier")
CLASSES = ("sky", "ground", "building", *KINDS)
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

# Of a building and of each kind.
_SHAPES = Shapes(
    (
        ((BOX, (0, 0.5, 0), (0.5, 0.5, 0.5), FIRST),),  # building
        (
            (BOX, (0, 0.42, 0), (0.5, 0.24, 0.5), FIRST),
            (BOX, (0, 0.82, -0.06), (0.44, 0.18, 0.27), BAND),
            (AXLE, (0, 0.2, 0.31), (0.51, 0.2, 0.075), DARK),
            (AXLE, (0, 0.2, -0.31), (0.51, 0.2, 0.075), DARK),
        ),
        (
            (BOX, (0, 0.57, -0.13), (0.5, 0.43, 0.37), FIRST),
            (BOX, (0, 0.45, 0.38), (0.47, 0.33, 0.12), BAND),
            (AXLE, (0, 0.14, 0.33), (0.49, 0.14, 0.065), DARK),
            (AXLE, (0, 0.14, -0.32), (0.49, 0.14, 0.065), DARK),
        ),
        (
            (CYLINDER, (0, 0.25, 0), (0.33, 0.25, 0.36), SECOND),
            (CYLINDER, (0, 0.65, 0), (0.5, 0.19, 0.5), FIRST),
            (ELLIPSOID, (0, 0.92, 0), (0.21, 0.08, 0.33), SECOND),
        ),
        (
            (CYLINDER, (0, 0.25, 0), (0.07, 0.25, 0.07), SECOND),
            (ELLIPSOID, (0.06, 0.64, 0), (0.44, 0.27, 0.44), FIRST),
            (ELLIPSOID, (-0.14, 0.79, 0.05), (0.36, 0.21, 0.36), FIRST),
        ),
        (
            (CYLINDER, (0, 0.4, 0.2), (0.07, 0.4, 0.4), SECOND),
            (BOX, (0, 0.79, -0.3), (0.5, 0.21, 0.2), FIRST),
        ),
        (
            (CYLINDER, (0, 0.06, 0), (0.4, 0.06, 0.4), SECOND),
            (CYLINDER, (0, 0.5, 0), (0.15, 0.4, 0.15), SECOND),
            (ELLIPSOID, (0, 0.9, 0), (0.5, 0.1, 0.5), FIRST),
        ),
        (
            (BOX, (0, 0.42, 0), (0.45, 0.42, 0.45), FIRST),
            (BOX, (0, 0.92, 0), (0.5, 0.08, 0.5), SECOND),
        ),
        (
            (BOX, (0, 0.72, 0), (0.5, 0.28, 0.25), FIRST),
            (BOX, (-0.4, 0.22, 0), (0.04, 0.22, 0.5), SECOND),
            (BOX, (0.4, 0.22, 0), (0.04, 0.22, 0.5), SECOND),
        ),
    )
)


def arrange(indices: Int[np.ndarray, " b"], *, seed: int, photographs: int = 0) -> Layout:
    """Lay out the scenes `indices` (>= 0): row by row a pure function of (seed, index)."""
    draw = Draws(indices, seed)
    labels = _labels(indices, seed)
    street = turn_of(draw("street", 2).sum(1) - 1, 0.45)
    camera, objects = _place_objects(draw, labels, street)
    buildings, free = _place_buildings(draw, camera, objects, street)
    both = Objects.joined(buildings, replace(objects, present=objects.present & free))
    kind = both.category - BUILDING
    primitives = primitives_of(both, kind, _SHAPES, patterns(draw, both.category == BUILDING))
    layout = Layout(labels, camera, primitives, _surroundings(draw, street))
    if not photographs:
        return layout
    return replace(
        layout,
        skins=part_skins(*object_skins(draw, both.size, photographs), kind, _SHAPES),
        ground_skins=wide_skins(draw, "ground skins", 2, 3.0, 20.0, photographs),
        sky_skins=wide_skins(draw, "sky skins", 1, 1.5, 6.0, photographs),
    )


def _labels(indices: np.ndarray, seed: int) -> Int[np.ndarray, " b"]:
    """Every block of eight scenes holds every kind once, in random order."""
    count = len(KINDS)
    keys = uniforms(count, seed=seed, stream="scene/kinds", epoch=0, indices=indices // count)
    labels: np.ndarray = np.argsort(keys, axis=1)[np.arange(len(indices)), indices % count]
    return labels


def _place_objects(draw: Draws, labels: np.ndarray, street: np.ndarray) -> tuple[Camera, Objects]:
    u = np.moveaxis(draw("objects", 1 + OTHERS, 9), 2, 0)
    kind = np.floor(u[0] * len(KINDS)).astype(np.int64)
    kind[:, 0] = labels
    size = between(np.moveaxis(u[1:4], 0, 2), _SIZES[kind, 0], _SIZES[kind, 1])
    own = turn_of(2 * u[4] - 1, 0.4)
    along = compose(np.broadcast_to(street[:, None], own.shape), turn_of(2 * u[4] - 1, 0.05))
    turn = np.where(_ALONG_THE_ROAD[kind][..., None], along, own) * np.where(u[5] < 0.5, 1.0, -1.0)[..., None]
    cosine, sine = np.abs(turn[..., 0]), np.abs(turn[..., 1])
    width = size[..., 0] * cosine + size[..., 2] * sine  # as seen from the camera
    support = (size[..., 0] * sine + size[..., 2] * cosine) / 2  # half the extent along the view

    look = draw("camera", 7).T
    height, focal = 1 / between(look[0], 1.0, 1 / 3.0), 1 / between(look[1], 1 / 1.3, 1 / 0.7)
    roll, slope = turn_of(2 * look[2] - 1, 0.05), between(look[3], -0.06, 0.06)

    # The nearest object: the share of the picture it takes gives its distance, its place there the pitch.
    w, h = width[:, 0], size[:, 0, 1]
    large = np.maximum(np.sqrt(w * h) / between(look[4], 0.28, 0.65), np.maximum(w, h) / 0.85)
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
    depths = np.maximum(1 / between(layer, 1 / (depth[:, None] + 1), 1 / 75), nearest)
    depths[:, 0] = depth
    xs = 1.2 * (u[7] - 0.5) * depths / focal[:, None]
    xs[:, 0] = x
    ys = slope[:, None] * xs - height[:, None] + size[..., 1] / 2
    present = u[8] < 0.85
    present[:, 0] = True
    centre = np.stack([xs, ys, (depths - ys * rise) / level], axis=-1)
    return camera, Objects(kind + FIRST_KIND, present, size, turn, centre)


def _place_buildings(
    draw: Draws, camera: Camera, objects: Objects, street: np.ndarray
) -> tuple[Objects, Bool[np.ndarray, "b o"]]:
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
    edge = np.maximum(1.0, side * lateral[:, :1] + reach[:, :1]) + between(rows[..., 0], 0.2, 5.0)
    there = rows[..., 1] < 0.75

    length = between(fronts[..., 0], 5.0, 16.0)
    gap = np.maximum(0.0, 10 * fronts[..., 1] - 4)
    deep = np.full_like(length, 9.0)
    stop = between(rows[..., 2], -8.0, 10.0)[..., None] + np.cumsum(length + gap, axis=2)
    outward = side[:, None] * (edge[..., None] + 1.5 * fronts[..., 2] + deep / 2)
    sunk = 3.0  # below the ground, which may fall away along the front
    tall = between(fronts[..., 3], 3.0, 15.0) + sunk
    many = (len(street), 2 * FRONTS)

    last = draw("end", 3).T
    end = np.maximum(forward[:, 0] + reach[:, 0], 0) + between(last[0], 8.0, 45.0)
    closed = last[1] < 0.5
    left, right = edge[:, 0], edge[:, 1]
    size = np.concatenate(
        [
            np.stack([deep, tall, length], axis=-1).reshape(*many, 3),
            np.stack([left + right + 24, between(last[2], 4.0, 18.0) + sunk, np.full_like(end, 9.0)], -1)[:, None],
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
    return Objects(category, present, size, turn, np.stack([x, y, z], axis=-1)), free


def _surroundings(draw: Draws, street: np.ndarray) -> Surroundings:
    u = draw("surroundings", 15).T
    colours = draw("light", 8, 5)
    sky = palette(colours[:, 3:6], darkest=0.2, brightest=0.95, vivid=0.3)
    sky = sky * (1 - u[14, :, None, None] * np.array([0.3, 0.12, 0.0]))  # from overcast to blue
    ground = palette(colours[:, :3], darkest=0.15, brightest=0.9, vivid=0.3)
    ground[:, 2] = palette(colours[:, 2], darkest=0.75, vivid=0.3)  # markings are bright
    tint = np.sqrt(palette(colours[:, 6:], darkest=0.6, vivid=0.4))
    around, elevation = turn_of(2 * u[0] - 1, 1.0), turn_of(between(u[1], 0.15, 0.75), 1.0)
    behind = np.where(u[2] < 0.5, 1.0, -1.0)
    level = elevation[:, :1] * around * behind[:, None]
    return Surroundings(
        street=street,
        middle=between(u[3], -5.0, 5.0),
        road=between(u[4], 2.5, 6.0),
        dash=np.stack([between(u[5], 0.1, 0.3), between(u[6], 0.3, 1.0), np.floor(u[7] + 0.75)], axis=-1),
        ground=ground,
        rough=np.stack([0.4 * u[8], between(u[9], 0.3, 3.0)], axis=-1),
        sky=sky,
        cloud=np.stack([u[10], between(u[11], 0.5, 3.0)], axis=-1),
        sun=np.stack([level[:, 1], elevation[:, 1], level[:, 0]], axis=-1),
        light=tint[:, 0] * between(u[12], 0.2, 0.9)[:, None],
        ambient=tint[:, 1] * between(u[13], 0.35, 0.65)[:, None],
    )


STREETS = World(arrange, CLASSES, KINDS, CLASSES.index("ground"))
