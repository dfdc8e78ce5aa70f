"""The depth probe against a slow independent reference, and on planted encoders that know just one thing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import depthjepa
from depthjepa.data.groups import FOLDS, Division, Places
from depthjepa.data.order import evenly
from depthjepa.data.samples import Batch
from depthjepa.data.transforms import as_bytes
from depthjepa.evaluation import readout, teacher_rows
from depthjepa.evaluation.depth_cells import CellMeans, cells_of
from depthjepa.evaluation.depth_probe import (
    DepthTable,
    Told,
    depth_table,
    depth_tables,
    evaluate_depth,
    figures_of,
)
from depthjepa.evaluation.mean_maps import ALL, Maps
from depthjepa.evaluation.readout import DepthReadout, read_origin
from depthjepa.faults import BadInput
from tiny_runs import run

PATCH = 4
ROWS, COLS = 3, 4
SIZE = 2 * ROWS, 2 * COLS
Encode = Callable[[torch.Tensor], torch.Tensor]


def batches(count: int, seed: int = 0, size: int = 16, holes: float = 0.0, scenes: int = 0) -> list[Batch]:
    """Images whose first channel shows every pixel's log depth; holes of 2 x 2 pixels without depth.

    With `scenes`, image i is of scene i modulo their number, whose own layout of log depth is added, and its second
    channel shows which.
    """
    draw = torch.Generator().manual_seed(seed)
    h, w = ROWS * PATCH, COLS * PATCH
    layout = torch.linspace(0.2, 0.5, h)[:, None].expand(h, w)
    blocks = torch.rand(count, 1, h // 2, w // 2, generator=draw) * 0.3 + torch.rand(count, 1, 1, 1, generator=draw)
    logs = layout + F.interpolate(blocks, (h, w)) * 0.4
    noise = torch.rand(count, 2, h, w, generator=draw)
    if scenes:
        own = torch.rand(scenes, 1, ROWS, COLS, generator=torch.Generator().manual_seed(99))
        scene = torch.arange(count) % scenes
        logs = logs + F.interpolate(own, (h, w))[scene]
        noise[:, 0] = scene[:, None, None] / scenes
    known = F.interpolate((torch.rand(count, 1, h // 2, w // 2, generator=draw) >= holes).float(), (h, w))
    depth = torch.where(known > 0, logs.exp(), 0)
    images = torch.cat([logs, noise], 1)
    return [
        Batch(
            index=torch.arange(start, start + len(part)),
            images=part,
            depth=depth[start : start + size],
            zoom=torch.ones(len(part)),
            labels=torch.arange(start, start + len(part)) % 3,
            names=tuple(f"image-{number}" for number in range(start, start + len(part))),
        )
        for start, part in ((start, images[start : start + size]) for start in range(0, count, size))
    ]


def places(train: int, val: int, scenes: int = 0, parts: int = 1) -> Places:
    """Image i is in fold i modulo five, of scene i modulo their number, and of data set i modulo their number."""
    return Places(
        parts=tuple(f"set-{number}" for number in range(parts)),
        train_part=np.arange(train) % parts,
        val_part=np.arange(val) % parts,
        folds=Division(np.arange(train) % FOLDS, "5 groups"),
        train_group={number: f"scene-{number % scenes}" for number in range(train) if scenes},
        val_group={number: f"scene-{number % scenes}" for number in range(val) if scenes},
    )


def table(
    encoders: dict[str, Encode],
    train: list[Batch],
    val: list[Batch],
    scenes: int = 0,
    share: float = 0.25,
    pictures: int = 0,
) -> DepthTable:
    known = places(sum(len(each.index) for each in train), sum(len(each.index) for each in val), scenes)
    return depth_table(encoders, lambda: train, lambda: val, known, PATCH, share, pictures)


def figures(found: DepthTable, name: str) -> dict[str, float]:
    return found.scores[name].figures


def fitted(encode: Encode, parts: Sequence[Batch], share: float = 0.0) -> DepthReadout:
    count = sum(len(part.index) for part in parts)
    return depth_table({"it": encode}, lambda: parts, lambda: parts, places(count, count), PATCH, share).readouts["it"]


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Tokens that hold the pixels of their patch: everything that a linear readout needs."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def noise(images: torch.Tensor) -> torch.Tensor:
    """Tokens that know nothing of depth (they are made of a noise channel, scrambled)."""
    return torch.sin(1000 * F.unfold(images[:, 2:], PATCH, stride=PATCH).transpose(1, 2))


def mean_alone(images: torch.Tensor) -> torch.Tensor:
    """Every token knows how far away its image is, and nothing of its patch."""
    mean = images[:, :1].mean((2, 3))[:, None]
    return torch.cat([mean.expand(-1, ROWS * COLS, -1), noise(images)[..., :2]], 2)


def scene_alone(scenes: int) -> Encode:
    """Every token knows its image's scene and its own place: it can look the scene's map up, and nothing else."""

    def encode(images: torch.Tensor) -> torch.Tensor:
        scene = F.one_hot((images[:, 1, 0, 0] * scenes).round().long(), scenes).float()
        place = torch.eye(ROWS * COLS)
        return torch.einsum("bs,np->bnsp", scene, place).flatten(2)

    return encode


def slow_truth(parts: Sequence[Batch]) -> np.ndarray:
    """Mean log depth of every cell, pixel by pixel; nan without a valid one."""
    depth = torch.cat([part.depth for part in parts if part.depth is not None]).double().numpy()[:, 0]
    half = PATCH // 2
    truth = np.full((len(depth), *SIZE), np.nan)
    for i, row, col in np.ndindex(truth.shape):
        here = depth[i, row * half : (row + 1) * half, col * half : (col + 1) * half]
        if (here > 0).any():
            truth[i, row, col] = np.mean(np.log(here[here > 0]))
    return truth


def slow_ridge(rows: np.ndarray, wanted: np.ndarray, strength: float, scale: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and intercept from least squares on rows held in memory and the penalty's."""
    known = np.isfinite(wanted)
    held = np.c_[rows[known] / scale, np.ones(known.sum())]
    penalty = np.sqrt(strength * known.sum()) * np.eye(held.shape[1])[:-1]
    solution = np.linalg.lstsq(np.r_[held, penalty], np.r_[wanted[known], np.zeros(len(penalty))])[0]
    return solution[:-1] / scale, solution[-1]


