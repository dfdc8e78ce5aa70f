"""Rooms: what stands where, a pure function of (seed, scene index).

A room is a box of four walls, floor and ceiling, turned by up to 45 degrees against the view; the camera is inside, 0.5
to 2 m above the floor. Furniture stands along the walls or free, things lie on what has a flat top, pictures, doors and
windows hang on the walls. The first piece is placed in the view, up to 3.5 m away; a piece that would stand in another
one, or in the camera, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from depthjepa.data.scenes.layout import (
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

SHELL = ("wall", "ceiling")
HUNG = ("picture", "door", "window")
FURNITURE = ("table", "chair", "cabinet", "sofa", "bed", "shelf", "lamp", "plant", "carton", "stool")
THINGS = ("bottle", "bowl", "ball", "book", "monitor")
KINDS = (*SHELL, *HUNG, *FURNITURE, *THINGS)
CLASSES = ("outside", "floor", *KINDS)  # nothing is outside: a room is closed
FIRST_KIND = CLASSES.index(KINDS[0])

PIECES, HANGING, LYING = 9, 4, 5  # of furniture, on the walls, on furniture
_THICK = 1.0  # of a wall, outwards [m]
_CLEAR = 0.3  # around the camera [m]

_SIZES = np.array(  # smallest and largest width, height, length of each kind [m]; the shell's follow the room
    [
        *[[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]] * len(SHELL),
        [[0.3, 0.3, 0.03], [1.4, 1.0, 0.07]],
        [[0.75, 1.9, 0.04], [1.0, 2.1, 0.1]],
        [[0.7, 0.8, 0.04], [1.8, 1.4, 0.08]],
        [[0.7, 0.45, 0.6], [1.8, 0.78, 1.0]],
        [[0.42, 0.8, 0.42], [0.6, 1.05, 0.6]],
        [[0.4, 0.6, 0.35], [1.6, 2.0, 0.6]],
        [[1.2, 0.7, 0.8], [2.2, 0.95, 1.0]],
        [[0.9, 0.5, 1.9], [1.8, 0.9, 2.1]],
        [[0.6, 1.0, 0.25], [1.2, 2.1, 0.4]],
        [[0.3, 1.2, 0.3], [0.5, 1.8, 0.5]],
        [[0.35, 0.5, 0.35], [0.8, 1.6, 0.8]],
        [[0.25, 0.2, 0.25], [0.6, 0.6, 0.6]],
        [[0.25, 0.3, 0.25], [0.45, 0.6, 0.45]],
        [[0.06, 0.15, 0.06], [0.12, 0.35, 0.12]],
        [[0.08, 0.07, 0.08], [0.3, 0.15, 0.3]],
        [[0.07, 0.07, 0.07], [0.25, 0.25, 0.25]],
        [[0.14, 0.02, 0.2], [0.32, 0.1, 0.32]],
        [[0.3, 0.28, 0.15], [0.65, 0.5, 0.25]],
    ]
)
# Chance that a piece of furniture stands free in the room.
_FREE = np.array([0.6, 0.8, 0.1, 0.3, 0.2, 0.1, 0.2, 0.4, 0.6, 0.8])
# Whether things may lie on it: its top is flat, and seldom above the eyes.
_FLAT = np.array([True, False, True, False, False, False, False, False, True, True])

_WHOLE_BOX = ((BOX, (0, 0.5, 0), (0.5, 0.5, 0.5), FIRST),)
_LEGS = tuple(
    (CYLINDER, (x, 0.45, z), (0.03, 0.45, 0.04), SECOND)
    for x, z in ((-0.44, -0.42), (0.44, -0.42), (-0.44, 0.42), (0.44, 0.42))
)
_CHAIR_LEGS = tuple(
    (CYLINDER, (x, 0.21, z), (0.04, 0.21, 0.04), SECOND)
    for x, z in ((-0.42, -0.42), (0.42, -0.42), (-0.42, 0.42), (0.42, 0.42))
)
_SHAPES = Shapes(
    (
        _WHOLE_BOX,  # wall
        _WHOLE_BOX,  # ceiling
        ((BOX, (0, 0.5, 0), (0.5, 0.5, 0.3), SECOND), (BOX, (0, 0.5, 0), (0.42, 0.4, 0.5), FIRST)),  # picture
        (
            (BOX, (0, 0.5, 0), (0.5, 0.5, 0.3), FIRST),
            (BOX, (0, 0.72, 0), (0.35, 0.18, 0.4), SECOND),
            (ELLIPSOID, (0.4, 0.5, 0.3), (0.04, 0.02, 0.6), DARK),
        ),  # door
        (
            (BOX, (0, 0.5, 0), (0.5, 0.5, 0.3), FIRST),
            (BOX, (0, 0.5, 0), (0.02, 0.5, 0.5), SECOND),
            (BOX, (0, 0.02, 0), (0.53, 0.03, 1.2), SECOND),
        ),  # window
        ((BOX, (0, 0.95, 0), (0.5, 0.05, 0.5), FIRST), *_LEGS),  # table
        (
            (BOX, (0, 0.46, 0), (0.5, 0.04, 0.5), FIRST),
            (BOX, (0, 0.75, -0.45), (0.48, 0.25, 0.05), FIRST),
            *_CHAIR_LEGS,
        ),
        (
            (BOX, (0, 0.52, 0), (0.5, 0.48, 0.5), FIRST),
            (BOX, (0, 0.02, -0.03), (0.48, 0.02, 0.46), DARK),
            (BOX, (-0.06, 0.6, 0.5), (0.015, 0.06, 0.04), SECOND),
            (BOX, (0.06, 0.6, 0.5), (0.015, 0.06, 0.04), SECOND),
        ),  # cabinet
        (
            (BOX, (0, 0.25, 0.05), (0.46, 0.25, 0.45), FIRST),
            (BOX, (0, 0.65, -0.38), (0.46, 0.35, 0.12), FIRST),
            (BOX, (-0.44, 0.33, 0), (0.06, 0.33, 0.5), SECOND),
            (BOX, (0.44, 0.33, 0), (0.06, 0.33, 0.5), SECOND),
        ),  # sofa
        (
            (BOX, (0, 0.25, 0), (0.5, 0.25, 0.5), SECOND),
            (BOX, (0, 0.56, 0.05), (0.48, 0.08, 0.44), FIRST),
            (BOX, (0, 0.5, -0.48), (0.5, 0.5, 0.02), SECOND),
            (ELLIPSOID, (0, 0.68, -0.34), (0.36, 0.1, 0.1), FIRST),
        ),  # bed
        (
            (BOX, (-0.48, 0.5, 0), (0.02, 0.5, 0.5), FIRST),
            (BOX, (0.48, 0.5, 0), (0.02, 0.5, 0.5), FIRST),
            (BOX, (0, 0.05, 0), (0.48, 0.012, 0.48), SECOND),
            (BOX, (0, 0.36, 0), (0.48, 0.012, 0.48), SECOND),
            (BOX, (0, 0.67, 0), (0.48, 0.012, 0.48), SECOND),
            (BOX, (0, 0.98, 0), (0.5, 0.02, 0.5), FIRST),
        ),  # shelf
        (
            (CYLINDER, (0, 0.01, 0), (0.4, 0.01, 0.4), SECOND),
            (CYLINDER, (0, 0.45, 0), (0.04, 0.43, 0.04), SECOND),
            (CYLINDER, (0, 0.88, 0), (0.5, 0.12, 0.5), FIRST),
        ),  # lamp
        (
            (CYLINDER, (0, 0.15, 0), (0.25, 0.15, 0.25), SECOND),
            (ELLIPSOID, (0.08, 0.6, 0), (0.4, 0.3, 0.4), FIRST),
            (ELLIPSOID, (-0.12, 0.75, 0.05), (0.36, 0.24, 0.36), FIRST),
        ),  # plant
        _WHOLE_BOX,  # carton
        ((CYLINDER, (0, 0.5, 0), (0.5, 0.5, 0.5), FIRST),),  # stool
        (
            (CYLINDER, (0, 0.36, 0), (0.5, 0.36, 0.5), FIRST),
            (CYLINDER, (0, 0.86, 0), (0.2, 0.14, 0.2), SECOND),
        ),  # bottle
        ((CYLINDER, (0, 0.5, 0), (0.5, 0.5, 0.5), FIRST),),  # bowl
        ((ELLIPSOID, (0, 0.5, 0), (0.5, 0.5, 0.5), FIRST),),  # ball
        _WHOLE_BOX,  # book
        (
            (BOX, (0, 0.6, 0), (0.5, 0.4, 0.08), DARK),
            (BOX, (0, 0.6, 0.05), (0.46, 0.36, 0.08), FIRST),
            (BOX, (0, 0.15, -0.1), (0.06, 0.15, 0.06), SECOND),
            (BOX, (0, 0.015, 0), (0.25, 0.015, 0.5), SECOND),
        ),  # monitor
    )
)


@dataclass(frozen=True, slots=True)
class _Room:
    """A room in its own frame (aside, ahead), the camera at the origin; lengths in metres."""

    turn: Float[np.ndarray, "b 2"]  # of the room against the view
    left: Float[np.ndarray, " b"]  # all four: distance of the camera to that wall
    right: Float[np.ndarray, " b"]
    front: Float[np.ndarray, " b"]
    back: Float[np.ndarray, " b"]
    tall: Float[np.ndarray, " b"]
    eye: Float[np.ndarray, " b"]  # height of the camera

    def objects(
        self,
        kind: Int[np.ndarray, "b o"],
        present: Bool[np.ndarray, "b o"],
        size: Float[np.ndarray, "b o 3"],
        turn: Float[np.ndarray, "b o 2"],
        aside: Float[np.ndarray, "b o"],
        ahead: Float[np.ndarray, "b o"],
        bottom: Float[np.ndarray, "b o"],
    ) -> Objects:
        """Objects in the world whose places, turns, and heights above the floor are given in the room's frame."""
        cosine, sine = self.turn[:, :1], self.turn[:, 1:]
        x, z = cosine * aside + sine * ahead, cosine * ahead - sine * aside
        y = bottom + size[..., 1] / 2 - self.eye[:, None]
        whole_turn = compose(np.broadcast_to(self.turn[:, None], turn.shape), turn)
        return Objects(kind + FIRST_KIND, present, size, whole_turn, np.stack([x, y, z], axis=-1))


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Furniture in the room's frame."""

    kind: Int[np.ndarray, "b o"]  # index into KINDS
    present: Bool[np.ndarray, "b o"]
    size: Float[np.ndarray, "b o 3"]
    turn: Float[np.ndarray, "b o 2"]
    aside: Float[np.ndarray, "b o"]
    ahead: Float[np.ndarray, "b o"]
    reach: Float[np.ndarray, "b o 2"]  # half the extent aside and ahead


