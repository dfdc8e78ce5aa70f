"""What stands beside I-JEPA's own loss: each term equals a slow reference, reaches the encoder, is off by default."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from depthjepa import runtime
from depthjepa.config.reading import build_config
from depthjepa.faults import BadInput, RunStopped
from depthjepa.grid import distance_to_nearest, gather, patchify
from depthjepa.losses import covariance_loss, gaussian_loss, pixel_loss, position_free, variance_loss, visible_loss
from depthjepa.masks import MaskConfig, Masks, sample_masks
from depthjepa.method import build_method
from depthjepa.model.jepa import JEPA, LossConfig
from tiny_images import write_flat
from tiny_runs import differences, metrics, run, tiny, weights

ALL = (
    "loss.target_layers=[0.5,1]",
    "loss.pixel=0.5",
    "loss.visible=0.5",
    "loss.visible_from=0.0",
    "loss.variance=0.1",
    "loss.covariance=0.1",
    "loss.gaussian=0.01",
    "predictor.blocks=together",
)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method(*settings: str) -> JEPA:
    built = build_method(tiny(Path("scenes"), *settings), None, classes=0)
    assert isinstance(built, JEPA)
    return built


def some_masks(model: JEPA, count: int = 4) -> Masks:
    config = tiny(Path("scenes"))
    return sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=np.arange(count), batch_index=0)


def test_variance_falls_short_only_below_a_deviation_of_one() -> None:
    assert float(variance_loss(3 * noise(0, 500, 8))) == 0
    assert float(variance_loss(torch.ones(32, 8))) == pytest.approx(0.99, abs=1e-6)  # the root of 1e-4 is what is left
    half = noise(1, 5000, 1) * 0.5
    assert float(variance_loss(half)) == pytest.approx(0.5, abs=0.02)
    constant = torch.ones(8, 4, requires_grad=True)
    variance_loss(constant).backward()
    assert torch.isfinite(constant.grad).all()


def test_covariance_equals_a_sum_over_pairs_of_channels() -> None:
    vectors = noise(0, 40, 5) @ noise(1, 5, 5)
    expected = np.cov(vectors.double().numpy().T)
    pairs = sum(expected[i, j] ** 2 for i in range(5) for j in range(5) if i != j)
    assert float(covariance_loss(vectors)) == pytest.approx(pairs / 5, rel=1e-5)


def test_the_gaussian_term_of_gaussians_is_a_constant_and_grows_away_from_them() -> None:
    """For N standard normal vectors its mean is the integral of (1 - exp(-t^2)) exp(-t^2 / 2), whatever N."""
    directions = torch.nn.functional.normalize(noise(0, 16, 200), dim=0)
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    for count in (50, 800):
        found = np.mean([float(gaussian_loss(noise(seed, count, 16), directions)) for seed in range(20)])
        assert found == pytest.approx(expected, rel=0.1)
    vectors = noise(1, 200, 16)
    normal = float(gaussian_loss(vectors, directions))
    for other in (vectors * 0.5, vectors * 2, vectors + 1, torch.zeros(200, 16), vectors[:, :1].expand(-1, 16)):
        assert float(gaussian_loss(other, directions)) > 3 * normal


def test_the_gaussian_term_equals_a_slow_integral() -> None:
    vectors, directions = noise(0, 7, 3).double(), torch.nn.functional.normalize(noise(1, 3, 4).double(), dim=0)
    place = np.linspace(-5, 5, 17)
    slow = []
    for direction in directions.T:
        projected = (vectors @ direction).numpy()
        values = [
            abs(np.mean(np.exp(1j * t * projected)) - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2) for t in place
        ]
        slow.append(7 * np.trapezoid(values, place))
    assert float(gaussian_loss(vectors, directions)) == pytest.approx(np.mean(slow), rel=1e-9)


def test_pixels_are_judged_without_their_mean_and_contrast() -> None:
    patches, valid = noise(0, 2, 3, 4, 12), torch.ones(2, 3, 4, dtype=torch.bool)
    normal = (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True)
    assert float(pixel_loss(normal, 5 * patches + 3, valid)) < 1e-6
    assert float(pixel_loss(torch.zeros_like(patches), patches)) == pytest.approx(11 / 12, rel=1e-4)
    valid[0, 0, 0], spoilt = False, patches.clone()
    spoilt[0, 0, 0] = 7.0
    assert float(pixel_loss(normal, spoilt, valid)) < 1e-6
    assert math.isfinite(float(pixel_loss(normal, torch.ones_like(patches))))


def test_distances_and_what_they_weigh() -> None:
    context, targets = torch.tensor([[0, 5, 35]]), torch.tensor([[[1, 12], [30, 30]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    found = distance_to_nearest(context, targets, 6, valid)
    slow = [
        [min(math.dist(divmod(c, 6), divmod(t, 6)) for t in block) for c in (0, 5, 35)] for block in ([1, 12], [30])
    ]
    torch.testing.assert_close(found, torch.tensor([slow]))
    prediction, target = noise(0, 1, 2, 3, 8), noise(1, 1, 3, 8)
    errors = [
        [float(torch.nn.functional.smooth_l1_loss(prediction[0, s, c], target[0, c])) for c in range(3)]
        for s in range(2)
    ]
    expected = np.mean(np.array(errors) / np.sqrt(np.array(slow)))
    assert float(visible_loss(prediction, target, found)) == pytest.approx(expected, rel=1e-5)


def test_a_visible_patch_that_is_hidden_too_counts_as_its_neighbours_do() -> None:
    """The released sampler lets context and targets overlap now and then."""
    prediction, target = noise(0, 1, 1, 2, 8), noise(1, 1, 2, 8)
    overlapping, beside = (visible_loss(prediction, target, torch.tensor([[[each, 4.0]]])) for each in (0.0, 1.0))
    assert torch.isfinite(overlapping) and overlapping == beside


def test_the_weight_of_visible_tokens_is_ramped() -> None:
    config = LossConfig(visible=0.8, visible_from=0.25, visible_full=0.5)
    assert [config.visible_weight(share) for share in (0.0, 0.25, 0.375, 0.5, 1.0)] == pytest.approx(
        [0, 0, 0.4, 0.8, 0.8]
    )
    assert LossConfig(visible=0.8, visible_from=0.0, visible_full=0.0).visible_weight(0.0) == 0.8


def test_by_default_there_is_the_latent_loss_alone() -> None:
    model = method()
    images, masks = noise(0, 4, 3, 48, 48), some_masks(model)
    losses = model(images, masks)
    assert losses.parts.keys() == {"loss_jepa"}
    assert torch.equal(losses.total, losses.parts["loss_jepa"])
    assert model.predictor.predictor_pixels is None


def test_target_layers_stand_side_by_side_the_last_one_last() -> None:
    model, plain = method("loss.target_layers=[0.5,1]"), method()
    images = noise(0, 4, 3, 48, 48)
    both, last = model.targets(images), plain.targets(images)
    assert both.shape == (4, 36, 64) and torch.equal(both[..., 32:], last)
    first = model.target_encoder.features(images, [0])[0]
    torch.testing.assert_close(both[..., :32], torch.nn.functional.layer_norm(first, (32,)))
    assert LossConfig(target_layers=(1 / 3, 2 / 3, 1.0)).layers(12) == [3, 7, 11]


@pytest.mark.parametrize(
    ("settings", "term"),
    [
        ((), "loss_jepa"),
        (("loss.visible=1", "loss.visible_from=0"), "loss_visible"),
        (("loss.pixel=1",), "loss_pixel"),
        (("loss.variance=1",), "loss_variance"),
        (("loss.covariance=1",), "loss_covariance"),
        (("loss.gaussian=1",), "loss_gaussian"),
    ],
)
@pytest.mark.parametrize("blocks", ["apart", "together"])
def test_every_term_reaches_the_context_encoder(settings: tuple[str, ...], term: str, blocks: str) -> None:
    model = method(*settings, f"predictor.blocks={blocks}")
    model(noise(0, 4, 3, 48, 48), some_masks(model)).parts[term].backward()
    reached = model.context_encoder.blocks[0].attn.qkv.weight.grad
    assert reached is not None and reached.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())


def test_the_total_is_the_weighted_sum() -> None:
    model = method(*ALL)
    with torch.no_grad():
        losses = model(noise(0, 4, 3, 48, 48), some_masks(model), progress=0.25)
    weights_of = {"jepa": 1, "visible": 0.25, "pixel": 0.5, "variance": 0.1, "covariance": 0.1, "gaussian": 0.01}
    assert losses.parts.keys() == {f"loss_{name}" for name in weights_of}
    expected = sum(weight * float(losses.parts[f"loss_{name}"]) for name, weight in weights_of.items())
    assert float(losses.total) == pytest.approx(expected, rel=1e-5)


def test_terms_against_collapse_are_computed_in_float32_whatever_the_precision() -> None:
    """The covariances of bf16 products would be off by a percent, and jump from step to step."""
    model, context = method(*ALL, "loss.spread=both"), noise(0, 16, 9, 32)
    index = torch.arange(9).expand(16, -1)
    plain = model.spread_terms(context, index, None)
    with runtime.precision("bf16", context.device):
        assert {name: float(value) for name, (_, value) in model.spread_terms(context, index, None).items()} == {
            name: float(value) for name, (_, value) in plain.items()
        }


def test_directions_of_sigreg_are_those_of_the_generator() -> None:
    model, context, index = method("loss.gaussian=1"), noise(0, 16, 9, 32), torch.arange(9).expand(16, -1)

    def loss(seed: int) -> float:
        return float(model.spread_terms(context, index, torch.Generator().manual_seed(seed))["loss_gaussian"][1])

    assert loss(1) == loss(1) != loss(2)


def spread_terms(model: JEPA, context: torch.Tensor, index: torch.Tensor) -> dict[str, float]:
    return {name: float(value) for name, (_, value) in model.spread_terms(context, index, None).items()}


def shuffled(images: int, kept: int, cells: int) -> torch.Tensor:
    """Patches of each image in raster order, others in each."""
    order = noise(7, images, cells).argsort(1)[:, :kept]
    return order.sort(1).values


def test_tokens_less_their_positions_mean_are_those_of_a_loop() -> None:
    tokens, present = noise(0, 6, 5, 3).double(), noise(1, 6, 5) > -0.3
    found = position_free(tokens, present)
    free = torch.zeros(6, 5, 3, dtype=torch.double)
    for position in range(5):
        there = present[:, position]
        free[there, position] = tokens[there, position] - tokens[there, position].mean(0)
    expected = free[present]
    degrees = int(present.sum()) - int(present.any(0).sum())
    torch.testing.assert_close(found.var(0), expected.square().sum(0) / degrees)
    torch.testing.assert_close(found / found.std(), expected / expected.std())


def test_what_is_absent_may_be_anything() -> None:
    tokens, present = noise(0, 6, 5, 3), noise(1, 6, 5) > -0.3
    spoilt = torch.where(present[..., None], tokens, torch.nan).requires_grad_()
    found = position_free(spoilt, present)
    torch.testing.assert_close(found, position_free(tokens, present))
    found.square().sum().backward()
    assert spoilt.grad is not None and spoilt.grad.isfinite().all()


def test_a_code_of_the_position_is_spread_for_the_terms_on_no_tokens() -> None:
    """Tokens that tell where they are and nothing of the image: as collapsed as constant ones."""
    model, index = method("loss.variance=1", "loss.spread=tokens"), shuffled(32, 20, 36)
    codes = 5 * noise(1, 36, 32)
    assert spread_terms(model, codes[index], index)["loss_variance"] == pytest.approx(0.99, abs=1e-3)
    assert spread_terms(model, codes[index] + 2 * noise(2, 32, 20, 32), index)["loss_variance"] == 0


def test_tokens_that_differ_within_an_image_are_spread_though_its_mean_is_not() -> None:
    """What the terms on means do not see: images whose tokens differ, and cancel in the mean."""
    index = shuffled(32, 20, 36)
    half = 2 * noise(1, 32, 10, 32)
    context = torch.cat([half, -half], 1)
    of = {name: spread_terms(method("loss.variance=1", f"loss.spread={name}"), context, index)["loss_variance"]
          for name in ("images", "tokens", "both")}  # fmt: skip
    assert of["tokens"] == 0 and of["images"] == pytest.approx(0.99, abs=1e-3)
    assert of["both"] == pytest.approx(of["images"] / 2)


def test_sigreg_on_tokens_weighs_what_it_weighs_on_means() -> None:
    """Its statistic grows with the number of vectors: one weight serves both, where both are as far from normal."""
    context = 3 * noise(1, 64, 20, 32)
    index = torch.arange(20).expand(64, -1)
    tokens = spread_terms(method("loss.gaussian=1", "loss.spread=tokens"), context, index)["loss_gaussian"]
    means = spread_terms(method("loss.gaussian=1"), 20**0.5 * context, index)["loss_gaussian"]
    assert tokens == pytest.approx(means, rel=0.1)


def test_images_that_share_no_patch_have_no_spread_to_judge() -> None:
    """Nothing varies at a position that one image shows: the term is whole, and no number breaks."""
    model = method("loss.variance=1", "loss.covariance=1", "loss.spread=tokens")
    terms = spread_terms(model, noise(1, 2, 3, 32), torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert terms == {"loss_variance": pytest.approx(0.99, abs=1e-6), "loss_covariance": 0}


def test_pixels_are_predicted_of_the_target_patches() -> None:
    """A pixel head that knew the answer would have no loss: patches and predictions are gathered alike."""
    model = method("loss.pixel=1")
    images, masks = noise(0, 4, 3, 48, 48), some_masks(model)
    patches = gather(patchify(images, 8), masks.targets.flatten(1)).view(*masks.targets.shape, -1)
    normal = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    knowing = model.predictor.forward
    model.predictor.forward = lambda context, masks, levels: knowing(context, masks, levels)._replace(pixels=normal)
    assert float(model(images, masks).parts["loss_pixel"]) < 1e-6


def test_without_the_latent_loss_the_target_encoder_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    model = method("loss.latent=0", "loss.pixel=1")
    monkeypatch.setattr(model.target_encoder, "features", lambda *_: pytest.fail("the target encoder was run"))
    assert model(noise(0, 4, 3, 48, 48), some_masks(model)).parts.keys() == {"loss_pixel"}


@pytest.mark.parametrize("bias", ["unbiased", "reference"])
def test_joined_targets_are_the_patches_of_all_blocks_each_once(bias: str) -> None:
    config = MaskConfig(bias=bias)  # type: ignore[arg-type]
    masks = sample_masks(config, (8, 8), seed=0, epoch=0, indices=np.arange(200), batch_index=0)
    joined = masks.joined(64)
    assert joined.targets.shape[1] == 1 and joined.context is masks.context and joined.valid is not None
    assert joined.targets.shape[2] == min(masks.targets[0].numel(), 64 - masks.context.shape[1])
    for image in range(200):
        valid = torch.ones_like(masks.targets[image], dtype=torch.bool) if masks.valid is None else masks.valid[image]
        wanted = set(masks.targets[image][valid].tolist()) - set(masks.context[image].tolist())
        assert joined.targets[image][joined.valid[image]].tolist() == sorted(wanted)


def test_joined_targets_leave_out_what_the_context_shows() -> None:
    masks = Masks(torch.tensor([[0, 3]]), torch.tensor([[[3, 4], [4, 5]]])).joined(9)
    assert masks.valid is not None and masks.targets[masks.valid].tolist() == [4, 5]


def test_one_block_is_joined_already() -> None:
    masks = sample_masks(MaskConfig(kind="mae"), (6, 6), seed=0, epoch=0, indices=np.arange(4), batch_index=0)
    assert masks.joined(36) is masks


def test_padding_of_joined_targets_changes_nothing() -> None:
    """A longer padding gives the same losses: it is attended to by nobody and takes no part in a loss."""
    model = method(*ALL)
    images, masks = noise(0, 4, 3, 48, 48), some_masks(model).joined(36)
    assert masks.valid is not None
    pad = torch.zeros_like(masks.targets[..., :3])
    longer = Masks(masks.context, torch.cat([masks.targets, pad], 2), torch.cat([masks.valid, pad > 0], 2))
    with torch.no_grad():
        short, long = (model(images, each, progress=1.0).parts for each in (masks, longer))
    for name, value in short.items():
        torch.testing.assert_close(long[name], value, atol=1e-6, rtol=1e-5)


def test_settings_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(BadInput, match=r"loss\.latent=0 leaves nothing to learn"):
        method("loss.latent=0")
    with pytest.raises(BadInput, match=r"loss\.visible is the latent loss on visible tokens"):
        method("loss.latent=0", "loss.pixel=1", "loss.visible=1")
    with pytest.raises(BadInput, match="in ascending order"):
        build_config({}, ["loss.target_layers=[1,0.5]"])


@pytest.mark.slow
def test_a_run_with_everything_resumes_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_flat(tmp_path / "flat", 16)
    settings = (*ALL, "train.steps=6")
    run(root, tmp_path / "whole", *settings)
    module = sys.modules["depthjepa.training"]
    step = module.train_step

    def interrupted(state: Any, parts: Any) -> Any:
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(state, parts)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_step", interrupted)
        with pytest.raises(RunStopped, match="stopped at step 3 of 6"):
            run(root, tmp_path / "cut", *settings)
    run(root, tmp_path / "cut", *settings, resume=True)
    assert differences(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == []
    first = metrics(tmp_path / "whole")[0]
    names = ("jepa", "visible", "pixel", "variance", "covariance", "gaussian")
    assert {f"loss_{name}" for name in names} <= first.keys()
