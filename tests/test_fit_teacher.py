"""A compact teacher is fitted the very same however it is cut, is read as DepthFM, and is judged by known sums."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import depthjepa
from depthjepa import cli, runtime
from depthjepa.commands import fit_teacher as fitting
from depthjepa.config.reading import build_fit
from depthjepa.config.run_config import TeacherFitConfig
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.teachers.depthfm.network import DepthFM, load_autoencoder, load_depthfm
from depthjepa.guidance.teachers.fit import judging
from depthjepa.guidance.teachers.fit.autoencoder import (
    Hinted,
    autoencoder_loss,
    build_autoencoder,
    latent_scale,
    unexplained,
)
from depthjepa.guidance.teachers.fit.config import AUTOENCODER, CHECKPOINT, TEXT_WIDTH, FitConfig
from depthjepa.guidance.teachers.fit.flow import build_flow, flow_loss, save_flow
from depthjepa.guidance.teachers.fit.learner import Learner
from depthjepa.guidance.teachers.fit.pairs import Pairs, depth_picture, encode_pair
from depthjepa.logbook import RunFolder
from tiny_images import millimetres, picture, save, write_classes, write_pairs
from tiny_runs import differences

pytest.importorskip("diffusers", reason="the depthfm teacher needs the extra `teachers`")

SETTINGS = (
    "data.image_size=32",
    "data.crop_scale=[0.5, 1.0]",
    "data.flip=true",
    "fit.autoencoder_widths=[8, 8, 8, 8]",
    "fit.autoencoder_steps=4",
    "fit.width=32",
    "fit.multiples=[1]",
    "fit.heads=2",
    "fit.steps=4",
    "fit.crops=8",
    "fit.batch_size=4",
    "fit.val_images=3",
    "fit.checkpoint_every=2",
    "fit.threads=1",
)
CPU = torch.device("cpu")


def small(root: Path, *overrides: str) -> TeacherFitConfig:
    return build_fit({}, [f"data.root={root}", *SETTINGS, *overrides])


def fitted_to(root: Path, out: Path, *overrides: str) -> dict[str, Any]:
    summary, *_ = fitting.fit_teacher(small(root, *overrides), out, say=lambda _: None)
    return summary


def batch_of(depth: Tensor, zoom: float = 1.0) -> Batch:
    """Depth maps [b, 1, h, w] in metres with pictures of their size."""
    count, _, height, width = depth.shape
    images = torch.stack([torch.from_numpy(picture(number, height, width)) for number in range(count)])
    images = images.permute(0, 3, 1, 2) / 255
    return Batch(torch.arange(count), images, depth, torch.full((count,), zoom), torch.full((count,), -1))


def boxes(count: int = 4, side: int = 32) -> Batch:
    """Pictures of boxes before walls; the first rows of their depth are unmeasured."""
    maps = [torch.from_numpy(millimetres(number, side, side).astype(np.float32) / 1000) for number in range(count)]
    return batch_of(torch.stack(maps)[:, None])


def maps(*rows: list[float]) -> Tensor:
    """One depth map of the rows, [1, 1, h, w]."""
    return torch.tensor(rows)[None, None]


def pairs_of(count: int = 3, rows: int = 4, columns: int = 6) -> Pairs:
    """Random latents; a third of the cells of no weight, and none of the last pair's of any."""
    draws = torch.Generator().manual_seed(3)
    image, depth = (torch.randn(count, 4, rows, columns, generator=draws) for _ in range(2))
    weight = (torch.rand(count, 1, rows, columns, generator=draws) - 1 / 3).clamp(min=0)
    weight[-1] = 0
    return Pairs(image, depth, weight)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 9, 3)


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished fit that nothing interrupted."""
    out = tmp_path_factory.mktemp("fitted") / "fit"
    fitted_to(data, out)
    return out


@dataclass
class Watch:
    """The steps that were taken, and what is to happen in the middle of one."""

    steps: list[tuple[str, int]] = field(default_factory=list)
    deeds: dict[tuple[str, int], Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def around(self, part: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(network: Any, given: Any, config: FitConfig, seed: int, step: int) -> Tensor:
            self.steps.append((part, step))
            return self.deeds.pop((part, step), lambda value: value)(loss(network, given, config, seed, step))

        return watched


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    found = Watch()
    for name in ("autoencoder", "flow"):
        monkeypatch.setattr(fitting, f"{name}_loss", found.around(name, getattr(fitting, f"{name}_loss")))
    yield found
    assert not found.deeds, "what was to happen has not happened"


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the picture, which takes longer than the fit."""
    monkeypatch.setattr(fitting, "save_figure", lambda figure, path: None)
    monkeypatch.setattr(fitting, "depth_rows", lambda *_: None)


# depth as a picture


def test_depth_is_drawn_by_its_logarithm_from_nearest_to_farthest() -> None:
    config = FitConfig(nearest=0.5, farthest=32.0)
    drawn, known = depth_picture(batch_of(maps([0.5, 4.0, 32.0], [2.0, 0.1, 99.0])), config)
    assert drawn.shape == (1, 3, 2, 3) and known.shape == (1, 1, 2, 3) and known.all()
    # 0.5, 2, 4 and 32 m are 2^-1, 2^1, 2^2 and 2^5: shares 0, 1/3, 1/2 and 1 of the way; what is beyond is clamped.
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-1 / 3, -1.0, 1.0]])
    torch.testing.assert_close(drawn, expected.expand(1, 3, 2, 3), atol=1e-6, rtol=0)
    zoomed, _ = depth_picture(batch_of(maps([1.0, 8.0, 64.0], [4.0, 0.2, 198.0]), zoom=2.0), config)
    torch.testing.assert_close(zoomed, drawn, atol=1e-6, rtol=0)


