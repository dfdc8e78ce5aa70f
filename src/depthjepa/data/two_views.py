"""Two views of one place, and which point of one is which of the other.

Rendered scenes know it exactly (data.scenes.two_views). Photographs with depth know it where the camera's poses and its
focal length are known: a point goes from one picture to the other through space, and counts where the second picture's
own depth agrees that it is seen there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from depthjepa.runtime import uniforms

FURTHEST, WIDEST = 2.0, 30.0  # apart [m], and turned [degrees]
NEAREST = 0.05  # [m]; nearer pictures are nearly the same
_AGREES = 0.05  # of a depth: how far the second picture's own may be off


@dataclass(frozen=True, slots=True)
class TwoViews:
    """Two pictures of one place.

    `match` says where the point of each pixel of the first picture is in the second one: (down, right) as shares of its
    sides; not a number where that is not known or not seen.
    """

    first: UInt8[Tensor, "3 h w"]
    second: UInt8[Tensor, "3 h2 w2"]
    match: Float[Tensor, "h w 2"]
    apart: float  # [m]
    turn: float  # between the two optical axes [degrees], at least 0


@runtime_checkable
class SeesTwice(Protocol):
    """A source that may know a second view of its samples."""

    def tells_pairs(self) -> bool:
        """Whether it knows one of any sample."""
        ...

    def two_views(self, index: int) -> TwoViews | None:
        """Sample `index` with a second view, always the same one; None: there is none. Raises `UnreadableImage`."""
        ...


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a camera was: a point X of the camera (x right, y down, z forward) [m] is `turn @ X + place`."""

    turn: Float[np.ndarray, "3 3"]
    place: Float[np.ndarray, " 3"]

    @classmethod
    def of(cls, numbers: tuple[float, ...]) -> Pose:
        """From the three rows of [turn | place]."""
        rows = np.array(numbers, dtype=np.float64).reshape(3, 4)
        return cls(rows[:, :3], rows[:, 3])

    def apart(self, other: Pose) -> float:
        """Distance to another camera [m]."""
        return float(np.linalg.norm(self.place - other.place))

    def turned(self, other: Pose) -> float:
        """Angle between the optical axes [degrees]."""
        return float(np.degrees(np.arccos(np.clip(self.turn[:, 2] @ other.turn[:, 2], -1, 1))))


def partner(index: int, poses: dict[int, Pose]) -> int | None:
    """Which of the other pictures of the same place is the second view of `index`: drawn from those that are near.

    0.05 to 2 m apart, turned by at most 30 degrees. None without one.
    """
    own, numbers = poses[index], np.array(list(poses))
    apart = np.linalg.norm(np.stack([pose.place for pose in poses.values()]) - own.place, axis=1)
    along = np.stack([pose.turn[:, 2] for pose in poses.values()]) @ own.turn[:, 2]
    allowed = (apart >= NEAREST) & (apart <= FURTHEST) & (along >= np.cos(np.radians(WIDEST)))
    near = numbers[allowed & (numbers != index)]
    if not len(near):
        return None
    draw = uniforms(1, seed=0, stream="second view", epoch=0, indices=np.array([index]))[0, 0]
    return int(near[int(draw * len(near))])


def match_by_depth(
    depths: tuple[Float[Tensor, "1 h w"], Float[Tensor, "1 h2 w2"]],
    focal: tuple[float, float],
    poses: tuple[Pose, Pose],
) -> Float[Tensor, "h w 2"]:
    """`TwoViews.match` by the depth [m, 0 = not measured] of both pictures, their focal lengths [px] and poses."""
    first, second = (depth[0].double() for depth in depths)
    (height, width), (rows, cols) = first.shape, second.shape
    v, u = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) + 0.5 - side / 2 for side in (height, width)), indexing="ij"
    )
    points = torch.stack([u / focal[0], v / focal[0], torch.ones_like(u)], dim=-1) * first[..., None]
    turn = torch.from_numpy(poses[1].turn.T @ poses[0].turn)
    place = torch.from_numpy(poses[1].turn.T @ (poses[0].place - poses[1].place))
    x, y, z = (points @ turn.T + place).unbind(-1)
    known = (first > 0) & (z > 1e-3)
    safe = torch.where(known, z, 1)
    right, down = x / safe * focal[1] / cols + 0.5, y / safe * focal[1] / rows + 0.5
    known &= (down >= 0) & (down < 1) & (right >= 0) & (right < 1)
    # Among the four pixels around it there is depth, and it lies between their nearest and farthest.
    top, left = (
        (torch.where(known, share, 0.5) * side - 0.5).floor().long() for share, side in ((down, rows), (right, cols))
    )
    around = torch.stack(
        [
            second[(top + below).clamp(0, rows - 1), (left + beside).clamp(0, cols - 1)]
            for below in (0, 1)
            for beside in (0, 1)
        ]
    )
    near = torch.where(around > 0, around, torch.inf).amin(0)
    known &= (z >= near * (1 - _AGREES)) & (z <= around.amax(0) * (1 + _AGREES))
    return torch.where(known[..., None], torch.stack([down, right], dim=-1), torch.nan).float()
