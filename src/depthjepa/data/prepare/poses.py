"""Poses of cameras, from the forms that recordings have them in.

A pose is as in `dataset.json`: the three rows of [turn | place], by which a point of the camera (x right, y down, z
forward) [m] goes to the place's own axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

PoseRows = tuple[float, ...]

# A camera of ARKit, and of graphics in general, has x right, y up and looks along -z.
UP_AND_BACK = np.diag([1.0, -1.0, -1.0])
DIGITS = 7  # after the point: a tenth of a micrometre


def pose_of_quaternion(numbers: Sequence[float], place: Sequence[float], *, y_up: bool = False) -> PoseRows | None:
    """The pose of a camera whose turn to the place's axes is the quaternion (x, y, z, w); None for no turn at all.

    `y_up`: the camera's axes are x right, y up, z backwards.
    """
    values = np.array([*numbers, *place], dtype=np.float64)
    if not np.isfinite(values).all() or not 0.5 < float(np.linalg.norm(values[:4])) < 2:
        return None
    turn = Rotation.from_quat(values[:4]).as_matrix()
    return _rows(turn @ UP_AND_BACK if y_up else turn, values[4:])


def pose_of_extrinsics(axis_angle: Sequence[float], shift: Sequence[float]) -> PoseRows | None:
    """The pose of a camera to which a point X of the place goes as `turn @ X + shift`; turn = axis x angle [rad]."""
    values = np.array([*axis_angle, *shift], dtype=np.float64)
    if not np.isfinite(values).all():
        return None
    turn = Rotation.from_rotvec(values[:3]).as_matrix()
    return _rows(turn.T, -turn.T @ values[3:])


def _rows(turn: Float[np.ndarray, "3 3"], place: Float[np.ndarray, " 3"]) -> PoseRows:
    return tuple(round(float(number), DIGITS) for number in np.column_stack([turn, place]).reshape(-1))
