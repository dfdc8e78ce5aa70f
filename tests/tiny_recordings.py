"""A wall seen by a camera that moves, and what any recording of it has to give, whatever its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from depthjepa.data.config import DataConfig
from depthjepa.data.loading import open_source

SIZE = (24, 32)  # rows and columns
WALL = 3.0  # [m], before a camera that has not moved (x right, y down, z forward)
PLACES = ((0.0, 0.0, 0.0), (0.2, 0.0, 0.1), (0.1, -0.2, 0.3))  # [m]
TURNS = (0.0, 6.0, -9.0)  # to the right [degrees]


def turn(number: int) -> np.ndarray:
    """From the axes of camera `number` (x right, y down, z forward) to those of the place."""
    return Rotation.from_euler("y", TURNS[number % 3], degrees=True).as_matrix()


def rays(focal: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Directions of the pixels in the camera's axes, with z = 1, [h, w, 3]."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([(columns - size[1] / 2) / focal, (rows - size[0] / 2) / focal, np.ones(size)], axis=-1)


def metres(number: int, focal: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Depth of the wall [m] along the optical axis of camera `number`, [h, w]."""
    ahead = rays(focal, size) @ turn(number).T
    return (WALL - PLACES[number % 3][2]) / ahead[..., 2]


def sources(root: Path, **keys: Any) -> tuple[Any, Any]:
    config = DataConfig(root=str(root), **keys)
    return open_source(config, "train"), open_source(config, "val")


def train(root: Path) -> Any:
    return open_source(DataConfig(root=str(root)), "train")


def names(source: Any) -> list[str]:
    return [source.name_of(index).partition("rgb/")[2] for index in range(len(source))]


def depth(source: Any, index: int) -> np.ndarray:
    return source.sample(index).depth[0].numpy()


def sees_the_wall(source: Any, focal: float) -> None:
    """A point that a pair sees is where its second view sees it, for pairs of cameras 0, 1, 2 in turn."""
    found = 0
    for index in range(len(source)):
        views = source.two_views(index)
        assert views is not None, index
        pose = source._poses[index]
        points = rays(focal, depth(source, index).shape) * depth(source, index)[..., None] @ pose.turn.T + pose.place
        # On the wall, and at the places that were planted.
        np.testing.assert_allclose(points[..., 2][depth(source, index) > 0], WALL, atol=0.01)
        np.testing.assert_allclose(pose.place, PLACES[index % 3], atol=1e-6)
        np.testing.assert_allclose(pose.turn, turn(index), atol=1e-6)
        match = views.match.numpy()
        known = np.isfinite(match[..., 0])
        found += int(known.sum())
        for other in (number for number in range(len(source)) if number % 3 != index % 3):
            inside = (points[known] - np.array(PLACES[other % 3])) @ turn(other)
            across = inside[:, 0] / inside[:, 2] * focal / known.shape[1] + 0.5
            if np.abs(across - match[known][:, 1]).max(initial=0) < 0.01:
                break
        else:
            raise AssertionError(f"no camera sees the points of pair {index} where the match says")
    assert found > 100 * len(source)
