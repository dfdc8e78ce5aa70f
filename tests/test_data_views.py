"""Crops, flips and fixed views move image and depth together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from depthjepa import runtime
from depthjepa.data.samples import Sample
from depthjepa.data.transforms import (
    CROP_NUMBERS,
    Box,
    centre_view,
    crop_box,
    flipped,
    relit,
    training_view,
    whole_view,
)

SCALE, RATIO = (0.3, 1.0), (3 / 4, 4 / 3)


def draws(count: int) -> np.ndarray:
    return runtime.uniforms(CROP_NUMBERS, seed=0, stream="crop", epoch=0, indices=np.arange(count))


def coordinates(height: int, width: int) -> Sample:
    """A picture whose red is the row and whose green is the column; depth says both, and has a hole."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([row, column, torch.zeros_like(row)]).to(torch.uint8)
    depth = (1 + row * 256 + column).float()[None]
    depth[:, 60:80, 90:110] = 0
    return Sample(image=image, depth=depth, label=-1, name="coordinates")


def test_image_and_depth_agree_after_crop_and_flip() -> None:
    sample = coordinates(150, 200)
    known = set(sample.depth.unique().tolist())
    for numbers in draws(60):
        box = crop_box(numbers, 150, 200, SCALE, RATIO)
        view = training_view(sample, box, flipped(numbers), (48, 64))
        assert set(view.depth.unique().tolist()) <= known
        valid = view.depth[0] > 0
        assert 0.7 < valid.float().mean() <= 1
        value = view.depth[0].long() - 1
        inner = (slice(2, -2), slice(2, -2))
        step = max(box.height / 48, box.width / 64)
        for channel, place in enumerate((value // 256, value % 256)):
            error = (view.image[channel].long() - place)[inner][valid[inner]].abs()
            assert error.max() <= step / 2 + 1
            assert (view.image[channel].long() - place)[inner][valid[inner]].float().mean().abs() < 0.6


def test_depth_takes_the_value_of_the_nearest_pixel_centre() -> None:
    sample = coordinates(37, 53)
    box = Box(5, 8, 23, 31)
    depth = training_view(sample, box, False, (16, 24)).depth
    for row in range(16):
        for column in range(24):
            source_row = box.top + math.floor((row + 0.5) * box.height / 16)
            source_column = box.left + math.floor((column + 0.5) * box.width / 24)
            assert depth[0, row, column] == sample.depth[0, source_row, source_column]


def test_a_flip_mirrors_image_and_depth() -> None:
    sample = coordinates(40, 60)
    plain, mirrored = (training_view(sample, Box(3, 4, 30, 30), flip, (20, 20)) for flip in (False, True))
    assert torch.equal(plain.image.flip(-1), mirrored.image)
    assert torch.equal(plain.depth.flip(-1), mirrored.depth)
    share = np.mean([flipped(numbers) for numbers in draws(2000)])
    assert 0.45 < share < 0.55


def test_a_view_of_the_same_size_is_the_image_itself() -> None:
    sample = coordinates(32, 48)
    view = whole_view(sample, (32, 48))
    assert torch.equal(view.image, sample.image) and torch.equal(view.depth, sample.depth)
    assert view.zoom == 1


def test_zoom_is_the_mean_magnification() -> None:
    sample = coordinates(100, 200)
    assert whole_view(sample, (64, 64)).zoom == 1
    assert training_view(sample, Box(0, 0, 50, 100), False, (64, 64)).zoom == pytest.approx(2)
    assert training_view(sample, Box(0, 0, 100, 50), False, (64, 64)).zoom == pytest.approx(2)
    assert centre_view(sample, (64, 64)).zoom == pytest.approx(math.sqrt(2))


def test_centre_view_stretches_nothing() -> None:
    view = centre_view(coordinates(100, 200), (50, 50))
    columns = view.image[1].float().mean(0)
    rows = view.image[0].float().mean(1)
    assert columns[0] == pytest.approx(50.5, abs=1) and columns[-1] == pytest.approx(148.5, abs=1)
    assert torch.allclose(columns.diff(), rows.diff(), atol=0.1)
    assert centre_view(coordinates(200, 100), (30, 60)).image.shape == (3, 30, 60)


def test_crops_follow_the_law_of_random_resized_crop() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 120, 160)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(4000)])
    ours = np.array([crop_box(numbers, 120, 160, SCALE, RATIO) for numbers in draws(4000)])
    assert (ours >= [0, 0, 1, 1]).all()
    assert (ours[:, 0] + ours[:, 2] <= 120).all() and (ours[:, 1] + ours[:, 3] <= 160).all()
    for quantity in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
    ):
        quantiles = np.linspace(0.05, 0.95, 10)
        mine, reference = (np.quantile(quantity(boxes), quantiles) for boxes in (ours, theirs))
        np.testing.assert_allclose(mine, reference, atol=0.05 * np.ptp(quantity(theirs)))


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (1, 50), (187, 621)])
def test_extreme_images_fall_back_to_the_largest_crop_anywhere(height: int, width: int) -> None:
    lefts = set()
    for numbers in draws(50):
        box = crop_box(numbers, height, width, (0.9, 1.0), RATIO)
        assert 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width
        if height == 10:
            assert (box.height, box.width) == (10, 13)
            lefts.add(box.left)
        view = training_view(Sample(torch.zeros(3, height, width, dtype=torch.uint8), None, -1, ""), box, True, (8, 8))
        assert view.image.shape == (3, 8, 8) and view.depth is None
    if height == 10:
        assert min(lefts) < 60 and max(lefts) > 320  # the ends of a wide image are seen too


def test_light_multiplies_brightness_then_contrast_and_clips() -> None:
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    image[:, 2:] = 200
    same = relit(image, np.array([0.5, 0.5]), 0.4)
    assert torch.equal(same, image)
    bright = relit(image, np.array([1.0, 0.5]), 0.4)  # x 1.4
    assert bright[:, :2].unique().tolist() == [140] and bright[:, 2:].unique().tolist() == [255]
    flat = relit(image, np.array([0.5, 0.0]), 0.4)  # 0.6 of the distance to the mean, 150
    assert (flat[:, :2].int() - 120).abs().max() <= 1 and (flat[:, 2:].int() - 180).abs().max() <= 1
