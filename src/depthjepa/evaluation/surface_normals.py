"""Surface normals from depth and the focal length, by planes that are fitted to the neighbours of each pixel.

A pixel at (u, v) from the middle of the image [px] with depth Z [m] is the point Z (u / f, v / f, 1): x right, y down,
z forward. On a plane n · X = c the disparity 1 / Z = n · (u / f, v / f, 1) / c is linear in u and v, so a plane is a
linear fit of disparity, exact whatever its slant, and its normal needs nothing but the fit's three numbers and f.

Rule: the window of a pixel is 5 x 5 pixels of a grid whose step is 1 px, and as many more as 240 fit into the image's
shorter side. Of them those count that are valid and whose disparity is within a tenth of the pixel's own: windows do
not reach across edges. A normal is valid where the pixel is, at least 6 count, they are not on one line, the fit is
within 1 % of the disparity (root of the mean square), and its standard error by what is left turns the normal by at
most 0.2 (11 degrees): noise, and steps above 4 % that the first rule let pass, are left out.
Normals are of unit length and point to the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from depthjepa.data.cameras import Oriented, focal_length_in, own_source
from depthjepa.data.samples import Derived, Sample
from depthjepa.depth import disparity, pool_valid

REACH = 2  # steps of a window to each side
WINDOW = 2 * REACH + 1
SIDE = 240  # pixels of the shorter side for each step
NEAR = 0.1  # of the disparity
FEWEST = 6  # pixels of a fit, twice its unknowns
SPREAD = 0.2  # smallest variance [step²] of their places in any direction
FIT = 0.01  # of the disparity
TURN = 0.2  # [rad]


def normals_of_depth(
    depth: Float[Tensor, "b 1 h w"], focal: Float[Tensor, " b"]
) -> tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b 1 h w"]]:
    """Unit normals of depth [m] seen with a focal length [px of these images], and where they are valid; else 0."""
    h, w = depth.shape[2:]
    near = disparity(depth).double()
    step = max(1, round(min(h, w) / SIDE))
    # Of the places that count, relative to the pixel and in steps, and of the disparity there relative to its own less
    # one: sums of 1, x, y, xx, xy, yy, d, xd, yd, dd.
    sums = near.new_zeros(10, *depth.shape)
    padded = F.pad(near, [REACH * step] * 4)
    safe = torch.where(near > 0, near, 1)
    for y in range(-REACH, REACH + 1):
        for x in range(-REACH, REACH + 1):
            top, left = (REACH + y) * step, (REACH + x) * step
            rest = padded[:, :, top : top + h, left : left + w] / safe - 1
            counts = (rest.abs() <= NEAR).double()
            d = counts * rest
            for place, term in enumerate((1, x, y, x * x, x * y, y * y)):
                if term:
                    sums[place] += term * counts
            for place, term in enumerate((1, x, y), start=6):
                if term:
                    sums[place] += term * d
            sums[9] += d * rest
    count = sums[0].clamp(min=1)
    x, y, xx, xy, yy, d, xd, yd, dd = sums[1:] / count
    xx, xy, yy, xd, yd, dd = xx - x * x, xy - x * y, yy - y * y, xd - x * d, yd - y * d, dd - d * d
    determinant = xx * yy - xy * xy
    least = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
    spread = least > SPREAD
    determinant = torch.where(spread, determinant, 1)
    slope_x, slope_y = (xd * yy - yd * xy) / determinant, (yd * xx - xd * xy) / determinant
    residual = (dd - slope_x * xd - slope_y * yd).clamp(min=0).sqrt()
    # Of the plane at the pixel itself, then at the middle of the image; in units of the pixel's disparity.
    level = 1 + d - slope_x * x - slope_y * y
    slope_x, slope_y = slope_x / step, slope_y / step
    u = torch.arange(w, device=depth.device, dtype=torch.float64) + 0.5 - w / 2
    v = (torch.arange(h, device=depth.device, dtype=torch.float64) + 0.5 - h / 2)[:, None]
    length = focal.to(depth.device, torch.float64)[:, None, None, None]
    normal = torch.cat([slope_x * length, slope_y * length, level - slope_x * u - slope_y * v], 1)
    size = normal.norm(dim=1, keepdim=True)
    turn = residual * length / step / (((sums[0] - 3).clamp(min=1) * least).clamp(min=1e-9).sqrt() * size)
    known = (near > 0) & (sums[0] >= FEWEST) & spread & (residual <= FIT) & (turn <= TURN)
    normal = -normal / size.clamp(min=1e-12)  # disparity is above 0: this side of the plane looks at the camera
    return torch.where(known, normal, 0).float(), known


def known_normals(normals: Float[Tensor, "b 3 h w"]) -> Bool[Tensor, "b 1 h w"]:
    """Where normals are known: those that are not are 0."""
    return (normals != 0).any(1, keepdim=True)


def mean_normals(
    normals: Float[Tensor, "b 3 h w"], size: tuple[int, int], share: float
) -> tuple[Float[Tensor, "b 3 rows cols"], Bool[Tensor, "b 1 rows cols"]]:
    """Mean normals of cells, of unit length (0 where a cell does not count), and which count.

    At least a `share` of a cell's pixels has to have a normal, and one, and they must not cancel out.
    """
    known = known_normals(normals)
    mean, shares = pool_valid(normals, known, size)
    counted = (shares > 0) & (shares >= share - 1e-6) & (mean.norm(dim=1, keepdim=True) > 1e-3)
    return torch.where(counted, F.normalize(mean, dim=1), 0), counted


@dataclass(frozen=True, slots=True)
class WithNormals(Derived):
    """A source with depth whose samples bear their surface normals; 0 where the camera is not known.

    They are exact where the source knows its surfaces, and else from planes fitted to the depth at its own size.
    """

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

    def sample(self, index: int) -> Sample:
        """Sample `index` with its normals; raises what the source does."""
        sample = self.source.sample(index)
        return replace(sample, normals=self._normals(sample, index))

    def _normals(self, sample: Sample, index: int) -> Float[Tensor, "3 h w"]:
        own, number = own_source(self.source, index)
        if isinstance(own, Oriented):
            return own.normals_of(number)
        focal = focal_length_in(own, number)
        if focal is None or sample.depth is None:
            return torch.zeros(3, *sample.image.shape[1:])
        return normals_of_depth(sample.depth[None], torch.tensor([focal]))[0][0]
