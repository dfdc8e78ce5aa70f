"""Which patches are context and which are targets.

Three samplers, all pure functions of (seed, epoch, sample index):

- `multiblock`, bias `unbiased` (default): four target rectangles, context = a large block less the targets, as
  in I-JEPA (Assran et al. 2023, section 3 and appendix A.1), without the released code's spatial bias. Scale and
  aspect ratio are drawn apart for every target, the bounds are inclusive, targets stay whole rectangles, and the
  context is cut to a fixed length by a random choice. The statistics do not depend on the batch size.
- `multiblock`, bias `reference`: what the released code does, for comparison. One number sets scale and aspect
  ratio of all targets of a batch, the last patch row and column are never reached, and all masks of a batch are
  cut to its shortest in raster order, so that the bottom of the image is rarely seen.
- `mae`: 80 % of the patches are one target, all others context (paper, section 4.2.2).

Targets of different size are padded to one length; `Masks.valid` tells the padding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from depthjepa import runtime
from depthjepa.faults import BadInput
from depthjepa.settings import configuration

Grid = tuple[int, int]  # rows, columns of patches
Share = Annotated[float, Field(gt=0, le=1)]

ATTEMPTS = 200  # draws of one mask before the configuration is called impossible


@configuration
class MaskConfig:
    """Sampler and its scales; scales are shares of the image's patches."""

    kind: Literal["multiblock", "mae"] = "multiblock"
    """Several target blocks, or one target of many patches."""
    bias: Literal["unbiased", "reference"] = "unbiased"
    """Sampling of blocks: without spatial bias, or as the released I-JEPA code does it."""
    min_keep: PositiveInt | None = None
    """Fewest patches of a mask; null: 10, and 4 on grids with a side below 14."""
    context_scale: tuple[Share, Share] = (0.85, 1.0)
    """Area of the context block as shares of the patches, from and to."""
    target_scale: tuple[Share, Share] = (0.15, 0.2)
    """Area of a target block as shares of the patches, from and to."""
    target_aspect: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.5)
    """Height / width of a target block, from and to."""
    targets: PositiveInt = 4
    """Target blocks of an image."""
    mae_share: Share = 0.8
    """Share of the patches that kind=mae hides."""
    mae_shape: Literal["random", "block"] = "random"
    """What kind=mae hides: single patches, or one rectangle."""

    @field_validator("context_scale", "target_scale", "target_aspect")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not be larger than the second")
        return value

    def fewest(self, grid: Grid) -> int:
        """Return the fewest patches of a mask on this grid."""
        if self.min_keep is not None:
            return self.min_keep
        return 10 if min(grid) >= 14 else 4


@dataclass(frozen=True, slots=True)
class Masks:
    """Patch indices in raster order; `valid` is None where every target has the same length."""

    context: Int64[Tensor, "b c"]
    targets: Int64[Tensor, "b m k"]
    valid: Bool[Tensor, "b m k"] | None = None

    def to(self, device: torch.device) -> Masks:
        """Move the masks to a device."""
        return replace(
            self,
            context=self.context.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            valid=None if self.valid is None else self.valid.to(device, non_blocking=True),
        )

    def target_tokens(self) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"] | None]:
        """Patches of all target blocks side by side, and which of them are no padding (None: all)."""
        return self.targets.flatten(1), None if self.valid is None else self.valid.flatten(1)

    def all_tokens(self) -> tuple[Int64[Tensor, "b t"], Bool[Tensor, "b t"] | None]:
        """Patches of the context, then those of all target blocks, and which of them are no padding (None: all)."""
        targets, valid = self.target_tokens()
        if valid is not None:
            valid = torch.cat([torch.ones_like(self.context, dtype=torch.bool), valid], 1)
        return torch.cat([self.context, targets], 1), valid

    def joined(self, cells: int) -> Masks:
        """All targets of an image as one, each of the image's `cells` patches at most once, padded to one length.

        Overlapping targets name a patch several times, and blocks are padded each by itself: on an 8 x 8 grid 64
        places for some 30 patches. No more are needed than the context leaves; what it shows is no target (the
        `reference` sampler lets them overlap where it finds no other place).
        """
        if self.targets.shape[1] == 1:
            return self
        index = self.targets.flatten(1)
        wanted = torch.ones_like(index) if self.valid is None else self.valid.flatten(1).long()
        hidden = index.new_zeros(len(index), cells).scatter_add(1, index, wanted) > 0
        hidden = hidden.scatter(1, self.context, torch.zeros_like(self.context, dtype=torch.bool))
        length = min(index.shape[1], cells - self.context.shape[1])
        order = (~hidden).int().argsort(dim=1, stable=True)[:, :length]
        return Masks(self.context, order[:, None], hidden.gather(1, order)[:, None])