def slow_prediction(encode: Encode, parts: Sequence[Batch], strength: float) -> np.ndarray:
    tokens = encode(torch.cat([part.images for part in parts])).double().numpy()
    truth = slow_truth(parts)
    mean_map = np.nanmean(truth, 0)
    deviation = truth - mean_map
    between = np.nanmean(deviation, (1, 2))
    within = deviation - between[:, None, None]
    mean = tokens.mean(1)
    weight, bias = slow_ridge(mean - mean.mean(0), between, strength, mean.std(0))
    level = (mean - mean.mean(0)) @ weight + bias
    rest = tokens - mean[:, None]
    rest = rest - rest.mean(0)
    scale = np.sqrt((rest**2).mean((0, 1)))
    predicted = np.empty_like(truth)
    for dy, dx in np.ndindex(2, 2):
        wanted = within[:, dy::2, dx::2].reshape(len(truth), -1)
        weight, bias = slow_ridge(rest.reshape(-1, rest.shape[2]), wanted.reshape(-1), strength, scale)
        predicted[:, dy::2, dx::2] = (rest @ weight + bias).reshape(-1, ROWS, COLS)
    return predicted + level[:, None, None] + mean_map


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_readout_is_two_masked_ridges(holes: float, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "STRENGTHS", (strength,))
    parts = batches(50, holes=holes, size=8)
    found = fitted(pixels, parts)
    told = torch.cat([found.predict(pixels(part.images), ROWS, COLS) for part in parts])
    np.testing.assert_allclose(told[:, 0].numpy(), slow_prediction(pixels, parts, strength), atol=2e-6)


