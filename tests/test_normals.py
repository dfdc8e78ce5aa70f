"""Surface normals: planted planes and spheres, rendered streets, and encoders that know just one thing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from depthjepa.data.cameras import focal_length_in, tells_normals
from depthjepa.data.groups import FOLDS, Division, Places
from depthjepa.data.layouts.scenes import Scenes
from depthjepa.data.loading import view_batches
from depthjepa.data.order import Mixture
from depthjepa.data.samples import Batch, Chosen, Sample
from depthjepa.data.transforms import Box, training_view
from depthjepa.drawing.figures import colour_normals
from depthjepa.drawing.panels import INVALID
from depthjepa.evaluation.features import OfBatch
from depthjepa.evaluation.normal_probe import ANGLES, NormalTable, errors, normal_tables
from depthjepa.evaluation.probes.normals import resampled_angle
from depthjepa.evaluation.surface_normals import WithNormals, known_normals, mean_normals, normals_of_depth
from depthjepa.faults import BadInput
from tiny_images import save, write_pairs
from tiny_runs import Call, run

FOCAL = 70.0  # px
HIGH, WIDE = 48, 64
PLANES = ([0.0, 0.0, -1.0], [0.0, -1.0, -0.15], [0.8, 0.1, -0.6], [-0.5, -0.6, -0.3], [0.1, 0.7, -0.7])


def unit(values: list[float]) -> Tensor:
    return F.normalize(torch.tensor(values, dtype=torch.float64), dim=0)


def rays(high: int = HIGH, wide: int = WIDE, focal: float = FOCAL) -> Tensor:
    """Directions of all pixels with a depth of 1, [3, h, w]."""
    v, u = torch.meshgrid(torch.arange(high) + 0.5 - high / 2, torch.arange(wide) + 0.5 - wide / 2, indexing="ij")
    return torch.stack([u / focal, v / focal, torch.ones_like(u)]).double()


def plane(normal: Tensor, distance: float = 4.0) -> Tensor:
    """Depth [1, h, w] of a plane that the optical axis meets at a distance; 0 where rays do not meet it."""
    towards = (normal[:, None, None] * rays()).sum(0)
    depth = normal[2] * distance / towards
    return torch.where((towards < 0) & (depth < 50), depth, 0)[None].float()


def degrees(first: Tensor, second: Tensor) -> Tensor:
    """Angles along dimension 0."""
    first, second = (F.normalize(each.double(), dim=0) for each in (first, second))
    return (2 * ((first - second).norm(dim=0) / 2).clamp(max=1).asin()).rad2deg()


def of(depth: Tensor, focal: float = FOCAL) -> tuple[Tensor, Tensor]:
    normals, known = normals_of_depth(depth[None], torch.tensor([focal]))
    return normals[0], known[0, 0]


@pytest.mark.parametrize("normal", PLANES)
@pytest.mark.parametrize("holes", [0.0, 0.5])
def test_a_plane_has_its_normal_everywhere_also_between_holes(normal: list[float], holes: float) -> None:
    truth, depth = unit(normal), plane(unit(normal))
    draw = torch.Generator().manual_seed(1)
    bad = torch.tensor([0.0, math.nan, math.inf, -2.0])[torch.randint(4, depth.shape, generator=draw)]
    left = torch.rand(depth.shape, generator=draw) >= holes
    normals, known = of(torch.where(left, depth, bad))
    there = (depth > 0) & left
    # The horizon of a plane is steeper than a window can follow.
    assert known[~there[0]].logical_not().all() and known.sum() > (0.5 if holes else 0.7) * there.sum()
    assert degrees(normals[:, known], truth[:, None]).max() < 0.1
    assert (normals[:, ~known] == 0).all() and torch.allclose(normals[:, known].norm(dim=0), torch.tensor(1.0))


def test_the_focal_length_tells_how_slanted_a_plane_is() -> None:
    """Of the same depth, twice the focal length makes half the width of each pixel, and twice the slope."""
    normals, known = of(plane(unit([0.6, 0, -0.8])), 2 * FOCAL)
    assert degrees(normals[:, known], unit([2 * 0.6, 0, -0.8])[:, None]).max() < 0.1


def test_windows_grow_with_the_image() -> None:
    """Noise of single pixels costs no more in a fine image than in a coarse one: the window is a share of the view."""
    fine = 4.0 * torch.ones(1, 960, 1280)
    fine[:, :, ::2] *= 1.008  # columns by turns: windows with a step of 4 pixels see one kind alone
    normals, known = of(fine, 1400.0)
    assert known.float().mean() > 0.99 and degrees(normals[:, known], unit([0, 0, -1])[:, None]).max() < 0.1


def test_a_sphere() -> None:
    centre, radius = torch.tensor([0.2, -0.1, 5.0], dtype=torch.float64), 1.5
    ray = rays()
    along, square = (ray * centre[:, None, None]).sum(0), (ray * ray).sum(0)
    root = along.square() - square * (centre.square().sum() - radius**2)
    depth = torch.where(root > 0, (along - root.clamp(min=0).sqrt()) / square, 0)
    truth = F.normalize(ray * depth - centre[:, None, None], dim=0)
    normals, known = of(depth[None].float())
    assert known.sum() > 0.6 * (depth > 0).sum()
    off = degrees(normals, truth)[known]
    assert off.median() < 1 and off.quantile(0.9) < 4


@pytest.mark.parametrize("step", [0.05, 0.2, 1.0])
def test_no_window_reaches_across_an_edge(step: float) -> None:
    """A wall before another: normals beside the edge are those of the wall, or not known."""
    depth = torch.full((1, HIGH, WIDE), 4.0)
    depth[:, :, WIDE // 2 :] *= 1 + step
    normals, known = of(depth)
    assert degrees(normals[:, known], unit([0, 0, -1])[:, None]).max() < 0.1
    assert known[:, : WIDE // 2 - 2].all() and known[:, WIDE // 2 + 2 :].all()


def test_pixels_on_one_line_and_few_pixels_have_no_normal() -> None:
    depth = torch.zeros(1, HIGH, WIDE)
    depth[:, 20] = 4  # one line of a scanner
    assert not of(depth)[1].any()
    depth[:, 22] = 4  # and a second one
    assert of(depth)[1][20].all()
    few = torch.zeros(1, HIGH, WIDE)
    few[:, 10:12, 10:12] = 4
    assert not of(few)[1].any()
    few[:, 10:12, 12] = 4  # six
    assert of(few)[1][10:12, 10:13].all()


def test_noise_that_turns_a_normal_leaves_it_unknown() -> None:
    """Noise of half a per cent is nothing where pixels are wide, and much at a long focal length."""
    noise = 1 + 0.005 * torch.randn(1, HIGH, WIDE, generator=torch.Generator().manual_seed(0))
    shares = []
    for focal in (70.0, 300.0, 1200.0):
        normals, known = of(4 * noise, focal)
        wrong = known & (degrees(normals, unit([0, 0, -1])[:, None, None]) > 30)
        assert wrong.float().mean() < 0.05
        shares.append(float(known.float().mean()))
    assert shares[0] > 0.95 and shares[0] > shares[1] > shares[2] and shares[2] < 0.01


@dataclass(frozen=True)
class Walls:
    """Slanted planes with a focal length, and one without."""

    normals: tuple[list[float], ...] = PLANES[2:]
    name = "walls"
    classes: tuple[str, ...] = ()
    has_depth = True
    knows_focal_length = False
    keeps_samples = False

    def __len__(self) -> int:
        return len(self.normals) + 1

    def name_of(self, index: int) -> str:
        return f"{index}"

    def sample(self, index: int) -> Sample:
        depth = plane(unit([*self.normals, [0.0, 0.0, -1.0]][index]))
        return Sample(torch.zeros(3, HIGH, WIDE, dtype=torch.uint8), depth, -1, self.name_of(index))

    def focal_length_of(self, index: int) -> float | None:
        return FOCAL if index < len(self.normals) else None


def test_a_view_that_is_stretched_keeps_the_slant() -> None:
    """Normals belong to the scene: a view of 16 x 96 pixels of 48 x 64 shows those of the planes, not of its pixels."""
    (batch,) = view_batches(WithNormals(Walls()), (16, 96))
    assert batch.normals is not None and batch.normals.shape == (4, 3, 16, 96)
    for normals, truth in zip(batch.normals, PLANES[2:], strict=False):
        known = known_normals(normals[None])[0, 0]
        assert known.float().mean() > 0.5 and degrees(normals[:, known], unit(truth)[:, None]).max() < 0.1
    assert (batch.normals[3] == 0).all()  # no camera is known
    assert all(batch.normals is None for batch in view_batches(Walls(), (16, 96)))


def test_a_mirrored_view_mirrors_its_normals() -> None:
    sample = WithNormals(Walls()).sample(0)
    assert sample.normals is not None
    view = training_view(sample, Box(0, 0, HIGH, WIDE), True, (HIGH, WIDE))
    assert view.normals is not None and view.depth is not None
    normals, known = of(view.depth)
    both = known & known_normals(view.normals[None])[0, 0]
    assert both.float().mean() > 0.9 and degrees(view.normals[:, both], normals[:, both]).max() < 0.1


def test_the_camera_of_a_part_of_several_sets_is_found() -> None:
    mixed = Mixture([Walls(), Scenes(0, "val", 3, (16, 16)), Walls()])
    assert [tells_normals(mixed, index) for index in range(len(mixed))] == [*[True] * 3, False, *[True] * 6, False]
    chosen = Chosen(mixed, np.array([3, 0, 9]))
    assert [focal_length_in(chosen, index) for index in range(3)] == [None, FOCAL, FOCAL]
    streets, exact = WithNormals(mixed).sample(5).normals, Scenes(0, "val", 3, (16, 16)).normals_of(1)
    assert streets is not None and torch.equal(streets, exact) and exact.any()


def test_normals_of_rendered_streets_are_those_of_their_depth() -> None:
    """On planes, where disparity is linear in all directions, differences of points give the normal of the scene."""
    size, angles, count = (40, 60), [], 0
    scenes = Scenes(3, "val", 40, size)
    for index in range(len(scenes)):
        normals, depth = scenes.normals_of(index), scenes.sample(index).depth
        assert depth is not None
        seen = depth[0] > 0
        assert torch.equal(known_normals(normals[None])[0, 0], seen)
        assert torch.allclose(normals[:, seen].norm(dim=0), torch.tensor(1.0), atol=1e-5)
        ray = rays(*size, scenes.focal_length_of(index))
        assert ((normals * ray).sum(0)[seen] < 1e-3).all()  # they point to the camera
        near = torch.where(seen, 1 / depth[0].double(), torch.nan)
        around = near[1:-1, 1:-1, None] * torch.ones(2)
        bend = torch.stack([near[2:, 1:-1] + near[:-2, 1:-1], near[1:-1, 2:] + near[1:-1, :-2]], -1) / 2 - around
        flat = (bend.abs() < 1e-6 * around).all(-1)
        points = ray * depth[0]
        across, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
        slow = torch.linalg.cross(down, across, dim=0)
        angles.append(degrees(slow, normals[:, 1:-1, 1:-1])[flat])
        count += int(seen.sum())
    found = torch.cat(angles)
    assert len(found) > 0.4 * count and (found < 1).double().mean() > 0.999


def test_fitted_planes_agree_with_rendered_streets() -> None:
    scenes = Scenes(0, "train", 32, (96, 96))
    depth = torch.stack([scenes.sample(index).depth for index in range(32)])  # type: ignore[misc]
    focal = torch.tensor([scenes.focal_length_of(index) for index in range(32)])
    normals, known = normals_of_depth(depth, focal)
    exact = torch.stack([scenes.normals_of(index) for index in range(32)])
    off = degrees(normals.transpose(0, 1), exact.transpose(0, 1))[known[:, 0]]
    assert known.sum() > 0.85 * (depth > 0).sum() and off.median() < 0.1 and (off < 11.25).double().mean() > 0.93


def turned(angle: float) -> list[float]:
    return [math.sin(math.radians(angle)), 0, -math.cos(math.radians(angle))]


def test_angles_are_counted_within_images_and_over_known_patches() -> None:
    truth = unit([0, 0, -1]).float()[None, :, None, None].expand(2, 3, 1, 5)
    guess = torch.tensor([turned(angle) for angle in (0, 10, 20, 29, 90)]).T[None, :, None].repeat(2, 1, 1, 1)
    known = torch.tensor([[True, True, True, True, False], [False] * 5])[:, None, None]
    found = errors(3 * guess, truth, known, torch.zeros(3, 1, 5))
    assert found["mean_angle"][0] == pytest.approx(59 / 4, abs=1e-4)
    assert found["median_angle"][0] == pytest.approx(15, abs=1e-4)  # of an even number, between the middle two
    assert [float(found[name][0]) for name in ("below_11", "below_22", "below_30")] == [50, 75, 100]
    assert all(each[1].isnan() for each in found.values())


def test_the_mean_of_a_cell_is_of_its_known_normals() -> None:
    normals = torch.zeros(1, 3, 4, 4)
    normals[0, :, 0, 0], normals[0, :, 1, 1] = torch.tensor(turned(40)), torch.tensor(turned(-20))
    normals[0, :, 0, 2] = torch.tensor(turned(7))
    normals[0, :, 2, 0], normals[0, :, 3, 1] = torch.tensor(turned(90)), torch.tensor(turned(-90))
    for share, counted in ((0.25, [[True, True], [False, False]]), (0.5, [[True, False], [False, False]])):
        cells, known = mean_normals(normals, (2, 2), share)
        assert known[0, 0].tolist() == counted
        assert degrees(cells[0, :, 0, 0], torch.tensor(turned(10))) < 1e-3
        assert (cells[0, :, 1] == 0).all()  # none, and two that cancel out


PATCH, ROWS, COLS = 4, 3, 4


def batches(count: int, seed: int) -> list[Batch]:
    """Images of patches that each face their own way, about one that is the image's; a part of them is unknown."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(count, 3, 1, 1, generator=draw) * 0.3 + torch.tensor([0.0, 0.0, -1.0])[:, None, None]
    facing = F.normalize(own + 0.4 * torch.randn(count, 3, ROWS, COLS, generator=draw), dim=1)
    known = torch.rand(count, 1, ROWS, COLS, generator=draw) > 0.2
    normals = F.interpolate(torch.where(known, facing, 0), scale_factor=PATCH)
    images = F.interpolate(facing, scale_factor=PATCH) / 2 + 0.5
    return [
        Batch(
            index=torch.arange(first, min(first + 16, count)),
            images=images[first : first + 16],
            depth=None,
            zoom=torch.ones(min(16, count - first)),
            labels=torch.zeros(min(16, count - first), dtype=torch.int64),
            normals=normals[first : first + 16],
        )
        for first in range(0, count, 16)
    ]