def arrange(indices: Int[np.ndarray, " b"], *, seed: int, photographs: int = 0) -> Layout:
    """Lay out the rooms `indices` (>= 0): row by row a pure function of (seed, index). Nothing has a label."""
    draw = Draws(indices, seed)
    camera, room = _room(draw)
    pieces = _furniture(draw, camera, room)
    furniture = room.objects(
        pieces.kind, pieces.present, pieces.size, pieces.turn, pieces.aside, pieces.ahead, np.zeros_like(pieces.aside)
    )
    all_objects = Objects.joined(_shell(room), _hung(draw, room), furniture, _things(draw, room, pieces))
    kind = all_objects.category - FIRST_KIND
    calm = kind < len(SHELL)
    layout = Layout(
        labels=np.full(len(indices), -1),
        camera=camera,
        primitives=primitives_of(all_objects, kind, _SHAPES, patterns(draw, calm)),
        surroundings=_surroundings(draw, room),
    )
    if not photographs:
        return layout
    # The shell reaches far beyond what is seen of it.
    seen = np.where(calm[..., None], np.minimum(all_objects.size, 3.0), all_objects.size)
    return replace(
        layout,
        skins=part_skins(*object_skins(draw, seen, photographs), kind, _SHAPES),
        ground_skins=wide_skins(draw, "ground skins", 2, 0.6, 5.0, photographs),
    )


