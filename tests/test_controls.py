"""Controls have the teacher's shape and none of its knowledge, and differ from a guided run in the target alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.config import Control
from depthjepa.guidance.target import Description, fit_whitening, on_cells
from depthjepa.guidance.teachers.controls import (
    AnotherImage,
    ImageItself,
    MeanMap,
    RandomNetwork,
    build_control,
)
from depthjepa.guidance.teachers.ground_truth import DepthTeacher, to_disparity
from depthjepa.losses import Latents
from depthjepa.masks import sample_masks
from depthjepa.method import build_method, build_teacher
from depthjepa.model.jepa import JEPA
from tiny_images import write_flat, write_pairs
from tiny_runs import GUIDED, Call, metrics, recipe_file, run, tiny

CELLS = (6, 4)
CONTROLS: tuple[Control, ...] = ("image", "random", "another", "mean")


def batch_of(count: int, seed: int = 0) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    depth = 1 + 4 * torch.rand(count, 1, 48, 32, generator=draws)
    depth[0, :, :4, :4] = 0  # one part of a cell that the first image does not know
    return Batch(
        images=torch.rand(count, 3, 48, 32, generator=draws),
        depth=depth,
        zoom=torch.full((count,), 2.0),
        index=torch.arange(count),
        labels=torch.zeros(count, dtype=torch.int64),
    )


@dataclass(frozen=True)
class Network:
    """A teacher that reads images alone: each cell's brightness, told twice."""

    channels: int = 2

    def describe(self) -> Description:
        return Description("network", self.channels, 8, "none", "undirected", stochastic=False, needs_depth=False)

    def to(self, device: torch.device) -> Network:
        return self

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        values = torch.nn.functional.adaptive_avg_pool2d(batch.images.mean(1, keepdim=True), cells)
        values = values.repeat(1, self.channels, 1, 1)
        return Latents(values, torch.ones_like(values, dtype=torch.bool))


def test_nothing_in_its_place_is_the_teacher_itself() -> None:
    teacher = DepthTeacher()
    assert build_control(teacher, "none", 0) is teacher


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_fills_the_cells_that_the_teacher_would_fill(control: Control) -> None:
    batch, teacher = batch_of(3), DepthTeacher()
    own, other = teacher.batch_latents(batch, CELLS), build_control(teacher, control, 0).batch_latents(batch, CELLS)
    assert other.values.shape == own.values.shape and other.values.isfinite().all()
    if control in ("image", "random"):
        assert torch.equal(other.valid, own.valid) and not own.valid.all()
    channels = build_control(Network(), "random", 0).batch_latents(batch, CELLS)
    assert channels.values.shape == (3, 2, *CELLS) and channels.valid.all()


@pytest.mark.parametrize("control", CONTROLS)
def test_whitened_controls_have_a_teachers_mean_and_variance(control: Control) -> None:
    batches = [batch_of(8, seed) for seed in range(4)]
    teacher = build_control(DepthTeacher(), control, 0)
    whitening, _ = fit_whitening(teacher, batches, CELLS, centre="mean" if control == "mean" else "map")
    white = [whitening.apply(on_cells(teacher, batch, CELLS)) for batch in batches]
    values = torch.cat([each.values[each.valid] for each in white])
    assert float(values.mean()) == pytest.approx(0, abs=1e-2) and float(values.std()) == pytest.approx(1, abs=0.02)