def sample_masks(
    config: MaskConfig, grid: Grid, *, seed: int, epoch: int, indices: np.ndarray, batch_index: int
) -> Masks:
    """Draw the masks of the samples `indices` (array [b]) on a grid of (rows, columns) patches.

    `batch_index` (the step within the epoch) is read by the `reference` sampler alone, which draws the block
    sizes once for a batch and cuts all masks of the call to the shortest.

    Raises `BadInput` when the scales cannot be met on this grid.
    """
    if config.kind == "mae":
        return _mae(config, grid, seed, epoch, indices)
    if config.bias == "reference":
        return _reference(config, grid, seed, epoch, indices, batch_index)
    return _unbiased(config, grid, seed, epoch, indices)


def _unbiased(config: MaskConfig, grid: Grid, seed: int, epoch: int, indices: np.ndarray) -> Masks:
    length = context_length(config, grid)
    longest = _longest_target(config, grid)
    context = np.empty((len(indices), length), dtype=np.int64)
    targets = np.empty((len(indices), config.targets, longest), dtype=np.int64)
    valid = np.empty((len(indices), config.targets, longest), dtype=bool)
    pending = np.arange(len(indices))
    for attempt in range(ATTEMPTS):
        stream = f"masks/{attempt}"
        numbers = runtime.uniforms(
            _draws(config, grid), seed=seed, stream=stream, epoch=epoch, indices=indices[pending]
        )
        boxes, available = _blocks(config, grid, numbers)
        enough = available.sum(1) >= length
        done = pending[enough]
        targets[done], valid[done] = _cells_of(boxes[enough], grid, longest)
        # A random choice among the available patches, not the first ones in raster order.
        scores = np.where(available[enough], numbers[enough, -available.shape[1] :], 2.0)
        context[done] = np.sort(np.argpartition(scores, length - 1, axis=1)[:, :length], axis=1)
        pending = pending[~enough]
        if not len(pending):
            return Masks(torch.from_numpy(context), torch.from_numpy(targets), torch.from_numpy(valid))
    raise BadInput(_impossible(config, grid))


