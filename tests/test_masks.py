"""Masks: what the unbiased sampler promises, what the reference does, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from depthjepa.faults import BadInput
from depthjepa.masks import MaskConfig, Masks, context_length, sample_masks

UNBIASED, REFERENCE = MaskConfig(), MaskConfig(bias="reference")
GRIDS = [(6, 10), (8, 8), (12, 5), (16, 16)]


def draw(config: MaskConfig, grid: tuple[int, int], indices: np.ndarray | int, *, seed=0, epoch=0, batch=0) -> Masks:
    indices = np.arange(indices) if isinstance(indices, int) else indices
    return sample_masks(config, grid, seed=seed, epoch=epoch, indices=indices, batch_index=batch)


def seen(index: torch.Tensor, cells: int) -> np.ndarray:
    """Which patches each row of indices names, [b, cells]."""
    flags = np.zeros((len(index), cells), dtype=bool)
    np.put_along_axis(flags, index.flatten(1).numpy(), True, axis=1)
    return flags


def sides(masks: Masks, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Height and width of the smallest rectangle round each target, [b, m]."""
    row, column = masks.targets.numpy() // columns, masks.targets.numpy() % columns
    return np.ptp(row, axis=-1) + 1, np.ptp(column, axis=-1) + 1


@pytest.mark.parametrize("grid", GRIDS)
def test_targets_are_whole_rectangles(grid):
    masks = draw(UNBIASED, grid, 256)
    assert masks.targets.min() >= 0 and masks.targets.max() < grid[0] * grid[1]
    height, width = sides(masks, grid[1])  # padding repeats a patch of the target, so it changes nothing here
    count = masks.valid.sum(-1).numpy()
    np.testing.assert_array_equal(height * width, count)
    for target, valid in zip(masks.targets.flatten(0, 1), masks.valid.flatten(0, 1), strict=True):
        cells = target[valid]
        assert torch.equal(cells, torch.unique(cells))  # raster order, none twice; with the area: a full rectangle
        assert torch.isin(target, cells).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_scales_and_aspects_are_those_asked_for(grid):
    masks = draw(UNBIASED, grid, 256)
    height, width = sides(masks, grid[1])
    area = grid[0] * grid[1] * np.array(UNBIASED.target_scale)
    aspect = np.array(UNBIASED.target_aspect)
    assert height.min() >= min(np.rint(np.sqrt(area * aspect).min()), grid[0])
    assert height.max() <= np.rint(np.sqrt(area[1] * aspect[1]))
    assert width.min() >= min(np.rint(np.sqrt(area[0] / aspect[1])), grid[1])
    assert width.max() <= np.rint(np.sqrt(area[1] / aspect[0]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_context_has_one_length_is_sorted_and_free_of_targets(grid, size):
    masks = draw(UNBIASED, grid, size)
    length = context_length(UNBIASED, grid)
    assert masks.context.shape == (size, length)
    assert length >= grid[0] * grid[1] / 4
    assert length >= UNBIASED.fewest(grid)
    assert (masks.context.diff(dim=1) > 0).all()
    cells = grid[0] * grid[1]
    assert not (seen(masks.context, cells) & seen(masks.targets, cells)).any()


def same(first: Masks, second: Masks) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("context", "targets", "valid"))


def rows(masks: Masks, chosen: np.ndarray) -> Masks:
    return Masks(masks.context[chosen], masks.targets[chosen], masks.valid[chosen])


def test_masks_of_a_sample_do_not_depend_on_the_batch():
    whole = draw(UNBIASED, (8, 8), 64)
    order = np.random.default_rng(0).permutation(64)
    assert same(draw(UNBIASED, (8, 8), order), rows(whole, order))
    for part in np.array_split(np.arange(64), 5):
        assert same(draw(UNBIASED, (8, 8), part, batch=9), rows(whole, part))


def test_masks_differ_between_samples_epochs_and_seeds():
    first = draw(UNBIASED, (16, 16), 64)
    for other in (draw(UNBIASED, (16, 16), 64, epoch=1), draw(UNBIASED, (16, 16), 64, seed=1)):
        assert (first.context != other.context).any(1).all()
        assert (first.targets[:, 0] != other.targets[:, 0]).any(1).float().mean() > 0.9
    assert len({tuple(row.tolist()) for row in first.context}) == 64


@pytest.mark.parametrize(("config", "tied"), [(UNBIASED, False), (REFERENCE, True)])
def test_scale_and_aspect_are_drawn_apart(config, tied):
    """On a fine grid, where rounding hides nothing. The reference draws both by one number: the contrast."""
    grid = (48, 48)
    if tied:
        batches = [draw(config, grid, np.arange(1), batch=batch) for batch in range(200)]
        height, width = (np.concatenate(parts) for parts in zip(*[sides(each, 48) for each in batches], strict=True))
    else:
        height, width = sides(draw(config, grid, 800), 48)
    scale, aspect = height * width, height / width
    own = np.corrcoef(scale.ravel(), aspect.ravel())[0, 1]
    between = np.corrcoef(scale[:, 0], scale[:, 1])[0, 1]
    if tied:
        assert own > 0.9 and between > 0.99
    else:
        assert abs(own) < 4 / scale.size**0.5
        assert abs(between) < 4 / len(scale) ** 0.5


@pytest.mark.parametrize("grid", GRIDS)
def test_every_patch_is_reached_as_context_and_as_target(grid):
    masks, cells = draw(UNBIASED, grid, 600), grid[0] * grid[1]
    assert seen(masks.context, cells).any(0).all()
    assert seen(masks.targets, cells).any(0).all()


@pytest.mark.parametrize(("config", "fair"), [(UNBIASED, True), (REFERENCE, False)])
@pytest.mark.parametrize("axis", [1, 2])
def test_top_and_bottom_left_and_right_are_seen_alike(config, fair, axis):
    """Mean difference of a line and its mirror image, in standard errors over 1,600 samples."""
    batches = [draw(config, (16, 16), np.arange(16 * batch, 16 * batch + 16), batch=batch) for batch in range(100)]
    context = np.concatenate([seen(masks.context, 256) for masks in batches]).reshape(-1, 16, 16)
    lines = context.mean(3 - axis)
    difference = lines[:, :8] - lines[:, :7:-1]
    errors = np.abs(difference.mean(0)) / (difference.std(0) / len(difference) ** 0.5)
    assert errors.max() < 4 if fair else errors.max() > 8


# Of the reference implementation, over 400 batches of 16: mean and deviation of the token counts, and how often a
# patch of the rows 0, 4, 8 and 12 (of 16) or 0, 2, 4 and 6 (of 8) is context.
COUNTS = {16: ((80.5975, 10.7087), (44.275, 4.3959)), 8: ((14.425, 3.2380), (10.5825, 1.4977))}
ROW_FREQUENCY = {16: (0.776, 0.356, 0.234, 0.247), 8: (0.588, 0.219, 0.173, 0.096)}


@pytest.fixture(scope="module", params=[16, 8])
def reference_draws(request):
    """400 batches of 16: the side of the grid, token counts [400, 2], shares of patches [400, side**2].

    Also [400, 2], by batch: the share of the grid that the targets of an image cover together, and the share of
    their tokens that repeat another's patch.
    """
    side = request.param
    counts, context, target, together = [], [], [], []
    for batch in range(400):
        masks = draw(REFERENCE, (side, side), np.arange(16 * batch, 16 * batch + 16), batch=batch)
        assert masks.valid is None
        counts.append((masks.context.shape[1], masks.targets.shape[2]))
        context.append(seen(masks.context, side**2).mean(0))
        target.append(seen(masks.targets, side**2).mean(0))
        union = np.array([len(each.unique()) for each in masks.targets])
        together.append(((union / side**2).mean(), (1 - union / masks.targets[0].numel()).mean()))
    return side, np.array(counts), np.stack(context), np.stack(target), np.array(together)


def test_reference_token_counts_and_rows(reference_draws):
    side, counts, context, *_ = reference_draws
    for column, (mean, deviation) in enumerate(COUNTS[side]):
        own = counts[:, column]
        error = ((own.var() + deviation**2) / 400) ** 0.5
        assert abs(own.mean() - mean) < 4 * error
        assert own.std() == pytest.approx(deviation, rel=0.15)
    by_row = context.reshape(400, side, side).mean(2)[:, :: side // 4]
    error = by_row.std(0) / 400**0.5 * 2**0.5  # both sides are samples of 400
    assert (np.abs(by_row.mean(0) - ROW_FREQUENCY[side]) < 4 * error + 5e-4).all()  # three digits are given


def test_reference_never_reaches_the_last_row_and_column(reference_draws):
    side, _, context, target, _ = reference_draws
    for frequency in (context, target):
        reached = frequency.any(0).reshape(side, side)
        assert not reached[-1].any() and not reached[:, -1].any()
        assert reached[:-1, :-1].all()


def test_reference_frequencies_of_every_patch(reference_draws, parity):
    side, counts, context, target, together = reference_draws
    expected = json.loads((parity / "mask_statistics.json").read_text())[{16: "224/14", 8: "64/8"}[side]]
    for column, name in enumerate(("context_tokens", "target_tokens")):
        own, theirs = counts[:, column], expected[name]
        assert abs(own.mean() - theirs["mean"]) < 4 * ((own.var() + theirs["sd"] ** 2) / 400) ** 0.5
    for own, name in zip(together.T, ("target_union_fraction", "target_overlap_fraction"), strict=True):
        assert abs(own.mean() - expected[name]["mean"]) < 4 * own.std() * (2 / 400) ** 0.5
    for own, name in ((context, "context_frequency"), (target, "target_frequency")):
        # Batches are the independent draws; 5 standard errors of a difference hold for the largest of 256 patches.
        error = own.std(0) / 400**0.5 * 2**0.5
        assert (np.abs(own.mean(0) - expected[name]) < 5 * error + 1e-4).all()


def test_reference_draws_block_sizes_once_for_a_batch():
    masks = draw(REFERENCE, (16, 16), 32, batch=3)
    height, width = sides(masks, 16)
    assert height.min() == height.max() and width.min() == width.max()
    assert not (seen(masks.context, 256) & seen(masks.targets, 256)).any()
    # A batch cuts contexts, but a sample's places are its own: its targets are the same in another batch.
    part = draw(REFERENCE, (16, 16), np.arange(5, 9), batch=3)
    assert torch.equal(part.targets, masks.targets[5:9])
    shorter = min(part.context.shape[1], masks.context.shape[1])
    assert torch.equal(part.context[:, :shorter], masks.context[5:9, :shorter])


def test_reference_gives_up_targets_where_no_context_is_left():
    """Targets as large as the context block leave nothing free: after 20 tries for each, none of them counts."""
    config = MaskConfig(bias="reference", target_scale=(0.9, 0.9), target_aspect=(1.0, 1.0), context_scale=(1.0, 1.0))
    masks = draw(config, (16, 16), 4)
    block = torch.arange(256).view(16, 16)[:15, :15].flatten()
    assert torch.equal(masks.context, block.expand(4, -1))
    assert torch.equal(masks.targets, block.expand(4, 4, -1))


@pytest.mark.parametrize("shape", ["random", "block"])
@pytest.mark.parametrize("grid", GRIDS)
def test_mae_splits_all_patches_in_two(grid, shape):
    masks = draw(MaskConfig(kind="mae", mae_shape=shape), grid, 64)
    cells = grid[0] * grid[1]
    both = torch.cat([masks.context, masks.targets[:, 0]], 1).sort(1).values
    assert torch.equal(both, torch.arange(cells).expand(64, -1))
    share = masks.targets.shape[2] / cells
    assert masks.targets.shape[1] == 1
    if shape == "random":
        assert share == round(0.8 * cells) / cells
        assert len({tuple(row.tolist()) for row in masks.context}) == 64
    else:
        height, width = sides(masks, grid[1])
        assert (height * width == masks.targets.shape[2]).all()
        assert share == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("shape", ["random", "block"])
def test_mae_reaches_every_patch_alike(shape):
    masks = draw(MaskConfig(kind="mae", mae_shape=shape), (8, 8), 800)
    hidden = seen(masks.targets, 64).mean(0).reshape(8, 8)
    assert hidden.min() > 0 and hidden.max() <= 1
    if shape == "random":
        share = round(0.8 * 64) / 64
        assert np.abs(hidden - share).max() < 4.5 * (share * (1 - share) / 800) ** 0.5


@pytest.mark.parametrize(
    ("keys", "grid", "said"),
    [
        ({}, (4, 4), "masks.min_keep=4 patches on a grid of 4 x 4: raise the scale or lower masks.min_keep"),
        ({"min_keep": 30}, (8, 8), "below masks.min_keep=30"),
        ({"targets": 40}, (16, 16), "40 targets .* lower masks.target_scale or masks.targets"),
        (
            {"target_scale": (0.9, 1.0), "target_aspect": (1.0, 1.0), "targets": 1},
            (8, 8),
            "too little context on a grid of 8 x 8",
        ),
        ({"bias": "reference"}, (4, 4), "lower masks.min_keep or take masks.bias=unbiased"),
        ({"bias": "reference", "min_keep": 10}, (8, 8), "the target block can be 3 x 3 on a grid of 8 x 8"),
        ({"kind": "mae", "mae_share": 0.001}, (8, 8), "take a share between 0.02 and 0.98"),
        ({"kind": "mae", "mae_share": 1.0}, (8, 8), "no target or no context"),
        ({"kind": "mae", "mae_share": 1.0, "mae_shape": "block"}, (8, 8), "no target or no context"),
    ],
)
def test_impossible_masks_are_refused_with_advice(keys, grid, said):
    with pytest.raises(BadInput, match=said):
        draw(MaskConfig(**keys), grid, 4)


def test_reference_is_refused_in_every_batch_or_in_none():
    """Its block sizes differ from batch to batch: what some batch could not do is refused at the first."""
    for batch in range(64):
        with pytest.raises(BadInput, match="the target block can be 2 x 2 on a grid of 6 x 6"):
            draw(REFERENCE, (6, 6), 4, batch=batch)
        draw(MaskConfig(bias="reference", min_keep=3), (6, 6), 4, batch=batch)


def test_small_grids_work_when_small_masks_are_allowed():
    masks = draw(MaskConfig(min_keep=1), (4, 4), 64)
    assert masks.context.shape[1] >= 4
    assert not (seen(masks.context, 16) & seen(masks.targets, 16)).any()


def test_context_covers_a_wide_image():
    """The context block has the grid's proportions, so a grid four times as wide as high keeps as much context."""
    wide, square = context_length(MaskConfig(), (8, 32)), context_length(MaskConfig(), (16, 16))
    assert wide > 0.9 * square
