"""Who has learned depth, the encoder or its head alone, is told by figures that planted runs are caught by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from depthjepa import cost
from depthjepa.backbones.vit import OpenedCheckpoint
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.run_config import RunConfig
from depthjepa.evaluation import guidance
from depthjepa.evaluation.gathering import Views
from depthjepa.evaluation.guidance import head_did_it_alone, layer_figures, load_guided, pull_on_encoder
from depthjepa.evaluation.pictures import picture_masks
from depthjepa.evaluation.probes import Subject
from depthjepa.evaluation.probes.guidance import TASK
from depthjepa.faults import BadInput
from depthjepa.grid import to_tokens
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.feature import FeatureGuide
from depthjepa.guidance.target import on_cells
from depthjepa.guidance.teachers.controls import AnotherImage, ImageItself, MeanMap, SideBySide
from depthjepa.guidance.teachers.ground_truth import DepthTeacher
from depthjepa.logbook import RunFolder
from depthjepa.method import build_encoder
from tiny_images import write_classes, write_pairs
from tiny_runs import GUIDED, Call, run, tiny

RunOf = Callable[[str], Path]

CPU = torch.device("cpu")
WHOLE = ("optim.lr=0.003", "train.steps=150", "data.crop_scale=[1.0, 1.0]")
STRONG = (*GUIDED, "guidance.head=conv", "guidance.detached=true", *WHOLE)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 96, 12)


@pytest.fixture(scope="module")
def run_of(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """Runs by their names, each trained once it is asked for."""
    place = tmp_path_factory.mktemp("runs")
    settings = {
        "alone": (*STRONG, "name=alone"),  # a head that learns alone
        "twin": (*WHOLE, "name=twin"),  # unguided, of as many steps
        "unguided": ("train.steps=2", "name=unguided"),
        "guided": (*GUIDED, "train.steps=2", "name=guided"),
        "pixel": ("guidance.kind=pixel", "guidance.weight=0.5", "train.steps=2", "name=pixel"),
        "beside": (*GUIDED, "guidance.read=dense", "guidance.beside=random", "train.steps=2", "name=beside"),
        "another": (*GUIDED, "guidance.control=another", "train.steps=2", "evaluation.pictures=2", "name=another"),
        "control": (*GUIDED, "guidance.control=random", "train.steps=2", "name=control"),
    }

    @functools.cache
    def get(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
            run(pairs, place / name, *settings[name])
        return place / name

    return get


def guidance_tables(config: RunConfig, saved: Checkpoint, against: Checkpoint | None) -> list[dict[str, Any]]:
    """What the task `guidance` writes."""
    subject = Subject(config, saved.encoder(config.evaluation.which), CPU, OpenedCheckpoint(saved), against)
    return [result.table for result in TASK.run(subject)]


def planted(pairs: Path, monkeypatch: pytest.MonkeyPatch, features: Callable[[Tensor], list[Tensor]]) -> list[Any]:
    """Figures of blocks whose tokens are those that `features` makes of each patch's latents [b, n, c]."""
    config = tiny(pairs)
    encoder, cells = build_encoder(config), (2 * config.grid[0], 2 * config.grid[1])
    views, heard, known = [Views(config, split) for split in ("train", "val")], [], {}
    for batches in views:
        truths = [(batch, on_cells(DepthTeacher(), batch, cells)) for batch in batches()]
        for batch, truth in truths:
            tokens = to_tokens(F.pixel_unshuffle(truth.values, 2))
            known |= {image.numpy().tobytes(): each for image, each in zip(batch.images, tokens, strict=True)}
        values, valid = (torch.cat([getattr(truth, name) for _, truth in truths]) for name in ("values", "valid"))
        heard.append(guidance.Latents(values, valid))
    monkeypatch.setattr(encoder, "normalise", lambda images: images)
    monkeypatch.setattr(
        encoder, "features", lambda images, _: features(torch.stack([known[each.numpy().tobytes()] for each in images]))
    )
    return layer_figures(encoder, config, *views, *heard, CPU)


