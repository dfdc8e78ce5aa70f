"""Gates: each tells what it was made to tell on planted cases, and the command writes them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from depthjepa import cost
from depthjepa.backbones.vit import OpenedCheckpoint
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.samples import Batch
from depthjepa.depth import r2_within, valid
from depthjepa.evaluation import gates
from depthjepa.evaluation.decoded import load_pixel_guided
from depthjepa.evaluation.gates import Gate, hidden_patches, overfit, position_gate, predicted_tokens
from depthjepa.evaluation.gathering import Views
from depthjepa.evaluation.probes import Subject, run_tasks
from depthjepa.evaluation.probes import gates as task
from depthjepa.faults import BadInput
from depthjepa.guidance.config import PixelGuidance
from depthjepa.kinds import Table
from depthjepa.logbook import RunFolder
from depthjepa.masks import sample_masks
from depthjepa.method import build_encoder, build_method, build_teacher
from depthjepa.model.heads.table import PIXEL_HEADS
from depthjepa.model.vit import sine_cosine
from tiny_images import write_flat, write_pairs
from tiny_runs import Call, run, tiny

CPU = torch.device("cpu")
SIZE, CELLS, WIDTH = 48, 36, 32
TARGET = ("guidance.kind=pixel", "guidance.read=predicted", "guidance.scope=target")
PREDICTED = ("guidance.kind=pixel", "guidance.read=predicted", "masks.kind=mae")
Saved = Callable[..., checkpoint.Checkpoint]


@pytest.fixture(autouse=True)
def quick_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def saved(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Checkpoints of runs of one step, each trained once."""
    place, known = tmp_path_factory.mktemp("runs"), dict[tuple[str, ...], Path]()

    def get(*asked: str) -> checkpoint.Checkpoint:
        if asked not in known:
            known[asked] = place / str(len(known))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
                run(pairs, known[asked], *asked, "train.steps=1", "evaluation.gate_steps=2")
        return load_checkpoint(known[asked])

    return get


def only(*names: str) -> Table:
    """The table of pixel heads with some of its rows."""
    return replace(PIXEL_HEADS, rows=tuple(PIXEL_HEADS.row(name) for name in names))


def test_a_gate_s_head_learns_end_to_end_all_along(pairs: Path) -> None:
    config = tiny(pairs, *TARGET, "guidance.schedule=released", "guidance.detached=true")
    found = gates.with_pixel_head(config, "mlp", "full", "predicted").guidance
    assert isinstance(found, PixelGuidance) and (found.schedule, found.detached) == ("constant", False)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(config: RunConfig, *overrides: str) -> RunConfig:
    return build_config(to_mapping(config), overrides)