def test_strengths_are_the_best_on_folds_that_were_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fold is predicted by a readout of the others alone, mean map and all, and judged about their mean map."""
    (whole,) = batches(40, size=40)
    fold = np.arange(40) % FOLDS

    def part(chosen: np.ndarray) -> Batch:
        assert whole.depth is not None
        kept = torch.from_numpy(chosen)
        images, depth = whole.images[kept], whole.depth[kept]
        count = len(images)
        return Batch(torch.arange(count), images, depth, torch.ones(count), whole.labels[kept])

    strengths = (1e1, 1e-1, 1e-2, 1e-4)
    monkeypatch.setattr(readout, "STRENGTHS", strengths)
    chosen = fitted(blurred, [whole]).strengths
    errors = np.zeros((2, len(strengths)))
    for number, strength in enumerate(strengths):
        monkeypatch.setattr(readout, "STRENGTHS", (strength,))  # nothing is left to choose
        for held in range(FOLDS):
            found = fitted(blurred, [part(fold != held)])
            mean_map, other = found.mean_map.values.double().numpy(), part(fold == held)
            guess = found.predict(blurred(other.images), ROWS, COLS)[:, 0].double().numpy() - mean_map
            truth = slow_truth([other]) - mean_map
            levels = [each.mean((1, 2))[:, None, None] for each in (guess, truth)]
            errors[0, number] += ((levels[0] - levels[1]) ** 2).sum()
            errors[1, number] += ((guess - levels[0] - truth + levels[1]) ** 2).sum()
    assert chosen == tuple(strengths[int(each.argmin())] for each in errors)
    assert not {strengths[0], strengths[-1]} & set(chosen)  # else nothing was weighed up


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Tokens that tell depth with so much noise that a strength has to be found."""
    return pixels(images[:, :1] + 0.05 * images[:, 1:2])


def test_an_encoder_that_holds_depth_exactly_is_told_so() -> None:
    found = depth_table(
        {"noise": noise, "pixels": pixels},
        lambda: batches(120, 0, holes=0.2),
        lambda: batches(60, 1, holes=0.2),
        places(120, 60),
        PATCH,
        0.25,
        pictures=3,
        others={"depth itself": lambda batch: cells_of(batch, SIZE)[0]},
    )
    assert [row["name"] for row in found.rows] == ["mean map", "scene map", "noise", "pixels", "depth itself"]
    mean_map = figures(found, "mean map")
    assert [mean_map[key] for key in ("r2_within", "r2_within_median", "r2_position", "r2_between")] == [0, 0, 0, 0]
    assert abs(figures(found, "noise")["r2_within"]) < 0.02 and found.readouts["noise"].strengths[1] >= 1
    # A token says nothing of what the left halves of all patches have in common, which is in their mean.
    exact = figures(found, "pixels")
    assert min(exact[key] for key in ("r2_within", "r2_within_median", "r2_between", "delta1")) > 0.9
    assert exact["absrel"] < 0.02 and exact["images"] == 60
    known = figures(found, "depth itself")
    assert [known[key] for key in ("r2_within", "r2_within_median", "r2_between")] == pytest.approx([1, 1, 1], abs=1e-9)
    assert known["absrel"] < 1e-5 and known["delta1"] == known["aligned_delta1"] == 1
    assert math.isnan(figures(found, "scene map")["r2_within"])  # no scene is known
    assert found.pictures.images.shape == (3, ROWS * PATCH, COLS * PATCH, 3)
    assert found.pictures.truth.shape == found.pictures.predictions["noise"].shape == (3, *SIZE)
    assert np.isnan(found.pictures.truth).any() and np.isfinite(found.pictures.predictions["noise"]).all()