def test_a_block_that_holds_the_latents_is_told_from_one_that_holds_none(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)

    def features(latents: Tensor) -> list[Tensor]:
        place = torch.eye(latents.shape[1]).expand(len(latents), -1, -1)
        none = torch.randn(latents.shape, generator=random)
        return [torch.cat([none, place], -1), torch.cat([latents, place], -1)]

    without, holding = planted(pairs, monkeypatch, features)
    assert holding["r2_within"] > 0.99 and without["r2_within"] < 0.05
    assert holding["cka_selectivity"] > 0.5 and abs(without["cka_selectivity"]) < 0.1


def test_a_head_that_did_it_alone_is_named_with_both_figures() -> None:
    own, other = [{"r2_within": 0.11}, {"r2_within": 0.2}], [{"r2_within": 0.19}]
    (said,) = head_did_it_alone({"r2_within": 0.5}, own, other, "twin")
    assert "the head did it alone" in said and "0.50" in said and "0.200" in said and "0.190 of twin's" in said
    assert head_did_it_alone({"r2_within": 0.5}, own, [{"r2_within": 0.1}], "twin") == []  # the encoder knows more
    assert head_did_it_alone({"r2_within": 0.05}, own, other, "twin") == []  # nobody has learned anything


@pytest.mark.slow
def test_a_strong_head_on_a_frozen_gradient_is_caught(pairs: Path, run_of: RunOf) -> None:
    """The planted failure: the loss falls and the maps are good, and the encoder is that of the unguided twin."""
    saved, twin = load_checkpoint(run_of("alone")), load_checkpoint(run_of("twin"))
    maps, layers, alignment = guidance_tables(saved.config, saved, twin)
    row = {entry["name"]: entry for entry in maps["rows"]}["alone"]
    assert row["floor_ratio"] < 0.9 and row["r2_within"] > guidance.SAID
    assert row["pull"] == 0
    assert any("the head did it alone" in sentence for sentence in maps["verdict"])
    for content in (layers, alignment):
        rows = {entry["name"]: entry for entry in content["rows"]}
        assert list(rows) == ["random encoder", "twin", "alone"]
        for block in ("block_1", "block_2"):
            assert rows["alone"][block] == pytest.approx(rows["twin"][block], abs=1e-3)


def test_the_pull_grows_with_the_weight(run_of: RunOf) -> None:
    saved = load_checkpoint(run_of("guided"))
    (batch,) = Views(saved.config, "val")()
    batch = replace(batch, masks=picture_masks(saved.config, batch))
    found = []
    for factor in (1.0, 2.0):
        method, teacher = load_guided(saved, CPU)
        assert isinstance(method.guide, FeatureGuide)
        method.guide.config = replace(method.guide.config, weight=factor * method.guide.weight)
        truth = on_cells(teacher, batch, saved.config.target_cells)
        found.append(pull_on_encoder(method, batch, truth))
    assert found[1]["pull"] == pytest.approx(2 * found[0]["pull"], rel=1e-4)
    assert found[1]["pull_cosine"] == pytest.approx(found[0]["pull_cosine"], abs=1e-5)
    assert -1 <= found[0]["pull_cosine"] <= 1


def test_guidance_that_was_released_is_told_with_its_whole_weight(run_of: RunOf) -> None:
    saved = load_checkpoint(run_of("guided"))
    (batch,) = Views(saved.config, "val")()
    batch = replace(batch, masks=picture_masks(saved.config, batch))
    method, teacher = load_guided(saved, CPU)
    assert isinstance(method.guide, FeatureGuide)
    truth, found = on_cells(teacher, batch, saved.config.target_cells), []
    for schedule in ("constant", "released"):
        method.guide.config = replace(method.guide.config, schedule=schedule, turn=(0.2, 0.5))
        found.append(pull_on_encoder(method, batch, truth))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_what_stands_beside_another_s_depth_stays_beside_its_own() -> None:
    own, picture = DepthTeacher(), ImageItself(DepthTeacher())
    found = guidance._own_depth(SideBySide(AnotherImage(own), picture))
    assert isinstance(found, SideBySide) and found.first is own and found.second is picture
    kept = SideBySide(own, picture)
    assert guidance._own_depth(kept) is kept and guidance._own_depth(MeanMap(own)) is own