def pixels_of(patches: Tensor) -> Tensor:
    """[b, cells] -> [b, 1, h, w]."""
    return patches.view(-1, 1, 6, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_a_gate_passes_at_what_is_wanted_and_a_figure_alone_cannot_fail() -> None:
    passed = [Gate("floor", "x", figure, 0.5).passed for figure in (0.5, 0.49, math.nan)]
    assert passed == [True, False, False] and Gate("floor", "x", -9.0).passed is None
    rows = [
        Gate("floor", "x", figure, wanted).row()["passed"] for figure, wanted in ((1.0, 0.5), (0.1, 0.5), (0.1, None))
    ]
    assert rows == ["yes", "NO", ""]


def plant(monkeypatch: pytest.MonkeyPatch, encode: Callable[[Tensor], Tensor]) -> None:
    monkeypatch.setattr(gates, "encode_with", lambda *_: encode)


def position(config: RunConfig) -> float:
    found = position_gate(config, build_encoder(config), CPU)
    assert found.wanted == 0.9
    return found.figure


def content(images: Tensor) -> Tensor:
    """Tokens that hang on the pixels alone, and say nothing of their place."""
    return torch.randn(len(images), CELLS, WIDTH, generator=source(int(images.sum().double() * 1e3)))


@pytest.mark.parametrize("shape", [[48, 48], [32, 64]])
def test_tokens_that_hold_row_and_column_pass_the_position_gate(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, shape: list[int]
) -> None:
    config = tiny(pairs, f"data.image_size={shape}")
    rows, columns = config.grid
    number = torch.arange(rows * columns)
    place = torch.stack([number // columns, number % columns], -1).float()

    def encode(images: Tensor, known: int = 2) -> Tensor:
        noise = 0.1 * torch.randn(len(images), rows * columns, 5, generator=source(len(images)))
        return torch.cat([place[:, :known].expand(len(images), -1, -1), noise], -1)

    plant(monkeypatch, encode)
    assert position(config) > 0.999
    plant(monkeypatch, lambda images: encode(images, 1))  # the row alone
    assert position(config) == pytest.approx(0.5, abs=0.03)


def test_tokens_that_do_not_say_where_they_are_fail_it(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, content)
    assert -0.3 < position(tiny(pairs)) < 0.1
    positions = sine_cosine(WIDTH, (6, 6))
    plant(monkeypatch, lambda images: content(images) + positions)
    assert 0.3 < position(tiny(pairs)) < 0.9
    plant(monkeypatch, lambda images: 0.05 * content(images) + positions)
    assert position(tiny(pairs)) > 0.95


def test_position_is_judged_on_validation_images(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that knows its place in training images alone does not pass."""
    config = tiny(pairs)
    learnt = torch.cat([batch.images for batch in Views(config, "train")()])
    positions = sine_cosine(WIDTH, (6, 6))

    def encode(images: Tensor) -> Tensor:
        known = torch.tensor([any(torch.equal(image, each) for each in learnt) for image in images])
        return torch.where(known[:, None, None], positions.expand(len(images), -1, -1), content(images))

    plant(monkeypatch, encode)
    assert position(config) < 0.5


@pytest.mark.parametrize("asked", [TARGET, PREDICTED, (*TARGET, "predictor.blocks=together")])
def test_depth_is_hidden_but_at_targets_and_predicted_tokens_stand_there(saved: Saved, asked: tuple[str, ...]) -> None:
    run_of = saved(*asked)
    config = changed(run_of.config, "evaluation.batch_size=5")
    predicted = predicted_tokens(config, run_of, CPU)
    assert predicted is not None
    model = load_pixel_guided(run_of, CPU)
    batches = list(Views(config, "val")())
    assert [len(batch.index) for batch in batches] == [5, 3]
    for batch, given in zip(batches, list(hidden_patches(config, batches, CPU)), strict=True):
        indices = batch.index.numpy()
        masks = sample_masks(config.masks, config.grid, seed=config.seed, epoch=0, indices=indices, batch_index=0)
        hidden = torch.zeros(len(indices), CELLS, dtype=torch.bool)
        for image, block, place in np.ndindex(*masks.targets.shape):
            if masks.valid is None or masks.valid[image, block, place]:
                hidden[image, masks.targets[image, block, place]] = True
        assert not hidden.gather(1, masks.context).any() and 0 < hidden.sum() < hidden.numel()
        assert batch.depth is not None and given.depth is not None
        assert torch.equal(given.depth, batch.depth * pixels_of(hidden))
        assert torch.equal(given.images, batch.images)
        with torch.no_grad():
            tokens = predicted.read(given)
            normal = model.context_encoder.normalise(batch.images)
            joined = masks.joined(CELLS)
            told = model.predictor(model.context_encoder(normal, joined.context), joined).targets
        assert (tokens[~hidden] == 0).all()
        if asked != TARGET:  # where there is one sequence a patch is told of once
            there = torch.ones_like(joined.targets, dtype=torch.bool) if joined.valid is None else joined.valid
            for image, place in np.ndindex(*joined.targets[:, 0].shape):
                if there[image, 0, place]:
                    expected = told[image, 0, place]
                    torch.testing.assert_close(tokens[image, joined.targets[image, 0, place]], expected)
        assert (tokens[hidden].norm(dim=-1) > 0).all()


def test_predicted_tokens_are_those_of_training_where_each_block_has_its_sequence(saved: Saved) -> None:
    """A predictor that was trained block by block is asked block by block; overlaps are averaged."""
    run_of = saved(*TARGET)
    config = run_of.config
    predicted, model = predicted_tokens(config, run_of, CPU), load_pixel_guided(run_of, CPU)
    assert predicted is not None
    (batch,) = Views(config, "val")()
    indices = batch.index.numpy()
    masks = sample_masks(config.masks, config.grid, seed=config.seed, epoch=0, indices=indices, batch_index=0)
    assert masks.valid is not None
    (given,) = hidden_patches(config, [batch], CPU)
    with torch.no_grad():
        tokens = predicted.read(given)
        normal = model.context_encoder.normalise(batch.images)
        told = model.predictor(model.context_encoder(normal, masks.context), masks).targets
    for image in range(len(indices)):
        for patch in masks.targets[image][masks.valid[image]].unique():
            expected = told[image][(masks.targets[image] == patch) & masks.valid[image]].mean(0)
            torch.testing.assert_close(tokens[image, patch], expected, atol=1e-6, rtol=1e-4)


def test_without_a_predictor_or_on_another_grid_nothing_is_predicted(saved: Saved) -> None:
    run_of = saved(*TARGET)
    assert predicted_tokens(changed(run_of.config, "data.image_size=[40, 64]"), run_of, CPU) is None
    bare = {name: value for name, value in run_of.model.items() if not name.startswith("predictor.")}
    assert predicted_tokens(run_of.config, replace(run_of, model=bare), CPU) is None


def waves(count: int = 2) -> Batch:
    """Images whose first channel shows depth, which differs everywhere from image to image."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    turns = [((n + 1) * row + (2 - n) * column) / SIZE / 1.5 for n in range(count)]
    depth = torch.stack([3 + 1.5 * torch.sin(2 * math.pi * turn + 2 * n) for n, turn in enumerate(turns)])[:, None]
    images = torch.cat([(depth - 1) / 4, torch.rand(count, 2, SIZE, SIZE, generator=source())], 1)
    return Batch(torch.arange(count), images, depth, torch.ones(count), torch.full((count,), -1))


def fit(saved: checkpoint.Checkpoint, batch: Batch, *overrides: str, frozen: bool = False) -> tuple[float, np.ndarray]:
    config = changed(saved.config, "guidance.kind=pixel", "guidance.head=mlp", *overrides)
    return overfit(config, saved, batch, CPU, "fit", frozen=frozen)


def test_a_few_images_are_repeated_end_to_end_and_not_by_the_head_alone(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "LR", 1e-2)
    monkeypatch.setattr(gates, "LOOK_EVERY", 20)
    unguided, batch = saved(), waves()
    steps = ("guidance.read=dense", "evaluation.gate_steps=60")
    reached, maps = fit(unguided, batch, *steps)
    assert reached > 0.95
    # What it says it reached is what its maps are worth.
    assert batch.depth is not None
    truth = batch.depth.log().flatten(1)
    known = torch.ones_like(truth, dtype=torch.bool)
    expected = r2_within(-torch.from_numpy(maps).log().flatten(1), truth, known, truth.mean(0))
    assert maps.shape == (2, SIZE, SIZE) and reached == pytest.approx(expected, abs=1e-5)
    alone, _ = fit(unguided, batch, *steps, frozen=True)
    assert alone < reached - 0.1


def test_the_figure_is_that_of_pixels_that_count_and_of_the_checkpoint_s_weights(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one step of next to no length: maps of predicted tokens are nan where nothing was predicted."""
    monkeypatch.setattr(gates, "LR", 1e-9)
    run_of, batch = saved(*TARGET), waves(3)
    started: list[dict[str, Tensor]] = []
    honest = gates.take_over

    def watched(method: Any, config: RunConfig, saved: checkpoint.Checkpoint) -> str:
        said = honest(method, config, saved)
        started.append({name: value.clone() for name, value in method.state_dict().items()})
        return said

    monkeypatch.setattr(gates, "take_over", watched)
    reached, maps = fit(run_of, batch, *TARGET, "evaluation.gate_steps=1")
    assert all(torch.equal(started[0][k], v) for k, v in run_of.model.items() if not k.startswith("guide."))
    indices = batch.index.numpy()
    shown = gates.draw(changed(run_of.config, *TARGET), batch, 10**6, CPU)
    assert shown.valid is not None
    hidden = torch.zeros(3, CELLS, dtype=torch.bool)
    for image in range(len(indices)):
        hidden[image, shown.targets[image][shown.valid[image]]] = True
    assert np.array_equal(np.isfinite(maps), pixels_of(hidden)[:, 0].numpy())
    assert -0.5 < reached < 0.2


@pytest.mark.parametrize("asked", ["guidance.weight=0", "guidance.loss=ssi"])
def test_what_is_overfitted_is_metric_depth_whatever_the_run_was_asked_for(pairs: Path, asked: str) -> None:
    """Without weight no head learns, and a loss free of scale cannot repeat what is judged in metres."""
    guidance = gates.with_pixel_head(tiny(pairs, "guidance.kind=pixel", asked), "mlp", "full", "predicted").guidance
    assert guidance.weight > 0 and guidance.loss != "ssi"


def test_pixels_without_depth_are_not_judged(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LR", 1e-9)
    batch = waves()
    assert batch.depth is not None
    holes = torch.rand(batch.depth.shape, generator=source(3)) > 0.7
    spoilt = [replace(batch, depth=torch.where(holes, value, batch.depth)) for value in (0.0, math.nan, -5.0)]
    assert spoilt[0].depth is not None and not valid(spoilt[0].depth).all()
    found = [fit(saved(), each, "guidance.read=dense", "evaluation.gate_steps=1") for each in spoilt]
    assert math.isfinite(found[0][0]) and [each[0] for each in found[1:]] == [found[0][0]] * 2
    guess, known = -torch.from_numpy(found[0][1]).log().flatten(1), valid(spoilt[0].depth).flatten(1)
    truth = torch.where(known, torch.where(known, spoilt[0].depth.flatten(1), 1).log(), 0)
    mean = torch.where(known.any(0), truth.sum(0) / known.sum(0).clamp(min=1), truth[known].mean())
    assert found[0][0] == pytest.approx(r2_within(guess, truth, known, mean), abs=1e-5)


def test_diagnose_gates_writes_every_gate_and_what_failed(
    saved: Saved, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(PIXEL_HEADS.names) == ["mlp", "cnn", "deep-cnn", "dpt"]
    monkeypatch.setattr(gates, "PIXEL_HEADS", only("mlp", "dpt"))  # the others take time and are made alike
    monkeypatch.setattr(task, "IMAGES", 3)
    folder = saved(*TARGET).run
    assert folder is not None
    status, out, _ = call("diagnose", folder, "--gates", "--out", tmp_path / "gates.json")
    assert status == 0
    table = RunFolder(folder).probe("gates")
    assert (tmp_path / "gates.json").read_text() == (folder / "probes" / "gates.json").read_text()
    rows = {row["name"]: row for row in table["rows"]}
    wanted = {"floor: R² over the mean map of the last block", "position: R² of row and column"}
    wanted |= {
        f"input swap: {name}"
        for name in ("raw patches", "random encoder", "predicted tokens", "target encoder, whole image")
    }
    wanted |= {"layers: block 1", "layers: block 2 (last)"}
    for head in ("mlp", "dpt"):
        wanted |= {f"overfit: {head}, {s}, {how}" for s in ("target", "full") for how in ("end to end", "frozen")}
        wanted.add(f"overfit: {head}, tokens of the whole image, end to end")  # two steps do not overfit
    assert rows.keys() == wanted and len(table["rows"]) == len(wanted)
    assert [row["name"].partition(":")[0] for row in table["rows"]][:2] == ["floor", "position"]
    assert call("show", "gates", folder, "--out", tmp_path / "gates.png")[0] == 0
    with Image.open(tmp_path / "gates.png") as drawn:
        assert min(drawn.size) > 100
    for row in table["rows"]:
        assert math.isfinite(row["figure"])
        judged = row["wanted"] is not None
        assert row["passed"] == ("" if not judged else "yes" if row["figure"] >= row["wanted"] else "NO")
    failed = [row["name"] for row in table["rows"] if row["passed"] == "NO"]
    assert len(failed) >= 6
    for name in failed:
        assert any(sentence.startswith(f"failed: {name}: ") for sentence in table["verdict"]), name
        assert f"failed: {name}" in out
    assert any(sentence.startswith("depth is read best after block") for sentence in table["verdict"])
    with np.load(folder / "probes" / "gates.npz") as arrays:
        assert arrays["maps"].shape == (4, 3, SIZE, SIZE) and len(arrays["names"]) == 4
        assert arrays["truth"].shape == (3, SIZE, SIZE)
        # Scope target shows what was predicted alone, scope full everything.
        finite = {
            str(name): np.isfinite(maps).mean() for name, maps in zip(arrays["names"], arrays["maps"], strict=True)
        }
    assert all((share == 1) == name.endswith("full") for name, share in finite.items())


def test_the_readouts_of_the_table_are_those_of_the_depth_probe(saved: Saved, call: Call) -> None:
    folder = saved(*TARGET).run
    assert folder is not None
    assert call("probe", folder, "depth")[0] == 0
    assert call("diagnose", folder, "--gates", "evaluation.gate_steps=0")[0] == 0
    rows = {row["name"]: row["figure"] for row in RunFolder(folder).probe("gates")["rows"]}
    assert not any(name.startswith("overfit") for name in rows)
    own = next(row for row in RunFolder(folder).probe("depth")["rows"] if row["name"] == "tiny")
    assert rows["layers: block 2 (last)"] == pytest.approx(own["r2_within"], abs=1e-6)
    assert rows["floor: R² over the mean map of the last block"] == pytest.approx(own["r2_position"], abs=1e-6)


@pytest.mark.parametrize(
    "asked",
    [
        ("guidance.kind=pixel", "loss.latent=0"),
        ("guidance.kind=pixel", "guidance.layers=[0.5, 1.0]"),
    ],
    ids=["depth alone", "layers"],
)
def test_gates_are_for_any_pixel_guided_run(
    saved: Saved, call: Call, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    monkeypatch.setattr(gates, "PIXEL_HEADS", only("mlp"))

    def built(config: RunConfig, *_: Any, **__: Any) -> tuple[float, np.ndarray]:
        build_method(config, build_teacher(config, has_depth=True), 0)
        return 1.0, np.zeros((8, SIZE, SIZE))

    monkeypatch.setattr(gates, "overfit", built)
    folder = saved(*asked).run
    assert folder is not None
    status, _, errors = call("diagnose", folder, "--gates")
    assert (status, errors) == (0, "")


def test_gates_need_depth(saved: Saved, tmp_path: Path) -> None:
    flat = write_flat(tmp_path / "flat", 9, 56)
    run_of = saved(*TARGET)
    config = changed(run_of.config, f"data.root={flat}", "data.kind=null")
    subject = Subject(config, run_of.encoder(), CPU, OpenedCheckpoint(run_of))
    with pytest.raises(BadInput, match=r"the gates probe needs depth, and .*flat has none: give an RGB-D folder"):
        list(run_tasks([task.TASK], subject))
