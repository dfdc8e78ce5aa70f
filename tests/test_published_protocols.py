"""What the field's depth protocols publish and this code says it follows, each detail against numbers worked out here.

Sources: Eigen et al. 2014, Garg et al. 2016, AdaBins (Bhat et al. 2021), DINOv2 (Oquab et al. 2024), DINOv3 (Siméoni et
al. 2025), Probe3D (El Banani et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthjepa.data.prepare import kitti, nyuv2
from depthjepa.depth import metrics, valid
from depthjepa.evaluation import segmentation
from depthjepa.evaluation.depth_probe import figures_of
from depthjepa.evaluation.depth_readouts import BinReadout, Plan, expected_depth, layers_of, readout_loss
from depthjepa.evaluation.gradient_readouts import Descent, best_readout
from depthjepa.losses import depth_loss, gradient_loss, sig_loss
from depthjepa.model.heads.dpt import DPTHead

GRID = (3, 4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def everywhere(maps: Tensor) -> Tensor:
    return torch.ones_like(maps, dtype=torch.bool)


@pytest.mark.parametrize(
    ("blocks", "published"),
    [(12, [3, 6, 9, 12]), (24, [5, 12, 18, 24]), (40, [10, 20, 30, 40])],  # ViT-S and B, L, g; counted from 1
)
def test_layers_are_dinov2s(blocks: int, published: list[int]) -> None:
    for kind in ("linear4", "dpt"):
        assert [layer + 1 for layer in layers_of(kind, blocks)] == published  # type: ignore[arg-type]
    assert [layer + 1 for layer in segmentation.layers_of("linear4", blocks)] == published
    assert layers_of("linear", blocks) == [blocks - 1]


def test_bins_are_256_of_equal_width_from_the_nearest_to_the_farthest_depth() -> None:
    centres = BinReadout("linear", 4, 1e-3, 10.0).centres.double()
    width = (10 - 1e-3) / 256
    assert len(centres) == 256
    assert centres.tolist() == pytest.approx([1e-3 + (number + 0.5) * width for number in range(256)], rel=1e-5)


def test_depth_is_the_mean_of_bins_weighted_by_relu_plus_a_tenth() -> None:
    scores = torch.tensor([0.9, -5.0, 0.0, 1.9])  # weights 1, 0.1, 0.1, 2
    found = expected_depth(scores.view(1, 4, 1, 1), torch.tensor([1.0, 3.0, 5.0, 7.0]))
    assert found.item() == pytest.approx((1 * 1 + 0.1 * 3 + 0.1 * 5 + 2 * 7) / 3.2)


def test_scores_are_those_of_tokens_enlarged_four_times() -> None:
    """DINOv2: enlarge tokens bilinearly, then the convolution. Here, as is said: the convolution first."""
    readout = BinReadout("linear", 5, 1.0, 9.0).eval()
    assert isinstance(readout.scores, nn.Conv2d) and readout.scores.kernel_size == (1, 1)
    nn.init.normal_(readout.scores.weight, std=30, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(readout.scores.bias)
    tokens = draw(2, 12, 5, seed=1) - 0.5
    size = (4 * GRID[0], 4 * GRID[1])
    with torch.no_grad():
        maps = tokens.mT.reshape(2, 5, *GRID) / math.sqrt(1 + 1e-5)  # batch norm of mean 0 and variance 1
        theirs = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        weights = F.relu(F.conv2d(theirs, readout.scores.weight, readout.scores.bias)) + 0.1
        depth = (weights * readout.centres[:, None, None]).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        assert depth.std() > 0.1
        torch.testing.assert_close(readout(tokens, GRID, size), depth, rtol=1e-5, atol=1e-5)


def test_batch_norm_before_a_linear_map_needs_no_scale_of_its_own() -> None:
    """Any scale and shift of its channels is a convolution of other weights."""
    readout = BinReadout("linear", 5, 1.0, 9.0).eval()
    assert readout.norm.weight is None and readout.norm.bias is None and isinstance(readout.scores, nn.Conv2d)
    scale, shift, maps = 1 + draw(5, seed=2), draw(5, seed=3), draw(2, 5, *GRID, seed=4)
    weight, bias = readout.scores.weight, readout.scores.bias
    assert bias is not None
    scaled = F.conv2d(maps * scale[:, None, None] + shift[:, None, None], weight, bias)
    folded = F.conv2d(maps, weight * scale[:, None, None], bias + weight[:, :, 0, 0] @ shift)
    torch.testing.assert_close(scaled, folded)


def test_the_linear_readout_starts_from_a_normal_of_deviation_a_hundredth() -> None:
    torch.manual_seed(0)
    readout = BinReadout("linear", 384, 1e-3, 10.0)
    assert isinstance(readout.scores, nn.Conv2d)
    weights = readout.scores.weight.detach().flatten()
    assert len(weights) == 98_304
    assert abs(float(weights.mean())) < 4 * 0.01 / math.sqrt(98_304)
    assert float(weights.std()) == pytest.approx(0.01, rel=0.01)
    assert float(weights.abs().gt(0.02).float().mean()) == pytest.approx(0.0455, abs=0.004)  # as a normal's tails


def test_the_dpt_head_is_dinov2s_but_for_its_output() -> None:
    """Channels D/8, D/4, D/2 and D; resized by 4, 2, 1 and 1/2; fused at 256 channels, up to 8 times the patch grid."""
    head = BinReadout("dpt", 4 * 384, 1e-3, 10.0).scores
    assert isinstance(head, DPTHead)
    narrow = [module.out_channels for module in head.narrow if isinstance(module, nn.Conv2d)]
    assert narrow == [48, 96, 192, 384]
    sizes = [
        tuple(resize(torch.zeros(1, channels, 4, 6)).shape[2:])
        for resize, channels in zip(head.resize, narrow, strict=True)
    ]
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert {module.out_channels for module in head.bring if isinstance(module, nn.Conv2d)} == {256}
    # Bins as Probe3D has them, where DINOv2's head has one number.
    with torch.no_grad():
        assert head([torch.zeros(1, 384, *GRID)] * 4).shape == (1, 256, 8 * GRID[0], 8 * GRID[1])


def test_sig_loss_is_the_root_of_variance_and_fifteen_hundredths_of_the_squared_mean() -> None:
    prediction, truth = torch.tensor([2.0, 6.0, 4.0]), torch.tensor([1.0, 2.0, 4.0])
    differences = [math.log(2), math.log(3), 0.0]
    mean = sum(differences) / 3
    variance = sum((each - mean) ** 2 for each in differences) / 3
    maps = [each.log().view(1, 1, 1, 3) for each in (prediction, truth)]
    found = depth_loss(maps[0], maps[1], everywhere(maps[0]), "sig")
    assert found.item() == pytest.approx(math.sqrt(variance + 0.15 * mean**2), rel=1e-5)
    # AdaBins writes the same as mean of squares - 0.85 x squared mean.
    squares = sum(each**2 for each in differences) / 3
    assert found.item() == pytest.approx(math.sqrt(squares - 0.85 * mean**2), rel=1e-5)


def test_sig_loss_differs_from_dinov2s_as_it_says() -> None:
    """Images one by one, a variance over n, no millimetre; together a hundredth on images of ordinary size."""
    truth = 0.5 + 9 * draw(3, 1, 24, 32, seed=5)
    prediction = truth * (0.3 * torch.randn(3, 1, 24, 32, generator=torch.Generator().manual_seed(6))).exp()
    difference = (prediction.log() - truth.log()).flatten(1)
    ours = sig_loss(difference, everywhere(difference))
    pixels = 24 * 32
    each = [float(((pixels - 1) / pixels * d.var() + 0.15 * d.mean() ** 2).sqrt()) for d in difference]
    assert ours.item() == pytest.approx(sum(each) / 3, rel=1e-5)
    shifted = (prediction + 1e-3).log() - (truth + 1e-3).log()
    theirs = float((shifted.var() + 0.15 * shifted.mean() ** 2).sqrt())
    assert ours.item() != pytest.approx(theirs, rel=1e-4) and ours.item() == pytest.approx(theirs, rel=1e-2)
    # Images that are too near or too far as a whole: pooled pixels call that variance, images by themselves do not.
    level = torch.tensor([[1.0], [-1.0]]).expand(2, 50)
    assert sig_loss(level, everywhere(level)).item() == pytest.approx(math.sqrt(0.15), rel=1e-5)
    assert float((level.var(correction=0) + 0.15 * level.mean() ** 2).sqrt()) == pytest.approx(1.0)


def test_a_perfect_image_has_a_slope_of_zero() -> None:
    difference = torch.zeros(1, 9, requires_grad=True)
    loss = sig_loss(difference, everywhere(difference))
    loss.backward()
    assert loss.item() == pytest.approx(1e-4) and difference.grad is not None and not difference.grad.any()


def test_the_gradient_loss_is_of_four_scales() -> None:
    """A difference of one unit a pixel along rows, two along columns: slopes grow with the step between pixels."""
    rows, columns = torch.meshgrid(torch.arange(17.0), torch.arange(17.0), indexing="ij")
    difference = (rows + 2 * columns)[None, None]
    # 17 x 17 pixels, of which every 1st, 2nd, 4th and 8th: as many pairs down as across.
    expected = sum(step * (1 + 2) / 2 for step in (1, 2, 4, 8)) / 4
    assert gradient_loss(difference, everywhere(difference)).item() == pytest.approx(expected)
    assert expected == 5.625


def test_the_gradient_losss_weight_beside_probe3ds() -> None:
    """On an even slope, 0.5 x Probe3D's loss over its 10 x SigLoss is 0.69 of ours, as is said."""
    side = 601
    slope = torch.arange(float(side))[:, None] + torch.arange(float(side))
    theirs = 0.0
    for step in (1, 2, 4, 6):
        part = slope[::step, ::step]
        down, across = (part[:-2] - part[2:]).abs(), (part[:, :-2] - part[:, 2:]).abs()
        theirs += float((down.sum() + across.sum()) / part.numel())
    ours = gradient_loss(slope[None, None], everywhere(slope[None, None])).item()
    assert (0.5 / 10 * theirs) / ours == pytest.approx(0.69, abs=0.01)