def test_a_last_image_alone_does_not_keep_another_s_depth_from_being_judged(run_of: RunOf) -> None:
    saved = load_checkpoint(run_of("another"))
    config = replace(saved.config, evaluation=replace(saved.config.evaluation, batch_size=11))  # of 12
    assert guidance_tables(config, saved, None)[0]["rows"][1]["pull"] > 0


def test_of_two_targets_the_teacher_s_own_is_judged(run_of: RunOf) -> None:
    saved = load_checkpoint(run_of("beside"))
    figures = guidance_tables(saved.config, saved, None)[0]["rows"][1]
    bias = saved.model["guide.head.project.bias"]
    for part, moves in ((slice(len(bias) // 2, None), False), (slice(0, len(bias) // 2), True)):
        changed = replace(saved, model=saved.model | {"guide.head.project.bias": bias.clone()})
        changed.model["guide.head.project.bias"][part] += 5
        found = guidance_tables(changed.config, changed, None)[0]["rows"][1]
        assert (found["floor_ratio"] != pytest.approx(figures["floor_ratio"])) is moves


def test_pixel_heads_are_judged_pixel_by_pixel_and_controls_by_their_features_alone(run_of: RunOf) -> None:
    pixel = load_checkpoint(run_of("pixel"))
    assert [content["task"] for content in guidance_tables(pixel.config, pixel, None)] == [
        "guidance",
        "guidance-layers",
        "guidance-alignment",
    ]
    control = load_checkpoint(run_of("control"))
    tables = guidance_tables(control.config, control, None)
    assert [content["task"] for content in tables] == ["guidance-layers", "guidance-alignment"]
    assert "(depth; " in tables[0]["protocol"]  # the truth, not the random network


def test_a_head_that_learned_another_image_s_depth_is_held_against_the_image_s_own(run_of: RunOf) -> None:
    saved = load_checkpoint(run_of("guided"))
    assert isinstance(saved.config.guidance, FeatureGuidance)
    config = replace(saved.config, guidance=replace(saved.config.guidance, control="another"))
    own, found = (
        guidance_tables(each.config, each, None)[0]["rows"][1] for each in (saved, replace(saved, config=config))
    )
    assert found["floor_ratio"] == own["floor_ratio"] and found["r2_within"] == own["r2_within"]
    assert found["pull"] != own["pull"]  # of the loss that it was trained by


@pytest.mark.slow
def test_diagnose_writes_what_guidance_did(run_of: RunOf, tmp_path: Path, call: Call) -> None:
    status, output, _ = call("diagnose", run_of("guided"), "--against", run_of("twin"))
    assert status == 0
    for task in ("diagnose", "guidance", "guidance-layers", "guidance-alignment"):
        assert RunFolder(run_of("guided")).probe(task)["task"] == task
        assert f"{task} on " in output
    assert "own head under masks" in RunFolder(run_of("guided")).probe("guidance")["protocol"]
    status, output, _ = call("diagnose", run_of("twin"))
    assert status == 0 and "guidance" not in output
    status, output, _ = call("diagnose", run_of("twin"), "--against", run_of("guided"))
    assert status == 0 and "guidance-layers" in output and "guidance on " not in output


def test_what_cannot_be_judged_is_left_out_or_named(run_of: RunOf, pairs: Path, tmp_path: Path, call: Call) -> None:
    classes = write_classes(tmp_path / "classes")
    status, output, _ = call("diagnose", run_of("guided"), "--data", classes)
    assert status == 0 and "guidance" not in output  # ground truth taught, and here there is none
    status, _, errors = call("diagnose", run_of("guided"), "--against", run_of("unguided"), "--data", classes)
    assert status == 2 and "guidance is judged by depth" in errors
    run(pairs, tmp_path / "coarse", "train.steps=1", "model.patch_size=16", "data.image_size=96")
    status, _, errors = call("diagnose", run_of("guided"), "--against", tmp_path / "coarse")
    assert status == 2 and "patches of 16 px" in errors and "same cells" in errors
    saved = load_checkpoint(run_of("guided"))
    with pytest.raises(BadInput, match=r"knows \(6, 6\) patches alone"):
        guidance_tables(tiny(pairs, *GUIDED, "data.image_size=32"), saved, None)
