"""Pixel guidance: losses of depth maps, heads, what they read and judge, whole runs, and what a run's head decodes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depthjepa import cost, training
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.samples import Batch
from depthjepa.depth import below_unmeasured, r2_within, to_metres, to_numbers, valid
from depthjepa.evaluation import decoded as decoding
from depthjepa.evaluation.depth_cells import CellMeans, cells_of
from depthjepa.evaluation.depth_probe import DepthTable
from depthjepa.evaluation.gathering import Views
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.config import PixelGuidance
from depthjepa.guidance.pixel import PixelGuide
from depthjepa.guidance.target import Whitening, fit_whitening
from depthjepa.guidance.teachers.ground_truth import DepthPixels
from depthjepa.logbook import RunFolder
from depthjepa.losses import Latents, depth_loss, gradient_loss, sig_loss
from depthjepa.masks import MaskConfig, Masks, sample_masks
from depthjepa.method import build_method, build_target, build_teacher
from depthjepa.model.heads.deep_cnn import enlargements
from depthjepa.model.heads.dpt import DPTHead
from depthjepa.model.heads.head import equal_depths
from depthjepa.model.heads.table import PIXEL_HEADS
from depthjepa.model.jepa import JEPA
from tiny_images import write_flat, write_pairs
from tiny_runs import SETTINGS, Call, differences, metrics, run, weights

KINDS = PIXEL_HEADS.names
GRID, PATCH, SIZE, WIDTH = (6, 6), 8, 48, 32
DEEP = ("model.depth=5", "predictor.depth=6")
CPU = torch.device("cpu")
GRADIENT = PixelGuidance().gradient

Numbers = Any


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=source(seed))


LOSSES = [("l1", 0.0), ("sig", 0.0), ("ssi", 0.0), ("l1", 0.5), ("sig", 0.5), ("ssi", 0.5)]
every_loss = pytest.mark.parametrize(("kind", "gradient"), LOSSES)


def maps(height: int = 11, width: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and validity; the third image has no valid pixel."""
    known = torch.rand(4, 1, height, width, generator=source(2)) > 0.4
    known[2] = False
    return noise(4, 1, height, width), noise(4, 1, height, width, seed=1), known


def value_and_gradient(prediction: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    leaf = prediction.clone().requires_grad_()
    value = depth_loss(leaf, *arguments)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def slow_slopes(difference: np.ndarray, known: np.ndarray, scales: int) -> float:
    """Of one image: neighbour by neighbour, scale by scale."""
    found = []
    for step in [2**scale for scale in range(scales)]:
        part, there = difference[::step, ::step], known[::step, ::step]
        slopes = []
        for row, column in np.ndindex(part.shape):
            for other in ((row + 1, column), (row, column + 1)):
                if other[0] < part.shape[0] and other[1] < part.shape[1] and there[row, column] and there[other]:
                    slopes.append(abs(part[row, column] - part[other]))
        found.append(np.mean(slopes) if slopes else 0.0)
    return float(np.mean(found))


def slow_loss(kind: str, p: np.ndarray, t: np.ndarray, known: np.ndarray, gradient: float) -> float:
    """Of one image with valid pixels."""

    def free(values: np.ndarray) -> np.ndarray:
        ordered = np.sort(values[known])
        centred = values - ordered[(len(ordered) - 1) // 2]
        return centred / np.abs(centred[known]).mean()

    if kind == "ssi":
        p, t = free(p), free(t)
    difference = p - t
    g = difference[known]
    value = math.sqrt(g.var() + 0.15 * g.mean() ** 2) if kind == "sig" else np.abs(g).mean()
    return float(value) + gradient * slow_slopes(difference, known, 4)


@every_loss
def test_depth_losses_are_what_the_formulas_say_and_an_image_without_depth_counts_zero(
    kind: Any, gradient: float
) -> None:
    prediction, target, known = maps()
    arrays = zip(*(each[:, 0].double().numpy() for each in (prediction, target)), known[:, 0].numpy(), strict=True)
    each = [slow_loss(kind, p, t, mask, gradient) if mask.any() else 0.0 for p, t, mask in arrays]
    assert each[2] == 0 and min(each[0], each[1], each[3]) > 0.3
    found = float(depth_loss(prediction, target, known, kind, gradient))
    assert found == pytest.approx(np.mean(each), rel=2e-6)


def test_l1_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 2.0], [3.0, 9.0]]], [[[0.0, 5.0], [5.0, 5.0]]]])
    target = torch.tensor([[[[2.0, 2.0], [0.0, math.nan]]], [[[0.5, math.inf], [-1e30, math.nan]]]])
    known = torch.tensor([[[[True, True], [True, False]]], [[[True, False], [False, False]]]])
    assert float(depth_loss(prediction, target, known)) == pytest.approx(((1 + 0 + 3) / 3 + 0.5) / 2)


@every_loss
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_invalid_pixels_reach_neither_value_nor_gradient(kind: Any, gradient: float, garbage: float) -> None:
    prediction, target, known = maps()
    clean, slope = value_and_gradient(prediction, target, known, kind, gradient)
    dirty, same = value_and_gradient(prediction, torch.where(known, target, garbage), known, kind, gradient)
    assert torch.equal(dirty, clean) and torch.equal(same, slope)
    assert torch.isfinite(slope).all() and (slope[~known] == 0).all()
    assert (slope[known] != 0).any() and (slope[2] == 0).all()
    # Nor does what is said of them.
    elsewhere, _ = value_and_gradient(torch.where(known, prediction, 1e4), target, known, kind, gradient)
    assert torch.equal(elsewhere, clean)


@every_loss
def test_what_is_valid_and_not_a_number_is_not_hidden(kind: Any, gradient: float) -> None:
    prediction, target, known = maps()
    prediction[0][known[0]] = math.nan
    assert torch.isnan(depth_loss(prediction, target, known, kind, gradient)) or kind == "ssi"


@every_loss
def test_a_map_that_is_right_to_the_last_digit_has_a_finite_gradient(kind: Any, gradient: float) -> None:
    _, target, known = maps()
    value, slope = value_and_gradient(target, target, known, kind, gradient)
    assert float(value) == pytest.approx(0, abs=1.01e-4) and torch.isfinite(slope).all()


@every_loss
@pytest.mark.parametrize("parts", [2, 4])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(kind: Any, gradient: float, parts: int) -> None:
    prediction, target, known = maps()
    whole, slope = value_and_gradient(prediction, target, known, kind, gradient)
    pieces = [
        value_and_gradient(*each, kind, gradient)
        for each in zip(prediction.chunk(parts), target.chunk(parts), known.chunk(parts), strict=True)
    ]
    torch.testing.assert_close(torch.stack([value for value, _ in pieces]).mean(), whole)
    torch.testing.assert_close(torch.cat([part for _, part in pieces]) / parts, slope)