def test_an_encoder_of_image_means_is_high_between_and_nothing_within() -> None:
    found = figures(table({"means": mean_alone}, batches(200), batches(60, 1)), "means")
    assert found["r2_between"] > 0.99 and abs(found["r2_within"]) < 0.02 and abs(found["r2_within_median"]) < 0.02


def test_a_lookup_of_the_scene_is_caught_by_the_scene_map() -> None:
    """It is high within images, as the scene map is, and tells nothing beyond it; one that sees is high beyond it."""
    encoders = {"lookup": scene_alone(3), "pixels": pixels}
    found = table(encoders, batches(180, scenes=3), batches(60, 1, scenes=3), scenes=3)
    lookup, scene_map = figures(found, "lookup"), figures(found, "scene map")
    assert lookup["r2_within"] > 0.9 and scene_map["r2_within"] > 0.9
    assert scene_map["r2_beyond_scene"] == 0 and abs(lookup["r2_beyond_scene"]) < 0.05
    assert figures(found, "pixels")["r2_beyond_scene"] > 0.85
    assert figures(found, "mean map")["r2_beyond_scene"] < -1


def test_a_scene_that_training_does_not_have_gets_the_mean_map() -> None:
    val = batches(60, 1, scenes=3)
    known = replace(places(180, 60, scenes=3), train_group=dict.fromkeys(range(0, 180, 3), "scene-0"))
    found = depth_table({}, lambda: batches(180, scenes=3), lambda: val, known, PATCH, 0.25)
    assert found.scenes == 20
    scene, mean = (found.scores[name].per_image for name in ("scene map", "mean map"))
    elsewhere = np.arange(60) % 3 > 0
    np.testing.assert_array_equal(scene["within_residual"][elsewhere], mean["within_residual"][elsewhere])
    assert np.isnan(scene["beyond_total"][elsewhere]).all() and (scene["beyond_total"][~elsewhere] > 0).all()


def test_one_scene_only_is_no_scene_to_tell_from_others() -> None:
    """The scene map is the mean map then, and what lies beyond it is what lies beyond the mean map."""
    found = table({"pixels": pixels}, batches(60), batches(30, 1), scenes=1)
    scene, exact = figures(found, "scene map"), figures(found, "pixels")
    assert scene["r2_within"] == pytest.approx(0, abs=1e-12)
    assert exact["r2_beyond_scene"] == pytest.approx(exact["r2_within"], rel=1e-5)


def test_another_images_depth_is_worse_than_the_mean_map() -> None:
    maps = one_map(batches(40))
    other = {"other": Told(lambda batch: F.avg_pool2d(batch.images.roll(1, 0)[:, :1], 2))}
    (found,) = evaluate_depth(other, [maps], places(40, 60), batches(60, 1))
    assert figures(found, "other")["r2_within"] < -0.3


def one_map(parts: Sequence[Batch]) -> Maps:
    means = CellMeans(SIZE)
    for part in parts:
        means.add(*cells_of(part, SIZE))
    return Maps("it", ALL, means.mean_map(), {}, {})


def test_sparse_cells_count_by_their_share_of_valid_pixels() -> None:
    """Of cells of four pixels: one valid pixel is a quarter; empty cells never count, whatever the share."""
    (part,) = batches(12, size=12)
    assert part.depth is not None
    depth = torch.zeros_like(part.depth)
    depth[:, :, ::2, ::2] = part.depth[:, :, ::2, ::2]  # one pixel of each cell
    depth[:, :, :2] = 0  # an empty row of cells
    depth[:, :, 2:4, 1::2] = part.depth[:, :, 2:4, 1::2]  # three pixels of each cell of the next row
    sparse = replace(part, depth=depth)
    counted = {share: cells_of(sparse, SIZE, share)[1][0, 0] for share in (0.02, 0.25, 0.26, 0.75, 0.76)}
    assert not counted[0.02][0].any() and counted[0.02][1:].all() and torch.equal(counted[0.02], counted[0.25])
    assert counted[0.26][1].all() and not counted[0.26][2:].any() and torch.equal(counted[0.26], counted[0.75])
    assert not counted[0.76].any()
    with pytest.raises(BadInput, match="no cell of the 12 training images has valid depth on 76% of its pixels"):
        table({}, [sparse], [sparse], share=0.76)


