"""Index arithmetic and losses against slow loops; what is invalid never counts."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthjepa.grid import gather, patchify, reassemble, to_map, to_tokens, unfold_cells
from depthjepa.losses import feature_depth_loss, latent_loss, masked_mean
from depthjepa.model.vit import PatchEmbedding, initialise


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width", "patch"), [(32, 32, 8), (24, 40, 8), (28, 14, 14)])
def test_patchify_is_unfold_and_cuts_in_raster_order(height, width, patch):
    images = noise(2, 3, height, width)
    patches = patchify(images, patch)
    assert torch.equal(patches, F.unfold(images, patch, stride=patch).transpose(1, 2))
    number = (width // patch) + 1 if height > patch and width > patch else 1
    row, column = divmod(number, width // patch)
    cut = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    assert torch.equal(patches[:, number], cut.flatten(1))


def test_patch_embedding_is_the_convolution_that_checkpoints_hold():
    embedding = PatchEmbedding(width=32, patch_size=8)
    initialise(embedding, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(embedding.proj.bias)
    images = noise(2, 3, 24, 40)
    torch.testing.assert_close(embedding(patchify(images, 8)), to_tokens(embedding.proj(images)), atol=1e-6, rtol=1e-5)


def test_map_and_tokens_are_two_views_of_the_same_thing():
    tokens = noise(2, 15, 4)
    maps = to_map(tokens, (3, 5))
    assert maps.shape == (2, 4, 3, 5)
    assert torch.equal(maps[1, :, 2, 4], tokens[1, 14]) and torch.equal(maps[0, :, 1, 0], tokens[0, 5])
    assert torch.equal(to_tokens(maps), tokens)


def test_gather_takes_image_by_image():
    tokens, index = noise(2, 6, 3), torch.tensor([[5, 0, 5], [1, 2, 3]])
    expected = torch.stack([tokens[image][index[image]] for image in range(2)])
    assert torch.equal(gather(tokens, index), expected)


def test_unfold_cells_orders_channel_row_column():
    rows, columns, channels, factor = 3, 2, 5, 2
    tokens = noise(2, rows * columns, channels * factor**2)
    cells = unfold_cells(tokens, (rows, columns), factor)
    assert cells.shape == (2, channels, factor * rows, factor * columns)
    for b, channel, y, x in np.ndindex(*cells.shape):
        value = (channel * factor + y % factor) * factor + x % factor
        assert cells[b, channel, y, x] == tokens[b, (y // factor) * columns + x // factor, value]


def slow_reassemble(tokens, index, cells, valid):
    grid, coverage = torch.zeros(len(tokens), cells, tokens.shape[2]), torch.zeros(len(tokens), cells)
    for image in range(len(tokens)):
        for cell in range(cells):
            here = [
                tokens[image, t]
                for t in range(tokens.shape[1])
                if index[image, t] == cell and (valid is None or valid[image, t])
            ]
            coverage[image, cell] = len(here)
            if here:
                grid[image, cell] = torch.stack(here).mean(0)
    return grid, coverage


@pytest.mark.parametrize("masked", [False, True])
def test_reassemble_averages_overlaps_and_counts_them(masked):
    generator = torch.Generator().manual_seed(1)
    tokens, index = noise(3, 20, 4), torch.randint(0, 12, (3, 20), generator=generator)
    valid = torch.rand(3, 20, generator=generator) > 0.4 if masked else None
    grid, coverage = reassemble(tokens, index, 12, valid)
    expected, count = slow_reassemble(tokens, index, 12, valid)
    torch.testing.assert_close(grid, expected)
    assert torch.equal(coverage, count)
    assert (count == 0).any() and (count > 1).any() and (grid[count == 0] == 0).all()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_reassemble_gives_each_token_its_share_of_the_gradient_and_invalid_ones_none(garbage):
    index, valid = torch.tensor([[0, 2, 2, 3, 3]]), torch.tensor([[True, True, True, True, False]])
    tokens = noise(1, 5, 2)
    tokens[0, 4] = garbage
    tokens.requires_grad_()
    grid, coverage = reassemble(tokens, index, 5, valid)
    grid.sum().backward()
    assert torch.equal(coverage, torch.tensor([[1.0, 0, 2, 1, 0]]))
    assert torch.equal(grid[0, 3], tokens[0, 3])
    assert torch.equal(tokens.grad[0, :, 0], torch.tensor([1, 0.5, 0.5, 1, 0]))


def test_reassemble_puts_back_what_gather_took():
    tokens = noise(2, 9, 4)
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    grid, coverage = reassemble(gather(tokens, order), order, 9)
    assert torch.equal(grid, tokens) and (coverage == 1).all()


def smooth(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def slow_latent(prediction, target, valid):
    """Mean over width and valid tokens of each block, then over blocks, then over images."""
    images = []
    for b in range(len(prediction)):
        blocks = []
        for m in range(prediction.shape[1]):
            pairs = zip(prediction[b, m][valid[b, m]].flatten(), target[b, m][valid[b, m]].flatten(), strict=True)
            blocks.append(np.mean([smooth(float(p - t)) for p, t in pairs]))
        images.append(np.mean(blocks))
    return float(np.mean(images))


def slow_depth(prediction, target, valid):
    """Mean over the valid cells of each image, then over images; an image without any counts as zero."""
    images = []
    for p, t, v in zip(prediction, target, valid, strict=True):
        errors = [smooth(float(a - b)) for a, b in zip(p[v], t[v], strict=True)]
        images.append(np.mean(errors) if errors else 0.0)
    return float(np.mean(images))


@pytest.fixture
def blocks():
    """Prediction, target and validity of blocks of different length (at least one token each)."""
    valid = torch.arange(7) < torch.tensor([[7, 1, 4], [3, 5, 2], [6, 6, 7], [1, 2, 3]])[..., None]
    return 2 * noise(4, 3, 7, 5), 2 * noise(4, 3, 7, 5, seed=1), valid


@pytest.fixture
def maps():
    """Prediction, target and validity of maps; the third image has no valid cell."""
    valid = torch.rand(4, 2, 6, 3, generator=torch.Generator().manual_seed(2)) > 0.5
    valid[2] = False
    return 2 * noise(4, 2, 6, 3), 2 * noise(4, 2, 6, 3, seed=1), valid


LOSSES = [("blocks", latent_loss, slow_latent), ("maps", feature_depth_loss, slow_depth)]


@pytest.fixture(params=LOSSES, ids=["latent", "depth"])
def case(request):
    name, loss, slow = request.param
    return *request.getfixturevalue(name), loss, slow


def test_losses_equal_slow_loops(case):
    prediction, target, valid, loss, slow = case
    assert float(loss(prediction, target, valid)) == pytest.approx(slow(prediction, target, valid), rel=1e-5)


def test_latent_loss_of_equal_blocks_is_the_mean_over_all(blocks):
    prediction, target, valid = blocks
    expected = F.smooth_l1_loss(prediction, target)
    torch.testing.assert_close(latent_loss(prediction, target), expected)
    torch.testing.assert_close(latent_loss(prediction, target, torch.ones_like(valid)), expected)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_invalid_reaches_neither_value_nor_gradient(case, garbage):
    prediction, target, valid, loss, _ = case
    dirty = target.clone()
    dirty[~valid] = garbage
    clean_value, clean_gradient = value_and_gradient(loss, prediction, target, valid)
    value, gradient = value_and_gradient(loss, prediction, dirty, valid)
    assert torch.equal(value, clean_value) and torch.equal(gradient, clean_gradient)
    assert torch.isfinite(gradient).all() and (gradient[~valid] == 0).all() and (gradient[valid] != 0).any()


def value_and_gradient(loss, prediction, target, valid):
    leaf = prediction.clone().requires_grad_()
    value = loss(leaf, target, valid)
    value.backward()
    return value.detach(), leaf.grad


def test_what_is_valid_and_not_finite_is_not_hidden(case):
    prediction, target, valid, loss, _ = case
    target[valid] = float("nan")
    assert torch.isnan(loss(prediction, target, valid))


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_average_to_the_whole(case, parts):
    """Also where the parts have different numbers of valid cells: images count alike."""
    prediction, target, valid, loss, _ = case
    whole, gradient = value_and_gradient(loss, prediction, target, valid)
    pieces = [
        value_and_gradient(loss, *each)
        for each in zip(prediction.chunk(parts), target.chunk(parts), valid.chunk(parts), strict=True)
    ]
    torch.testing.assert_close(torch.stack([value for value, _ in pieces]).mean(), whole)
    torch.testing.assert_close(torch.cat([part for _, part in pieces]) / parts, gradient)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("narrowed", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_shapes_that_would_broadcast_are_refused(case, narrowed, axis, annotations_unchecked):
    *tensors, loss, _ = case
    for which in narrowed:
        tensors[which] = tensors[which].narrow(axis, 0, 1)
    with pytest.raises(ValueError, match="shapes differ"):
        loss(*tensors)


@pytest.fixture
def annotations_unchecked():
    """Outside the tests nobody checks annotations: the function itself has to refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_masked_mean_is_zero_where_nothing_is_valid():
    values = torch.tensor([[1.0, 2.0, float("nan")], [float("inf"), 1.0, 1.0]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(masked_mean(values, valid), torch.tensor([1.5, 0.0]))
