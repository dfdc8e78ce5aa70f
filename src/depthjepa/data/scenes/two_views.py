"""A second camera in a rendered scene, and where the points that the first one sees lie in its picture, exactly.

The second camera stands 0.2 to 2 m away, aside or behind and a little higher or lower, turned by up to 30 degrees to
either side; pitch, roll and focal length are the first one's. A point is seen by both where the ray from the second
camera to it meets nothing before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.scenes.casting import TILE, Rays, cast, columns, ray_places, to_camera, view_rays
from depthjepa.data.scenes.layout import ABSENT, Draws, Layout, between, turn_of
from depthjepa.data.scenes.painting import FARTHEST

NEAREST, FARTHEST_APART = 0.2, 2.0  # [m]
_TURN = 0.2679491924311227  # tan(30 degrees / 2)
_TRIES = 12  # places of the second camera; the first that is free is taken
_CLEAR = 0.15  # around it [m]
_WAY = (0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the way that are looked at
_SLACK = 1e-3  # of a depth: what rounding may make a point nearer than it is


@dataclass(frozen=True, slots=True)
class Second:
    """Layouts as the second camera sees them: it is at their origin."""

    layout: Layout
    place: Float[np.ndarray, "b 3"]  # of the second camera, the first one at the origin [m]
    turn: Float[np.ndarray, " b"]  # between the optical axes [degrees]


def second_view(layout: Layout, draw: Draws) -> Second:
    """Move and turn the cameras of layouts, row by row as `draw` says."""
    u = draw("second camera", _TRIES, 4)
    apart = between(u[..., 0], NEAREST, FARTHEST_APART)
    # Aside (a quarter turn, up to 80 degrees to the back from there) to one side or the other.
    aside = turn_of(u[..., 1], 0.8)
    side = np.where(u[..., 2] < 0.5, 1.0, -1.0)
    rise = between(u[..., 3], -0.15, 0.15)
    level = np.sqrt(apart * apart - np.square(rise))
    places = np.stack([side * level * aside[..., 0], rise, -level * aside[..., 1]], axis=-1)
    # A wall may stand between, which nothing is behind: all of the way has to be free.
    free = ~np.any([_inside(layout, places * share) for share in _WAY], axis=0)
    chosen = np.argmax(free, axis=1)  # none is free: the first
    place = places[np.arange(len(places)), chosen]
    yaw = turn_of(2 * draw("second camera's turn", 1)[:, 0] - 1, _TURN)

    camera, around, solids = layout.camera, layout.surroundings, layout.primitives
    cosine, sine = around.street.T
    moved = replace(
        layout,
        camera=replace(camera, height=camera.height + place[:, 1] - camera.slope * place[:, 0], yaw=yaw),
        primitives=replace(solids, centre=solids.centre - place[:, None]),
        surroundings=replace(
            around,
            middle=around.middle - (cosine * place[:, 0] - sine * place[:, 2]),
            start=sine * place[:, 0] + cosine * place[:, 2],
        ),
    )
    between_axes = np.square(camera.pitch[:, 0]) * yaw[:, 0] + np.square(camera.pitch[:, 1])
    return Second(moved, place, np.degrees(np.arccos(np.clip(between_axes, -1, 1))))


def _inside(layout: Layout, places: Float[np.ndarray, "b n 3"]) -> Bool[np.ndarray, "b n"]:
    """Whether places are in a primitive, in the ground, or too near to either."""
    solids, camera = layout.primitives, layout.camera
    x, y, z = np.moveaxis(places[:, :, None] - solids.centre[:, None], -1, 0)
    cosine, sine = np.moveaxis(solids.turn[:, None], -1, 0)
    own = np.stack([cosine * x - sine * z, y, sine * x + cosine * z], axis=-1)
    within = (np.abs(own) < solids.half[:, None] + _CLEAR).all(axis=-1) & (solids.shape != ABSENT)[:, None]
    above = places[..., 1] - camera.slope[:, None] * places[..., 0] + camera.height[:, None]
    inside: np.ndarray = within.any(axis=-1) | (above < 2 * _CLEAR)
    return inside


def matches(first: Layout, second: Second, size: tuple[int, int]) -> Float[Tensor, "b h w 2"]:
    """Where the point of each pixel of the first picture is in the second one.

    (down, right) as shares of the picture's sides; not a number where the point is the sky, outside of the second
    picture, or hidden there.
    """
    (height, width), scenes, device = size, len(first.labels), torch.device("cpu")
    places, back = ray_places(size)
    rays = view_rays(first.camera, places, min(size), device)
    depth, _ = cast(first, rays, places)
    x, y, z = (
        each * depth - moved
        for each, moved in zip((rays.x, rays.y, rays.z), columns(second.place, rays.scene), strict=True)
    )
    camera = second.layout.camera
    assert camera.yaw is not None
    yaw, pitch, roll = (
        (turn[0], turn[1]) for turn in (columns(each, rays.scene) for each in (camera.yaw, camera.pitch, camera.roll))
    )
    across, up, there = to_camera((x, y, z), yaw, pitch, roll)
    focal = columns(camera.focal, rays.scene)[0]
    known = torch.isfinite(depth) & (depth <= FARTHEST) & (there > 1e-3)
    safe = torch.where(known, there, 1)
    right = across / safe * focal * min(size) / width + 0.5
    down = -up / safe * focal * min(size) / height + 0.5
    known &= (down >= 0) & (down < 1) & (right >= 0) & (right < 1)
    towards = Rays(x=x / safe, y=y / safe, z=z / safe, scene=rays.scene, pixel=rays.pixel)
    hits, _ = cast(second.layout, towards, None)
    known &= hits >= there * (1 - _SLACK)
    found = torch.where(known[..., None], torch.stack([down, right], dim=-1), torch.nan)
    order = torch.from_numpy(back[: height * width])
    return found.view(scenes, -1, TILE, 2).reshape(scenes, -1, 2).index_select(1, order).view(scenes, height, width, 2)
