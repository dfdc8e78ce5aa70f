"""Claims about the rendered streets: exact depth, pure functions, balanced labels, colours that tell nothing."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa.data.layouts.scenes import Scenes
from depthjepa.data.scenes import rendering
from depthjepa.data.scenes.layout import ABSENT
from depthjepa.data.scenes.painting import FARTHEST, pulses
from depthjepa.data.scenes.rendering import Rendered, picture, render
from depthjepa.data.scenes.streets import BUILDING, CLASSES, FIRST_KIND, KINDS, STREETS, arrange
from depthjepa.faults import BadInput
from slow_scenes import slow_depth

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def many() -> Rendered:
    """4000 small scenes."""
    return render(np.arange(4000), seed=5, size=(32, 32))


def same(left: Rendered, right: Rendered) -> bool:
    return all(torch.equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(Rendered))


def test_depth_equals_a_slow_ray_caster() -> None:
    size, indices = 20, np.array([3, 8, 61, 2**40 + 5, 777])
    layout, fast = arrange(indices, seed=11), render(indices, seed=11, size=(size, size))
    wrong = pixels = 0
    for scene in range(len(indices)):
        depth, category = slow_depth(layout, scene, size, STREETS)
        close = np.isclose(fast.depth[scene, 0].numpy(), depth, rtol=1e-4, atol=0)
        wrong += (~close | (fast.classes[scene].numpy() != category)).sum()
        pixels += close.size
    assert wrong < 0.005 * pixels


def test_a_scene_is_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = np.array([40, 3, 2**40, 17, 9, 4])
    together = render(indices, seed=1, size=(24, 24))
    alone = [render(indices[row : row + 1], seed=1, size=(24, 24)) for row in range(len(indices))]
    for row, one in enumerate(alone):
        assert same(one, Rendered(*(getattr(together, field.name)[row : row + 1] for field in fields(Rendered))))
    monkeypatch.setattr(rendering, "_RAYS", 3000)
    assert same(together, render(indices, seed=1, size=(24, 24)))
    assert not torch.equal(together.images, render(indices, seed=2, size=(24, 24)).images)


def test_size_changes_the_sampling_not_the_scene() -> None:
    coarse, fine = (render(np.arange(16), seed=4, size=(side, side)) for side in (24, 72))
    middle = fine.depth[:, :, 1::3, 1::3]  # the same rays
    agree = torch.isclose(coarse.depth, middle, rtol=1e-4)
    assert agree.float().mean() > 0.999
    assert torch.allclose(fine.focal, coarse.focal * 3)
    wide = render(np.arange(16), seed=4, size=(24, 48))
    assert torch.equal(wide.depth[..., 12:36], coarse.depth)


def test_depth_classes_and_labels_agree(many: Rendered) -> None:
    assert torch.equal(many.classes == CLASSES.index("sky"), many.depth[:, 0] == 0)
    assert bool(torch.isfinite(many.depth).all()) and float(many.depth.max()) <= FARTHEST
    objects = torch.where(many.classes >= FIRST_KIND, many.depth[:, 0], torch.inf).flatten(1)
    nearest = many.classes.flatten(1).gather(1, objects.argmin(1, keepdim=True))[:, 0].long() - FIRST_KIND
    assert torch.equal(nearest, many.labels)


def test_labels_are_balanced_and_shuffled(many: Rendered) -> None:
    blocks = many.labels.view(-1, len(KINDS))
    assert torch.equal(blocks.sort(1).values, torch.arange(len(KINDS)).expand_as(blocks))
    counts = torch.stack([torch.bincount(place, minlength=len(KINDS)) for place in blocks.T]).double()
    expected = len(blocks) / len(KINDS)
    assert float(((counts - expected) ** 2 / expected).sum()) < 100  # 49 degrees of freedom: p = 2e-5


@pytest.mark.slow
def test_the_nearest_object_is_seen_nearly_whole() -> None:
    layout = arrange(np.arange(240), seed=8)
    shape = layout.primitives.shape.copy()
    first = int((layout.primitives.category[0] == BUILDING).sum())
    shape[:, :first] = ABSENT  # the buildings
    shape[:, first + 4 :] = ABSENT  # all objects but the first, which has up to four parts
    alone = replace(layout, primitives=replace(layout.primitives, shape=shape))
    wide = replace(alone, camera=replace(alone.camera, focal=alone.camera.focal / 3))
    full, solo, around = (
        picture(which, (side, side), CPU).classes for which, side in ((layout, 48), (alone, 48), (wide, 144))
    )
    kind = torch.from_numpy(layout.labels)[:, None, None] + FIRST_KIND
    seen, whole = ((classes == kind).sum((1, 2)) for classes in (solo, around))
    assert int(seen.min()) >= 9  # of 48 x 48 pixels; 16 of 64 x 64
    assert float((seen / whole).quantile(0.02)) > 0.75
    hidden = (solo == kind) & (full != kind)
    assert float(hidden.sum() / seen.sum()) < 0.01


def held_out_accuracy(features: Tensor, labels: Tensor) -> float:
    """Accuracy of multinomial logistic regression, every scene tested by a fit to three quarters of the others."""
    part = torch.arange(len(features)) * 4 // len(features)
    correct = [_correct(features, labels, part != held, part == held) for held in range(4)]
    return float(torch.cat(correct).float().mean())


def _correct(features: Tensor, labels: Tensor, fit: Tensor, held: Tensor) -> Tensor:
    features = (features - features[fit].mean(0)) / features[fit].std(0)
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    weights = torch.zeros(features.shape[1], len(KINDS), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(features[fit] @ weights, labels[fit])
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return (features[held] @ weights).argmax(1) == labels[held]


def test_mean_colours_do_not_tell_the_label(many: Rendered) -> None:
    chance = 1 / len(KINDS)
    images = many.images.float() / 255
    assert held_out_accuracy(images.mean((2, 3)), many.labels) < 1.5 * chance
    quadrants = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
    assert held_out_accuracy(quadrants, many.labels) < 1.5 * chance
    leaking = images.mean((2, 3)) + 0.1 * torch.nn.functional.one_hot(many.labels % 3, 3)  # the test has the power
    assert held_out_accuracy(leaking, many.labels) > 1.5 * chance


def test_mean_colours_do_not_tell_the_depth(many: Rendered) -> None:
    own = many.classes == many.labels[:, None, None] + FIRST_KIND
    depth = torch.where(own, many.depth[:, 0], torch.inf).flatten(1).amin(1).log()
    colour = (many.images.float() * own[:, None]).sum((2, 3)) / own.sum((1, 2))[:, None]
    table = torch.cat([colour / 255, torch.ones(len(colour), 1)], dim=1)
    fitted = table @ torch.linalg.lstsq(table, depth[:, None]).solution
    assert float(fitted.var() / depth.var()) < 0.03


def test_place_alone_does_not_explain_depth(many: Rendered) -> None:
    """The mean map explains less than half of the variance of disparity."""
    depth = many.depth[:, 0].double()
    valid = depth > 0
    disparity = torch.where(valid, 1 / depth.clamp(min=1e-3), 0)
    mean_map = disparity.sum(0) / valid.sum(0)
    total = disparity.sum() / valid.sum()
    left = ((disparity - mean_map)[valid] ** 2).sum() / ((disparity - total)[valid] ** 2).sum()
    assert 1 - float(left) < 0.5


def test_patterns_are_averaged_over_the_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    x, duty, width = torch.rand(3, 200, generator=generator).unbind(0)
    x, width = 8 * x - 4, 3 * width + 0.05
    steps = (torch.arange(4000) + 0.5) / 4000 - 0.5
    samples = x[:, None] + width[:, None] * steps
    slow = (samples - samples.floor() < duty[:, None]).float().mean(1)
    assert torch.allclose(pulses(x, duty, width), slow, atol=2e-3)


def test_a_source_keeps_what_it_rendered_and_splits_are_disjoint() -> None:
    train, val = (Scenes(0, split, 40, (16, 24)) for split in ("train", "val"))
    assert train.name == "scenes:0" and train.classes == KINDS and train.has_depth and len(train) == 40
    sample = train.sample(33)
    alone = render(np.array([33]), seed=0, size=(16, 24))
    assert sample.name == train.name_of(33) == "scenes-0/train/000033" and sample.label == int(alone.labels[0])
    assert torch.equal(sample.image, alone.images[0]) and sample.depth is not None
    assert torch.equal(sample.depth, alone.depth[0])
    # Names tell seeds and splits apart: a cache finds its latents by them.
    assert len({Scenes(seed, split, 40, (16, 24)).name_of(0) for seed in (0, 1) for split in ("train", "val")}) == 4
    again = Scenes(0, "train", 40, (16, 24)).sample(33)
    assert again.image.data_ptr() == sample.image.data_ptr()  # not rendered twice
    pictures = {source.sample(index).image.numpy().tobytes() for source in (train, val) for index in range(40)}
    assert len(pictures) == 80
    with pytest.raises(IndexError):
        train.sample(40)


def test_faults_are_named() -> None:
    with pytest.raises(BadInput, match="did you mean 'train'"):
        Scenes(0, "trian", 10, (16, 16))
    with pytest.raises(BadInput, match="number of scenes"):
        Scenes(0, "train", 0, (16, 16))
    with pytest.raises(BadInput, match="0x16"):
        render(np.arange(2), seed=0, size=(0, 16))
    with pytest.raises(BadInput, match="empty"):
        render(np.arange(0), seed=0, size=(16, 16))