def places(train: int, val: int, parts: int = 1, scenes: int = 0) -> Places:
    """Image i is in fold i modulo five, of data set i and of scene i modulo their numbers."""
    return Places(
        parts=tuple(f"set-{number}" for number in range(parts)),
        train_part=np.arange(train) % parts,
        val_part=np.arange(val) % parts,
        folds=Division(np.arange(train) % FOLDS, "5 groups"),
        train_group={number: f"scene-{number % scenes}" for number in range(train) if scenes},
        val_group={number: f"scene-{number % scenes}" for number in range(val) if scenes},
    )


def exact(images: Tensor) -> Tensor:
    """Tokens that hold the normal of their patch."""
    return F.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)


def mean_alone(images: Tensor) -> Tensor:
    return exact(images).mean(1, keepdim=True).expand(-1, ROWS * COLS, -1)


def tables(train: list[Batch], val: list[Batch], known: Places) -> list[NormalTable]:
    encoders = {
        "exact": exact,
        "mean alone": mean_alone,
        "noise": OfBatch(lambda batch: torch.sin(1e4 * exact(batch.images))),
    }
    return normal_tables(encoders, lambda: train, lambda: val, known, PATCH, 0.25, pictures=3)


def figures(found: NormalTable, name: str) -> dict[str, Any]:
    return next(row for row in found.rows if row["name"] == name)


