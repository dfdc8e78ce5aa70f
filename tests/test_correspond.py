"""Claims about two views of one place: exact matches, none through walls, and what nearest features are worth."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.data.config import DataConfig
from depthjepa.data.layouts.rooms import Rooms
from depthjepa.data.layouts.scenes import Scenes
from depthjepa.data.loading import open_source
from depthjepa.data.scenes.layout import ABSENT, Draws, Layout, World
from depthjepa.data.scenes.painting import FARTHEST
from depthjepa.data.scenes.rendering import picture
from depthjepa.data.scenes.rooms import CLASSES, ROOMS
from depthjepa.data.scenes.streets import STREETS
from depthjepa.data.scenes.two_views import Second, matches, second_view
from depthjepa.data.two_views import Pose, SeesTwice, TwoViews, match_by_depth, partner
from depthjepa.evaluation.correspondence import (
    POSITION,
    RADII,
    correspondence,
    middles,
    nearest,
    position_alone,
    queries_of,
    recalls,
)
from depthjepa.evaluation.gathering import RANDOM, RAW, Views
from depthjepa.faults import BadInput
from depthjepa.grid import patchify
from slow_scenes import slow_hit
from tiny_images import save
from tiny_runs import Call, run, tiny

SIZE = (24, 32)
WORLDS = pytest.mark.parametrize("world", [STREETS, ROOMS], ids=["streets", "rooms"])
CPU = torch.device("cpu")


def seen_twice(world: World, count: int, seed: int = 3) -> tuple[Layout, Second]:
    numbers = np.arange(count)
    first = world.arrange(numbers, seed=seed)
    return first, second_view(first, Draws(numbers, seed))


def camera_axes(layout: Layout, scene: int) -> np.ndarray:
    """Columns: right, up and forward of a camera in the world, by angles in double precision."""
    camera = layout.camera
    pitch, roll = (math.atan2(each[scene, 1], each[scene, 0]) for each in (camera.pitch, camera.roll))
    yaw = 0.0 if camera.yaw is None else math.atan2(camera.yaw[scene, 1], camera.yaw[scene, 0])
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    twist = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    axes: np.ndarray = turn @ tilt @ twist
    return axes


def slow_cast(layout: Layout, scene: int, ray: np.ndarray) -> float:
    """Nearest t of a ray from the camera, through ground and solids, one at a time."""
    solids, camera = layout.primitives, layout.camera
    fall = camera.slope[scene] * ray[0] - ray[1]
    best = camera.height[scene] / fall if fall > 0 else math.inf
    for number in np.flatnonzero(solids.shape[scene] != ABSENT):
        cosine, sine = solids.turn[scene, number]
        matrix = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]) / solids.half[scene, number][:, None]
        origin = list(-matrix @ solids.centre[scene, number])
        best = min(best, slow_hit(int(solids.shape[scene, number]), origin, list(matrix @ ray)))
    return float(best)


@WORLDS
def test_matches_are_those_of_a_slow_look_from_both_cameras(world: World) -> None:
    first, second = seen_twice(world, 4)
    found, (height, width) = matches(first, second, SIZE), SIZE
    checked = wrong = hidden = 0
    for scene in range(4):
        axes, other = camera_axes(first, scene), camera_axes(second.layout, scene)
        focal = first.camera.focal[scene]
        for row in range(1, height, 3):
            for column in range(0, width, 3):
                right, down = ((column + 0.5) / width - 0.5) * width / height, (row + 0.5) / height - 0.5
                ray = axes @ np.array([right / focal, -down / focal, 1.0])
                depth = slow_cast(first, scene, ray)
                expected = None
                if depth <= FARTHEST:
                    point = ray * depth - second.place[scene]
                    across, up, ahead = other.T @ point
                    place = np.array([-up / ahead * focal + 0.5, across / ahead * focal * height / width + 0.5])
                    if ahead > 0 and (place >= 0).all() and (place < 1).all():
                        if slow_cast(second.layout, scene, point / ahead) >= ahead * (1 - 1e-3):
                            expected = place
                        else:
                            hidden += 1
                given = found[scene, row, column].numpy()
                checked += 1
                if expected is None:
                    wrong += not np.isnan(given).all()
                else:
                    wrong += not np.allclose(given, expected, atol=2e-3)
    assert wrong <= 0.01 * checked and hidden > 0


@WORLDS
def test_the_second_picture_shows_what_the_matches_say(world: World) -> None:
    """Depth and class of a point agree where both pictures show it; so do colours, up to what a pixel averages."""
    first, second = seen_twice(world, 24)
    size = (64, 64)
    one, two = (picture(each, size, CPU, world) for each in (first, second.layout))
    found = matches(first, second, size)
    known = torch.isfinite(found).all(-1)
    assert 0.25 < float(known.float().mean()) < 0.9
    places = (torch.nan_to_num(found) * 64).long().clamp(0, 63)
    scene = torch.arange(24)[:, None, None].expand(known.shape)
    there = (scene, places[..., 0], places[..., 1])
    same = (one.classes == two.classes[there])[known]
    assert float(same.float().mean()) > 0.97  # but for edges
    colours = (one.images.permute(0, 2, 3, 1).float() - two.images.permute(0, 2, 3, 1)[there].float()).abs().mean(-1)
    shuffled = two.images.permute(0, 2, 3, 1)[there][torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    apart = (one.images.permute(0, 2, 3, 1).float() - shuffled.float()).abs().mean(-1)
    assert float(colours[known].mean()) < 0.3 * float(apart[known].mean())


@WORLDS
def test_second_cameras_stand_free_and_as_far_as_is_said(world: World) -> None:
    _, second = seen_twice(world, 300)
    apart = np.linalg.norm(second.place, axis=1)
    assert apart.min() >= 0.2 and apart.max() <= 2.0 and np.ptp(apart) > 1.5
    assert np.abs(second.turn).max() <= 30 and np.abs(second.turn).max() > 28
    solids = second.layout.primitives
    x, y, z = np.moveaxis(solids.centre, -1, 0)
    cosine, sine = np.moveaxis(solids.turn, -1, 0)
    own = np.abs(np.stack([cosine * x - sine * z, y, sine * x + cosine * z], axis=-1)) / solids.half
    inside = ((own < 1).all(axis=-1) & (solids.shape != ABSENT)).any(axis=1)
    assert inside.mean() < 0.02 and (second.layout.camera.height > 0).mean() > 0.98
    if world is ROOMS:  # nor behind a wall, where nothing of the room is seen
        wall = (solids.category == CLASSES.index("wall")) & (solids.shape != ABSENT)
        cosine, sine = second.layout.surroundings.street.T[..., None]
        aside, ahead = cosine * x - sine * z, sine * x + cosine * z
        sides = [np.where(wall, sign * each, -np.inf).max(axis=1) for each in (aside, ahead) for sign in (-1, 1)]
        assert (np.stack(sides) > 0).all(axis=0).mean() > 0.99


def test_a_second_view_is_the_same_in_any_batch() -> None:
    together = seen_twice(STREETS, 6)
    found = matches(*together, SIZE)
    numbers = np.array([4])
    alone = STREETS.arrange(numbers, seed=3)
    second = second_view(alone, Draws(numbers, 3))
    assert torch.equal(matches(alone, second, SIZE)[0].nan_to_num(-1), found[4].nan_to_num(-1))
    source = Scenes(3, "train", 6, SIZE)
    pair = source.two_views(4)
    assert torch.equal(pair.match.nan_to_num(-1), found[4].nan_to_num(-1))
    assert torch.equal(pair.first, source.sample(4).image)
    assert not torch.equal(pair.first, pair.second)


def pose_of(axes: np.ndarray, place: np.ndarray) -> Pose:
    """A pose with x right, y down, z forward, of the camera and of the world, from axes with y up."""
    down = np.array([1.0, -1.0, 1.0])
    return Pose(down[:, None] * axes * down, down * place)


def write_sequence(root: Path, world: World, scenes: int = 6, size: tuple[int, int] = (48, 64)) -> Path:
    """An RGB-D folder whose pictures are the two views of scenes, with poses."""
    first, second = seen_twice(world, scenes)
    poses: dict[str, list[float]] = {}
    groups = [[f"s{scene}_", f"scene {scene}"] for scene in range(scenes)]
    for view, layout in enumerate((first, second.layout)):
        shown = picture(layout, size, CPU, world)
        for scene in range(scenes):
            name = f"s{scene}_{view}"
            for split in ("train", "val"):
                pixels = shown.images[scene].permute(1, 2, 0).numpy()
                save(root / split / "rgb" / f"{name}.png", pixels)
                depth = (shown.depth[scene, 0] * 500).round().numpy().astype(np.uint16)
                save(root / split / "depth" / f"{name}.png", depth)
            pose = pose_of(camera_axes(layout, scene), second.place[scene] * view)
            poses[name] = np.concatenate([pose.turn, pose.place[:, None]], axis=1).ravel().tolist()
    focal = float(first.camera.focal[0] * min(size))
    stated = [[f"s{scene}_", float(first.camera.focal[scene] * min(size))] for scene in range(scenes)]
    (root / "dataset.json").write_text(json.dumps({"depth_scale": 500, "focal_length": focal, "poses": poses}))
    (root / "groups.json").write_text(json.dumps({"groups": groups, "focal_length_px": stated}))
    return root


@WORLDS
def test_matches_by_depth_and_poses_are_the_exact_ones(tmp_path: Path, world: World) -> None:
    root = write_sequence(tmp_path / "pairs", world)
    source = open_source(DataConfig(root=str(root), image_size=(48, 64)), "val")
    assert isinstance(source, SeesTwice) and source.tells_pairs()
    exact = matches(*seen_twice(world, 6), (48, 64))
    checked = 0
    for index in range(0, len(source), 2):
        pair = source.two_views(index)
        assert pair is not None
        true, given = exact[index // 2], pair.match
        both = torch.isfinite(true).all(-1) & torch.isfinite(given).all(-1)
        either = torch.isfinite(true).all(-1) | torch.isfinite(given).all(-1)
        if not either.any():
            continue
        error = (true - given)[both].abs() * torch.tensor([48, 64])
        assert float(error.max()) < 0.5  # pixels; depth is in steps of 2 mm
        assert float(both.sum() / either.sum()) > 0.9
        checked += 1
    assert checked >= 4


def test_what_is_hidden_in_the_second_picture_is_no_match() -> None:
    """A wall 4 m away, and a board 1 m in front of the second camera: what it covers there is not matched."""
    wall = torch.full((1, 20, 20), 4.0)
    board = wall.clone()
    board[:, :, 8:14] = 1.0
    straight = Pose(np.eye(3), np.zeros(3))
    found = match_by_depth((wall, board), (20.0, 20.0), (straight, straight))
    known = torch.isfinite(found).all(-1)
    assert known[:, :7].all() and known[:, 15:].all() and not known[:, 9:13].any()
    middle = (torch.arange(20) + 0.5) / 20
    assert torch.allclose(found[:, 0, 0], middle) and torch.allclose(found[0, :7, 1], middle[:7])
    aside = Pose(np.eye(3), np.array([1.0, 0, 0]))
    moved = match_by_depth((wall, wall), (20.0, 20.0), (straight, aside))
    assert torch.allclose(moved[0, 5:, 1], middle[:15], atol=1e-6) and not torch.isfinite(moved[0, :5]).any()
    holes = wall.clone()
    holes[:, 3:6] = 0
    assert not torch.isfinite(match_by_depth((holes, wall), (20.0, 20.0), (straight, straight))[3:6]).any()


def test_a_partner_is_near_and_always_the_same() -> None:
    def pose(x: float, degrees: float) -> Pose:
        angle = math.radians(degrees)
        turn = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
        return Pose(turn, np.array([x, 0.0, 0.0]))

    poses = {0: pose(0, 0), 3: pose(0.01, 0), 5: pose(1, 20), 8: pose(5, 0), 9: pose(1, 40), 12: pose(0.5, -10)}
    found = {partner(0, poses) for _ in range(3)}
    assert len(found) == 1 and found <= {5, 12} and partner(8, poses) is None
    assert poses[0].turned(poses[5]) == pytest.approx(20) and poses[0].apart(poses[8]) == pytest.approx(5)


def test_a_query_is_a_patch_whose_middle_is_seen() -> None:
    match = torch.full((8, 12, 2), torch.nan)
    match[2, 6] = torch.tensor([0.25, 0.5])  # the pixel at the middle of the patch (0, 1)
    match[6, 1] = torch.tensor([0.5, 0.5])  # of no patch's middle
    pair = TwoViews(torch.zeros(3, 8, 12).byte(), torch.zeros(3, 8, 12).byte(), match, 1.0, 0.0)
    asked = queries_of(pair, (2, 3))
    assert asked.patches.tolist() == [1] and asked.truth.tolist() == [[0.5, 1.5]]
    assert middles(torch.tensor([0, 5]), (2, 3)).tolist() == [[0.5, 0.5], [1.5, 2.5]]


def test_recalls_count_errors_up_to_each_radius() -> None:
    truth = torch.zeros(4, 2)
    found = torch.tensor([[0.0, 1.0], [1.5, 0.0], [0.0, 3.9], [4.0, 4.0]])
    assert RADII == (1, 2, 4) and recalls(found, truth) == (0.25, 0.5, 0.75)


def test_nearest_is_by_cosine() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.0, 9.0], [5.0, 4.9], [0.1, 0.0]])
    asked = replace(queries_of_all(2), truth=torch.zeros(2, 2))
    assert nearest(first, second, asked, (1, 3)).tolist() == [[0.5, 2.5], [0.5, 0.5]]


def queries_of_all(count: int) -> Any:
    match = torch.zeros(1, count, 2)
    pair = TwoViews(torch.zeros(3, 1, count).byte(), torch.zeros(3, 1, count).byte(), match, 1.0, 0.0)
    return queries_of(pair, (1, count))


class _Known:
    """Scenes whose pictures say where in the world their pixels are: an encoder that reads it is never wrong."""

    def __init__(self, source: Scenes | Rooms) -> None:
        self.source = source
        self.name, self.classes, self.has_depth = source.name, (), True
        self.knows_focal_length, self.keeps_samples = True, True

    def __len__(self) -> int:
        return len(self.source)

    def tells_pairs(self) -> bool:
        return True

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

    def sample(self, index: int) -> Any:
        return self.source.sample(index)

    def two_views(self, index: int) -> TwoViews:
        """The first picture's colours are its places in the second picture, the second's are its own places."""
        pair = self.source.two_views(index)
        height, width = pair.match.shape[:2]
        down, right = torch.meshgrid(
            (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
        )
        own = torch.stack([down, right, torch.full_like(down, 0.5)])
        there = torch.cat([pair.match.permute(2, 0, 1).nan_to_num(0), own[2:]])
        first, second = ((each * 255).round().byte() for each in (there, own))
        return replace(pair, first=first, second=second)


def test_an_encoder_that_knows_places_is_right_and_one_that_knows_none_is_as_position_alone(tmp_path: Path) -> None:
    config = tiny(tmp_path, "data.root=scenes", "data.image_size=48", "data.scenes_val=40")
    views = Views(config, "val", _Known(Scenes(0, "val", 40, (48, 48))))
    code = torch.linspace(0, 1, 65)[1:]

    def knows(images: Tensor) -> Tensor:
        """The colour at the middle of each patch as bumps along both axes: nearest colours have nearest codes."""
        middle = patchify(images, 8).view(len(images), 36, 3, 8, 8)[..., 4, 4]
        bumps = torch.exp(-(((middle[..., :2, None] - code) / 0.1) ** 2))
        return (bumps[..., 0, :, None] * bumps[..., 1, None, :]).flatten(2)

    def position(images: Tensor) -> Tensor:
        return torch.eye(36).expand(len(images), -1, -1)

    encoders = {"knows": knows, "position": position, POSITION: position_alone((6, 6))}
    found = correspondence(encoders, views, (48, 48), (6, 6), 8, pictures=3)
    assert found.figures("knows")["recall_1"] > 99
    assert found.figures("position") == found.figures(POSITION)
    assert found.figures(POSITION)["recall_1"] < 60
    by_turn = [found.figures(POSITION)[f"recall_1_turn_{turn}"] for turn in (10, 20, 30)]
    assert by_turn[0] > by_turn[1] > by_turn[2]
    assert len(found.pairs) + found.left_out == 40 and len(found.drawn) == 3


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, "data.root=scenes", "data.image_size=48", "data.scenes_val=8")
    views = Views(config, "val", Scenes(0, "val", 8, (48, 48)))

    def broken(images: Tensor) -> Tensor:
        return torch.full((len(images), 36, 4), torch.nan)

    with pytest.raises(BadInput, match="features that are not finite"):
        correspondence({"broken": broken}, views, (48, 48), (6, 6), 8, pictures=1)


def test_the_probe_has_its_baselines_and_a_picture(tmp_path: Path, call: Call) -> None:
    run(Path("scenes"), tmp_path / "run", "data.scenes_train=16", "data.scenes_val=12", "train.steps=2")
    status, _, fault = call("probe", tmp_path / "run", "correspond")
    assert status == 0, fault
    table = json.loads((tmp_path / "run" / "probes" / "correspond.json").read_text())
    names = [row["name"] for row in table["rows"]]
    assert names[:3] == [POSITION, RAW, RANDOM] and len(names) == 4
    for row in table["rows"]:
        assert 0 <= row["recall_1"] <= row["recall_2"] <= row["recall_4"] <= 100
    assert "nothing fitted" in table["protocol"] and "(exact)" in table["protocol"]
    status, _, fault = call("show", "correspond", tmp_path / "run", "--out", tmp_path / "matches.png")
    assert status == 0 and (tmp_path / "matches.png").stat().st_size > 10_000, fault


def test_photographs_with_poses_are_judged_and_those_without_are_refused(tmp_path: Path, call: Call) -> None:
    root = write_sequence(tmp_path / "pairs", STREETS)
    run(root, tmp_path / "run", "data.image_size=48", "train.steps=1", "train.batch_size=4")
    status, _, fault = call("probe", tmp_path / "run", "correspond")
    assert status == 0, fault
    table = json.loads((tmp_path / "run" / "probes" / "correspond.json").read_text())
    assert "by depth and poses" in table["protocol"]
    facts = json.loads((root / "dataset.json").read_text())
    others = {f"{name}.png": pose for name, pose in facts["poses"].items()}
    (root / "dataset.json").write_text(json.dumps(facts | {"poses": others}))
    status, _, fault = call("probe", tmp_path / "run", "correspond")
    assert status == 2 and "the poses of dataset.json are of none of its pairs: s0_0.png there, s0_0 here" in fault
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in facts.items() if key != "poses"}))
    status, _, fault = call("probe", tmp_path / "run", "correspond")
    assert status == 2 and 'whose dataset.json has "poses", "groups" and a focal length' in fault
    load_checkpoint(tmp_path / "run")  # nothing is lost


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ([1.0] * 11, "should be the 12 numbers of the rows"),
        ([2.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0], "holds no turn: its rows should be of length 1"),
        ([1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, -1.0, 0], "is a mirror and no turn"),
        ([1.0, 0, 0, float("nan"), 0, 1.0, 0, 0, 0, 0, 1.0, 0], "poses.s0_0.3=nan: should be a finite number"),
    ],
)
def test_a_pose_that_is_none_is_told(tmp_path: Path, call: Call, pose: list[float], words: str) -> None:
    root = write_sequence(tmp_path / "pairs", STREETS, scenes=2)
    facts = json.loads((root / "dataset.json").read_text())
    facts["poses"]["s0_0"] = pose
    (root / "dataset.json").write_text(json.dumps(facts))
    status, _, fault = call("train", "rgbd", f"data.root={root}", "--out", tmp_path / "run")
    assert status == 2 and words in fault and "dataset.json: poses.s0_0" in fault and len(fault) < 500
