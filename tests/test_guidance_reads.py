"""Which tokens feature guidance reads, when its weight holds, and a second target beside the teacher's."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from depthjepa import optim
from depthjepa.commands import demo
from depthjepa.config.reading import build_config, load_config
from depthjepa.config.recipe_files import read_recipe, recipe_names
from depthjepa.data.loading import source_name
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.build import build_guidance_teacher, seen_by_teacher
from depthjepa.guidance.config import FeatureGuidance, PixelGuidance, share_of_weight
from depthjepa.guidance.feature import FeatureGuide
from depthjepa.guidance.target import Target, on_cells
from depthjepa.guidance.teachers.cache import CachedTeacher, create_cache, open_cache, seen_in_crops
from depthjepa.guidance.teachers.cache_files import Facts, write_list, write_part
from depthjepa.guidance.teachers.controls import ImageItself, SideBySide
from depthjepa.guidance.teachers.depthfm.tiny import FITTED_ON
from depthjepa.guidance.teachers.ground_truth import DepthTeacher
from depthjepa.guidance.teachers.loading import teacher_kind
from depthjepa.losses import Latents, feature_depth_loss
from depthjepa.masks import MaskConfig, Masks, sample_masks
from depthjepa.method import build_method
from depthjepa.model.jepa import JEPA
from depthjepa.study.plan import load_study, study_names
from tiny_images import write_pairs
from tiny_runs import metrics, run

TINY = ["model.width=32", "model.depth=4", "model.heads=4", "predictor.width=16", "predictor.depth=1"]
GRID = (6, 6)


def guided(*settings: str) -> JEPA:
    config = load_config("demo", [*TINY, "guidance.kind=feature", *settings])
    method = build_method(config, DepthTeacher(), classes=0)
    assert isinstance(method, JEPA)
    with torch.no_grad():  # attention far from uniform
        for parameter in method.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return method


def images(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def masks(count: int = 3) -> Masks:
    config = MaskConfig(targets=2)
    return sample_masks(config, GRID, seed=0, epoch=0, indices=np.arange(count), batch_index=0)


def latents(channels: int = 4, count: int = 3) -> Latents:
    values = torch.randn(count, channels, 12, 12, generator=torch.Generator().manual_seed(5))
    return Latents(values, torch.ones_like(values, dtype=torch.bool))


def reached(method: JEPA, loss: torch.Tensor) -> set[str]:
    """Parts of the method that a loss has a gradient for."""
    method.zero_grad()
    loss.backward()
    named = ((name, each.grad) for name, each in method.named_parameters())
    return {name for name, grad in named if grad is not None and bool(grad.any())}


def test_a_dense_pass_judges_every_token_of_the_whole_image() -> None:
    method = guided("guidance.read=dense", "guidance.depth_share=1")
    target, pictures = latents(), images()
    loss = method(pictures, masks(), target).parts["loss_depth"]
    tokens = method.context_encoder(pictures)
    assert isinstance(method.guide, FeatureGuide)
    told = method.guide.head(tokens, torch.ones(3, 36), GRID)
    assert torch.allclose(loss, feature_depth_loss(told, target.values, target.valid), atol=1e-6)
    assert torch.equal(method(pictures, masks(), target).parts["loss_depth"], loss)
    parts = {name.partition(".")[0] for name in reached(method, loss)}
    assert parts == {"context_encoder", "guide"}


def test_context_tokens_alone_are_judged_where_they_stand() -> None:
    method, target, where = guided("guidance.read=context"), latents(), masks()
    loss = method(images(), where, target).parts["loss_depth"]
    hidden = torch.ones(3, 36, dtype=torch.bool).scatter(1, where.context, False).view(3, 1, *GRID)
    hidden = hidden.repeat_interleave(2, 2).repeat_interleave(2, 3)
    spoilt = replace(target, values=torch.where(hidden, 100.0, target.values))
    assert torch.equal(method(images(), where, spoilt).parts["loss_depth"], loss)
    seen = replace(target, values=torch.where(hidden, target.values, target.values + 1))
    assert not torch.equal(method(images(), where, seen).parts["loss_depth"], loss)
    assert "predictor" not in {name.partition(".")[0] for name in reached(method, loss)}


def test_both_is_the_mean_of_predicted_and_dense_by_one_head() -> None:
    found = {
        read: guided(f"guidance.read={read}", "guidance.depth_share=1")(images(), masks(), latents()).parts[
            "loss_depth"
        ]
        for read in ("predicted", "dense", "both")
    }
    assert torch.allclose(found["both"], (found["predicted"] + found["dense"]) / 2)
    assert not torch.allclose(found["predicted"], found["dense"])


@pytest.mark.parametrize("read", ["dense", "context"])
def test_a_share_of_the_depth_is_guided_from_there_down(read: str) -> None:
    method = guided(f"guidance.read={read}", "guidance.depth_share=0.5")
    moved = reached(method, method(images(), masks(), latents()).parts["loss_depth"])
    blocks = {name.split(".")[2] for name in moved if ".blocks." in name}
    assert blocks == {"0", "1"}
    # The predictor is given the last layer, whatever is guided.
    whole = guided(f"guidance.read={read}")
    one, other = (each(images(), masks(), latents()).parts["loss_jepa"] for each in (method, whole))
    assert torch.equal(one, other)


def test_two_thirds_of_the_depth_are_read_where_nothing_is_said() -> None:
    for read, deepest in (("dense", "2"), ("context", "3")):
        method = guided(f"guidance.read={read}")
        moved = reached(method, method(images(), masks(), latents()).parts["loss_depth"])
        assert max(name.split(".")[2] for name in moved if ".blocks." in name) == deepest
    assert FeatureGuidance().read == "dense"


def test_predicted_tokens_are_of_the_last_layer_alone() -> None:
    with pytest.raises(BadInput, match=r"depth_share=0\.5 is of the encoder's layers.*guidance\.read=dense or context"):
        guided("guidance.read=predicted", "guidance.depth_share=0.5")


def test_a_detached_head_leaves_the_encoder_alone() -> None:
    for read in ("predicted", "context", "dense", "both"):
        method = guided(f"guidance.read={read}", "guidance.detached=true")
        parts = {
            name.partition(".")[0] for name in reached(method, method(images(), masks(), latents()).parts["loss_depth"])
        }
        assert parts == {"guide"}, read


def test_the_share_of_the_weight_is_a_function_of_progress() -> None:
    at = [0.0, 0.4, 0.45, 0.5, 0.6, 1.0]
    assert [share_of_weight("constant", (0.4, 0.6), each) for each in at] == [1.0] * 6
    assert [share_of_weight("late", (0.4, 0.6), each) for each in at] == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert [share_of_weight("released", (0.4, 0.6), each) for each in at] == pytest.approx([1, 1, 0.75, 0.5, 0, 0])
    assert [share_of_weight("late", (0.5, 0.5), each) for each in (0.49, 0.5)] == [0, 1]
    assert [share_of_weight("late", (0.0, 0.0), each) for each in (0.0, 1.0)] == [1, 1]


@pytest.mark.parametrize("kind", ["feature", "pixel"])
def test_a_schedule_weighs_the_loss_and_not_what_is_logged(kind: str) -> None:
    settings = [*TINY, f"guidance.kind={kind}", "guidance.schedule=released", "guidance.weight=2"]
    settings += [f"loss.{term}=0" for term in ("visible", "pixel", "variance", "covariance")]
    if kind == "pixel":
        settings += ["guidance.head=mlp"]
    config = (
        load_config("demo", settings)
        if kind == "feature"
        else build_config(
            {}, [*settings, "data.image_size=48", "model.patch_size=8", "data.root=scenes", "train.steps=1"]
        )
    )
    method = build_method(config, DepthTeacher() if kind == "feature" else _pixels(config), classes=0)
    assert isinstance(method, JEPA)
    target = latents()
    if kind == "pixel":
        target = Latents(torch.randn(3, 1, 48, 48), torch.ones(3, 1, 48, 48, dtype=torch.bool))
    for progress, share in ((0.2, 1.0), (0.5, 0.5), (0.9, 0.0)):
        found = method(images(), masks(), target, progress=progress)
        expected = found.parts["loss_jepa"] + 2 * share * found.parts["loss_depth"]
        assert found.parts["loss_depth"] > 0
        assert torch.allclose(found.total, expected)


def _pixels(config):
    return build_guidance_teacher(config.guidance, has_depth=True, root="scenes", seed=0)


def test_a_turn_that_ends_before_it_begins_is_refused() -> None:
    for kind in (FeatureGuidance, PixelGuidance):
        with pytest.raises(ValueError, match="it ends before it begins"):
            kind(schedule="late", turn=(0.6, 0.4))


def test_the_rate_of_what_was_frozen_grows_again() -> None:
    config = optim.OptimConfig(lr=1.0, start_lr=0.1, warmup_steps=2)
    plain, thawing = (
        [optim.rates(config, step, steps=20, epoch_steps=5, batch_size=8, thaw=thaw) for step in range(12)]
        for thaw in ((4, 0), (4, 5))
    )
    assert [each["thaw_scale"] for each in plain] == [1.0] * 12
    assert [each["thaw_scale"] for each in thawing] == pytest.approx([0] * 4 + [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert [each["lr"] for each in plain] == [each["lr"] for each in thawing]
    parts = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "guide": torch.nn.Linear(2, 2)})
    optimizer = optim.build_optimizer(parts, config)
    optim.set_rates(optimizer, lr=0.5, head_scale=3.0, decay=0.0, thaw_scale=0.2)
    rates = {(group["role"], group["lr"]) for group in optimizer.param_groups}
    assert rates == {("encoder", 0.1), ("head", 1.5)}


def test_a_run_thaws_with_its_own_rate(tmp_path: Path) -> None:
    """With a thaw so long that nothing moves, the encoder is where it began, and it learns without one."""
    pairs = write_pairs(tmp_path / "pairs")
    settings = ("guidance.kind=feature", "guidance.read=dense", "train.steps=4", "init.frozen_steps=2")
    for name, steps in (("slow", 10**9), ("at once", 0)):
        run(pairs, tmp_path / name, *settings, f"init.thaw_steps={steps}")
    slow, at_once = (metrics(tmp_path / name) for name in ("slow", "at once"))
    assert [row["loss_depth"] for row in slow[:3]] == [row["loss_depth"] for row in at_once[:3]]
    assert slow[3]["loss_jepa"] != at_once[3]["loss_jepa"]


def scene_batch(count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        index=torch.arange(count),
        images=torch.rand(count, 3, 48, 48, generator=generator),
        depth=1 + 9 * torch.rand(count, 1, 48, 48, generator=generator),
        zoom=torch.ones(count),
        labels=torch.full((count,), -1),
    )


def test_a_second_target_has_channels_and_a_weight_of_its_own() -> None:
    config = FeatureGuidance(beside="image", beside_weight=0.25)
    teacher = build_guidance_teacher(config, has_depth=True, root="scenes", seed=0)
    assert isinstance(teacher, SideBySide) and teacher.describe().channels == 8
    batch = scene_batch()
    both = on_cells(teacher, batch, (12, 12))
    own, other = on_cells(DepthTeacher(), batch, (12, 12)), on_cells(ImageItself(DepthTeacher()), batch, (12, 12))
    assert torch.equal(both.values, torch.cat([own.values, other.values], 1))
    built = load_config(
        "demo", [*TINY, "guidance.kind=feature", "guidance.beside=image", "guidance.beside_weight=0.25"]
    )
    method = build_method(built, teacher, classes=0)
    assert isinstance(method, JEPA) and isinstance(method.guide, FeatureGuide)
    told, target = latents(8).values, latents(8, 3)
    target = replace(target, values=target.values.flip(1))
    first, second = (
        feature_depth_loss(told[:, part], target.values[:, part], target.valid[:, part])
        for part in (slice(0, 4), slice(4, 8))
    )
    assert torch.allclose(method.guide.compare(told, target), first + 0.25 * second)


def test_the_same_target_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="the same target twice"):
        FeatureGuidance(control="image", beside="image")


def test_a_run_with_two_targets_is_drawn_and_diagnosed_by_the_teacher_s_own(tmp_path: Path, call) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    run(
        pairs,
        tmp_path / "run",
        "guidance.kind=feature",
        "guidance.read=dense",
        "guidance.beside=random",
        "train.steps=2",
    )
    drawn = np.load(tmp_path / "run" / "figures" / "guidance.npz")
    assert drawn["teacher"].shape[1] == drawn["predicted"].shape[1] == 4


def test_an_unwhitened_target_is_what_the_teacher_says() -> None:
    batch = scene_batch()
    for whiten in (True, False):
        config = FeatureGuidance(whiten=whiten)
        target = Target(DepthTeacher(), (12, 12), config.centre, config.clip)
        target.fit([batch])
        said = on_cells(DepthTeacher(), batch, (12, 12)).values
        assert torch.allclose(target(batch).values, said) is not whiten
        mean = said.mean(0, keepdim=True).expand_as(said)
        if not whiten:
            valid = torch.ones_like(said, dtype=torch.bool)
            assert target.floor == pytest.approx(float(feature_depth_loss(mean, said, valid)), rel=1e-4)


def test_cached_metric_depth_looks_nearer_in_a_crop() -> None:
    values, zoom = torch.full((2, 1, 2, 2), 0.5), torch.tensor([1.0, 2.0])
    assert seen_in_crops(values, zoom, "multiplied")[:, 0, 0, 0].tolist() == [0.5, 1.0]
    assert seen_in_crops(values, zoom, "log added")[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.5 + np.log(2)])
    assert torch.equal(seen_in_crops(values, zoom, "unchanged"), values)


@pytest.mark.parametrize(("zoomed", "factor"), [("multiplied", 2.0), ("unchanged", 1.0)])
def test_a_cache_is_cut_with_the_zoom_of_the_crop(zoomed: str, factor: float, tmp_path: Path) -> None:
    """A crop of the middle half of an image, of a teacher that says 0.25 / m everywhere."""
    told = {**asdict(DepthTeacher().describe()), "channels": 1, "zoomed": zoomed}
    facts = Facts({"teacher": "planted"}, told, "photos", 1, (1, 8, 8))
    create_cache(tmp_path / "latents", facts, ["a"], np.zeros(1, dtype=np.int64))
    write_part(tmp_path / "latents", 0, np.full((1, 1, 8, 8), 0.25, dtype=np.float16))
    write_list(tmp_path / "latents", facts)
    batch = replace(
        scene_batch(1),
        zoom=torch.tensor([2.0]),
        names=("a",),
        boxes=torch.tensor([[0.25, 0.25, 0.5, 0.5]]),
        mirrored=torch.tensor([False]),
    )
    found = CachedTeacher(open_cache(tmp_path / "latents")).batch_latents(batch, (4, 4))
    assert torch.allclose(found.values, torch.full((1, 1, 4, 4), 0.25 * factor)) and found.valid.all()


def test_no_recipe_and_no_study_lets_a_teacher_teach_on_what_it_was_fitted_to() -> None:
    configs = [load_config(recipe) for recipe in recipe_names()]
    for study in study_names():
        asked = load_study(study)
        configs += [build_config(read_recipe(asked.base), asked.settings, arm) for arm in asked.arms.values()]
    configs += [load_config("demo", settings) for settings in demo.RUNS.values()]
    for config in configs:
        if config.data.root.split(":")[0].startswith("scenes"):
            assert seen_by_teacher(config.guidance, source_name(config.data.root)) is None, config.name
    assert teacher_kind("depthfm-tiny").fitted_on == FITTED_ON


def test_the_fit_that_comes_along_says_what_it_was_fitted_to() -> None:
    kept = load_fit()
    assert kept == FITTED_ON


def load_fit() -> str:
    config = yaml.safe_load((Path(__file__).parents[1] / "results" / "depthfm-tiny" / "config.yaml").read_text())
    return source_name(config["data"]["root"])


def test_a_run_is_told_that_its_teacher_knows_its_scenes() -> None:
    tiny_teacher = FeatureGuidance(teacher="depthfm-tiny")
    assert "depthfm-tiny was fitted to the depth of scenes:0 itself" in str(seen_by_teacher(tiny_teacher, "scenes:0"))
    assert seen_by_teacher(tiny_teacher, "photos,scenes:0") is not None
    assert seen_by_teacher(tiny_teacher, "scenes:1") is None
    assert seen_by_teacher(FeatureGuidance(), "scenes:0") is None