def test_holes_take_the_nearest_measured_value_and_do_not_count() -> None:
    depth = maps([0.0, 0.0, 0.0, 0.0, 4.0], [1.0, 0.0, math.nan, 0.0, math.inf])
    drawn, known = depth_picture(batch_of(depth), FitConfig(nearest=1.0, farthest=16.0))
    # 1 m is drawn as -1 and 4 m as 0; the two in the middle of the lower row are as near to either side, or nearer.
    assert known[0, 0].tolist() == [[False, False, False, False, True], [True, False, False, False, False]]
    torch.testing.assert_close(drawn[0, 0, :, [0, 1, 3, 4]], torch.tensor([[-1.0, -1, 0, 0]] * 2), atol=1e-6, rtol=0)
    assert torch.equal(drawn[0, 0], drawn[0, 1]) and torch.equal(drawn[0, 0], drawn[0, 2])


def test_holes_may_be_far_away_and_count_then() -> None:
    drawn, known = depth_picture(
        batch_of(maps([0.0, 4.0], [1.0, 0.0])), FitConfig(nearest=1.0, farthest=16.0, holes="farthest")
    )
    torch.testing.assert_close(drawn[0, 0], torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), atol=1e-6, rtol=0)
    assert known.all()


def test_an_image_without_measurements_is_drawn_but_does_not_count() -> None:
    config = FitConfig(autoencoder_widths=(8, 8, 8, 8), kl=0.0)
    batch = batch_of(torch.cat([torch.zeros(1, 1, 32, 32), torch.full((1, 1, 32, 32), 3.0)]))
    drawn, known = depth_picture(batch, config)
    assert (drawn[0] == 0).all() and not known[0].any() and known[1].all()
    hinted = hinted_autoencoder(config)
    pairs = encode_pair(hinted.autoencoder, batch, config)
    assert (pairs.weight[0] == 0).all() and (pairs.weight[1] == 1).all()
    loss = autoencoder_loss(hinted, batch, config, 0, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite() and all(each.grad.isfinite().all() for each in hinted.parameters() if each.grad is not None)


# the autoencoder


def hinted_autoencoder(config: FitConfig) -> Hinted:
    return Hinted(build_autoencoder(config, 0), 0)


def test_the_autoencoder_learns_a_fixed_batch() -> None:
    config = FitConfig(autoencoder_widths=(8, 8, 8, 8), lr=5e-3, hint=0.0)
    hinted, batch = hinted_autoencoder(config), boxes()
    learner = Learner(hinted, config, 40, averaged=False)
    losses = []
    for step in range(40):
        loss = autoencoder_loss(hinted, batch, config, 0, step)
        learner.update(loss)
        losses.append(loss.item())
    # What tells nothing of the picture, a grey of the best brightness, comes to 0.7 of what it begins with.
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


class Passed(nn.Module):
    """An autoencoder that keeps what it is given, and gives back black: its loss is the mean brightness."""

    def encode(self, pictures: Tensor) -> SimpleNamespace:
        self.seen = pictures
        mean = torch.zeros(len(pictures), 4, pictures.shape[-2] // 8, pictures.shape[-1] // 8)
        posterior = SimpleNamespace(mean=mean, std=torch.ones_like(mean), kl=lambda: torch.full((len(mean),), 7.0))
        return SimpleNamespace(latent_dist=posterior)

    def decode(self, latent: Tensor) -> SimpleNamespace:
        self.latent = latent
        return SimpleNamespace(sample=torch.zeros_like(self.seen))


def passed(network: Passed) -> Hinted:
    return Hinted(network, 0)


def test_the_autoencoder_sees_one_random_part_of_images_and_depth() -> None:
    config, batch, network = FitConfig(autoencoder_crop=16, kl=0.0, hint=0.0), boxes(2), Passed()
    batch = replace(batch, images=torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(0)))
    pictures = torch.cat([batch.images * 2 - 1, depth_picture(batch, config)[0]])
    windows = pictures.unfold(2, 16, 1).unfold(3, 16, 1)
    places, drawn = set(), []
    for step in range(8):
        autoencoder_loss(passed(network), batch, config, 0, step)
        same = (windows == network.seen[:, :, None, None]).all(-1).all(-1).all(0).all(0)
        assert same.sum() == 1
        places.add(tuple(same.nonzero()[0].tolist()))
        drawn.append(network.latent)
    assert len(places) > 4
    # What it decodes is drawn from the posterior, here of mean 0 and deviation 1; at each step anew.
    assert float(torch.cat(drawn).std()) == pytest.approx(1, abs=0.1)
    assert len({float(latent.sum()) for latent in drawn}) == 8


def test_unmeasured_pixels_count_a_tenth_and_the_divergence_by_its_weight() -> None:
    depth = torch.full((1, 1, 16, 16), 2.0)
    depth[..., :4, :] = 0  # filled with 2 m, drawn as 0 of ±1, where black is given back
    batch, sizes = batch_of(depth), {"nearest": 2.0, "farthest": 8.0}
    loss = float(autoencoder_loss(passed(Passed()), batch, FitConfig(**sizes, kl=0.0, hint=0.0), 0, 0))
    image = float((batch.images * 2 - 1).abs().mean())
    counts = 0.75 + 0.25 * 0.1
    # A depth of `nearest` is drawn as -1: wherever it counts, the error is 1.
    assert loss == pytest.approx((image + counts) / (1 + counts), abs=1e-5)
    more = float(autoencoder_loss(passed(Passed()), batch, FitConfig(**sizes, kl=0.1, hint=0.0), 0, 0))
    assert more - loss == pytest.approx(0.7, abs=1e-5)


class Saying(nn.Module):
    """A hint that says the same of every image."""

    def __init__(self, guess: Tensor) -> None:
        super().__init__()
        self.guess = guess

    def forward(self, image: Tensor) -> Tensor:
        return self.guess


def test_the_hint_counts_what_it_misses_of_the_depth_latents_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(6, 4, 3, 2, generator=generator)
    depth = latent[3:]
    counts = torch.ones(6, 1, 24, 16)
    constant = depth.mean((0, 2, 3), keepdim=True)

    def said(guess: Tensor, counts: Tensor = counts) -> float:
        return float(unexplained(Saying(guess), latent, counts))

    assert said(constant.expand_as(depth)) == pytest.approx(1, abs=1e-5)  # the floor: one latent for all
    assert said(depth) == 0
    assert said(constant + 0.5 * (depth - constant)) == pytest.approx(0.25, abs=1e-5)
    # Cells without a measurement do not count, wherever they stand.
    holes = counts.clone()
    holes[3:, :, :8] = 0
    spoilt = depth.clone()
    spoilt[:, :, 0] = 50.0
    assert said(spoilt, holes) == 0 and said(spoilt) > 100


def test_the_hint_shapes_image_latents_and_no_others() -> None:
    config = FitConfig(autoencoder_widths=(8, 8, 8, 8))
    hinted = hinted_autoencoder(config)
    latent = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    unexplained(hinted.hint, latent, torch.ones(4, 1, 16, 16)).backward()  # type: ignore[no-untyped-call]
    assert latent.grad is not None
    assert (latent.grad[:2] != 0).any() and (latent.grad[2:] == 0).all()
    batch = boxes(2)
    with torch.no_grad():
        bare, told = (float(autoencoder_loss(hinted, batch, replace(config, hint=w), 0, 0)) for w in (0.0, 1.0))
    assert told > bare + 0.1
    # Other draws than the autoencoder's: its initial weights are the same with and without a hint.
    alone = build_autoencoder(config, 0).state_dict()
    assert all(torch.equal(alone[name], weight) for name, weight in hinted.autoencoder.state_dict().items())


def test_latents_are_scaled_to_a_deviation_of_one() -> None:
    config, batch = FitConfig(autoencoder_widths=(8, 8, 8, 8)), boxes()
    autoencoder = build_autoencoder(config, 0)
    scale = latent_scale(autoencoder, batch, config)
    pairs = encode_pair(autoencoder, batch, config).chosen(np.array([2, 0, 1, 3]), scale, CPU)
    assert float(torch.cat([pairs.image, pairs.depth]).std()) == pytest.approx(1, abs=1e-4)
    assert abs(scale - 1) > 0.1  # otherwise nothing was to be done


# the flow


class Planted(nn.Module):
    """A velocity network that knows the depth latents: the straight line's velocity is (depth - state) / (1 - time)."""

    def __init__(self, depth: Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.depth, self.error = depth, error

    def forward(self, given: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        self.state, self.clean, self.time, self.text = given[:, :4], given[:, 4:], time, encoder_hidden_states
        left = (1 - time).clamp(min=1e-6)[:, None, None, None]
        return SimpleNamespace(sample=(self.depth - self.state) / left + self.error)


def test_the_true_velocity_has_no_loss_and_a_false_one_its_squared_error() -> None:
    pairs = pairs_of()
    for step in range(3):
        right, wrong = (flow_loss(Planted(pairs.depth, error), pairs, FitConfig(), 0, step) for error in (0.0, 3.0))
        assert float(right) < 1e-8
        assert float(wrong) == pytest.approx(9, abs=1e-3)


class Free(nn.Module):
    """A velocity network whose every output is a weight of its own."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(torch.zeros_like(like))

    def forward(self, given: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.output)


def test_the_flow_learns_fixed_latents() -> None:
    config = FitConfig(width=32, multiples=(1,), heads=2, lr=1e-2)
    flow, pairs = build_flow(config, 0), pairs_of(16, 4, 4)
    learner = Learner(flow, config, 30, averaged=False)
    losses = []
    for step in range(30):
        loss = flow_loss(flow, pairs, config, 0, step)
        learner.update(loss)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_cells_without_weight_have_no_gradient_and_no_say() -> None:
    pairs = pairs_of()
    network = Free(pairs.image)
    loss = flow_loss(network, pairs, FitConfig(), 0, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    weightless = (pairs.weight == 0).expand_as(pairs.image)
    assert network.output.grad is not None and weightless[:2].any()
    assert torch.equal(network.output.grad == 0, weightless)
    other = Pairs(pairs.image, torch.where(weightless, 100.0, pairs.depth), pairs.weight)
    assert torch.equal(flow_loss(network, other, FitConfig(), 0, 0), loss)
    heavier = Pairs(pairs.image, pairs.depth, 2 * pairs.weight)
    torch.testing.assert_close(flow_loss(network, heavier, FitConfig(), 0, 0), loss)


def test_a_batch_without_any_measurement_has_no_loss() -> None:
    pairs = pairs_of()
    network = Free(pairs.image)
    loss = flow_loss(network, Pairs(pairs.image, pairs.depth, torch.zeros_like(pairs.weight)), FitConfig(), 0, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert network.output.grad is not None and (network.output.grad == 0).all()


def states(pairs: Pairs, config: FitConfig, step: int = 0) -> Planted:
    """What the network was given."""
    network = Planted(pairs.depth)
    flow_loss(network, pairs, config, 0, step)
    return network


def test_the_way_is_straight_from_the_noised_image_to_the_depth(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_depthfm(fitted / "teacher.ckpt", fitted / "vae")  # noising_step 400, as is the default
    pairs = pairs_of(64)
    between = states(pairs, FitConfig())
    assert torch.equal(between.clean, pairs.image)
    assert torch.equal(between.text, teacher.text.expand(64, -1, -1))
    assert 0 <= between.time.min() < 0.1 and 0.9 < between.time.max() < 1
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda count, generator: torch.zeros(count))
        start, noise = states(pairs, FitConfig()), states(pairs, FitConfig(noising_step=1000)).state
        torch.testing.assert_close(states(pairs, FitConfig(noising_step=0)).state, pairs.image, atol=1e-3, rtol=0)
        patch.setattr(torch, "rand", lambda count, generator: torch.ones(count))
        torch.testing.assert_close(states(pairs, FitConfig()).state, pairs.depth, atol=1e-5, rtol=0)
    # At step 1000 nothing of the image is left: that is the noise, with which the teacher starts from the same place.
    assert abs(float(noise.mean())) < 0.05 and float(noise.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(start.state, teacher.source(pairs.image, noise), atol=1e-4, rtol=0)
    share = between.time[:, None, None, None]
    line = (1 - share) * start.state + share * pairs.depth
    torch.testing.assert_close(between.state, line, atol=1e-5, rtol=0)
    assert (states(pairs, FitConfig(), step=1).state - between.state).abs().mean() > 0.1


def test_the_flow_begins_with_no_velocity_and_attends_below_the_finest_level() -> None:
    flow = build_flow(FitConfig(width=32, multiples=(1, 2), heads=2), 0)
    given = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    found = flow(given, torch.tensor([0.3]), encoder_hidden_states=torch.zeros(1, 1, TEXT_WIDTH)).sample
    assert found.shape == (1, 4, 4, 4) and (found == 0).all()
    assert FitConfig(multiples=(1, 2, 2)).hyperparameters()["attention_resolutions"] == [2, 4]
    assert FitConfig(multiples=(1,)).hyperparameters()["attention_resolutions"] == [1]
    assert flow.config.block_out_channels == (32, 64)


# learning


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = FitConfig(autoencoder_widths=(8, 8, 8, 8), width=32, multiples=(1,), heads=2)
    for build in (build_autoencoder, build_flow):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = build(config, 5).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert differences(one, build(config, 5).state_dict()) == []
        assert differences(one, build(config, 6).state_dict()) != []


def test_seeded_draws_are_those_of_seed_and_stream_and_a_fault_restores_the_state() -> None:
    def drawn(seed: int, stream: str) -> Tensor:
        with runtime.seeded(seed, stream):
            return torch.randn(4)

    assert torch.equal(drawn(0, "a"), drawn(0, "a"))
    assert not torch.equal(drawn(0, "a"), drawn(0, "b")) and not torch.equal(drawn(0, "a"), drawn(1, "a"))
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="planted"), runtime.seeded(0, "a"):
        torch.randn(4)
        raise RuntimeError("planted")
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_kept_is_the_moving_average_of_the_weights(tmp_path: Path) -> None:
    def learner() -> Learner:
        with runtime.seeded(0, "a line"):
            return Learner(nn.Linear(3, 1), FitConfig(lr=0.1), 10, averaged=True)

    def learn(given: Learner, until: int) -> list[Tensor]:
        found = []
        while given.step < until:
            given.update((given.network(torch.ones(2, 3)) - given.step).square().mean())
            found.append(given.network.weight.detach().clone())
        return found

    whole, cut = learner(), learner()
    weights = learn(whole, 10)
    average = weights[0]
    for each in weights[1:]:
        average = average + (each - average) / 200
    torch.testing.assert_close(whole.learned.weight, average)
    assert not torch.allclose(average, weights[-1], atol=1e-2)
    assert learner().learned.weight.shape == (1, 3) and Learner(nn.Linear(3, 1), FitConfig(), 1, averaged=False).learned
    # Cut after 4 steps and gone on with by another, it is the same.
    learn(cut, 4)
    cut.save(tmp_path / "progress.pt", "line")
    other = learner()
    other.resume(tmp_path / "progress.pt", "another part")
    assert other.step == 0
    other.resume(tmp_path / "progress.pt", "line")
    assert other.step == 4
    learn(other, 10)
    assert torch.equal(other.learned.weight, whole.learned.weight)
    assert torch.equal(other.network.weight, whole.network.weight)


# a whole fit


FILES = ("teacher.ckpt", "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "summary.json", "config.yaml")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_saved_fit_is_a_teacher_of_the_kind_depthfm(
    data: Path, tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch, unpainted: None
) -> None:
    kept: list[dict[str, Tensor]] = []

    def saved(flow: Any, config: FitConfig, file: Path) -> None:
        kept.append({key: weight.clone() for key, weight in flow.state_dict().items()})
        save_flow(flow, config, file)

    monkeypatch.setattr(fitting, "save_flow", saved)
    learners: list[Learner] = []
    losses: list[float] = []
    update = Learner.update

    def remembered(learner: Learner, loss: Tensor) -> None:
        learners[:] = [learner]
        losses.append(loss.item())
        update(learner, loss)

    monkeypatch.setattr(Learner, "update", remembered)
    monkeypatch.setattr(fitting, "LOG_EVERY", 2)
    # Twice the same configuration gives the same files, whatever the state of PyTorch's own generator.
    torch.manual_seed(1234)
    fitted_to(data, tmp_path / "fit")
    assert content(tmp_path / "fit") == content(fitted)
    assert not (tmp_path / "fit" / "progress.pt").exists() and not (tmp_path / "fit" / "latents.pt").exists()
    records = RunFolder(tmp_path / "fit").metrics()
    expected = [(part, step) for part in ("autoencoder", "flow") for step in (2, 4)]
    assert [(record["part"], record["step"]) for record in records] == expected
    found = [record[f"loss_{record['part']}"] for record in records]
    assert found == pytest.approx([sum(losses[place : place + 2]) / 2 for place in range(0, 8, 2)], rel=1e-5)

    teacher = load_depthfm(tmp_path / "fit" / "teacher.ckpt", tmp_path / "fit" / "vae")
    named = depthjepa.load_teacher("depthfm", checkpoint=fitted / "teacher.ckpt", vae=fitted / "vae")
    assert isinstance(named, DepthFM)
    average = learners[0].average
    assert average is not None
    for loaded in (teacher, named):
        found = loaded.unet.state_dict()
        assert found.keys() == kept[0].keys() == average.module.state_dict().keys()
        for key, weight in average.module.state_dict().items():
            assert torch.equal(found[key], weight.half().float()) and torch.equal(weight, kept[0][key])
    raw = learners[0].network.state_dict()
    assert any(not torch.equal(raw[key], weight) for key, weight in kept[0].items())

    latents = named.latents(torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(0)))
    assert latents.shape == (2, 4, 6, 4) and latents.isfinite().all()
    assert named.decode(latents).shape == (2, 1, 48, 32)


def test_the_flow_learns_from_the_latents_that_the_teacher_computes(data: Path, fitted: Path) -> None:
    config, batch = small(data).fit, boxes(3)
    teacher, autoencoder = load_depthfm(fitted / "teacher.ckpt", fitted / "vae"), load_autoencoder(fitted / "vae")
    scale = float(autoencoder.config.scaling_factor)
    chosen = encode_pair(autoencoder, batch, config).chosen(np.array([2, 0]), scale, CPU)
    drawn, known = depth_picture(batch, config)
    for found, seen in ((chosen.image, batch.images), (chosen.depth, (drawn + 1) / 2)):
        torch.testing.assert_close(found, teacher.image_latents(seen)[[2, 0]], atol=1e-2, rtol=0)
        assert found.std() > 0.2
    expected = known[[2, 0]].float().reshape(2, 1, 4, 8, 4, 8).mean((3, 5))
    torch.testing.assert_close(chosen.weight, expected, atol=1e-3, rtol=0)
    assert 0 < float(expected.min()) < 1


def test_bf16_fits_nearly_the_same(data: Path, tmp_path: Path, fitted: Path, unpainted: None) -> None:
    summary = fitted_to(data, tmp_path / "fit", "fit.precision=bf16")
    assert all(math.isfinite(row[column.key]) for row in summary["rows"] for column in judging.COLUMNS)
    one, other = (
        torch.load(folder / "teacher.ckpt", weights_only=True)["state_dict"] for folder in (fitted, tmp_path / "fit")
    )
    assert differences(one, other) != []
    for key, weight in one.items():
        torch.testing.assert_close(weight, other[key], atol=2e-2, rtol=0)


def killed(value: Tensor) -> Tensor:
    raise KeyboardInterrupt


def asked_to_stop(value: Tensor) -> Tensor:
    signal.raise_signal(signal.SIGTERM)
    return value


@pytest.mark.parametrize(
    ("deed", "at", "fault", "said", "again"),
    [
        (killed, 3, KeyboardInterrupt, "^$", 2),  # goes on where it last saved
        (asked_to_stop, 3, RunStopped, "stopped at step 3 of 4 of the {part}; the same command goes on", 3),
    ],
)
def test_a_fit_cut_short_goes_on_to_bit_by_bit_the_same_teacher(
    data: Path, tmp_path: Path, fitted: Path, watch: Watch, unpainted: None,
    deed: Callable[[Tensor], Tensor], at: int, fault: type[BaseException], said: str, again: int,
) -> None:  # fmt: skip
    out = tmp_path / "fit"
    for part in ("autoencoder", "flow"):
        watch.deeds[part, at] = deed
        with pytest.raises(fault, match=said.format(part=part)):
            fitted_to(data, out)
        assert not (out / "summary.json").exists() and not (out / "teacher.ckpt").exists()
        assert (out / "vae").exists() == (part == "flow")
    fitted_to(data, out)
    expected = [(part, step) for part in ("autoencoder", "flow") for step in (*range(at + 1), *range(again, 4))]
    assert watch.steps == expected
    assert content(out) == content(fitted)


def test_a_fit_goes_on_from_an_earlier_one_and_keeps_its_autoencoder(
    data: Path, tmp_path: Path, fitted: Path, watch: Watch, unpainted: None
) -> None:
    out = tmp_path / "on"
    fitted_to(data, out, f"fit.start={fitted}", "fit.lr=1e-9", "fit.crops=12")
    assert {part for part, _ in watch.steps} == {"flow"}
    earlier, later = (load_depthfm(place / CHECKPOINT, place / AUTOENCODER) for place in (fitted, out))
    assert not differences(earlier.vae.state_dict(), later.vae.state_dict())
    for file in (fitted / AUTOENCODER).iterdir():  # nor does it tell where it was read from
        assert (out / AUTOENCODER / file.name).read_bytes() == file.read_bytes()
    for name, weight in earlier.unet.state_dict().items():
        # float16 on the way out; at this rate nothing moves further.
        assert torch.allclose(later.unet.state_dict()[name], weight, rtol=1e-3, atol=1e-6), name
    moved = tmp_path / "moved"
    fitted_to(data, moved, f"fit.start={fitted}", "fit.crops=12")
    further = load_depthfm(moved / CHECKPOINT, moved / AUTOENCODER)
    assert differences(earlier.unet.state_dict(), further.unet.state_dict())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("fit.start={fitted}", "fit.width=64"), r"another network: block_out_channels=.*32.* there and .*64.* here"),
        (("fit.start={nowhere}",), r"holds no fitted teacher \(teacher.ckpt, vae is not there\): give the folder"),
    ],
)
def test_a_fit_that_cannot_go_on_from_another_says_why(
    data: Path, tmp_path: Path, fitted: Path, settings: tuple[str, ...], said: str
) -> None:
    asked = [each.format(fitted=fitted, nowhere=tmp_path / "nowhere") for each in settings]
    with pytest.raises(BadInput, match=said):
        fitted_to(data, tmp_path / "out", *asked)
    assert not (tmp_path / "out").exists()


def test_a_finished_fit_is_returned_and_not_fitted_anew(data: Path, fitted: Path, watch: Watch) -> None:
    before = content(fitted)
    summary = fitted_to(data, fitted, "data.memory_gib=0")  # a circumstance, which may change
    assert watch.steps == [] and content(fitted) == before
    assert summary == RunFolder(fitted).summary()
    assert [row["name"] for row in summary["rows"]] == ["mean map", "1 step", "2 steps", "4 steps", "autoencoder alone"]


def test_what_was_saved_is_judged_without_learning_again(
    data: Path, tmp_path: Path, fitted: Path, watch: Watch, unpainted: None
) -> None:
    out = shutil.copytree(fitted, tmp_path / "fit")
    (out / "summary.json").unlink()  # as if killed before the end
    fitted_to(data, out)
    assert watch.steps == [] and content(out) == content(fitted)


def test_a_flow_that_goes_on_has_its_latents_already(
    data: Path, tmp_path: Path, fitted: Path, watch: Watch, unpainted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.deeds["flow", 3] = killed
    with pytest.raises(KeyboardInterrupt):
        fitted_to(data, tmp_path / "fit")
    assert (tmp_path / "fit" / "latents.pt").exists()
    watch.deeds.clear()
    monkeypatch.setattr(fitting, "encode_pair", lambda *_: pytest.fail("the crops were encoded again"))
    fitted_to(data, tmp_path / "fit")
    assert content(tmp_path / "fit") == content(fitted)
    assert not (tmp_path / "fit" / "latents.pt").exists()


def test_weights_that_are_not_finite_are_never_saved(data: Path, tmp_path: Path, watch: Watch, unpainted: None) -> None:
    watch.deeds["autoencoder", 3] = lambda value: value * math.nan
    with pytest.raises(RunStopped, match=r"autoencoder, step 4: the loss is nan, .* Lower fit\.lr"):
        fitted_to(data, tmp_path / "fit")
    saved = torch.load(tmp_path / "fit" / "progress.pt", weights_only=True)
    assert saved["step"] == 2 and all(weight.isfinite().all() for weight in saved["network"].values())
    assert not (tmp_path / "fit" / "vae").exists()


@pytest.mark.parametrize(("deed", "fault"), [(killed, KeyboardInterrupt), (asked_to_stop, RunStopped)])
def test_a_fit_cut_short_logs_what_a_whole_one_logs(
    data: Path, tmp_path: Path, watch: Watch, unpainted: None, monkeypatch: pytest.MonkeyPatch,
    deed: Callable[[Tensor], Tensor], fault: type[BaseException],
) -> None:  # fmt: skip
    monkeypatch.setattr(fitting, "LOG_EVERY", 2)
    settings = ("fit.autoencoder_steps=6", "fit.steps=2", "fit.checkpoint_every=3")
    fitted_to(data, tmp_path / "whole", *settings)
    watch.deeds["autoencoder", 4] = deed
    with pytest.raises(fault):
        fitted_to(data, tmp_path / "fit", *settings)
    fitted_to(data, tmp_path / "fit", *settings)
    assert RunFolder(tmp_path / "fit").metrics() == RunFolder(tmp_path / "whole").metrics()


# other data


def test_a_fit_is_judged_on_other_data_each_by_itself_in_its_own_proportions(
    data: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wide = shutil.copytree(fitted, tmp_path / "fit"), tmp_path / "wide"
    for split, number in (("train", 0), ("train", 1), ("val", 2), ("val", 3)):
        save(wide / split / "rgb" / f"{number}.png", picture(number, 56, 144))
        save(wide / split / "depth" / f"{number}.png", millimetres(number, 56, 144))
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere" / "wide")  # of the same name
    command = ("fit-teacher", "--data", data, "--out", folder, *SETTINGS, "--judge-on", f"{wide}, {elsewhere}")
    before = (folder / "summary.json").read_bytes()
    assert call(monkeypatch, *command) == 0
    assert (folder / "summary.json").read_bytes() == before
    tables = [json.loads((folder / "judged" / f"{name}.json").read_text()) for name in ("wide", "wide-2")]
    for each, root, size, pairs in zip(tables, (wide, elsewhere), ("32 x 80", "32 x 40"), (2, 3), strict=True):
        assert each["data"] == str(root)
        assert each["protocol"].startswith(f"{pairs} held-out pairs, whole views at {size} px")
        assert [row["name"] for row in each["rows"]] == [row["name"] for row in json.loads(before)["rows"]]
    assert tables[0]["rows"] != tables[1]["rows"]
    assert (folder / "figures" / "maps-wide.png").exists() and (folder / "figures" / "maps-wide-2.png").exists()
    assert "32 x 80 px" in " ".join(capsys.readouterr().out.split())


def test_other_data_that_cannot_be_judged_is_refused_before_the_fit(data: Path, tmp_path: Path) -> None:
    unlike = write_classes(tmp_path / "unlike", 2)
    with pytest.raises(BadInput, match="unlike has none: give an RGB-D"):
        fitting.fit_teacher(small(data), tmp_path / "fit", judge_on=[str(unlike)], say=lambda _: None)
    assert not (tmp_path / "fit").exists()


# what is refused


def without_validation(place: Path) -> Path:
    root = write_pairs(place, 3, 2)
    (root / "val").rename(root / "other")
    return root


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (lambda place: write_classes(place, 2), (), r"needs depth, but data\.root=.*faulty has none: give an RGB-D"),
        (without_validation, (), r"judges the teacher on held-out pairs, and .*faulty has no val/"),
        (None, ("data.image_size=37",), r"data\.image_size=37: .*multiples of 8 px .* 1 levels; .* to 37 is 40"),
        (
            None,
            ("data.image_size=[32, 72]", "fit.multiples=[1, 1, 1]"),
            r"data\.image_size=\(32, 72\): .*multiples of 32 px .* 3 levels; the nearest to 72 is 64",
        ),
        (None, ("fit.heads=3",), r"fit\.heads=3 does not divide the widths of the flow, multiples of 32"),
        (
            None,
            ("fit.autoencoder_widths=[16, 18, 16, 16]",),
            r"fit\.autoencoder_widths=\[16, 18, 16, 16\]: each must be a multiple of 4, a quarter of the smallest",
        ),
    ],
)  # fmt: skip
def test_a_fit_that_cannot_begin_says_why(
    data: Path, tmp_path: Path, make: Callable[[Path], Path] | None, settings: tuple[str, ...], said: str
) -> None:
    root = make(tmp_path / "faulty") if make else data
    with pytest.raises(BadInput, match=said):
        fitted_to(root, tmp_path / "fit", *settings)
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("fit.width=40", r"fit\.width=40: should be a multiple of 32"),
        ("fit.multiples=[]", r"fit\.multiples=\[\]: "),
        ("fit.autoencoder_widths=[8, 8, 8]", r"fit\.autoencoder_widths"),
        ("fit.noising_step=1001", r"fit\.noising_step=1001: should be less than or equal to 1000"),
        ("fit.holes=nearst", r"fit\.holes='nearst': .*did you mean 'nearest'"),
        ("fit.witdh=32", r"unknown key 'fit\.witdh' \(did you mean 'fit\.width'\?\)"),
        ("model.width=32", r"unknown key 'model\.width' \(did you mean 'fit\.width'\?\)"),
    ],
)
def test_settings_at_fault_are_named(data: Path, setting: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        small(data, setting)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("fit.nearest=4", "fit.farthest=4"), "fit.nearest"),
        (("fit.nearest=100", "fit.farthest=0.5"), "fit.nearest"),
        (("fit.scored=[5, 1]",), "fit.scored"),
        (("fit.autoencoder_crop=20",), "fit.autoencoder_crop"),
    ],
)
def test_settings_that_cannot_serve_are_refused_before_the_fit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], key: str
) -> None:
    monkeypatch.setattr(Tensor, "backward", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(BadInput, match=re.escape(key)):
        fitted_to(data, tmp_path / "fit", *settings)


def test_a_folder_with_another_fit_is_refused_and_left_alone(data: Path, fitted: Path) -> None:
    before = content(fitted)
    with pytest.raises(BadInput, match=r"holds a fit with other values of fit\.lr, seed: choose another --out"):
        fitted_to(data, fitted, "fit.lr=2e-3", "seed=4")
    assert content(fitted) == before


# judging

LN2 = math.log(2)
# Two images: powers of two, and a wall.
STEPS, WALL = maps([1.0, 2.0], [4.0, 8.0]), torch.full((1, 1, 2, 2), 3.0)
JUDGED = (0.5, 100.0)


def judged(batch: Batch, predict: Callable[[Batch], Tensor]) -> dict[str, Any]:
    rows, _ = judging.judge({"it": predict}, [batch], JUDGED)
    assert rows[0].pop("name") == "it"
    return rows[0]


@pytest.mark.parametrize("scale", [1.0, 0.02, -4.0])
def test_log_depth_up_to_scale_and_shift_is_perfect(scale: float) -> None:
    row = judged(boxes(), lambda batch: scale * batch.depth.clamp(min=0.1).log() + 5)  # type: ignore[union-attr]
    assert row["absrel"] < 1e-5 and row["rmselog"] < 1e-5
    assert row["delta1"] == row["delta2"] == row["delta3"] == 1


def test_a_mean_map_scores_what_is_computed_by_hand() -> None:
    map_ = maps([0.0, 0.0], [1.0, 1.0])
    rows, _ = judging.judge(
        {"mean map": lambda batch: map_.expand(len(batch.images), -1, -1, -1)},
        [batch_of(STEPS), batch_of(WALL)],
        JUDGED,
    )
    # Log 2 of the first image is 0, 1 and 2, 3, of which the map makes 1/2, 1/2 and 5/2, 5/2: all are off by half,
    # √2 too far or too near; the wall is met.
    assert [row["name"] for row in rows] == ["mean map"]
    assert rows[0]["absrel"] == pytest.approx(((math.sqrt(2) - 1) + (1 - math.sqrt(1 / 2))) / 2 / 2, abs=1e-6)
    assert rows[0]["rmselog"] == pytest.approx(LN2 / 2 / 2, abs=1e-6)
    assert (rows[0]["delta1"], rows[0]["delta2"], rows[0]["delta3"]) == (0.5, 1, 1)


@pytest.mark.parametrize("value", [0.0, -7.0])
def test_a_constant_is_as_good_as_each_image_s_mean_of_log_depth(value: float) -> None:
    row = judged(batch_of(STEPS), lambda batch: torch.full((len(batch.images), 1, 2, 2), value))
    mean = 2 * math.sqrt(2)  # m: 2^(3/2)
    assert row["absrel"] == pytest.approx(np.mean([abs(mean - depth) / depth for depth in (1, 2, 4, 8)]), abs=1e-6)
    assert row["rmselog"] == pytest.approx(LN2 * math.sqrt((1.5**2 + 0.5**2) / 2), abs=1e-6)
    # Half of the pixels are off by √2, which is within 1.25² but not within 1.25; the others by 2√2.
    assert (row["delta1"], row["delta2"], row["delta3"]) == (0, 0.5, 0.5)


def test_pixels_out_of_the_judged_range_do_not_count() -> None:
    expected = judged(batch_of(STEPS), lambda batch: maps([0.0, 0.0], [1.0, 1.0]))
    outside = maps([1.0, 2.0], [4.0, 8.0], [0.0, 0.4], [101.0, math.nan])
    for garbage in (0.3, 1e6, -1e6, math.nan):
        prediction = torch.cat([maps([0.0, 0.0], [1.0, 1.0]), torch.full((1, 1, 2, 2), garbage)], 2)
        assert judged(batch_of(outside), lambda batch, given=prediction: given) == pytest.approx(expected, abs=1e-9)
    within = torch.where(outside == 101, 100.0, outside)  # the ends belong to the range
    assert judged(batch_of(within), lambda batch: prediction.nan_to_num(0.0))["absrel"] > 2 * expected["absrel"]
    # Nor do images of which nothing is known.
    both = torch.cat([STEPS, torch.zeros(1, 1, 2, 2)])
    found = judged(batch_of(both), lambda batch: maps([0.0, 0.0], [1.0, 1.0]).expand(2, -1, -1, -1))
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_first_images_are_shown_with_their_disparity() -> None:
    both = batch_of(torch.cat([STEPS, torch.where(WALL == 3, 200.0, WALL)]))
    predict = {"it": lambda batch: batch.depth.log()}
    _, (images, truth, drawn) = judging.judge(predict, [both, batch_of(WALL)], JUDGED, shown=2)
    np.testing.assert_array_equal(images, np.stack([picture(number, 2, 2) for number in (0, 1)]))
    np.testing.assert_allclose(truth[0], [[1, 1 / 2], [1 / 4, 1 / 8]])
    assert np.isnan(truth[1]).all()
    np.testing.assert_allclose(drawn["it"][0], truth[0], rtol=1e-5)
    assert len(judging.judge(predict, [both], JUDGED, shown=1)[1][0]) == 1


def test_nothing_to_judge_is_said() -> None:
    with pytest.raises(BadInput, match="no held-out pairs"):
        judging.judge({"it": lambda batch: batch.images}, [], JUDGED)


def test_a_mean_map_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="no pairs to draw a mean map of"):
        judging.mean_log_depth([], JUDGED)


def test_the_mean_map_is_the_mean_of_what_was_measured_at_a_pixel() -> None:
    config = build_fit({}, ["data.image_size=[2, 3]", "fit.nearest=1", "fit.farthest=16"])
    one, two = maps([1.0, 2.0, 0.0], [4.0, 0.0, 99.0]), maps([4.0, 0.0, 0.0], [16.0, 8.0, 0.5])
    found = judging.mean_log_depth([batch_of(one), batch_of(two)], config.fit.judged)
    # Of the right column nothing counts: it takes the mean of the six measurements, 0 + 1 + 2 + 2 + 4 + 3 by log 2.
    expected = LN2 * maps([1.0, 1.0, 2.0], [3.0, 3.0, 2.0])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    together = judging.mean_log_depth([batch_of(torch.cat([one, two]))], config.fit.judged)
    torch.testing.assert_close(together, expected, atol=1e-6, rtol=0)
    narrower = build_fit({}, ["data.image_size=[2, 3]", "fit.scored=[1.5, 4]"])
    found = judging.mean_log_depth([batch_of(one), batch_of(two)], narrower.fit.judged)
    overall = 5 / 3  # 1, 2 and 2
    expected = LN2 * maps([2.0, 1.0, overall], [2.0, overall, overall])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# the command line


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["depthjepa", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_way_from_an_rgbd_folder_to_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_pairs(tmp_path / "pairs", 6, 3), tmp_path / "fit"
    settings = {text.partition("=")[0]: text for text in (*SETTINGS, "fit.steps=2", "fit.autoencoder_steps=2")}
    command = ("fit-teacher", "--data", root, "--out", out, *settings.values())
    assert call(monkeypatch, *command) == 0
    output = capsys.readouterr().out
    assert re.search(r"autoencoder 0\.\d\d M parameters, flow \d\.\d\d M parameters; 6 training pairs", output)
    for name in ("mean map", "1 step", "2 steps", "4 steps", "autoencoder alone", "AbsRel", "δ1"):
        assert name in output
    files = [out / "teacher.ckpt", *(out / "vae").iterdir()]
    assert len(files) == 3
    size = sum(file.stat().st_size for file in files)
    assert f"{out}: {size / 1e6:.2f} MB" in output.replace("\n", "")
    rows = {row["name"]: row for row in RunFolder(out).summary()["rows"]}
    assert f"{rows['mean map']['absrel']:.3f}" in output
    with Image.open(out / "figures" / "maps.png") as drawn:
        assert min(drawn.size) > 100
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "config.yaml", "data.json", "data.npz", "environment.json", "summary.json", "teacher.ckpt",
    }  # fmt: skip

    before = content(out)
    assert call(monkeypatch, *command) == 0
    assert "mean map" in capsys.readouterr().out
    assert call(monkeypatch, *command, "fit.lr=0.5") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert re.match(r"depthjepa: .*fit holds a fit with other values of fit\.lr: choose another --out", errors)
    assert content(out) == before