def _room(draw: Draws) -> tuple[Camera, _Room]:
    u = draw("room", 13).T
    turn = turn_of(2 * u[0] - 1, 0.414)  # tan(45 degrees / 2)
    wide, deep, tall = between(u[1], 2.4, 7.0), between(u[2], 2.6, 9.0), between(u[3], 2.2, 3.3)
    left, back = wide * between(u[4], 0.15, 0.85), deep * between(u[5], 0.08, 0.4)
    eye = between(u[6], 0.5, 2.0)
    # A camera that is high up looks down more often.
    pitch = turn_of(between(u[7], -0.10 - 0.11 * eye, 0.12), 1.0)
    camera = Camera(
        focal=1 / between(u[8], 1 / 1.6, 1 / 0.8),
        pitch=pitch,
        roll=turn_of(2 * u[9] - 1, 0.06),
        height=eye,
        slope=np.zeros_like(eye),
    )
    return camera, _Room(turn, left, wide - left, deep - back, back, tall, eye)


def _shell(room: _Room) -> Objects:
    """Four walls and the ceiling; the floor is the ground."""
    wide, deep, tall = room.left + room.right, room.front + room.back, room.tall
    thick, over = np.full_like(wide, _THICK), 2 * _THICK
    size = [(wide + over, tall, thick)] * 2 + [(thick, tall, deep + over)] * 2 + [(wide + over, thick, deep + over)]
    aside_middle, ahead_middle = (room.right - room.left) / 2, (room.front - room.back) / 2
    aside = [aside_middle, aside_middle, -room.left - _THICK / 2, room.right + _THICK / 2, aside_middle]
    ahead = [room.front + _THICK / 2, -room.back - _THICK / 2, ahead_middle, ahead_middle, ahead_middle]
    nothing = np.zeros_like(tall)
    shape = (len(wide), len(size))
    return room.objects(
        kind=np.broadcast_to([0, 0, 0, 0, 1], shape),
        present=np.ones(shape, dtype=bool),
        size=np.stack([np.stack(each, axis=-1) for each in size], axis=1),
        turn=np.broadcast_to([1.0, 0.0], (*shape, 2)),
        aside=np.stack(aside, axis=-1),
        ahead=np.stack(ahead, axis=-1),
        bottom=np.stack([nothing, nothing, nothing, nothing, tall], axis=-1),
    )