def test_what_stands_at_invalid_pixels_changes_nothing() -> None:
    train, val = batches(30, 0, holes=0.5), batches(20, 1, holes=0.5)

    def spoilt(parts: list[Batch]) -> list[Batch]:
        result = []
        for part in parts:
            assert part.depth is not None
            bad = torch.tensor([math.nan, math.inf, -3.0]).repeat(part.depth.numel())[: part.depth.numel()]
            result.append(replace(part, depth=torch.where(part.depth > 0, part.depth, bad.reshape(part.depth.shape))))
        return result

    clean, dirty = table({"pixels": pixels}, train, val), table({"pixels": pixels}, spoilt(train), spoilt(val))
    assert figures(clean, "pixels") == pytest.approx(figures(dirty, "pixels"), rel=0, abs=0, nan_ok=True)


def test_of_several_data_sets_each_is_judged_as_if_it_were_alone() -> None:
    train, val = batches(120, holes=0.2), batches(60, 1, holes=0.2)
    first, second, both = depth_tables(
        {"pixels": pixels}, lambda: train, lambda: val, places(120, 60, parts=2), PATCH, 0.25, pictures=2
    )
    assert [each.data for each in (first, second, both)] == ["set-0", "set-1", "set-0,set-1"]
    for number, found in enumerate((first, second)):
        own = [every_second(parts, number) for parts in (train, val)]
        known = places(60, 30)
        # The fold of an image is that which it had among all.
        known = replace(known, folds=Division((np.arange(60) * 2 + number) % FOLDS, "5 groups"))
        alone = depth_table({"pixels": pixels}, lambda own=own: own[0], lambda own=own: own[1], known, PATCH, 0.25)
        assert figures(alone, "pixels") == pytest.approx(figures(found, "pixels"), rel=1e-9, nan_ok=True)
    assert figures(both, "pixels")["images"] == 60
    # Whoever knows which set it is knows its mean map: of the mixture that is the scene map.
    assert both.mixed and both.scenes == 60 and figures(both, "scene map")["r2_beyond_scene"] == 0
    assert first.scenes == 0 and math.isnan(figures(first, "scene map")["r2_within"])


def every_second(parts: list[Batch], first: int) -> list[Batch]:
    images = torch.cat([part.images for part in parts])[first::2]
    depth = torch.cat([part.depth for part in parts if part.depth is not None])[first::2]
    count = len(images)
    return [Batch(torch.arange(count), images, depth, torch.ones(count), torch.zeros(count, dtype=torch.long))]