def test_losses_are_of_log_depth_at_the_size_of_the_image() -> None:
    """Gradient loss for dpt alone, weighted 0.5."""
    depth = 1 + 4 * draw(2, 1, 24, 32, seed=7)
    depth[:, :, :5] = 0  # not measured
    known = depth > 0
    for kind, levels, weight in (("linear", 1, 0.0), ("linear4", 4, 0.0), ("dpt", 4, 0.5)):
        torch.manual_seed(1)
        readout = BinReadout(kind, 8 * levels, 0.5, 6.0).eval()  # type: ignore[arg-type]
        tokens = draw(2, 12, 8 * levels, seed=8)
        with torch.no_grad():
            found = readout_loss(readout, tokens, depth, Plan(kind, (24, 32), 8, steps=1))  # type: ignore[arg-type]
            told = F.interpolate(readout(tokens, GRID, (24, 32)), (24, 32))
            difference = torch.where(known, (told / torch.where(known, depth, 1)).log(), 0)
            images = [d[k] for d, k in zip(difference, known, strict=True)]
            sig = sum(float((d.var(correction=0) + 0.15 * d.mean() ** 2).sqrt()) for d in images) / 2
            expected = sig + weight * float(gradient_loss(difference, known))
        assert found.item() == pytest.approx(expected, rel=1e-4), kind


