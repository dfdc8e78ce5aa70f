"""A linear readout of disparity from frozen tokens, and its fit from sums that never hold the tokens.

A ridge on standardised tokens predicts, for each patch, the disparity of its 2 x 2 cells as a deviation from
the training set's mean map: what position alone tells is given for nothing, and the readout is scored on what
it adds. The truth of a cell is the mean disparity [1/m] over its valid pixels; a cell without one takes no
part.

The normal equations are summed batch by batch in float64, each of the four outputs with its own mask. The
strength is chosen on every fifth training image, whose error follows from its own sums (the mean map and the
standardisation then come from the other four fifths); the readout is solved again on all training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.depth import disparity, pool_valid, valid
from depthjepa.evaluation.features import Encode, OfBatch, tokens_of
from depthjepa.faults import BadInput
from depthjepa.grid import to_tokens, unfold_cells
from depthjepa.logbook import whole_file

STRENGTHS = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # beside a mean squared error
FOLDS = 5
FACTOR = 2  # cells a patch along each side; a patch's cells are ordered row by row
ROUNDING = 1e-6  # below this share of a channel's magnitude, float32 tokens hold only rounding

Predict = Callable[[Batch], Float[Tensor, "b 1 rows cols"]]  # disparity [1/m]


@dataclass(frozen=True, slots=True)
class MeanMap:
    """The training set's mean disparity [1/m] of every cell, and the range of the cells' disparities."""

    values: Float[Tensor, "rows cols"]
    minimum: float
    maximum: float

    def predict(self, batch: Batch) -> Float[Tensor, "b 1 rows cols"]:
        """Give every image the mean map: the zero of a table."""
        return self.values.expand(len(batch.images), 1, -1, -1)


@dataclass(frozen=True, slots=True)
class DepthReadout:
    """A linear map from a token to the disparities [1/m] of its 2 x 2 cells, added to the mean map."""

    mean_map: MeanMap
    token_mean: Float[Tensor, " d"]
    token_deviation: Float[Tensor, " d"]  # infinite for a channel that does not vary
    weight: Float[Tensor, "d 4"]
    bias: Float[Tensor, " 4"]
    strength: float

    def predict(self, tokens: Float[Tensor, "b n d"], rows: int, cols: int) -> Float[Tensor, "b 1 cell_rows cell_cols"]:
        """Disparity [1/m] at twice the grid of `rows` x `cols` tokens, within the training range.

        On a grid other than that of the training set the mean map is resized.
        """
        if tokens.shape[2] != len(self.token_mean):
            widths = f"{tokens.shape[2]} wide, and the readout was fitted on {len(self.token_mean)}"
            raise BadInput(f"the tokens are {widths}: use the encoder of the readout")
        here = tokens.device
        standard = (tokens.float() - self.token_mean.to(here)) / self.token_deviation.to(here)
        values = standard @ self.weight.to(here) + self.bias.to(here)
        mean_map = self.mean_map.values.to(here)[None, None]
        if mean_map.shape[2:] != (FACTOR * rows, FACTOR * cols):
            mean_map = F.interpolate(mean_map, (FACTOR * rows, FACTOR * cols), mode="bilinear")
        disparities: Tensor = mean_map + unfold_cells(values, (rows, cols), FACTOR)
        return disparities.clamp(self.mean_map.minimum, self.mean_map.maximum)

    def on(self, encode: Encode | OfBatch, patch_size: int) -> Predict:
        """Return the function from a batch to disparity: the encoder, then this readout."""

        def predict(batch: Batch) -> Float[Tensor, "b 1 cell_rows cell_cols"]:
            return self.predict(tokens_of(encode, batch), *patch_grid(batch.images, patch_size))

        return predict

    def save(self, path: Path, origin: dict[str, str] | None = None) -> None:
        """Write the readout as one safetensors file, with what it was fitted on (`origin`) as its metadata."""
        numbers = (self.mean_map.minimum, self.mean_map.maximum, self.strength)
        tensors = {
            "mean_map": self.mean_map.values,
            "token_mean": self.token_mean,
            "token_deviation": self.token_deviation,
            "weight": self.weight,
            "bias": self.bias,
            "minimum_maximum_strength": torch.tensor(numbers, dtype=torch.float64),
        }
        with whole_file(path) as file:
            file.write(to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, origin))

    @classmethod
    def load(cls, path: Path) -> DepthReadout:
        """Read what `save` wrote; raises `BadInput` for any other file."""
        try:
            tensors = load_file(path)
            minimum, maximum, strength = tensors.pop("minimum_maximum_strength").tolist()
            mean_map = MeanMap(tensors.pop("mean_map"), minimum, maximum)
            return cls(mean_map=mean_map, strength=strength, **tensors)
        except (OSError, SafetensorError, KeyError, TypeError) as fault:
            raise BadInput(f"{path} is not a depth readout written by depthjepa: {fault}") from fault


def read_origin(path: Path) -> dict[str, str]:
    """What `DepthReadout.save` was told of the readout's origin; empty where it was told nothing.

    Raises `BadInput` for a file that is not of this format.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return dict(stored.metadata() or {})
    except (OSError, SafetensorError) as fault:
        raise BadInput(f"{path} is not a depth readout written by depthjepa: {fault}") from fault