def test_figures_are_those_of_their_definitions() -> None:
    """R² from sums over all cells, errors in metres from means over images, alignment in log depth: image by image."""
    val, maps = batches(10, 1, holes=0.3), one_map(batches(40))
    guess = {"flat": Told(lambda batch: F.avg_pool2d(batch.images[:, :1] * 0.7 + batch.images[:, 1:2] * 0.3, 2))}
    (found,) = evaluate_depth(guess, [maps], places(40, 10), val)
    mean_map = maps.mean.values.double().numpy()
    told = torch.cat([guess["flat"].predict(part) for part in val])[:, 0].double().numpy()
    truth = slow_truth(val)
    absrel, aligned, within = [], [], []
    for t, p in zip(truth, told, strict=True):
        known = np.isfinite(t)
        low, high = maps.mean.nearest, maps.mean.farthest
        absrel.append(np.mean(np.abs(np.exp(p[known]).clip(low, high) / np.exp(t[known]) - 1)))
        fit = np.polyval(np.polyfit(p[known], t[known], 1), p[known])
        aligned.append(np.mean(np.abs(np.exp(fit).clip(low, high) / np.exp(t[known]) - 1)))
        dt, dp = (each[known] - mean_map[known] for each in (t, p))
        within.append((((dt - dt.mean()) - (dp - dp.mean())) ** 2).sum() / ((dt - dt.mean()) ** 2).sum())
    own = figures(found, "flat")
    assert own["absrel"] == pytest.approx(np.mean(absrel), rel=1e-5)
    assert own["aligned_absrel"] == pytest.approx(np.mean(aligned), rel=1e-4)
    assert own["r2_within_median"] == pytest.approx(np.median(1 - np.array(within)), rel=1e-5)
    position = 1 - np.nansum((truth - told) ** 2) / np.nansum((truth - mean_map) ** 2)
    assert own["r2_position"] == pytest.approx(position, rel=1e-5)
    again = figures_of(found.scores["flat"].per_image)
    assert again == pytest.approx(own, nan_ok=True)


@pytest.mark.parametrize(("images", "asked"), [(60, 3), (7, 3), (3, 3), (2, 6), (40, 1), (5, 0)])
def test_pictures_are_spread_over_the_set(images: int, asked: int) -> None:
    val, maps = batches(images, 1), one_map(batches(40))
    maps = replace(maps, mean=replace(maps.mean, nearest=1e-6, farthest=1e6))
    numbered = {
        "number": Told(lambda batch: -(batch.index[:, None, None, None].expand(-1, 1, *SIZE) / 1e3 + 1e-3).log())
    }
    (found,) = evaluate_depth(numbered, [maps], places(40, images), val, pictures=asked)
    shown = found.pictures
    at = (1e3 * shown.predictions["number"][:, 0, 0]).round().astype(int) - 1
    assert len(at) == min(images, asked)
    everything = torch.cat([part.images for part in val])
    np.testing.assert_array_equal(shown.images, as_bytes(everything[at]) if asked else shown.images)
    # Of few images exactly those that the other pictures show; of many, as they are thinned on the way, the next ones.
    off = np.abs(at - evenly(asked, images))
    assert (off <= (0 if images <= 4 * asked else images / (4 * max(1, asked)))).all()


