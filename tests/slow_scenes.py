"""Independent and slow: rays against a scene's solids, one at a time, in double precision."""

from __future__ import annotations

import math

import numpy as np

from depthjepa.data.scenes.layout import ABSENT, AXLE, BOX, CYLINDER, Layout, World
from depthjepa.data.scenes.painting import FARTHEST


def slow_hit(shape: int, origin: list[float], ray: list[float]) -> float:
    """Where a ray enters a cube of side 2, a cylinder or a sphere of radius 1: by trying every face."""
    hits = []

    def at(t: float) -> list[float]:
        return [o + t * d for o, d in zip(origin, ray, strict=True)]

    def quadratic(axes: tuple[int, ...]) -> list[float]:
        a = sum(ray[i] ** 2 for i in axes)
        b = sum(origin[i] * ray[i] for i in axes)
        c = sum(origin[i] ** 2 for i in axes) - 1
        root = b * b - a * c
        return [(-b - math.sqrt(root)) / a, (-b + math.sqrt(root)) / a] if root >= 0 else []

    if shape == BOX:
        for axis in range(3):
            for sign in (-1, 1):
                t = (sign - origin[axis]) / ray[axis]
                if all(abs(at(t)[other]) <= 1 for other in range(3) if other != axis):
                    hits.append(t)
    elif shape in (CYLINDER, AXLE):
        along = 1 if shape == CYLINDER else 0
        axes = tuple(axis for axis in range(3) if axis != along)
        hits += [t for t in quadratic(axes) if abs(at(t)[along]) <= 1]
        for sign in (-1, 1):
            t = (sign - origin[along]) / ray[along]
            if sum(at(t)[axis] ** 2 for axis in axes) <= 1:
                hits.append(t)
    else:
        hits += quadratic((0, 1, 2))
    return min((t for t in hits if t > 0), default=math.inf)


def slow_depth(layout: Layout, scene: int, size: int, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Depth and class of every pixel of one scene, one ray and one primitive at a time, in double precision."""
    camera, solids = layout.camera, layout.primitives
    pitch = math.atan2(camera.pitch[scene, 1], camera.pitch[scene, 0])
    roll = math.atan2(camera.roll[scene, 1], camera.roll[scene, 0])
    tilt = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    twist = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    frames = []
    for number in np.flatnonzero(solids.shape[scene] != ABSENT):
        yaw = math.atan2(solids.turn[scene, number, 1], solids.turn[scene, number, 0])
        turn = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
        matrix = turn / solids.half[scene, number][:, None]
        frames.append((number, matrix, list(-matrix @ solids.centre[scene, number])))
    depth, category = np.zeros((size, size)), np.zeros((size, size), dtype=int)
    for row in range(size):
        for column in range(size):
            right, down = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
            focal = camera.focal[scene]
            ray = tilt @ twist @ np.array([right / focal, -down / focal, 1.0])
            fall = camera.slope[scene] * ray[0] - ray[1]
            best, what = (camera.height[scene] / fall, world.ground) if fall > 0 else (math.inf, 0)
            for number, matrix, origin in frames:
                t = slow_hit(int(solids.shape[scene, number]), origin, list(matrix @ ray))
                if t < best:
                    best, what = t, int(solids.category[scene, number])
            if best <= FARTHEST:
                depth[row, column], category[row, column] = best, what
    return depth, category