class One:
    """Twenty images of one token."""

    def parts(self, places: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for part in places:
            yield torch.zeros(len(part), 1, 2), torch.ones(len(part), 1, 1, 1)


def test_weights_decay_by_a_ten_thousandth_of_the_rate() -> None:
    """With a loss that has no slope AdamW shrinks weights by rate x 1e-4 a step; the rate follows a cosine to 0."""

    def start(width: int) -> nn.Linear:
        layer = nn.Linear(width, 1, bias=False)
        nn.init.ones_(layer.weight)
        return layer

    descent = Descent(start, lambda layer, *_: 0 * layer.weight.sum(), (1000.0,), 8, 0, "protocol", "protocol")
    readout, rate = best_readout(One(), torch.arange(20) < 4, descent)
    assert rate == 1000
    expected = math.prod(1 - 1000 * (1 + math.cos(math.pi * step / 8)) / 2 * 1e-4 for step in range(1, 9))
    torch.testing.assert_close(readout.weight.detach(), torch.full((1, 2), expected))


def test_eigens_crop_of_nyuv2_is_rows_45_to_471_and_columns_41_to_601() -> None:
    kept = np.zeros((480, 640), dtype=bool)
    kept[nyuv2.EIGEN.pixels(480, 640)] = True
    rows, columns = np.nonzero(kept)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (45, 471, 41, 601)
    assert kept.sum() == 426 * 560


def test_gargs_crop_of_kitti_is_its_shares_cut_off_after_the_point() -> None:
    """0.40810811 x 375 = 153.04, 0.99189189 x 375 = 371.96, 0.03594771 x 1242 = 44.65, 0.96405229 x 1242 = 1197.35."""
    assert kitti.GARG.shares == (0.40810811, 0.03594771, 0.99189189, 0.96405229)
    assert kitti.GARG.pixels(375, 1242) == (slice(153, 371), slice(44, 1197))
    # 0.99189189 x 370 = 366.9999993, which usual evaluation code makes 366.
    assert kitti.GARG.pixels(370, 1226)[0] == slice(151, 366)


def test_ranges_are_a_millimetre_to_10_m_in_rooms_and_to_80_m_in_streets() -> None:
    assert (nyuv2.RANGE, kitti.RANGE) == ((0.001, 10.0), (0.001, 80.0))
    depth = torch.tensor([0.0, 0.0009, 0.0011, 9.999, 10.001, math.nan, math.inf])
    assert valid(depth, *nyuv2.RANGE).tolist() == [False, False, True, True, False, False, False]


def test_predictions_are_clamped_to_the_range_before_they_are_judged() -> None:
    prediction, truth = torch.tensor([50.0, -2.0]).view(1, 1, 1, 2), torch.tensor([8.0, 0.5]).view(1, 1, 1, 2)
    found = metrics(prediction, truth, everywhere(truth), *nyuv2.RANGE)
    assert found["absrel"].item() == pytest.approx((2 / 8 + 0.499 / 0.5) / 2)


def test_the_measures_are_eigens() -> None:
    """Depths 2, 4, 8 and 1 m told as 2.5, 4, 4 and 1.6 m: ratios 1.25, 1, 2 and 1.6."""
    truth, prediction = torch.tensor([2.0, 4.0, 8.0, 1.0]), torch.tensor([2.5, 4.0, 4.0, 1.6])
    maps = [each.double().view(1, 1, 2, 2) for each in (prediction, truth)]
    found = {name: each.item() for name, each in metrics(maps[0], maps[1], everywhere(maps[1])).items()}
    assert found["absrel"] == pytest.approx((0.25 + 0 + 0.5 + 0.6) / 4)
    assert found["sqrel"] == pytest.approx((0.125 + 0 + 2 + 0.36) / 4)
    assert found["rmse"] == pytest.approx(math.sqrt((0.25 + 0 + 16 + 0.36) / 4))
    assert found["log10"] == pytest.approx((math.log10(1.25) + math.log10(2) + math.log10(1.6)) / 4)
    logs = [math.log(1.25), 0, -math.log(2), math.log(1.6)]
    assert found["rmselog"] == pytest.approx(math.sqrt(sum(each**2 for each in logs) / 4))
    assert found["silog"] == pytest.approx(100 * math.sqrt(sum(each**2 for each in logs) / 4 - (sum(logs) / 4) ** 2))
    # Below 1.25, 1.5625 and 1.953125; a ratio of exactly 1.25 is not below it.
    assert (found["delta1"], found["delta2"], found["delta3"]) == (0.25, 0.5, 0.75)


def test_figures_are_averages_over_images_and_not_over_pixels() -> None:
    """An image of one known pixel counts as much as one of eight: errors of 3 and 1 m make an RMSE of 2 m."""
    truth = torch.full((2, 1, 2, 4), 4.0)
    known = everywhere(truth)
    known[0, 0].view(-1)[1:] = False
    prediction = truth + torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
    found = {name: each.numpy() for name, each in metrics(prediction, truth, known).items()}
    sums = ("within_residual", "within_total", "between_residual", "between_total", "beyond_residual", "beyond_total")
    figures = figures_of(found | {name: np.ones(2) for name in sums})
    assert figures["rmse"] == pytest.approx(2.0)
    assert figures["absrel"] == pytest.approx((0.75 + 0.25) / 2)
    assert figures["delta1"] == 0.0 and figures["delta2"] == 0.5
    assert figures["rmse"] != pytest.approx(math.sqrt((9 + 8 * 1) / 9))  # of pooled pixels