def test_encoders_that_know_all_the_level_and_nothing() -> None:
    (found,) = tables(batches(200, 0), batches(60, 1), places(200, 60))
    assert [row["name"] for row in found.rows] == ["mean map", "scene map", "exact", "mean alone", "noise"]
    all_of_it, level, nothing, mean = (figures(found, n) for n in ("exact", "mean alone", "noise", "mean map"))
    assert all_of_it["mean_angle"] < 1.5 and all_of_it["below_11"] == 100 and all_of_it["r2_within"] > 0.995
    assert level["r2_between"] > 0.9 and abs(level["r2_within"]) < 0.02
    assert abs(nothing["r2_within"]) < 0.02 and nothing["mean_angle"] == pytest.approx(mean["mean_angle"], abs=0.5)
    assert mean["r2_within"] == mean["r2_between"] == 0 and math.isnan(figures(found, "scene map")["mean_angle"])
    assert found.pictures.truth.shape == found.pictures.predictions["exact"].shape == (3, 3, ROWS, COLS)
    lengths = np.linalg.norm(found.pictures.predictions["mean alone"], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_the_mean_map_by_hand() -> None:
    train, val = batches(40, 0), batches(12, 1)
    (found,) = tables(train, val, places(40, 12))
    cells = [
        torch.cat([part.normals[:, :, ::PATCH, ::PATCH] for part in parts if part.normals is not None])
        for parts in (train, val)
    ]
    means = []
    for image in cells[1]:
        angles = []
        for row, col in np.ndindex(ROWS, COLS):
            here = cells[0][:, :, row, col]
            mean = here[(here != 0).any(1)].double().mean(0)
            if image[:, row, col].any():
                cosine = (mean / mean.norm()) @ image[:, row, col].double()
                angles.append(math.degrees(math.acos(float(cosine))))
        means.append(np.mean(angles))
    assert figures(found, "mean map")["mean_angle"] == pytest.approx(np.mean(means), abs=1e-4)
    np.testing.assert_allclose(found.per_image["mean map"]["mean_angle"], means, atol=1e-4)


def test_the_mean_angle_of_resampled_images() -> None:
    angles = {"mean_angle": np.array([10.0, np.nan, 40.0])}
    assert resampled_angle(angles, np.array([2.0, 5.0, 1.0])) == 20


def test_of_several_data_sets_each_has_a_table_and_scenes_a_map() -> None:
    first, second, both = tables(batches(120, 0), batches(40, 1), places(120, 40, parts=2, scenes=4))
    assert [each.data for each in (first, second, both)] == ["set-0", "set-1", "set-0,set-1"]
    assert [figures(each, "exact")["images"] for each in (first, second, both)] == [20, 20, 40]
    assert [len(each.groups) for each in (first, second, both)] == [20, 20, 40] and both.mixed
    assert math.isfinite(figures(first, "scene map")["mean_angle"]) and first.scenes == 20


def test_sets_without_normals_are_refused() -> None:
    parts = batches(12, 0)
    bare = [replace(part, normals=None) for part in parts]
    with pytest.raises(BadInput, match="bear their normals"):
        tables(bare, bare, places(12, 12))
    empty = [replace(part, normals=torch.zeros_like(part.images)) for part in parts]
    with pytest.raises(BadInput, match=r"none of the 12 training images has valid surface normals: .*focal_length_px"):
        tables(empty, parts, places(12, 12))
    with pytest.raises(BadInput, match="no validation images with valid surface normals"):
        tables(parts, empty, places(12, 12))


def test_colours_of_normals() -> None:
    shown = colour_normals(np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0], [np.nan] * 3]).T[:, None])
    np.testing.assert_allclose(shown[0], [[0.5, 0.5, 1], [0.5, 1, 0.5], [1, 0.5, 0.5], INVALID])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on pairs whose camera is not known."""
    root = tmp_path_factory.mktemp("normals")
    run(write_pairs(root / "pairs"), root / "run", "train.steps=1")
    return root


@pytest.mark.slow
def test_probe_needs_a_camera_and_takes_it_from_either_file(trained: Path, call: Call, tmp_path: Path) -> None:
    data, out = write_pairs(tmp_path / "pairs"), tmp_path / "normals.json"
    probe = ("probe", trained / "run", "normals", "--data", data, "--out", out, "train.device=cpu")
    status, _, said = call(*probe)
    assert status == 2 and len(said.splitlines()) == 1
    assert "focal length" in said and str(data) in said and "dataset.json" in said and "groups.json" in said
    told = {}
    for file, content in (("dataset.json", {"focal_length": 60.0}), ("groups.json", {"focal_length_px": [["", 60.0]]})):
        (data / file).write_text(json.dumps(content))
        assert call(*probe)[0] == 0
        told[file] = json.loads(out.read_text())
        (data / file).unlink()
    first, second = told.values()
    assert first["rows"] == second["rows"] and "mean unit normal of each patch of 8 px" in first["protocol"]
    assert [row["name"] for row in first["rows"]] == ["mean map", "scene map", "raw patches", "random encoder", "tiny"]
    assert [column["key"] for column in first["columns"]][:5] == list(ANGLES)
    assert all(0 < row["mean_angle"] < 90 for row in first["rows"] if row["name"] != "scene map")
    (data / "groups.json").write_text(json.dumps({"focal_length_px": [["00", 60.0], ["100", 60.0]]}))
    for number in range(4):
        for place in ("rgb", "depth"):
            (data / "train" / place / f"{number:04}.png").rename(data / "train" / place / f"x{number}.png")
    assert call(*probe)[0] == 0
    assert "; 4 without a focal length do not count" in json.loads(out.read_text())["protocol"]


def test_depth_that_has_no_normal_is_refused_in_one_line(trained: Path, call: Call, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", 8, 4)
    (data / "dataset.json").write_text(json.dumps({"focal_length": 60.0}))
    sparse = np.zeros((56, 72), dtype=np.uint16)
    sparse[::8, ::8] = 2000
    for file in (data / "train" / "depth").iterdir():
        save(file, sparse)
    status, _, said = call("probe", trained / "run", "normals", "--data", data, "train.device=cpu")
    assert status == 2 and len(said.splitlines()) == 1
    assert "none of the 8 training images has valid surface normals" in said


@pytest.mark.slow
def test_probe_show_and_report_on_rendered_streets(trained: Path, call: Call, tmp_path: Path) -> None:
    small = ("--data", "scenes", "data.scenes_train=40", "data.scenes_val=12", "train.device=cpu")
    assert call("probe", trained / "run", "normals", *small)[0] == 0
    with np.load(trained / "run" / "probes" / "normals-scenes_0.npz") as arrays:
        assert {"group", "mean_angle", "below_30", "within_total", "raw", "random", "mean_map"} <= set(arrays)
        assert len(arrays["mean_angle"]) == len(arrays["group"]) == 12
    data = write_pairs(tmp_path / "pairs")
    (trained / "pairs" / "dataset.json").write_text(json.dumps({"focal_length": 60.0}))
    assert call("probe", trained / "run", "normals", "train.device=cpu")[0] == 0
    assert call("show", "normals", trained / "run", "--no-photographs", "--out", tmp_path / "shown.png")[0] == 0
    assert call("report", trained / "run", "--out", tmp_path / "report.html")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "Surface normals from frozen features" in page and "Surface normals read out of the features" in page
    assert data.is_dir()