_FACING = np.array([[-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # turns of what has its back to the front, left, right wall


def _at_wall(
    room: _Room,
    wall: Int[np.ndarray, "b o"],
    along: Float[np.ndarray, "b o"],
    width: Float[np.ndarray, "b o"],
    off: Float[np.ndarray, "b o"],
) -> tuple[np.ndarray, np.ndarray]:
    """Places (aside, ahead) at a share of the front, left or right wall, the middle `off` metres away from it.

    The side walls are used from the camera's height on.
    """
    ends = np.stack([room.left + room.right, room.front, room.front], axis=-1)
    length = np.take_along_axis(ends, wall, axis=1)
    place = width / 2 + along * np.maximum(length - width, 0)
    aside = np.choose(wall, [place - room.left[:, None], off - room.left[:, None], room.right[:, None] - off])
    ahead = np.where(wall == 0, room.front[:, None] - off, place)
    return aside, ahead


def _hung(draw: Draws, room: _Room) -> Objects:
    u = np.moveaxis(draw("hung", HANGING, 8), 2, 0)
    kind = len(SHELL) + np.floor(u[0] * len(HUNG)).astype(np.int64)
    size = between(np.moveaxis(u[1:4], 0, 2), _SIZES[kind, 0], _SIZES[kind, 1])
    wall = np.floor(u[4] * 3).astype(np.int64)
    aside, ahead = _at_wall(room, wall, u[5], size[..., 0], 0.0 * u[5])
    low = np.choose(kind - len(SHELL), [between(u[6], 0.9, 1.5), 0.0 * u[6], between(u[6], 0.7, 1.0)])
    bottom = np.minimum(low, room.tall[:, None] - size[..., 1] - 0.05)
    return room.objects(kind, u[7] < 0.8, size, _FACING[wall], aside, ahead, bottom)


def _furniture(draw: Draws, camera: Camera, room: _Room) -> _Pieces:
    u = np.moveaxis(draw("furniture", PIECES, 10), 2, 0)
    number = np.floor(u[0] * len(FURNITURE)).astype(np.int64)
    kind = len(SHELL) + len(HUNG) + number
    size = between(np.moveaxis(u[1:4], 0, 2), _SIZES[kind, 0], _SIZES[kind, 1])
    wall = np.searchsorted([0.4, 0.7], u[4])
    free = u[5] < _FREE[number]
    free[:, 0] = True
    quarter = _FACING[wall]
    askew = turn_of(2 * u[6] - 1, 0.25)
    askew = np.where((u[7] < 0.5)[..., None], askew, np.array([1.0, 0.0]))
    turn = np.where(free[..., None], compose(quarter, askew), quarter)
    cosine, sine = np.abs(turn[..., 0]), np.abs(turn[..., 1])
    reach = np.stack([size[..., 0] * cosine + size[..., 2] * sine, size[..., 0] * sine + size[..., 2] * cosine], -1) / 2

    aside, ahead = _at_wall(room, wall, u[8], size[..., 0], size[..., 2] / 2 + between(u[9], 0.01, 0.1))
    walls = np.stack([room.left, room.right, room.back, room.front], axis=-1)[:, None] - np.repeat(reach, 2, axis=2)
    free_aside, free_ahead = between(u[8], -walls[..., 0], walls[..., 1]), between(u[9], 0.2, walls[..., 3])
    # The first one within the view: its distance from 0.6 to 3.5 m, as inverse, and how far aside.
    far = 1 / between(u[8, :, 0], 1 / 3.5, 1 / 0.6)
    x = (u[9, :, 0] - 0.5) * 0.8 * far / camera.focal
    free_aside[:, 0] = room.turn[:, 0] * x - room.turn[:, 1] * far
    free_ahead[:, 0] = room.turn[:, 1] * x + room.turn[:, 0] * far
    aside = np.clip(np.where(free, free_aside, aside), -walls[..., 0], walls[..., 1])
    ahead = np.clip(np.where(free, free_ahead, ahead), -walls[..., 2], walls[..., 3])

    fits = (
        (walls[..., 0] + walls[..., 1] > 0) & (walls[..., 2] + walls[..., 3] > 0) & (size[..., 1] < room.tall[:, None])
    )
    around_camera = (np.abs(aside) < reach[..., 0] + _CLEAR) & (np.abs(ahead) < reach[..., 1] + _CLEAR)
    below_camera = size[..., 1] < room.eye[:, None] - _CLEAR
    present = fits & (~around_camera | below_camera)
    present = _not_in_another(present, np.stack([aside, ahead], axis=-1), reach)
    return _Pieces(kind, present, size, turn, aside, ahead, reach)


def _not_in_another(
    present: Bool[np.ndarray, "b o"], place: Float[np.ndarray, "b o 2"], reach: Float[np.ndarray, "b o 2"]
) -> Bool[np.ndarray, "b o"]:
    """Leave out what would stand in an earlier one that is there."""
    present = present.copy()
    for later in range(1, present.shape[1]):
        apart = np.abs(place[:, :later] - place[:, later : later + 1]) > reach[:, :later] + reach[:, later : later + 1]
        present[:, later] &= (apart.any(axis=2) | ~present[:, :later]).all(axis=1)
    return present


def _things(draw: Draws, room: _Room, pieces: _Pieces) -> Objects:
    """Things on the tops of tables, cabinets, cartons and stools; without any, nothing."""
    u = np.moveaxis(draw("things", LYING, 8), 2, 0)
    keys = draw("hosts", LYING, PIECES)
    kind = len(KINDS) - len(THINGS) + np.floor(u[0] * len(THINGS)).astype(np.int64)
    size = between(np.moveaxis(u[1:4], 0, 2), _SIZES[kind, 0], _SIZES[kind, 1])
    flat = pieces.present & _FLAT[pieces.kind - len(SHELL) - len(HUNG)]
    host = np.argmax(flat[:, None] * (1 + keys), axis=2)

    def of_host(values: np.ndarray) -> np.ndarray:
        picked: np.ndarray = np.take_along_axis(values, host.reshape(*host.shape, *(1,) * (values.ndim - 2)), axis=1)
        return picked

    top, turn = of_host(pieces.size), of_host(pieces.turn)
    wide = np.maximum(size[..., 0], size[..., 2])
    room_for_it = np.stack([top[..., 0] - wide, top[..., 2] - wide], axis=-1)
    across, along = np.moveaxis((np.stack([u[4], u[5]], axis=-1) - 0.5) * room_for_it, 2, 0)
    cosine, sine = turn[..., 0], turn[..., 1]
    aside = of_host(pieces.aside) + cosine * across + sine * along
    ahead = of_host(pieces.ahead) + cosine * along - sine * across
    present = (
        of_host(flat) & (room_for_it > 0).all(axis=2) & (u[6] < 0.9) & (top[..., 1] + size[..., 1] < room.tall[:, None])
    )
    present &= (np.abs(aside) > _CLEAR / 2 + wide) | (np.abs(ahead) > _CLEAR / 2 + wide)
    half = np.stack([wide, wide], axis=-1) / 2
    present = _not_in_another(present, np.stack([aside, ahead], axis=-1), half)
    own = compose(turn, turn_of(2 * u[7] - 1, 0.3))
    return room.objects(kind, present, size, own, aside, ahead, top[..., 1])


def _surroundings(draw: Draws, room: _Room) -> Surroundings:
    """The floor is one wide road without marks, the light comes from above and is soft."""
    u = draw("indoors", 10).T
    colours = draw("light", 8, 5)
    one, none = np.ones_like(room.eye), np.zeros_like(room.eye)
    tint = np.sqrt(palette(colours[:, 6:], darkest=0.6, vivid=0.4))
    around, elevation = turn_of(2 * u[0] - 1, 1.0), turn_of(between(u[1], 0.25, 0.8), 1.0)
    level = elevation[:, :1] * around * np.where(u[2] < 0.5, 1.0, -1.0)[:, None]
    return Surroundings(
        street=room.turn,
        middle=none,
        road=1000 * one,
        dash=np.stack([one, none, none], axis=-1),
        ground=palette(colours[:, :3], darkest=0.15, brightest=0.9, vivid=0.3),
        rough=np.stack([0.4 * u[3], between(u[4], 0.5, 6.0)], axis=-1),
        sky=palette(colours[:, 3:6], darkest=0.2, brightest=0.95, vivid=0.3),
        cloud=np.stack([none, one], axis=-1),
        sun=np.stack([level[:, 1], elevation[:, 1], level[:, 0]], axis=-1),
        light=tint[:, 0] * between(u[5], 0.1, 0.6)[:, None],
        ambient=tint[:, 1] * between(u[6], 0.45, 1.0)[:, None],
    )


ROOMS = World(arrange, CLASSES, (), CLASSES.index("floor"))