def test_a_readout_survives_its_file_and_other_files_are_refused(tmp_path: Path) -> None:
    def with_a_dead_channel(images: torch.Tensor) -> torch.Tensor:
        tokens = pixels(images)
        return torch.cat([tokens, torch.full_like(tokens[..., :1], 7.3)], 2)

    parts = batches(20)
    found = fitted(with_a_dead_channel, parts)
    found.save(tmp_path / "readout.safetensors")
    loaded = DepthReadout.load(tmp_path / "readout.safetensors")
    tokens = with_a_dead_channel(parts[0].images)
    predicted = found.predict(tokens, ROWS, COLS)
    assert torch.equal(loaded.predict(tokens, ROWS, COLS), predicted)
    tokens[..., -1] = -1e6
    assert torch.equal(loaded.predict(tokens, ROWS, COLS), predicted)  # a dead channel is not read
    assert found.predict(tokens.repeat(1, 2, 1), ROWS, 2 * COLS).shape == (16, 1, 2 * ROWS, 4 * COLS)
    with pytest.raises(BadInput, match="wide"):
        found.predict(tokens[..., 1:], ROWS, COLS)
    (tmp_path / "other").write_bytes(b"something else")
    for path in (tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(BadInput, match="not a depth readout"):
            DepthReadout.load(path)
        with pytest.raises(BadInput, match="not a depth readout"):
            read_origin(path)
    origin = {"step": "3", "which": "target", "data": "my pairs"}
    found.save(tmp_path / "new" / "readout.safetensors", origin)
    assert origin.items() <= read_origin(tmp_path / "new" / "readout.safetensors").items()
    older = load_file(tmp_path / "readout.safetensors")
    save_file(older, tmp_path / "older.safetensors", {"step": "3"})
    with pytest.raises(BadInput, match=r"first version.*fit it anew with `depthjepa probe RUN depth`"):
        DepthReadout.load(tmp_path / "older.safetensors")


def test_another_grid_stretches_the_mean_map_and_what_tokens_have_in_common() -> None:
    """A photograph of twice the proportions whose patches come twice each is told as the one of half the width."""
    parts = batches(60)
    found = fitted(pixels, parts)
    tokens = pixels(parts[0].images)
    wide = tokens.view(-1, ROWS, COLS, tokens.shape[2]).repeat_interleave(2, 2).flatten(1, 2)
    told = found.predict(wide, ROWS, 2 * COLS)
    halved, plain = F.adaptive_avg_pool2d(told, SIZE), found.predict(tokens, ROWS, COLS)
    assert told.shape == (16, 1, 2 * ROWS, 4 * COLS)
    assert (halved - plain).square().mean() < 0.05 * plain.var()


def test_sets_that_cannot_be_probed_are_refused() -> None:
    part = batches(8)[0]
    without = replace(part, depth=None)
    with pytest.raises(BadInput, match="these images have none"):
        table({"it": pixels}, [without], [without])
    empty = replace(part, depth=torch.zeros(8, 1, ROWS * PATCH, COLS * PATCH))
    with pytest.raises(BadInput, match="none of the 8 training images has valid depth"):
        table({"it": pixels}, [empty], [part])
    with pytest.raises(BadInput, match="no validation images with valid depth"):
        table({"it": pixels}, [part], [empty])
    with pytest.raises(BadInput, match=r"at least 5 training images with valid depth, .* of 1 images 1 have any"):
        table({"it": pixels}, batches(1), [part])
    with pytest.raises(BadInput, match="divide"):
        depth_table({"it": pixels}, lambda: [part], lambda: [part], places(8, 8), 5, 0.25)
    with pytest.raises(BadInput, match="x predicts values of depth that are not finite"):
        evaluate_depth(
            {"x": Told(lambda batch: torch.full((8, 1, *SIZE), math.nan))}, [one_map([part])], places(8, 8), [part]
        )


@pytest.mark.slow
def test_the_teacher_of_a_guided_run_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked about few training images, which keep their numbers: with all of them its row is the same as alone."""
    pytest.importorskip("diffusers", reason="depthfm-tiny needs the extra `teachers`")
    scenes = ("data.scenes_train=40", "data.scenes_val=12", "evaluation.pictures=1")
    taught = ("guidance.kind=feature", "guidance.teacher=depthfm-tiny")
    run(Path("scenes"), tmp_path / "run", *scenes, *taught, "guidance.teacher_steps=1", "train.steps=1")
    rows, remarks, protocols = [], [], set()
    for count in (12, 40):
        monkeypatch.setattr(teacher_rows, "IMAGES", count)
        found = depthjepa.probe(tmp_path / "run", "depth")
        rows.append({row["name"]: row for row in found["rows"]})
        remarks.append(found.get("verdict", []))
        protocols.add(found["protocol"])
    assert remarks == [["the teacher's readout is fitted on 12 of the training images"], []]
    assert list(rows[0]) == ["mean map", "scene map", "teacher", "raw patches", "random encoder", "tiny"]
    assert rows[0]["tiny"] == rows[1]["tiny"] and rows[0]["teacher"] != rows[1]["teacher"]
    assert rows[1]["teacher"]["r2_within"] > rows[1]["random encoder"]["r2_within"] + 0.1
    without = depthjepa.probe(tmp_path / "run", "depth", settings=["evaluation.teacher_row=false"])
    assert "teacher" not in {row["name"] for row in without["rows"]}
    # Tables are merged by their protocols: a run stands beside its unguided twin, whose probe has no teacher.
    assert protocols == {without["protocol"]}