def patch_grid(images: Float[Tensor, "b 3 h w"], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patch grid; refuses images that patches do not divide."""
    h, w = images.shape[2:]
    if h % patch_size or w % patch_size:
        raise BadInput(f"images of {h} x {w} pixels do not divide into patches of {patch_size}")
    return h // patch_size, w // patch_size


def cells_of(
    batch: Batch, rows: int, cols: int
) -> tuple[Float[Tensor, "b 1 rows cols"], Bool[Tensor, "b 1 rows cols"]]:
    """True disparity [1/m] of each cell (0 where unknown), and where it is known."""
    if batch.depth is None:
        raise BadInput("a depth probe needs depth, and these images have none: use RGB-D folders or scenes")
    cells, share = pool_valid(disparity(batch.depth), valid(batch.depth), (rows, cols))
    return cells, share > 0


def fit_readout(encode: Encode, batches: Iterable[Batch], patch_size: int) -> DepthReadout:
    """Fit the linear readout of one encoder; see `fit_readouts`."""
    return fit_readouts({"encoder": encode}, batches, patch_size)[1]["encoder"]


def fit_readouts(
    encoders: Mapping[str, Encode | OfBatch], batches: Iterable[Batch], patch_size: int
) -> tuple[MeanMap, dict[str, DepthReadout]]:
    """Fit the training set's mean map and the linear readout of every encoder in one pass.

    Raises `BadInput` where depth is missing, sizes differ, or there are too few images to choose a strength.
    """
    fitted: _Sums | None = None
    held: _Sums | None = None
    centres: dict[str, Tensor] = {}
    seen, grid = 0, (0, 0)
    for batch in batches:
        if seen and patch_grid(batch.images, patch_size) != grid:
            raise BadInput("a depth probe needs images of one size: set data.image_size")
        grid = patch_grid(batch.images, patch_size)
        cells, known = cells_of(batch, FACTOR * grid[0], FACTOR * grid[1])
        tokens = {name: tokens_of(encode, batch) for name, encode in encoders.items()}
        for name, each in tokens.items():
            centres.setdefault(name, each.double().mean((0, 1)))
        aside = torch.arange(seen, seen + len(cells), device=cells.device) % FOLDS == FOLDS // 2
        fitted = _sums(tokens, cells, known, centres, ~aside) + fitted
        held = _sums(tokens, cells, known, centres, aside) + held
        seen += len(cells)
    if fitted is None or held is None or not (fitted.count.any() and held.count.any()):
        raise BadInput(f"a depth probe needs at least {FOLDS} images with valid depth, and there are {seen}")
    everything = fitted + held
    cells_mean = unfold_cells(everything.means()[None], grid, FACTOR)[0, 0].float().cpu()
    # Rounding to float32 must not carry a mean across the bounds that predictions are held to.
    mean_map = MeanMap(cells_mean.clamp(everything.minimum, everything.maximum), everything.minimum, everything.maximum)
    readouts = {name: _fit(name, fitted, held, mean_map, centre) for name, centre in centres.items()}
    return mean_map, readouts


def _fit(name: str, fitted: _Sums, held: _Sums, mean_map: MeanMap, centre: Float[Tensor, " d"]) -> DepthReadout:
    """Choose the strength on the images held out, then solve on all of them."""
    standard = fitted.moments[name].standard(centre)
    candidates = fitted.problem(name, fitted.means(), *standard).solve(STRENGTHS)
    errors = held.problem(name, fitted.means(), *standard).error(*candidates)
    strength = STRENGTHS[int(errors.argmin())]
    everything = fitted + held
    mean, deviation = everything.moments[name].standard(centre)
    weight, bias = everything.problem(name, everything.means(), mean, deviation).solve((strength,))
    return DepthReadout(
        mean_map=mean_map,
        token_mean=(centre + mean).float().cpu(),
        token_deviation=deviation.float().cpu(),
        weight=weight[0].T.float().cpu().contiguous(),
        bias=bias[0].float().cpu(),
        strength=strength,
    )


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over one encoder's tokens x (less a fixed centre), float64; w is 1 for a known cell and else 0."""

    tokens: int
    total: Float[Tensor, " d"]  # Σ x over all tokens
    square: Float[Tensor, " d"]  # Σ x² over all tokens
    place: Float[Tensor, "n 4 d"]  # Σ w x over images
    cross: Float[Tensor, "4 d"]  # Σ w x y
    gram: Float[Tensor, "4 d d"]  # Σ w x xᵀ

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def standard(self, centre: Float[Tensor, " d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean of x, and its deviation: infinite for a channel that varies by rounding only."""
        mean = self.total / self.tokens
        deviation = (self.square / self.tokens - mean.square()).clamp(min=0).sqrt()
        magnitude = (deviation.square() + (centre + mean).square()).sqrt()
        return mean, torch.where(deviation > ROUNDING * magnitude, deviation, torch.inf)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Normal equations of the four outputs, with standardised tokens z and deviations r from a mean map."""

    count: Float[Tensor, " 4"]
    z: Float[Tensor, "4 d"]  # Σ w z
    r: Float[Tensor, " 4"]
    zz: Float[Tensor, "4 d d"]
    zr: Float[Tensor, "4 d"]
    rr: Float[Tensor, " 4"]

    def solve(self, strengths: tuple[float, ...]) -> tuple[Float[Tensor, "s 4 d"], Float[Tensor, "s 4"]]:
        """Weights and biases that minimise mean (r - W z - b)² + strength ‖W‖² for each output."""
        count = self.count.clamp(min=1)
        mean = self.z / count[:, None]
        covariance = self.zz / count[:, None, None] - mean[:, :, None] * mean[:, None, :]
        covariance_r = self.zr / count[:, None] - mean * (self.r / count)[:, None]
        values, vectors = torch.linalg.eigh(covariance)
        rotated = (vectors.mT @ covariance_r[:, :, None])[:, :, 0]
        shrunk = torch.stack([rotated / (values.clamp(min=0) + strength) for strength in strengths])
        weight = (vectors @ shrunk[..., None])[..., 0]
        return weight, self.r / count - (weight * mean).sum(-1)

    def error(self, weight: Float[Tensor, "s 4 d"], bias: Float[Tensor, "s 4"]) -> Float[Tensor, " s"]:
        """Σ w (r - W z - b)² over all outputs."""
        quadratic = torch.einsum("sjd,jde,sje->sj", weight, self.zz, weight)
        linear = (weight * self.zr).sum(-1) + bias * self.r - bias * (weight * self.z).sum(-1)
        return (quadratic - 2 * linear + bias.square() * self.count + self.rr).sum(-1)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over images: those of the truth y by place and output, and the moments of every encoder."""

    count: Float[Tensor, "n 4"]  # Σ w over images
    total: Float[Tensor, "n 4"]  # Σ w y
    square: Float[Tensor, "n 4"]  # Σ w y²
    minimum: float
    maximum: float
    moments: dict[str, _Moments]

    def __add__(self, other: _Sums | None) -> _Sums:
        if other is None:
            return self
        return _Sums(
            self.count + other.count,
            self.total + other.total,
            self.square + other.square,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            {name: moments + other.moments[name] for name, moments in self.moments.items()},
        )

    def means(self) -> Float[Tensor, "n 4"]:
        """Mean truth of every cell, that of all cells where one was never known."""
        means = torch.where(self.count > 0, self.total / self.count.clamp(min=1), self.total.sum() / self.count.sum())
        return means.clamp(self.minimum, self.maximum)

    def problem(
        self,
        name: str,
        means: Float[Tensor, "n 4"],
        mean: Float[Tensor, " d"],
        deviation: Float[Tensor, " d"],
    ) -> _Problem:
        """Turn the raw sums of one encoder into those of z = (x - mean) / deviation and r = y - means."""
        moments = self.moments[name]
        means, count_here, total_here = (each.to(mean.device) for each in (means, self.count, self.total))
        count = count_here.sum(0)
        x = moments.place.sum(0)
        r_here = total_here - means * count_here
        r = r_here.sum(0)
        xr = moments.cross - (means[:, :, None] * moments.place).sum(0)
        xx = moments.gram - x[:, :, None] * mean - mean[:, None] * x[:, None, :]
        xx = xx + count[:, None, None] * mean[:, None] * mean
        square = self.square.to(mean.device) - means * (total_here + r_here)
        return _Problem(
            count=count,
            z=(x - count[:, None] * mean) / deviation,
            r=r,
            zz=xx / deviation[:, None] / deviation,
            zr=(xr - r[:, None] * mean) / deviation,
            rr=square.sum(0),
        )


def _sums(
    tokens: Mapping[str, Float[Tensor, "b n d"]],
    cells: Float[Tensor, "b 1 rows cols"],
    known: Bool[Tensor, "b 1 rows cols"],
    centres: Mapping[str, Float[Tensor, " d"]],
    chosen: Bool[Tensor, " b"],
) -> _Sums:
    """Sum over the chosen images of one batch."""
    y = to_tokens(F.pixel_unshuffle(cells.double(), FACTOR))[chosen]
    w = to_tokens(F.pixel_unshuffle(known.double(), FACTOR))[chosen]
    values = y[w > 0]
    return _Sums(
        count=w.sum(0),
        total=y.sum(0),
        square=y.square().sum(0),
        minimum=float(values.min()) if len(values) else math.inf,
        maximum=float(values.max()) if len(values) else 0.0,
        moments={
            name: _moments(each[chosen.to(each.device)].double() - centres[name], y, w) for name, each in tokens.items()
        },
    )


def _moments(x: Float[Tensor, "b n d"], y: Float[Tensor, "b n 4"], w: Float[Tensor, "b n 4"]) -> _Moments:
    y, w = y.to(x.device), w.to(x.device)
    flat, whole = x.flatten(0, 1), (w > 0).all(2).flatten()
    # Where all four cells are known, as they mostly are, their Gram matrix is one and the same.
    shared = flat[whole].T @ flat[whole]
    partial = [flat[(w[:, :, output] > 0).flatten() & ~whole] for output in range(w.shape[2])]
    return _Moments(
        tokens=len(flat),
        total=flat.sum(0),
        square=flat.square().sum(0),
        place=torch.einsum("bnd,bnj->njd", x, w),
        cross=torch.einsum("bnd,bnj->jd", x, y),
        gram=torch.stack([shared + rows.T @ rows for rows in partial]),
    )