def test_sig_loss_sees_a_common_factor_through_a_root_of_0_15() -> None:
    difference, known = noise(3, 50), torch.rand(3, 50, generator=source(1)) > 0.3
    g = [row[mask].double().numpy() for row, mask in zip(difference, known, strict=True)]
    expected = np.mean([math.sqrt(each.var() + 0.15 * each.mean() ** 2) for each in g])
    assert float(sig_loss(difference, known)) == pytest.approx(expected, rel=1e-5)
    constant = torch.full((1, 50), -0.7)
    assert float(sig_loss(constant, torch.ones_like(constant, dtype=torch.bool))) == pytest.approx(
        0.7 * math.sqrt(0.15), rel=1e-5
    )


@pytest.mark.parametrize("gradient", [0.0, 0.5])
def test_ssi_forgets_scale_and_shift_of_either_map(gradient: float) -> None:
    prediction, target, known = maps()
    scale = torch.tensor([0.01, 3.0, 2.0, 700.0])[:, None, None, None]
    shift = torch.tensor([5.0, -40.0, 1.0, 0.0])[:, None, None, None]

    def loss(one: Tensor, other: Tensor) -> float:
        return float(depth_loss(one, other, known, "ssi", gradient))

    expected = loss(prediction, target)
    assert expected > 0.3
    assert loss(scale * prediction + shift, target) == pytest.approx(expected, rel=2e-4)
    assert loss(prediction, scale * target + shift) == pytest.approx(expected, rel=2e-4)
    assert loss(scale * target + shift, target) == pytest.approx(0, abs=1e-3)
    assert loss(-target, target) > 0.3  # but not the sign


def test_gradient_loss_asks_for_edges_in_their_place_and_for_no_level() -> None:
    everywhere = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    offset = torch.tensor([3.0, -0.2])[:, None, None, None].expand(2, 1, 16, 16)
    assert float(gradient_loss(offset, everywhere)) == 0
    step = (torch.arange(16) >= 8).float().expand(1, 1, 16, 16)
    moved = (torch.arange(16) >= 11).float().expand(1, 1, 16, 16)
    losses = [float(gradient_loss(guess - step, everywhere[:1])) for guess in (step, step + 4, moved)]
    assert losses[:2] == [0, 0] and losses[2] > 0.01


def test_gradient_loss_by_hand() -> None:
    difference = torch.tensor([[[[0.0, 1.0, 5.0], [2.0, math.nan, 5.5]]]])
    known = torch.tensor([[[[True, True, True], [True, False, True]]]])
    # Across |1 - 0| and |5 - 1|; down |2 - 0| and |5.5 - 5|; no pair with the hole.
    assert float(gradient_loss(difference, known, scales=1)) == pytest.approx((1 + 4 + 2 + 0.5) / 4)
    # Every second pixel leaves 0 and 5 of the first row.
    assert float(gradient_loss(difference, known, scales=2)) == pytest.approx((7.5 / 4 + 5) / 2)


@pytest.mark.parametrize("numbers", ["metres", "log", "disparity"])
def test_numbers_and_metres_invert_each_other_within_the_range(numbers: Numbers) -> None:
    depth = torch.tensor([0.5, 0.7, 3.0, 41.0, 80.0])
    spoken = to_numbers(depth, numbers)
    expected = {"metres": depth, "log": depth.double().log().float(), "disparity": depth.reciprocal()}[numbers]
    torch.testing.assert_close(spoken, expected)
    torch.testing.assert_close(to_metres(spoken, numbers, 0.5, 80.0), depth)
    outside = to_metres(torch.tensor([-1e9, 1e9]), numbers, 0.5, 80.0)
    ends = [80.0, 0.5] if numbers == "disparity" else [0.5, 80.0]
    assert outside.tolist() == pytest.approx(ends, rel=1e-6)


def token_maps(kind: str, count: int, grid: tuple[int, int], seed: int = 0) -> list[Tensor]:
    return [noise(count, WIDTH, *grid, seed=seed + level) for level in range(4 if kind == "dpt" else 1)]


def decoder(kind: Any, outputs: int = 1, patch: int = PATCH) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PIXEL_HEADS.load(kind)(WIDTH, outputs, patch, 24)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("grid", [(2, 2), (5, 7)])
@torch.no_grad()
def test_heads_give_every_pixel_whatever_patch_and_grid(kind: str, patch: int, grid: tuple[int, int]) -> None:
    found = decoder(kind, 3, patch)(token_maps(kind, 2, grid))
    assert found.shape == (2, 3, patch * grid[0], patch * grid[1]) and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("patch", "factors"),
    [(1, [1, 1, 1, 1]), (8, [1, 2, 2, 2]), (14, [1, 1, 2, 7]), (16, [2, 2, 2, 2]), (64, [2, 2, 4, 4])],
)
def test_deep_cnn_enlarges_by_whole_numbers_up_to_the_patch(patch: int, factors: list[int]) -> None:
    assert enlargements(patch) == factors and math.prod(factors) == patch


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_head_learns(kind: str) -> None:
    head, levels = decoder(kind), token_maps(kind, 2, (5, 7))
    wanted = noise(2, 1, 40, 56, seed=9)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (head(levels) - wanted).abs().mean().backward()
        optimizer.step()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.norm()) > 0, name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_mlp_reads_each_token_by_itself_and_convolutions_read_its_neighbours(kind: str) -> None:
    head, levels = decoder(kind), token_maps(kind, 1, (3, 5))
    changed = [level.clone() for level in levels]
    for level in changed:
        level[0, :, 1, 2] += noise(WIDTH, seed=20)
    moved = (head(levels) != head(changed))[0, 0]
    reach = {"mlp": 0, "cnn": 2}.get(kind, PATCH)  # pixels beyond the patch; two 3 x 3 convolutions see two
    near = torch.zeros_like(moved)
    near[PATCH - reach : 2 * PATCH + reach, 2 * PATCH - reach : 3 * PATCH + reach] = True
    if kind in ("mlp", "cnn"):
        assert torch.equal(moved, near)
    else:
        assert moved[near].float().mean() > 0.9


@torch.no_grad()
def test_pixels_of_mlp_lie_where_their_patch_lies() -> None:
    """Its numbers are rows of a patch: a decoder that says its token's number draws the grid of patches."""
    head = decoder("mlp")
    nn.init.zeros_(head.project.weight)
    head.project.bias.copy_(torch.arange(PATCH**2))
    found = head(token_maps("mlp", 1, (2, 3)))[0, 0]
    assert torch.equal(found, torch.arange(PATCH**2.0).view(PATCH, PATCH).repeat(2, 3))


