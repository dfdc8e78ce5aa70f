"""The field's depth readouts on planted tokens, against hand computations, and as the command runs them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthjepa import cli
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.config.reading import build_config
from depthjepa.data.groups import FOLDS, Division, Places
from depthjepa.data.samples import Batch
from depthjepa.depth import align_scale_shift, metrics
from depthjepa.evaluation import depth_readouts, tokens
from depthjepa.evaluation.depth_probe import DepthTable
from depthjepa.evaluation.depth_readouts import (
    KINDS,
    BinReadout,
    Plan,
    encode_layers,
    expected_depth,
    fit,
    layers_of,
    readout_loss,
    readout_tables,
)
from depthjepa.evaluation.features import Encode
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.evaluation.probes import probe_run
from depthjepa.evaluation.probes.depth import COLUMNS
from depthjepa.evaluation.readout import DepthReadout
from depthjepa.faults import BadInput
from depthjepa.losses import gradient_loss, sig_loss
from depthjepa.method import build_encoder
from tiny_images import write_flat, write_pairs
from tiny_runs import run, tiny

PATCH, GRID = 4, (3, 4)
SIZE = (PATCH * GRID[0], PATCH * GRID[1])
WIDTH = 8  # of one layer
LAYERS = {"linear": 1, "linear4": 4, "dpt": 4}


class Planted:
    """Depth of 1 to 6 m, bilinear between patches, which the images show; some pixels are unknown."""

    def __init__(self, count: int, seed: int, holes: float = 0.1) -> None:
        draw = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, 1, *GRID, generator=draw) * 1.4 + torch.rand(count, 1, 1, 1, generator=draw) * 0.4
        truth = F.interpolate(coarse.exp(), SIZE, mode="bilinear", align_corners=False)
        shown = F.interpolate(coarse, SIZE)
        self.images = torch.cat([shown / 5 + 0.2, torch.rand(count, 2, *SIZE, generator=draw)], 1)
        self.depth = torch.where(torch.rand(count, 1, *SIZE, generator=draw) >= holes, truth, 0)

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self) -> Iterator[Batch]:
        return self.chosen(torch.arange(len(self)))

    def chosen(self, numbers: torch.Tensor) -> Iterator[Batch]:
        for part in torch.split(numbers, 20):
            yield Batch(part, self.images[part], self.depth[part], torch.ones(len(part)), torch.full((len(part),), -1))


def tokens_of(layers: int, telling: bool) -> Encode:
    """Noise tokens of the images; if `telling`, half of the channels are multiples of the patch's log depth."""

    def encode(images: torch.Tensor) -> torch.Tensor:
        noise = torch.sin(1000 * F.unfold(images[:, 1:], PATCH, stride=PATCH).transpose(1, 2))
        levels = noise[..., : layers * WIDTH].unflatten(2, (layers, WIDTH)).clone()
        if telling:
            shown = F.avg_pool2d(images[:, :1], PATCH).flatten(1)[..., None, None]
            levels[..., : WIDTH // 2] = shown * torch.tensor([1.0, -1.0, 2.0, -2.0])
        return levels.flatten(2)

    return encode


def plan_of(kind: str, steps: int, **changes: object) -> Plan:
    return replace(Plan(kind, SIZE, PATCH, steps, pictures=1000), **changes)  # type: ignore[arg-type]


def table_of(plan: Plan, train: Planted, val: Planted) -> DepthTable:
    layers = LAYERS[plan.kind]
    encoders = {"noise": tokens_of(layers, False), "telling": tokens_of(layers, True)}
    (found,) = readout_tables(encoders, train, val, places(len(train), len(val)), plan)
    return found


def rows_of(found: DepthTable) -> list[dict[str, float | str]]:
    """The rows but that of the scene map, which is not known here, and figures of it."""
    return [
        {key: value for key, value in row.items() if key != "r2_beyond_scene"}
        for row in found.rows
        if row["name"] != "scene map"
    ]


def places(train: int, val: int) -> Places:
    """Image i is in fold i modulo five; no scene is known."""
    folds = Division(np.arange(train) % FOLDS, "5 groups")
    return Places(("planted",), np.zeros(train, np.int64), np.zeros(val, np.int64), folds, {}, {})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bins and a faster DPT head: fewer steps."""
    monkeypatch.setattr(depth_readouts, "BINS", 16)
    monkeypatch.setitem(depth_readouts.RATES, "dpt", (0.01,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("quick")
def test_tokens_that_hold_log_depth_are_decoded_and_noise_is_worth_the_mean_map(kind: str) -> None:
    found = table_of(plan_of(kind, steps=60 if kind == "dpt" else 250), Planted(100, 0), Planted(40, 1))
    rows = {str(row["name"]): row for row in found.rows}
    assert list(rows) == ["mean map", "scene map", "noise", "telling"]
    assert rows["telling"]["delta1"] > 0.95 and rows["telling"]["r2_within"] > 0.9, rows["telling"]
    assert float(rows["telling"]["absrel"]) < 0.08, rows["telling"]
    # Worth as much, less what a readout of many weights makes of the noise of 100 images.
    noise, known = rows["noise"], rows["mean map"]
    assert -0.5 < float(noise["r2_within"]) < 0.05 and abs(float(noise["delta1"]) - float(known["delta1"])) < 0.1, noise
    assert abs(float(noise["aligned_absrel"]) - float(known["aligned_absrel"])) < 0.02, noise
    assert rows["mean map"]["r2_within"] == 0 and rows["mean map"]["rate"] == "–"


def test_the_mean_over_bins_is_as_computed_by_hand() -> None:
    scores = torch.tensor([[1.0, -2.0, 0.4], [-1.0, -1.0, -1.0]]).view(2, 3, 1, 1)
    found = expected_depth(scores, torch.tensor([1.0, 2.0, 6.0]))
    assert found.shape == (2, 1, 1, 1)
    assert found.flatten().tolist() == pytest.approx([(1.1 * 1 + 0.1 * 2 + 0.5 * 6) / 1.7, 3.0])
    centres = BinReadout("linear", 4, 2.0, 12.24).centres
    assert len(centres) == 256
    torch.testing.assert_close(centres[:3], torch.tensor([2.02, 2.06, 2.10]))
    torch.testing.assert_close(centres[-1], torch.tensor(12.22))


def test_enlarging_scores_is_enlarging_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, 12, 6, generator=draw)
    readout = BinReadout("linear", 6, 1.0, 9.0).eval()
    assert isinstance(readout.scores, torch.nn.Conv2d)
    with torch.no_grad():
        readout.scores.weight.normal_(generator=draw)
        maps = values.transpose(1, 2).reshape(2, 6, *GRID) / math.sqrt(1 + readout.norm.eps)
        enlarged = F.interpolate(maps, scale_factor=4, mode="bilinear")
        expected = expected_depth(readout.scores(enlarged), readout.centres)
        torch.testing.assert_close(readout(values, GRID, SIZE), expected, rtol=1e-5, atol=1e-5)
        coarse = readout(values, GRID, (6, 8))
        torch.testing.assert_close(coarse, F.interpolate(expected, (6, 8), mode="bilinear"), rtol=1e-5, atol=1e-5)


def test_batch_norm_ends_with_the_statistics_of_the_tokens() -> None:
    train, encode = Planted(64, 0), tokens_of(1, True)
    readout, _ = fit(encode, train, places(64, 0).folds, plan_of("linear", steps=8), 0.5, 9.0)
    flat = encode(train.images).flatten(0, 1)
    assert readout.norm.running_mean is not None and readout.norm.running_var is not None
    torch.testing.assert_close(readout.norm.running_mean, flat.mean(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(readout.norm.running_var, flat.var(0), rtol=0.02, atol=0)


@pytest.mark.usefixtures("quick")
def test_the_validation_images_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[dict[str, torch.Tensor], float]] = []

    def remembered(*arguments: object) -> tuple[BinReadout, float]:
        readout, rate = fit(*arguments)  # type: ignore[arg-type]
        fitted.append((readout.state_dict(), rate))
        return readout, rate

    monkeypatch.setattr(depth_readouts, "fit", remembered)
    train, val, garbage = Planted(40, 0), Planted(20, 1), Planted(20, 1)
    garbage.depth = 1e-2 + 1000 * torch.rand(garbage.depth.shape, generator=torch.Generator().manual_seed(5))
    tables = [table_of(plan_of("linear", steps=20), train, each) for each in (val, garbage)]
    assert rows_of(tables[0]) != rows_of(tables[1])
    for (first, rate), (second, same) in zip(fitted[:2], fitted[2:], strict=True):
        assert rate == same and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("quick")
def test_the_rate_is_the_best_on_a_fold_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    train, encode, plan = Planted(40, 0), tokens_of(1, True), plan_of("linear", steps=80)
    folds = places(40, 0).folds
    for rates in ((1e-9, 0.3), (0.3, 1e-9)):
        monkeypatch.setitem(depth_readouts.RATES, "linear", rates)
        assert fit(encode, train, folds, plan, 0.5, 9.0)[1] == 0.3
    # Where the images held out tell the opposite of the others, learning nothing is best for them.
    aside = torch.arange(40) % 5 == 0
    train.depth[aside] = torch.where(train.depth[aside] > 0, 6 / train.depth[aside], 0)
    assert fit(encode, train, folds, plan, 0.5, 9.0)[1] == 1e-9


@pytest.mark.usefixtures("quick")
def test_the_seed_decides_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, plan = Planted(40, 0), Planted(20, 1), plan_of("linear4", steps=10)
    state = torch.get_rng_state()
    first = rows_of(table_of(plan, train, val))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert rows_of(table_of(plan, train, val)) == first
    assert rows_of(table_of(replace(plan, seed=1), train, val)) != first


@pytest.mark.usefixtures("quick")
def test_tokens_without_room_are_encoded_anew_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, plan = Planted(45, 0), Planted(20, 1), plan_of("linear", steps=30)
    kept = table_of(plan, train, val)
    image = GRID[0] * GRID[1] * WIDTH * 2 + 4 * SIZE[0] * SIZE[1]
    for room, kind in ((45 * image, tokens.KeptPairs), (45 * image - 1, tokens.ComputedPairs)):
        monkeypatch.setattr(tokens, "KEPT_BYTES", room)
        assert isinstance(tokens.pairs_of(tokens_of(1, True), train)[0], kind)
    anew = table_of(plan, train, val)
    for first, second in zip(rows_of(kept), rows_of(anew), strict=True):
        for key in ("absrel", "rmse", "silog"):
            assert first[key] == pytest.approx(second[key], rel=2e-2)


@pytest.mark.usefixtures("quick")
def test_figures_are_those_of_the_pixels() -> None:
    val = Planted(20, 1)
    found = table_of(plan_of("linear", steps=20), Planted(40, 0), val)
    bounds = found.mean_map.nearest, found.mean_map.farthest
    known = val.depth > 0
    logs = torch.where(known, torch.where(known, val.depth, 1).log(), 0)
    for row in rows_of(found):
        guess = 1 / torch.from_numpy(found.pictures.predictions[str(row["name"])])[:, None]
        assert guess.shape == (20, 1, *SIZE)
        aligned = align_scale_shift(guess.log(), logs, known)
        figures = {key: float(each.mean()) for key, each in metrics(guess, val.depth, known, *bounds).items()}
        again = metrics(aligned.exp(), val.depth, known, *bounds)
        figures |= {f"aligned_{key}": float(again[key].mean()) for key in ("absrel", "rmse", "delta1")}
        assert {key: float(row[key]) for key in figures} == pytest.approx(figures, rel=1e-5)


@pytest.mark.usefixtures("quick")
def test_depth_beyond_a_given_range_does_not_count_and_a_stray_pixel_sets_no_range() -> None:
    plan = plan_of("linear", steps=5, nearest=1.5, farthest=4.0)
    first = table_of(plan, Planted(40, 0), Planted(20, 1))
    assert (first.mean_map.nearest, first.mean_map.farthest) == (1.5, 4.0)
    train, val = Planted(40, 0), Planted(20, 1)
    for each in (train, val):
        beyond = (each.depth < 1.5) | (each.depth > 4)
        assert beyond.any()
        bad = torch.tensor([math.nan, math.inf, -3.0, 700.0]).repeat(beyond.numel())[: beyond.numel()]
        each.depth = torch.where(beyond, bad.view(beyond.shape), each.depth)
    assert rows_of(table_of(plan, train, val)) == rows_of(first)
    usual = Planted(300, 0)
    ends = usual.depth[usual.depth > 0].quantile(torch.tensor([1e-3, 1 - 1e-3]))
    usual.depth[0, 0, 0, :3] = 60000.0
    free = table_of(replace(plan, nearest=None, farthest=None), usual, val_of_one(usual))
    assert free.mean_map.nearest == pytest.approx(float(ends[0]), rel=0.01)
    assert free.mean_map.farthest == pytest.approx(float(ends[1]), rel=0.01)


def val_of_one(planted: Planted) -> Planted:
    one = Planted(1, 9)
    one.depth[:] = planted.depth[1:2]
    return one


@pytest.mark.parametrize(("kind", "gradient"), [("linear4", 0.0), ("dpt", 0.5)])
def test_losses_are_of_log_depth_at_the_size_of_the_image(kind: str, gradient: float) -> None:
    train, encode = Planted(16, 0), tokens_of(4, True)
    torch.manual_seed(0)
    readout = BinReadout(kind, 4 * WIDTH, 1.0, 6.0).eval()  # type: ignore[arg-type]
    known = train.depth > 0
    with torch.no_grad():
        values = encode(train.images)
        found = readout_loss(readout, values, train.depth, plan_of(kind, steps=1))
        difference = readout(values, GRID, SIZE).log() - torch.where(known, train.depth, 1).log()
        expected = sig_loss(difference.flatten(1), known.flatten(1)) + gradient * gradient_loss(difference, known)
    torch.testing.assert_close(found, expected)


def test_layers_are_those_that_dinov2_reads() -> None:
    assert layers_of("linear", 12) == [11]
    assert layers_of("linear4", 12) == layers_of("dpt", 12) == [2, 5, 8, 11]
    encoder = build_encoder(tiny(Path("nowhere")))
    images = torch.rand(2, 3, 48, 48)
    found = encode_layers(encoder, [0, 1], torch.device("cpu"), "fp32")(images)
    both = encoder.features(encoder.normalise(images), [0, 1])
    assert torch.equal(found, torch.cat(both, 2)) and torch.equal(both[1], encoder(encoder.normalise(images)))


def test_sets_that_cannot_be_probed_are_refused() -> None:
    plan, encode = plan_of("linear", steps=2), tokens_of(1, True)
    with pytest.raises(BadInput, match="at least 5"):
        fit(encode, Planted(1, 0), places(1, 0).folds, plan, 0.5, 9.0)
    with pytest.raises(BadInput, match="none of the 8 training images has valid depth"):
        table_of(replace(plan, nearest=500.0), Planted(8, 0), Planted(8, 1))
    with pytest.raises(BadInput, match="not finite for image"):
        fit(lambda images: encode(images) * math.nan, Planted(8, 0), places(8, 0).folds, plan, 0.5, 9.0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (["depth_readout=linear5"], "did you mean 'linear"),
        (["depth_readout=dpt", "depth_steps=0"], "evaluation.depth_steps=0"),
        (["depth_readout=dpt", "nearest=9", "farthest=2"], "nearest=9 m must be less than farthest=2 m"),
        (["depth_readout=dpt", "nearest=0"], "evaluation.nearest=0"),
        (["farthest=10"], "evaluation.farthest has no effect here: it takes evaluation.depth_readout"),
    ],
)
def test_bad_values_are_refused(setting: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        build_config({"name": "x"}, [f"evaluation.{each}" for each in setting])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readouts")
    run(write_pairs(folder / "pairs", train_images=12, val_images=4), folder / "tiny", "train.steps=2")
    return folder / "tiny"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["depthjepa", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.mark.slow
def test_the_command_writes_the_table_beside_the_ridges(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "probe", trained, "depth", "evaluation.depth_readout=ridge")
    ridge = {file.name: file.read_bytes() for file in (trained / "probes").iterdir()}
    assert {"depth.json", "depth.npz", "depth.safetensors"} <= ridge.keys()
    for kind in ("linear4", "dpt"):
        settings = [f"evaluation.depth_readout={kind}", "evaluation.depth_steps=2", "evaluation.farthest=3.5"]
        command(monkeypatch, "probe", trained, "depth", "--out", tmp_path / "x.json", *settings)
        found = json.loads((trained / "probes" / f"depth-{kind}.json").read_text())
        assert json.loads((tmp_path / "x.json").read_text()) == found
        rows = {row["name"]: row for row in found["rows"]}
        assert [*rows] == ["mean map", "scene map", RANDOM, "tiny"]
        keys = [column["key"] for column in found["columns"]]
        assert keys == [*(column.key for column in COLUMNS), "rate"]
        assert {"sqrel", "rmselog", "log10", "silog", "delta2", "delta3", "aligned_rmse"} <= set(keys)
        told = {name: {key for key in keys[:-1] if row[key] is not None} for name, row in rows.items()}
        # These pairs are of no known scene.
        everything = set(keys[:-1]) - {"r2_beyond_scene"}
        assert told == {"mean map": everything, "scene map": set(), RANDOM: everything, "tiny": everything}
        assert [rows[name]["rate"] for name in ("mean map", "scene map")] == ["–", "–"]
        assert all(float(rows[name]["rate"]) in depth_readouts.RATES[kind] for name in (RANDOM, "tiny"))  # type: ignore[index]
        for fact in (f"{kind} readout of layers 1, 1, 2, 2 of 2", "256 uniform bins", "to 3.5 m", "SigLoss", "2 steps"):
            assert fact in found["protocol"], fact
        assert "12 training and 4 validation images, whole views at 48 px; depth is relative" in found["protocol"]
    assert {name: (trained / "probes" / name).read_bytes() for name in ridge} == ridge
    assert DepthReadout.load(trained / "probes" / "depth.safetensors").mean_map.values.shape == (12, 12)
    assert "depth on" in capsys.readouterr().out


def test_several_probes_of_a_run_write_the_ridge_too(trained: Path) -> None:
    saved = load_checkpoint(str(trained))
    settings = replace(saved.config.evaluation, depth_readout="linear", depth_steps=1)
    for file in (trained / "probes").iterdir():
        file.unlink()
    probe_run(replace(saved.config, evaluation=settings), saved, ["depth"])
    assert {file.name for file in (trained / "probes").glob("*.json")} == {"depth.json", "depth-linear.json"}


def test_images_without_depth_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = write_flat(tmp_path / "flat", 6, 48)
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        words = ["depthjepa", "probe", str(trained), "depth", "--data", str(flat), "evaluation.depth_readout=linear"]
        patched.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2
    assert "the depth probe needs depth" in capsys.readouterr().err