@functools.lru_cache(maxsize=64)
def context_length(config: MaskConfig, grid: Grid) -> int:
    """Length of the `unbiased` context: a function of configuration and grid alone.

    It is the tenth percentile of the patches that are free in 1,000 fixed draws, and at least a quarter of the
    grid and `min_keep`: nine draws in ten serve as they are, the others are drawn again.
    """
    if _shortest_target(config, grid) < config.fewest(grid):
        raise BadInput(
            f"masks.target_scale={config.target_scale} gives targets below masks.min_keep={config.fewest(grid)} "
            f"patches on a grid of {grid[0]} x {grid[1]}: raise the scale or lower masks.min_keep"
        )
    numbers = runtime.uniforms(_draws(config, grid), seed=0, stream="masks/length", epoch=0, indices=np.arange(1000))
    free = _blocks(config, grid, numbers)[1].sum(1)
    least = max(-(-grid[0] * grid[1] // 4), config.fewest(grid))
    if np.mean(free >= least) < 0.2:
        raise BadInput(_impossible(config, grid))
    return max(least, int(np.quantile(free, 0.1)))


def _impossible(config: MaskConfig, grid: Grid) -> str:
    return (
        f"masks: {config.targets} targets of scale {config.target_scale} leave too little context on a grid of "
        f"{grid[0]} x {grid[1]} (a quarter of it is needed): lower masks.target_scale or masks.targets"
    )


def _draws(config: MaskConfig, grid: Grid) -> int:
    return 4 * config.targets + 3 + grid[0] * grid[1]


def _blocks(
    config: MaskConfig, grid: Grid, numbers: Float64[np.ndarray, "b draws"]
) -> tuple[Int64[np.ndarray, "b m 4"], Bool[np.ndarray, "b n"]]:
    """Target boxes (top, left, height, width) and the patches left for the context."""
    m = config.targets
    scale, aspect, top, left = numbers[:, : 4 * m].reshape(-1, 4, m).transpose(1, 0, 2)
    height, width = _shape(grid, _between(config.target_scale, scale), _between(config.target_aspect, aspect))
    boxes = _place(grid, height, width, top, left)
    scale, top, left = numbers[:, 4 * m : 4 * m + 3].T[:, :, None]
    # The context block has the grid's proportions: a square one could not cover a wide image.
    height, width = _shape(grid, _between(config.context_scale, scale), np.full_like(scale, grid[0] / grid[1]))
    context = _inside(_place(grid, height, width, top, left), grid)[:, 0]
    return boxes, context & ~_inside(boxes, grid).any(1)


def _between(limits: tuple[float, float], number: np.ndarray) -> np.ndarray:
    return limits[0] + number * (limits[1] - limits[0])


def _shape(grid: Grid, scale: np.ndarray, aspect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    area = scale * grid[0] * grid[1]
    height = np.clip(np.rint(np.sqrt(area * aspect)), 1, grid[0]).astype(np.int64)
    width = np.clip(np.rint(np.sqrt(area / aspect)), 1, grid[1]).astype(np.int64)
    return height, width


def _place(
    grid: Grid, height: np.ndarray, width: np.ndarray, top: np.ndarray, left: np.ndarray
) -> Int64[np.ndarray, "b m 4"]:
    """Turn numbers in [0, 1) into positions; every position inside the grid is equally likely."""
    top = (top * (grid[0] - height + 1)).astype(np.int64)
    left = (left * (grid[1] - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], axis=-1)


def _inside(boxes: Int64[np.ndarray, "b m 4"], grid: Grid) -> Bool[np.ndarray, "b m n"]:
    top, left, height, width = boxes.transpose(2, 0, 1)[..., None]
    row, column = np.arange(grid[0]), np.arange(grid[1])
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    inside: np.ndarray = rows[..., :, None] & columns[..., None, :]
    return inside.reshape(*boxes.shape[:2], -1)


def _cells_of(
    boxes: Int64[np.ndarray, "b m 4"], grid: Grid, length: int
) -> tuple[Int64[np.ndarray, "b m k"], Bool[np.ndarray, "b m k"]]:
    """Patch indices of each box in raster order, padded by its last patch; and which are not padding."""
    top, left, height, width = boxes.transpose(2, 0, 1)[..., None]
    place = np.minimum(np.arange(length), height * width - 1)
    cells = (top + place // width) * grid[1] + left + place % width
    return cells, np.arange(length) < height * width


@functools.lru_cache(maxsize=64)
def _longest_target(config: MaskConfig, grid: Grid) -> int:
    return int(_target_areas(config, grid, config.target_scale[1]).max())


@functools.lru_cache(maxsize=64)
def _shortest_target(config: MaskConfig, grid: Grid) -> int:
    return int(_target_areas(config, grid, config.target_scale[0]).min())


def _target_areas(config: MaskConfig, grid: Grid, scale: float) -> np.ndarray:
    # Height and width grow with the scale, so the extremes of the area lie at the extremes of the scale.
    aspect = np.linspace(*config.target_aspect, 2001)
    height, width = _shape(grid, np.full_like(aspect, scale), aspect)
    areas: np.ndarray = height * width
    return areas


def _reference(config: MaskConfig, grid: Grid, seed: int, epoch: int, indices: np.ndarray, batch_index: int) -> Masks:
    if fault := _reference_fault(config, grid):
        raise BadInput(fault)
    sizes = runtime.uniforms(2, seed=seed, stream="masks/sizes", epoch=epoch, indices=np.array([batch_index]))[0]
    target = _reference_size(grid, sizes[0], config.target_scale, config.target_aspect)
    block = _reference_size(grid, sizes[1], config.context_scale, (1.0, 1.0))
    tries = 20 * (config.targets + 1)
    numbers = runtime.uniforms(
        2 * (config.targets + tries), seed=seed, stream="masks/places", epoch=epoch, indices=indices
    ).reshape(len(indices), -1, 2)
    contexts, targets = [], []
    for row in numbers:
        places = [_reference_block(grid, target, number) for number in row[: config.targets]]
        targets.append([np.flatnonzero(place) for place in places])
        contexts.append(_reference_context(config, grid, block, places, row[config.targets :]))
    shortest = min(len(context) for context in contexts)
    context = np.stack([context[:shortest] for context in contexts])
    return Masks(torch.from_numpy(context), torch.from_numpy(np.array(targets)))


@functools.lru_cache(maxsize=64)
def _reference_fault(config: MaskConfig, grid: Grid) -> str | None:
    """Tell of blocks that are too small in any batch, so that a run is refused at its start and not in its middle."""
    for name, scale, aspect in (
        ("target", config.target_scale, config.target_aspect),
        ("context", config.context_scale, (1.0, 1.0)),
    ):
        sizes = [_reference_size(grid, number, scale, aspect) for number in np.linspace(0, 1, 2001).tolist()]
        height, width = min(sizes, key=math.prod)
        if height * width <= config.fewest(grid):
            return (
                f"masks.bias=reference needs more than masks.min_keep={config.fewest(grid)} patches a block, but "
                f"the {name} block can be {height} x {width} on a grid of {grid[0]} x {grid[1]}: "
                f"lower masks.min_keep or take masks.bias=unbiased"
            )
    return None


def _reference_size(
    grid: Grid, number: float, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int]:
    """One number sets both scale and aspect ratio, and the block stays strictly smaller than the grid."""
    area = int(grid[0] * grid[1] * (scale[0] + number * (scale[1] - scale[0])))
    ratio = aspect[0] + number * (aspect[1] - aspect[0])
    height, width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def _reference_block(grid: Grid, size: tuple[int, int], number: np.ndarray) -> Bool[np.ndarray, " n"]:
    # The upper bound is exclusive, so the last row and the last column are never reached.
    top, left = (int(number[axis] * (grid[axis] - size[axis])) for axis in (0, 1))
    block = np.zeros(grid, dtype=bool)
    block[top : top + size[0], left : left + size[1]] = True
    return block.reshape(-1)


def _reference_context(
    config: MaskConfig, grid: Grid, size: tuple[int, int], targets: list[np.ndarray], numbers: np.ndarray
) -> Int64[np.ndarray, " c"]:
    """Draw a context block clear of the targets; after each 20 failures one target less (last first) counts."""
    for attempt, number in enumerate(numbers):
        block = _reference_block(grid, size, number)
        for target in targets[: len(targets) - attempt // 20]:
            block &= ~target
        if block.sum() > config.fewest(grid):
            return np.flatnonzero(block)
    raise AssertionError("without any target to avoid, the block itself is large enough")


def _mae(config: MaskConfig, grid: Grid, seed: int, epoch: int, indices: np.ndarray) -> Masks:
    cells = grid[0] * grid[1]
    numbers = runtime.uniforms(cells + 2, seed=seed, stream="masks/mae", epoch=epoch, indices=indices)
    if config.mae_shape == "block":
        height, width = (max(1, round(side * config.mae_share**0.5)) for side in grid)
        shape = np.full((len(indices), 1), height), np.full((len(indices), 1), width)
        hidden = _inside(_place(grid, *shape, numbers[:, :1], numbers[:, 1:2]), grid)[:, 0]
        count = height * width
    else:
        count = round(config.mae_share * cells)
        order = np.argsort(numbers[:, 2:], axis=1)
        hidden = np.zeros((len(indices), cells), dtype=bool)
        np.put_along_axis(hidden, order[:, :count], True, axis=1)
    if not 0 < count < cells:
        raise BadInput(
            f"masks.mae_share={config.mae_share} leaves no target or no context on a grid of {grid[0]} x {grid[1]}: "
            f"take a share between {1 / cells:.2f} and {1 - 1 / cells:.2f}"
        )
    context = np.nonzero(~hidden)[1].reshape(len(indices), cells - count)
    targets = np.nonzero(hidden)[1].reshape(len(indices), 1, count)
    return Masks(torch.from_numpy(context), torch.from_numpy(targets))