def test_dpt_reads_four_depths_the_last_one_among_them() -> None:
    assert equal_depths(12, 4) == [2, 5, 8, 11]
    assert equal_depths(24, 4) == [5, 11, 17, 23]
    assert [equal_depths(blocks, 4) for blocks in (1, 2, 3, 4)] == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 1, 2, 2],
        [0, 1, 2, 3],
    ]


@torch.no_grad()
def test_dpt_hears_each_of_its_levels() -> None:
    head, levels = decoder("dpt"), token_maps("dpt", 1, (3, 5))
    assert isinstance(head, DPTHead)
    for number in range(4):
        changed = [-level if place == number else level for place, level in enumerate(levels)]
        assert float((head(levels) - head(changed)).abs().max()) > 1e-3, number


def settings(*overrides: str) -> RunConfig:
    return build_config({"name": "tiny"}, ["data.root=scenes", *SETTINGS, "guidance.kind=pixel", *overrides])


def method(*overrides: str) -> JEPA:
    """A method whose attention is far from uniform, so that errors show."""
    config = settings(*overrides)
    built = build_method(config, build_teacher(config, has_depth=True), 0)
    assert isinstance(built, JEPA) and isinstance(built.guide, PixelGuide)
    with torch.no_grad():
        for part in (built.context_encoder, built.target_encoder, built.predictor):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(10)
    return built


def guide_of(model: JEPA) -> PixelGuide:
    assert isinstance(model.guide, PixelGuide)
    return model.guide


def drawn(kind: Any = "multiblock", count: int = 3) -> Masks:
    return sample_masks(MaskConfig(kind=kind), GRID, seed=0, epoch=0, indices=np.arange(count), batch_index=0)


def truth(count: int = 3) -> Latents:
    known = torch.rand(count, 1, SIZE, SIZE, generator=source(6)) > 0.2
    return Latents(torch.where(known, noise(count, 1, SIZE, SIZE, seed=5), math.nan), known)


def pixels_of(patches: Tensor) -> Tensor:
    """[b, cells] -> [b, 1, h, w]."""
    return patches.view(-1, 1, *GRID).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def target_patches(masks: Masks) -> Tensor:
    """By a loop over targets, overlaps and padding and all."""
    found = torch.zeros(len(masks.context), GRID[0] * GRID[1], dtype=torch.bool)
    for image, block, place in np.ndindex(*masks.targets.shape):
        if masks.valid is None or masks.valid[image, block, place]:
            found[image, masks.targets[image, block, place]] = True
    return found


def images(count: int = 3) -> Tensor:
    return noise(count, 3, SIZE, SIZE, seed=3)


def read(model: JEPA, masks: Masks) -> dict[str, tuple[Tensor, Tensor | None]]:
    levels, predicted, masks = model.predict(images(), masks)
    return guide_of(model).read(model.context_encoder, images(), levels, predicted, masks)


def test_the_masks_of_these_tests_overlap_and_are_padded() -> None:
    masks = drawn()
    assert masks.valid is not None and not masks.valid.all()
    assert int(masks.valid.sum()) > int(target_patches(masks).sum())  # a patch is told of more than once


@pytest.mark.parametrize("head", KINDS)
def test_scope_target_judges_exactly_the_pixels_of_target_patches(head: str) -> None:
    model, masks, depth = (
        method(f"guidance.head={head}", "guidance.read=predicted", "guidance.scope=target"),
        drawn(),
        truth(),
    )
    found, judged = read(model, masks)["predicted"]
    expected = pixels_of(target_patches(masks))
    assert judged is not None and torch.equal(judged, expected) and not expected.all()
    elsewhere = Latents(torch.where(expected, depth.values, 1e6), depth.valid | ~expected)
    part = model(images(), masks, depth).parts["loss_depth"]
    assert torch.equal(model(images(), masks, elsewhere).parts["loss_depth"], part)
    torch.testing.assert_close(part, depth_loss(found, depth.values, depth.valid & expected, gradient=GRADIENT))


def test_what_pads_a_target_changes_nothing() -> None:
    model, masks = method("guidance.read=predicted", "guidance.scope=target"), drawn()
    assert masks.valid is not None
    other = torch.randint(0, 36, masks.targets.shape, generator=source())
    repadded = Masks(masks.context, torch.where(masks.valid, masks.targets, other), masks.valid)
    one, two = (model(images(), each, truth()).parts["loss_depth"] for each in (masks, repadded))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", ["mlp", "dpt"])
def test_context_tokens_are_read_in_scope_full_alone(head: str) -> None:
    for scope, kind in (("target", "multiblock"), ("full", "mae")):
        model = method(f"guidance.head={head}", "guidance.read=predicted", f"guidance.scope={scope}", *DEEP)
        masks = drawn(kind)
        context, predicted, _ = model.predict(images(), masks)
        told = predicted.levels or (predicted.targets,)
        plain, _ = guide_of(model).read_prediction(context, told, masks)
        other, _ = guide_of(model).read_prediction([7 * each + 3 for each in context], told, masks)
        spoken, _ = guide_of(model).read_prediction(context, [7 * each + 3 for each in told], masks)
        assert torch.equal(plain, other) == (scope == "target")
        assert not torch.equal(plain, spoken)