def test_the_image_itself_is_told_as_the_teacher_tells_depth() -> None:
    batch = batch_of(2)
    told = ImageItself(DepthTeacher()).batch_latents(batch, (24, 16)).values  # a pixel a part
    red, green, blue = batch.images.unbind(1)
    torch.testing.assert_close(to_disparity(told)[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)
    assert "brightness" in ImageItself(DepthTeacher()).describe().unit
    with pytest.raises(BadInput, match="network gives features or cached latents, which have no like of the image"):
        build_control(Network(), "image", 0)
    single = build_control(Network(1), "image", 0).batch_latents(batch, CELLS)  # one channel of depth: one of luminance
    assert single.values.shape == (2, 1, *CELLS)


def test_the_image_itself_is_the_latent_of_depthfms_own_autoencoder() -> None:
    pytest.importorskip("diffusers", reason="the depthfm teachers need the extra `teachers`")
    config = tiny(Path("photographs"), *GUIDED, "guidance.teacher=depthfm-tiny", "guidance.control=image")
    control = build_teacher(config, has_depth=False)
    assert isinstance(control, ImageItself)
    batch = replace(batch_of(2), images=torch.rand(2, 3, 64, 32), depth=None)
    told = control.batch_latents(batch, (8, 4)).values
    depthfm: Any = control.teacher
    assert torch.equal(told, depthfm.image_latents(batch.images))
    assert not torch.equal(told, depthfm.latents(batch.images, index=batch.index))


def test_the_random_network_is_a_function_of_image_and_seed() -> None:
    batch = batch_of(3)
    first = RandomNetwork(DepthTeacher(), 0)
    told = first.batch_latents(batch, CELLS).values
    assert torch.equal(told, RandomNetwork(DepthTeacher(), 0).batch_latents(batch, CELLS).values)
    assert not torch.allclose(told, RandomNetwork(DepthTeacher(), 1).batch_latents(batch, CELLS).values)
    deeper = replace(batch, depth=None if batch.depth is None else batch.depth * 3)
    assert torch.equal(told, first.batch_latents(deeper, CELLS).values)
    assert told.std(0).min() > 0  # every cell depends on the image
    assert not any(each.requires_grad for each in first.network.parameters())


def test_another_image_is_never_the_own_one() -> None:
    batch, teacher = batch_of(4), DepthTeacher()
    own, other = teacher.batch_latents(batch, CELLS), AnotherImage(teacher).batch_latents(batch, CELLS)
    for image in range(4):
        assert torch.equal(other.values[image], own.values[image - 1])
        assert torch.equal(other.valid[image], own.valid[image - 1])
    with pytest.raises(BadInput, match="needs batches of at least two images"):
        AnotherImage(teacher).batch_latents(batch_of(1), CELLS)


def test_the_mean_map_is_one_for_all_and_knows_what_any_image_knows() -> None:
    batch, teacher = batch_of(3), DepthTeacher()
    own, mean = teacher.batch_latents(batch, CELLS), MeanMap(teacher).batch_latents(batch, CELLS)
    assert mean.valid.all() and torch.equal(mean.values[0], mean.values[2])
    torch.testing.assert_close(mean.values[0][:, 1:], own.values.mean(0)[:, 1:])
    torch.testing.assert_close(mean.values[0][0, 0, 0], own.values[1:, 0, 0, 0].mean())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.slow
def test_twins_differ_in_the_target_alone(pairs: Path, tmp_path: Path) -> None:
    """Same weights, order and masks: the latent loss of the first step is the same, what is learned is not."""
    found = {}
    for control in ("none", *CONTROLS):
        folder = tmp_path / control
        summary = run(pairs, folder, *GUIDED, f"guidance.control={control}", "train.steps=2")
        found[control] = metrics(folder), summary["teacher"]["name"]
    assert len({found[control][1] for control in found}) == 5
    firsts = [records[0]["loss_jepa"] for records, _ in found.values()]
    assert firsts == [firsts[0]] * 5
    assert len({records[1]["loss_jepa"] for records, _ in found.values()}) == 5


def test_controls_are_for_latents_and_named_by_their_fault(pairs: Path, tmp_path: Path, call: Call) -> None:
    recipe = recipe_file(tmp_path / "a.yaml", pairs, "train.steps=1")
    status, _, errors = call(
        "train", recipe, "--out", tmp_path / "run", "guidance.kind=pixel", "guidance.control=random"
    )
    assert status == 2 and "guidance.control is for guidance.kind=feature, not for guidance.kind=pixel" in errors
    status, _, errors = call("train", recipe, "--out", tmp_path / "run", *GUIDED, "guidance.control=shuffled")
    assert status == 2 and "guidance.control" in errors
    assert not (tmp_path / "run").exists()


PIXEL = ("guidance.kind=pixel", "guidance.weight=0.5", "masks.kind=multiblock")
HEADS = {
    "linear": GUIDED,
    "conv": (*GUIDED, "guidance.head=conv"),
    "pixel": (*PIXEL, "guidance.read=both"),
    "dpt": (*PIXEL, "guidance.read=predicted", "guidance.head=dpt"),
}


def gradients(pairs: Path, *settings: str) -> dict[str, Tensor]:
    config = tiny(pairs, *settings)
    teacher = build_teacher(config, has_depth=True)
    method = build_method(config, teacher, 0)
    assert isinstance(method, JEPA)
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 48, 48, generator=draws)
    masks = sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=np.arange(3), batch_index=0)
    latents = None
    if teacher is not None:
        shape = (3, teacher.describe().channels, *config.target_cells)
        latents = Latents(torch.randn(*shape, generator=draws), torch.ones(*shape, dtype=torch.bool))
    method(images, masks, latents).total.backward()
    return {name: each.grad for name, each in method.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("head", HEADS)
def test_a_detached_head_learns_and_the_rest_does_not_know_of_it(pairs: Path, head: str) -> None:
    unguided = gradients(pairs)
    guided, detached = gradients(pairs, *HEADS[head]), gradients(pairs, *HEADS[head], "guidance.detached=true")
    assert {name for name in detached if name.startswith("guide.")} == {n for n in guided if n.startswith("guide.")}
    for name, gradient in detached.items():
        if name.startswith("guide."):
            torch.testing.assert_close(gradient, guided[name])
        else:
            torch.testing.assert_close(gradient, unguided[name], rtol=1e-5, atol=1e-8)
    reached = [name for name in unguided if not torch.allclose(guided[name], unguided[name])]
    assert any(name.startswith("context_encoder.") for name in reached)


def test_photographs_have_controls_too(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the depthfm teachers need the extra `teachers`")
    root = write_flat(tmp_path / "photographs", 16, size=48)
    settings = (*GUIDED, "guidance.teacher=depthfm-tiny", "guidance.control=image", "train.steps=1")
    summary = run(root, tmp_path / "run", *settings, "train.whitening_images=16")
    assert summary["teacher"]["name"] == "image as depthfm-tiny" and summary["depth_floor"] > 0