def test_scope_full_puts_every_token_in_its_place() -> None:
    model, masks = method("guidance.read=predicted"), drawn("mae")
    assert masks.targets.shape[1:] == (1, 29)
    context, predicted, _ = model.predict(images(), masks)
    found, judged = read(model, masks)["predicted"]
    assert judged is not None and judged.all()
    whole = torch.full((3, 36, WIDTH), math.nan)
    for image in range(3):
        for place, patch in enumerate(masks.context[image]):
            whole[image, patch] = context[-1][image, place]
        for place, patch in enumerate(masks.targets[image, 0]):
            whole[image, patch] = predicted.targets[image, 0, place]
    expected = guide_of(model).head.decoder([whole.transpose(1, 2).reshape(3, WIDTH, *GRID)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_overlapping_predictions_of_a_patch_are_averaged() -> None:
    model, masks = method("guidance.read=predicted", "guidance.scope=target"), drawn()
    _, predicted, _ = model.predict(images(), masks)
    assert masks.valid is not None
    found, _ = read(model, masks)["predicted"]
    patch = next(p for p in range(36) if int(((masks.targets[0] == p) & masks.valid[0]).sum()) > 1)
    mean = predicted.targets[0][(masks.targets[0] == patch) & masks.valid[0]].mean(0)
    row, column = divmod(patch, GRID[1])
    expected = guide_of(model).head.decoder([mean[None, :, None, None]])
    here = found[:1, :, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
    torch.testing.assert_close(here, expected, atol=1e-5, rtol=1e-4)


def learned(model: JEPA, part: str) -> set[str]:
    """Parameters of a part that the depth loss of one batch gives a slope."""
    model.zero_grad()
    masks = drawn("mae" if guide_of(model).config.scope == "full" else "multiblock")
    model(images(), masks, truth()).parts["loss_depth"].backward()
    named = getattr(model, part).named_parameters()
    return {name for name, each in named if each.grad is not None and float(each.grad.norm()) > 0}


def all_of(model: JEPA, part: str) -> set[str]:
    return {name for name, _ in getattr(model, part).named_parameters()}


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("scope", ["target", "full"])
def test_depth_of_predicted_tokens_teaches_predictor_and_context_encoder(head: str, scope: str) -> None:
    filled = ("guidance.fill=learned",) if head != "mlp" and scope == "target" else ()
    model = method(f"guidance.head={head}", "guidance.read=predicted", f"guidance.scope={scope}", *filled)
    assert learned(model, "context_encoder") == all_of(model, "context_encoder")
    # dpt reads the predictor's own tokens, before they are brought to the width of embeddings.
    unread = {"predictor_proj.weight", "predictor_proj.bias"} if head == "dpt" else set()
    assert learned(model, "predictor") == all_of(model, "predictor") - unread
    assert learned(model, "guide") == all_of(model, "guide")
    assert all(each.grad is None and not each.requires_grad for each in model.target_encoder.parameters())


@pytest.mark.parametrize("head", KINDS)
def test_depth_of_dense_tokens_teaches_the_context_encoder_alone(head: str) -> None:
    model = method(f"guidance.head={head}", "guidance.read=dense")
    assert learned(model, "context_encoder") == all_of(model, "context_encoder")
    assert learned(model, "predictor") == set()
    assert learned(model, "guide") == all_of(model, "guide")
    assert all(each.grad is None and not each.requires_grad for each in model.target_encoder.parameters())


def test_the_weight_of_guidance_multiplies_the_depth_loss() -> None:
    losses = method("guidance.weight=0.3")(images(), drawn(), truth())
    torch.testing.assert_close(losses.total, losses.parts["loss_jepa"] + 0.3 * losses.parts["loss_depth"])


def test_dense_maps_are_of_the_context_encoder_and_the_whole_image() -> None:
    model = method("guidance.layers=[0.5, 1.0]", *DEEP[1:], "model.depth=4")
    found, judged = read(model, drawn())["dense"]
    assert judged is None and guide_of(model).layers == (1, 3) and guide_of(model).encoder_layers == ()
    side_by_side = torch.cat(model.context_encoder.features(images(), [1, 3]), -1)
    expected = guide_of(model).head.decoder([side_by_side.transpose(1, 2).reshape(3, 2 * WIDTH, *GRID)])
    assert torch.equal(found, expected)
    wide = guide_of(model).read_dense(model.context_encoder, noise(1, 3, 32, 72))
    assert wide.shape == (1, 1, 32, 72)


def test_dpt_reads_four_depths_of_the_predictor_and_of_the_context_encoder() -> None:
    model, masks = method("guidance.head=dpt", "guidance.read=predicted", *DEEP), drawn("mae")
    seen: dict[str, list[Tensor]] = {"context_encoder": [], "predictor": []}
    hooks = []
    for part, blocks in (
        ("context_encoder", model.context_encoder.blocks),
        ("predictor", model.predictor.predictor_blocks),
    ):
        for block in blocks:
            hooks.append(block.register_forward_hook(lambda _, __, out, part=part: seen[part].append(out)))
    context, predicted, _ = model.predict(images(), masks)
    for hook in hooks:
        hook.remove()
    assert guide_of(model).encoder_layers == (1, 2, 3, 4) and guide_of(model).predictor_layers == (1, 2, 4, 5)
    for level, number in zip(context, [1, 2, 3, 4], strict=True):
        assert torch.equal(level, model.context_encoder.norm(seen["context_encoder"][number]))
    for told, number in zip(predicted.levels, [1, 2, 4, 5], strict=True):
        tokens = seen["predictor"][number][:, masks.context.shape[1] :]
        assert torch.equal(told[:, 0], model.predictor.predictor_norm(tokens))
    # Each level counts, and so does what brings the predictor's to the encoder's width.
    leaves = [each.detach().requires_grad_() for each in (*context, *predicted.levels)]
    maps, _ = guide_of(model).read_prediction(leaves[:4], leaves[4:], masks)
    maps.square().mean().backward()
    assert all(leaf.grad is not None and float(leaf.grad.norm()) > 0 for leaf in leaves)
    assert all(float(each.weight.grad.norm()) > 0 for each in guide_of(model).head.from_predictor)


@pytest.mark.parametrize("scope", ["target", "full"])
def test_both_is_the_mean_of_the_two_losses(scope: str) -> None:
    model = method("guidance.read=both", f"guidance.scope={scope}")
    masks, depth = drawn("mae" if scope == "full" else "multiblock"), truth()
    maps = read(model, masks)
    assert list(maps) == ["predicted", "dense"]
    each = [guide_of(model).compare(found, depth, judged) for found, judged in maps.values()]
    assert abs(each[0].item() - each[1].item()) > 1e-3
    torch.testing.assert_close(model(images(), masks, depth).parts["loss_depth"], (each[0] + each[1]) / 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mlp"])  # which reads a patch by itself
@torch.no_grad()
def test_a_learned_fill_stands_at_absent_patches_and_nowhere_else(kind: str) -> None:
    asked = (f"guidance.head={kind}", "guidance.read=predicted", "guidance.scope=target")
    zero, filled = (guide_of(method(*asked, f"guidance.fill={fill}")).head for fill in ("zero", "learned"))
    assert filled.fill is not None and zero.fill is None
    filled.load_state_dict(zero.state_dict(), strict=False)
    filled.fill.fill_(0.7)
    coverage = (torch.rand(2, 36, generator=source()) > 0.5).float()
    levels = [noise(2, 36, WIDTH, seed=level) * coverage[..., None] for level in range(4 if kind == "dpt" else 1)]
    by_hand = [torch.where(coverage[..., None] > 0, tokens, 0.7) for tokens in levels]
    assert torch.equal(filled(levels, coverage, GRID), zero(by_hand, coverage, GRID))
    assert not torch.equal(filled(levels, coverage, GRID), zero(levels, coverage, GRID))
    everywhere = torch.ones_like(coverage)
    assert torch.equal(filled(levels, everywhere, GRID), zero(levels, everywhere, GRID))


@pytest.mark.parametrize("head", ["cnn", "dpt"])
def test_blocks_in_one_sequence_are_read_as_their_union(head: str) -> None:
    asked = (f"guidance.head={head}", "guidance.read=predicted", "guidance.scope=target", "predictor.blocks=together")
    model, masks = method(*asked), drawn()
    losses = model(images(), masks, truth())
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)
    joined = masks.joined(36)
    assert joined.targets.shape[1] == 1
    maps, judged = read(model, joined)["predicted"]
    expected = pixels_of(target_patches(masks))
    assert judged is not None and torch.equal(judged, expected)
    depth = truth()
    wanted = depth_loss(maps, depth.values, depth.valid & expected, gradient=GRADIENT)
    torch.testing.assert_close(losses.parts["loss_depth"], wanted)


def test_of_several_target_layers_the_last_one_is_read() -> None:
    model = method("guidance.read=predicted", "loss.target_layers=[0.5, 1.0]")
    masks = drawn("mae")
    context, predicted, _ = model.predict(images(), masks)
    assert predicted.targets.shape[-1] == 2 * WIDTH
    last, _ = guide_of(model).read_prediction(context, (predicted.targets[..., WIDTH:],), masks)
    assert torch.equal(read(model, masks)["predicted"][0], last)


def test_the_head_starts_from_its_own_stream() -> None:
    """A pixel-guided run and its unguided twin start from the same encoder and predictor."""
    built = [
        build_method(settings(*asked), build_teacher(settings(*asked), has_depth=True), 0)
        for asked in ((), ("guidance.kind=none",), ("guidance.head=dpt",), ("seed=1",), ())
    ]
    for part in ("context_encoder", "target_encoder", "predictor"):
        states = [getattr(each, part).state_dict() for each in built]
        assert differences(dict(states[0]), dict(states[1])) == differences(dict(states[0]), dict(states[2])) == []
    heads = [dict(each.guide.state_dict()) for each in (built[0], built[3], built[4])]
    assert differences(heads[0], heads[2]) == [] and len(differences(heads[0], heads[1])) == 4


def depth_batches(count: int = 24, size: int = 10, zoom: float = 1.0) -> list[Batch]:
    """Depth [m] between 1 and 9 with holes, and one pixel that is never measured."""
    place = 4 + 2 * noise(1, 1, 4, 6, seed=1).clamp(-1, 1)
    depth = place + noise(count, 1, 4, 6).clamp(-0.9, 3)
    depth[torch.rand(count, 1, 4, 6, generator=source(2)) > 0.8] = 0
    depth[..., 0, 0] = math.nan
    return [
        Batch(
            index=torch.arange(len(part)),
            images=torch.zeros(len(part), 3, 4, 6),
            depth=part,
            zoom=torch.full((len(part),), zoom),
            labels=torch.full((len(part),), -1),
        )
        for part in depth.split(size)
    ]


def joined(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    depth = torch.cat([each.depth for each in batches if each.depth is not None]).double().numpy()[:, 0]
    return depth, depth > 0


@pytest.mark.parametrize("centre", ["map", "mean", "nothing"])
@pytest.mark.parametrize("numbers", ["metres", "log", "disparity"])
def test_whitening_and_its_floor_are_what_numpy_says(numbers: Numbers, centre: Any) -> None:
    batches = depth_batches()
    whitening, floor = fit_whitening(
        DepthPixels(numbers, 0.1, 100.0, zoom_aware=True),
        batches,
        (4, 6),
        centre=centre,
        clip=math.inf,
        loss=lambda guess, target: depth_loss(guess, target.values, target.valid),
    )
    depth, known = joined(batches)
    with np.errstate(all="ignore"):
        values = {"metres": depth, "log": np.log(depth), "disparity": 1 / depth}[numbers]
    values = np.where(known, values, np.nan)
    mean_map = np.where(known.any(0), np.nansum(values, 0) / known.sum(0).clip(1), np.nanmean(values))
    taken = {"map": mean_map, "mean": np.full((4, 6), np.nanmean(values)), "nothing": np.zeros((4, 6))}[centre]
    deviation = 1.0 if centre == "nothing" else math.sqrt(np.nanmean((values - taken) ** 2))
    np.testing.assert_allclose(whitening.mean[0].numpy(), taken, rtol=1e-5, atol=1e-6)
    assert float(whitening.deviation) == pytest.approx(deviation, rel=1e-5)
    # Whatever is taken away, the floor is what the mean map costs, in whitened numbers; in metres if nothing is.
    errors = [np.nanmean(np.abs(image - mean_map)) / deviation for image in values]
    assert floor == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_floor_counts_images_alike_whatever_their_batches() -> None:
    floors = [
        fit_whitening(
            DepthPixels("log", 0.1, 100.0, zoom_aware=True),
            depth_batches(size=size),
            (4, 6),
            centre="mean",
            clip=math.inf,
            loss=lambda guess, target: depth_loss(guess, target.values, target.valid, "ssi", 0.5),
        )[1]
        for size in (24, 7)
    ]
    assert floors[0] == pytest.approx(floors[1], rel=1e-5) and floors[0] > 0.1


@pytest.mark.parametrize("numbers", ["metres", "log", "disparity"])
def test_zoom_aware_depth_is_what_the_pixels_of_a_crop_can_tell(numbers: Numbers) -> None:
    (batch,) = depth_batches(count=5, zoom=2.5)
    assert batch.depth is not None
    aware = DepthPixels(numbers, 0.1, 100.0, zoom_aware=True).batch_latents(batch, (4, 6))
    plain = DepthPixels(numbers, 0.1, 100.0, zoom_aware=False).batch_latents(batch, (4, 6))
    known = batch.depth > 0
    assert torch.equal(aware.valid, known) and torch.equal(plain.valid, known)
    torch.testing.assert_close(plain.values[known], to_numbers(batch.depth[known], numbers))
    torch.testing.assert_close(aware.values[known], to_numbers(batch.depth[known] / 2.5, numbers))
    assert torch.isfinite(aware.values).all()


def test_depth_out_of_range_does_not_count() -> None:
    depth = torch.tensor([[[[0.4, 0.5, 1.0, 8.0, 8.1, 0.0, math.nan, math.inf, -3.0, 20.0]]]])
    batch = Batch(torch.arange(1), torch.zeros(1, 3, 1, 10), depth, torch.tensor([2.0]), torch.tensor([-1]))
    plain = DepthPixels("metres", 0.5, 8.0, zoom_aware=False).batch_latents(batch, (1, 10))
    assert plain.valid.flatten().tolist() == [False, True, True, True, *[False] * 6]
    aware = DepthPixels("metres", 0.5, 8.0, zoom_aware=True).batch_latents(batch, (1, 10))
    assert aware.valid.flatten().tolist() == [False, False, True, True, True, *[False] * 5]


SKY = [  # rows of four columns: sky above a measurement, measured to the top, a hole below, nothing at all
    [0.0, 2.0, 0.0, 0.0],
    [math.nan, 0.0, 4.0, 0.0],
    [8.0, 5.0, 0.0, 0.0],
    [3.0, 6.0, 9.0, 0.0],
]


def test_what_nothing_measured_above_the_highest_measurement_is_bounded_by_it() -> None:
    depth = torch.tensor(SKY)[None, None]
    highest, above = below_unmeasured(depth, depth > 0)
    assert above[0, 0].int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert highest[0, 0].tolist() == [[8.0, 2.0, 4.0, 1.0]] * 4


@pytest.mark.parametrize("numbers", ["metres", "log", "disparity"])
def test_bounds_are_what_the_pixels_of_a_crop_can_tell_within_the_range(numbers: Numbers) -> None:
    batch = Batch(
        torch.arange(1), torch.zeros(1, 3, 4, 4), torch.tensor(SKY)[None, None], torch.tensor([2.0]), torch.tensor([-1])
    )
    said = DepthPixels(numbers, 2.25, 3.0, zoom_aware=True, sky=True).batch_latents(batch, (4, 4))
    assert said.bound is not None
    assert said.bound[0, 0].int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    # 8 m at a zoom of 2 are out of range, and yet measured: what lies above is at least as far as the range goes.
    expected = to_numbers(torch.tensor([3.0, 2.25, 3.0]), numbers)
    torch.testing.assert_close(said.values[said.bound], expected)
    assert not (said.bound & said.valid).any()
    assert DepthPixels(numbers, 2.25, 3.0, zoom_aware=True).batch_latents(batch, (4, 4)).bound is None
    whitening = Whitening(torch.full((1, 4, 4), 0.5), torch.tensor([2.0]))
    white = whitening.apply(said, math.inf)
    assert white.bound is said.bound
    torch.testing.assert_close(white.values[said.bound], (expected - 0.5) / 2)


@pytest.mark.parametrize("target", ["log", "disparity", "metres"])
def test_only_what_is_nearer_than_its_bound_costs(target: str) -> None:
    model = method(f"guidance.target={target}", "guidance.sky=0.5", "guidance.gradient=0")
    guide = guide_of(model)
    farther = -1.0 if target == "disparity" else 1.0
    values = torch.zeros(2, 1, 2, 2)
    valid = torch.tensor([[False, False], [True, True]]).expand(2, 1, 2, 2)
    bound = torch.tensor([[True, True], [False, False]]).expand(2, 1, 2, 2)
    off = torch.tensor([[-0.5, 0.25], [0.0, 0.0]]).expand(2, 1, 2, 2) * farther
    guess = off.clone().requires_grad_()
    loss = guide.compare(guess, Latents(values, valid, bound))
    assert float(loss.detach()) == pytest.approx(0.5 * 0.5 / 2)
    loss.backward()
    assert guess.grad is not None
    assert (guess.grad[..., 0, 0] * farther < 0).all() and not guess.grad[..., 0, 1].any()
    assert float(guide.compare(off, Latents(values, valid, bound), ~bound)) == 0
    assert float(guide.compare(off, Latents(values, valid))) == 0


def test_the_sky_is_not_close_by_once_it_is_bounded(tmp_path: Path) -> None:
    """Bright above dark, only the dark half measured: without a bound the upper half is whatever it happens to be."""
    found = {}
    for sky in ("0", "1"):
        config = settings(f"guidance.sky={sky}", "guidance.gradient=0", "loss.latent=0")
        teacher = build_teacher(config, has_depth=True)
        assert teacher is not None
        shown = torch.zeros(4, 3, SIZE, SIZE)
        shown[:, :, : SIZE // 2] = 1
        depth = torch.where(shown[:, :1] > 0, 0.0, torch.linspace(8.0, 4.0, SIZE)[:, None])
        batch = Batch(torch.arange(4), shown, depth, torch.ones(4), torch.full((4,), -1))
        whitening = Whitening(torch.full((1, SIZE, SIZE), math.log(1.0)), torch.tensor([1.0]))
        target = whitening.apply(teacher.batch_latents(batch, config.target_cells), math.inf)
        model = method(f"guidance.sky={sky}", "guidance.gradient=0", "loss.latent=0")
        guide = guide_of(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            guide.compare(guide.read_dense(model.context_encoder, shown), target).backward()
            optimizer.step()
        metres = guide.metres(whitening.undo(guide.read_dense(model.context_encoder, shown).detach()))
        found[sky] = float(metres[:, :, : SIZE // 2].mean())
    assert found["1"] > 5 > found["0"]


def test_pixel_values_are_not_clipped() -> None:
    """A depth that is far off is to cost what it costs."""
    config = settings()
    teacher = build_teacher(config, has_depth=True)
    assert teacher is not None
    target = build_target(config, method(), teacher)
    target.whitening = Whitening(torch.zeros(1, SIZE, SIZE), torch.tensor([1e-3]))
    depth = torch.full((1, 1, SIZE, SIZE), math.e)
    batch = Batch(torch.arange(1), torch.zeros(1, 3, SIZE, SIZE), depth, torch.ones(1), torch.tensor([-1]))
    assert float(target(batch).values.min()) == pytest.approx(1000, rel=1e-5)


@pytest.mark.parametrize("kind", ["multiblock", "mae"])
@pytest.mark.parametrize("scope", ["target", "full"])
def test_masks_are_those_that_are_asked_for_whatever_is_read_under_them(scope: str, kind: str) -> None:
    config = settings("guidance.read=predicted", f"guidance.scope={scope}", f"masks.kind={kind}")
    assert config.masks.kind == kind
    assert settings("guidance.read=predicted", f"guidance.scope={scope}").masks.kind == "multiblock"
    assert build_config(to_mapping(config)) == config


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("guidance.head=linear",), r"guidance\.head='linear': should be 'mlp', 'cnn', 'deep-cnn' or 'dpt'"),
        (("guidance.kind=feature", "guidance.head=mlp"), r"guidance\.head='mlp': should be 'linear' or 'conv'"),
        (
            ("guidance.kind=feature", "guidance.read=context,dense"),
            r"guidance\.read='context,dense': should be 'predicted', 'context', 'dense' or 'both'",
        ),
        (("guidance.teacher=depth",), r"guidance\.teacher is for guidance\.kind=feature, not for guidance\.kind=pixel"),
        (("guidance.kind=feature", "guidance.scope=full"), r"guidance\.scope is for guidance\.kind=pixel, not for"),
        (
            ("guidance.kind=none", "guidance.weight=1"),
            r"weight is for .*feature or guidance\.kind=pixel, not for .*none",
        ),
        (("guidance.norm=layer",), r"guidance\.norm is no key any more: no recipe"),
        (("guidance.target=bins",), r"guidance\.target='bins': should be 'metres', 'log' or 'disparity'"),
        (
            ("guidance.loss=sig", "guidance.target=metres"),
            r"loss=sig compares logarithms: .*needs target=log, not metres",
        ),
        (("guidance.loss=sig", "guidance.target=disparity"), r"it needs target=log, not disparity"),
        (("guidance.loss=ssi", "guidance.sky=0.5"), r"sky=0\.5 compares depths, of which loss=ssi knows no scale"),
        (("guidance.nearest=10", "guidance.farthest=10"), r"nearest=10 m must be less than farthest=10 m"),
        (("guidance.layers=[]",), r"layers: name at least one, in ascending order, each only once"),
        (("guidance.layers=[1.0, 0.5]",), r"layers: name at least one, in ascending order, each only once"),
        (("guidance.head=dtp",), r"guidance\.head='dtp': should be .* \(did you mean 'dpt'\?\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(asked: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said) as fault:
        settings(*asked)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "asked",
    [
        ("guidance.read=predicted", "guidance.layers=[0.5, 1.0]"),
        ("guidance.read=both", "guidance.layers=[0.5]"),
        ("guidance.head=dpt", "guidance.layers=[0.5, 1.0]"),
    ],
)
def test_layers_are_for_heads_that_read_dense_tokens(asked: tuple[str, ...]) -> None:
    with pytest.raises(
        BadInput, match=r"guidance\.layers=\[0\.5.*are for heads that read guidance\.read=dense, and not"
    ):
        method(*asked)


def test_pixel_guidance_needs_depth_files(tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", 9, 56)
    with pytest.raises(BadInput, match=r"guidance\.kind=pixel needs depth, but data\.root=.*flat has none: give an"):
        run(flat, tmp_path / "run", "guidance.kind=pixel", "train.steps=1")
    assert not (tmp_path / "run").exists()


PIXEL = ("guidance.kind=pixel", "guidance.nearest=0.5", "guidance.farthest=10")


@pytest.fixture(autouse=True)
def quick_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ask the run to end when this many steps are done."""
    step = training.train_step
    limit = {"steps": -1}

    def watched(state: Any, parts: list[Batch]) -> dict[str, Any]:
        if state.step + 1 == limit["steps"]:
            signal.raise_signal(signal.SIGTERM)
        figures: dict[str, Any] = step(state, parts)
        return figures

    monkeypatch.setattr(training, "train_step", watched)
    return lambda steps: limit.update(steps=steps)


@pytest.mark.parametrize(
    "asked",
    [
        ("guidance.read=both", "guidance.scope=target", "guidance.head=dpt", "data.flip=true"),
        (
            "guidance.head=cnn",
            "guidance.loss=sig",
            "guidance.gradient=0.5",
            "guidance.sky=0.5",
        ),
    ],
    ids=["both-dpt", "sig-sky"],
)
def test_a_stopped_and_resumed_run_is_bit_by_bit_the_run_in_one_go(
    pairs: Path, tmp_path: Path, stop_after: Callable[[int], None], asked: tuple[str, ...]
) -> None:
    settings = (*PIXEL, *asked, "train.steps=5", "train.batch_size=4", "evaluation.pictures=1")
    summary = run(pairs, tmp_path / "whole", *settings)
    stop_after(3)
    with pytest.raises(RunStopped, match="stopped at step 3 of 5"):
        run(pairs, tmp_path / "cut", *settings)
    stop_after(-1)
    run(pairs, tmp_path / "cut", *settings, resume=True)
    assert differences(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == []
    records = metrics(tmp_path / "whole")
    assert records == metrics(tmp_path / "cut") and len(records) == 5
    for record in records:
        assert record["loss"] == pytest.approx(record["loss_jepa"] + record["loss_depth"], rel=1e-5)
    assert summary["depth_floor"] > 0 and summary["teacher"]["name"] == "depth, pixel by pixel"


def test_depth_is_learned_beyond_the_mean_map(pairs: Path, tmp_path: Path) -> None:
    settings = (*PIXEL, "train.steps=30", "optim.lr=5e-3", "data.crop_scale=[0.9, 1.0]", "data.flip=false")
    summary = run(pairs, tmp_path / "run", *settings)
    assert summary["loss_depth"] < 0.8 * summary["depth_floor"]


Saved = Callable[..., checkpoint.Checkpoint]


@pytest.fixture(scope="module")
def saved(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Checkpoints of runs of two steps, each trained once."""
    place, known = tmp_path_factory.mktemp("runs"), dict[tuple[str, ...], Path]()

    def get(*asked: str) -> checkpoint.Checkpoint:
        if asked not in known:
            known[asked] = place / str(len(known))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
                run(pairs, known[asked], *PIXEL, *asked, "train.steps=2", "evaluation.pictures=3")
        return load_checkpoint(known[asked])

    return get


TARGET = ("guidance.read=predicted", "guidance.scope=target")


def decoded(config: RunConfig, run_of: checkpoint.Checkpoint) -> DepthTable:
    (found,) = decoding.decode_tables(config, run_of, Views(config, "train"), Views(config, "val"), CPU)
    return found


def whole_views(config: RunConfig, split: Any) -> list[Batch]:
    return list(Views(config, split)())


@pytest.mark.parametrize(
    "asked",
    [("guidance.read=dense",), TARGET, ("guidance.read=both", "masks.kind=mae")],
    ids=["dense", "target", "both"],
)
def test_the_table_is_computed_pixel_by_pixel_beside_the_mean_map(saved: Saved, asked: tuple[str, ...]) -> None:
    run_of = saved(*asked)
    config = run_of.config
    found = decoded(config, run_of)
    assert [row["name"] for row in found.rows] == ["mean map", "scene map", "tiny"]
    assert [found.scores["mean map"].figures[key] for key in ("r2_within", "r2_position", "r2_between")] == [0, 0, 0]
    # The same by hand: the mean log depth over training views, pixel by pixel, and R² over what the masks hide.
    train, (val,) = whole_views(config, "train"), whole_views(config, "val")
    metres = torch.cat([each.depth for each in train]).double()
    known = metres > 0
    logs = torch.where(known, metres, 1).log()
    mean = logs.sum(0) / known.sum(0).clamp(min=1)
    mean = torch.where(known.any(0), mean, logs.sum() / known.sum())
    torch.testing.assert_close(found.mean_map.values, mean[0].float())
    model = decoding.load_pixel_guided(run_of, CPU)
    indices = val.index.numpy()
    masks = sample_masks(config.masks, config.grid, seed=config.seed, epoch=0, indices=indices, batch_index=0)
    hidden = pixels_of(target_patches(masks)) if asked == TARGET else torch.ones_like(val.depth, dtype=torch.bool)
    with torch.no_grad():
        normal = model.context_encoder.normalise(val.images)
        levels, told, masks = model.predict(normal, masks)
        read_maps = guide_of(model).read(model.context_encoder, normal, levels, told, masks)
    range_of_depth = float(metres[known].min()), float(metres[known].max())
    assert (found.mean_map.nearest, found.mean_map.farthest) == pytest.approx(range_of_depth, rel=1e-6)
    expected = {}
    for which, (maps, _) in read_maps.items():
        assert run_of.whitening is not None
        spoken = maps * run_of.whitening.deviation + run_of.whitening.mean
        guess = spoken.exp().clamp(0.5, 10).log()
        counted = valid(val.depth) & hidden
        truth = torch.where(counted, val.depth, 1).log()
        pairs = guess.flatten(1), truth.flatten(1), counted.flatten(1), mean.float().flatten()
        expected[which] = r2_within(*pairs)
    main = "predicted" if asked == TARGET else "dense"
    assert found.rows[-1]["r2_within"] == pytest.approx(expected[main], abs=1e-5)
    told = [row["predicted_r2_within"] for row in found.rows if "predicted_r2_within" in row]
    of_predicted = [0, math.nan, expected["predicted"]] if "predicted" in expected else []
    assert told == pytest.approx(of_predicted, abs=1e-5, nan_ok=True)
    if main == "predicted":
        per_image = [score.per_image["within_total"].tolist() for score in found.scores.values()]
        assert per_image[0] == per_image[1] == per_image[2]


@pytest.mark.parametrize("good", ["targets", "elsewhere"])
def test_scope_target_is_judged_on_pixels_of_targets_alone(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, good: str
) -> None:
    """A head that is right at targets and mad elsewhere scores 1, and one that is right elsewhere does not."""
    run_of = saved(*TARGET)
    batches = whole_views(run_of.config, "val")
    depths = {int(n): depth for each in batches for n, depth in zip(each.index, each.depth, strict=True)}

    def planted(model: JEPA, whitening: Whitening, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.masks is not None
        hidden = pixels_of(target_patches(batch.masks))
        depth = torch.stack([depths[int(number)] for number in batch.index])
        right = hidden if good == "targets" else ~hidden
        return torch.where(right & (depth > 0), depth, 9.0), hidden

    monkeypatch.setattr(decoding, "predicted_metres", planted)
    found = decoded(run_of.config, run_of)
    score = found.scores["tiny"].figures
    if good == "targets":
        assert score["r2_within"] == pytest.approx(1, abs=1e-6) and score["absrel"] == pytest.approx(0, abs=1e-5)
    else:
        assert score["r2_within"] < 0.1 and score["absrel"] > 0.5


@pytest.mark.parametrize("asked", [("guidance.read=dense",), TARGET], ids=["dense", "target"])
def test_a_head_that_always_gives_the_mean_map_scores_nothing(saved: Saved, asked: tuple[str, ...]) -> None:
    run_of = saved(*asked)
    cells = CellMeans(run_of.config.data.size)
    for batch in whole_views(run_of.config, "train"):
        cells.add(*cells_of(batch, run_of.config.data.size))
    mean_map = cells.mean_map()
    silent = {
        name: torch.zeros_like(value) if name.startswith("guide.head.decoder.project.") else value
        for name, value in run_of.model.items()
    }
    assert differences(dict(run_of.model), silent) != []
    planted = replace(run_of, model=silent, whitening=Whitening(mean_map.values[None], torch.tensor([3.0])))
    found = decoded(run_of.config, planted)
    figures = found.scores["tiny"].figures
    for name in ("r2_within", "r2_position", "r2_between"):
        assert figures[name] == pytest.approx(0, abs=1e-5), name
    for name in ("absrel", "rmse", "delta1"):
        assert figures[name] == pytest.approx(found.scores["mean map"].figures[name], rel=1e-4), name


def test_whitening_is_taken_back_at_any_size() -> None:
    whitening = Whitening(noise(1, SIZE, SIZE), torch.tensor([2.0]))
    maps = noise(2, 1, SIZE, SIZE, seed=4)
    white = whitening.apply(Latents(maps, torch.ones_like(maps, dtype=torch.bool)), math.inf).values
    torch.testing.assert_close(decoding.undone(whitening, white), maps, atol=1e-5, rtol=1e-5)
    level = Whitening(torch.full((1, SIZE, SIZE), 0.3), torch.tensor([2.0]))
    torch.testing.assert_close(decoding.undone(level, noise(2, 1, 20, 36)), 2 * noise(2, 1, 20, 36) + 0.3)


def test_images_of_another_size_are_for_the_encoder_alone(saved: Saved) -> None:
    wide = ("data.image_size=[40, 64]",)
    dense = saved("guidance.read=dense")
    found = decoded(build_config(to_mapping(dense.config), wide), dense)
    assert found.mean_map.values.shape == (40, 64) and float(found.rows[-1]["r2_within"]) < 0.9
    target = saved(*TARGET)
    with pytest.raises(BadInput, match=r"the predictor of .* knows \(6, 6\) patches alone: leave data\.image_size"):
        decoded(build_config(to_mapping(target.config), wide), target)


def test_decode_through_the_command_line(saved: Saved, pairs: Path, tmp_path: Path, call: Call) -> None:
    folder = saved(*TARGET).run
    assert folder is not None
    status, out, _ = call("probe", folder, "decode")
    assert status == 0 and "decode on" in out and "tiny" in out
    table = RunFolder(folder).probe("decode")
    assert "pixels of target patches" in table["protocol"]
    assert [row["name"] for row in table["rows"]] == ["mean map", "scene map", "tiny"]
    with np.load(folder / "probes" / "decode.npz") as arrays:
        assert arrays["prediction"].shape == arrays["truth"].shape == (3, SIZE, SIZE)
        assert np.isnan(arrays["truth"]).any()
    drawn = {}
    for option in ("--photographs", "--no-photographs"):
        assert call("show", "decode", folder, "--out", tmp_path / "a.png", option)[0] == 0
        with Image.open(tmp_path / "a.png") as picture:
            drawn[option] = picture.size
    assert drawn["--photographs"][0] > drawn["--no-photographs"][0]
    run(pairs, tmp_path / "unguided", "train.steps=1")
    status, _, errors = call("probe", tmp_path / "unguided", "decode")
    assert status == 2 and errors.count("\n") == 1
    assert "has no pixel head to decode depth with (guidance.kind=none)" in errors
    assert "`depthjepa probe RUN depth`" in errors
    assert not (tmp_path / "unguided" / "probes" / "decode.json").exists()
