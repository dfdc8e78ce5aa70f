"""Recordings of iPads and iPhones in their own layouts, through the command line, read as an RGB-D folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tiny_images import picture, save
from tiny_recordings import PLACES, SIZE, depth, metres, names, sees_the_wall, sources, train, turn
from tiny_runs import Call

FOCAL = 30.0  # [px] of photographs of 24 x 32

# ARKitScenes

VIDEO = "47333462"
MOMENT = 321.1


def write_arkit(place: Path, video: str = VIDEO, frames: int = 3, focal: float = FOCAL) -> Path:
    """A video as a download has it: 60 frames a second, of which every second one has a pose."""
    lines = []
    for frame in range(frames):
        name = f"{video}_{MOMENT + frame / 10:.3f}"
        save(place / "lowres_wide" / f"{name}.png", picture(frame, *SIZE))
        save(place / "lowres_depth" / f"{name}.png", np.rint(1000 * metres(frame, focal)).astype(np.uint16))
        sure = np.full(SIZE, 2, dtype=np.uint8)
        sure[:3], sure[3:5] = 0, 1
        save(place / "confidence" / f"{name}.png", sure)
        # One file of intrinsics is named by a moment that is a millisecond off, as in the data set.
        named = f"{video}_{MOMENT + frame / 10 + (0.001 if frame == 1 else 0):.3f}"
        (place / "lowres_wide_intrinsics").mkdir(exist_ok=True)
        (place / "lowres_wide_intrinsics" / f"{named}.pincam").write_text(f"{SIZE[1]} {SIZE[0]} {focal} {focal} 16 12")
        # From the place to the camera, with x right, y down, z forward, as the data set's own loader inverts it.
        inverse = np.linalg.inv(np.vstack([np.column_stack([turn(frame), PLACES[frame % 3]]), [0, 0, 0, 1]]))
        angles = Rotation.from_matrix(inverse[:3, :3]).as_rotvec()
        numbers = [MOMENT + frame / 10 + 0.003, *angles, *inverse[:3, 3]]
        lines.append(" ".join(f"{number:.9f}" for number in numbers))
    (place / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    return place


def test_arkitscenes_knows_depth_cameras_and_where_they_were(tmp_path: Path, call: Call) -> None:
    place = write_arkit(tmp_path / "in" / VIDEO)
    status, said, wrong = call("prepare", "arkitscenes", place, "--out", tmp_path / "out")
    assert status == 0 and said.count("\n") == 1 and "3 training pairs, 100.0 %" in said, wrong + said
    source = train(tmp_path / "out")
    assert names(source) == [f"{VIDEO}/{VIDEO}_{MOMENT + n / 10:.3f}.png" for n in range(3)]
    for number in range(3):
        stored = (np.rint(1000 * metres(number, FOCAL)) / 1000).astype(np.float32)
        np.testing.assert_array_equal(depth(source, number), stored)
    assert source.focal_length == FOCAL and source.group_of(2) == VIDEO
    sees_the_wall(source, FOCAL)


def test_what_the_sensor_is_not_sure_of_is_not_measured(tmp_path: Path, call: Call) -> None:
    place = write_arkit(tmp_path / VIDEO)
    for confidence, rows in ((1, 3), (2, 5)):
        out = tmp_path / f"out{confidence}"
        status, _, wrong = call("prepare", "arkitscenes", place, "--out", out, "--confidence", str(confidence))
        assert status == 0, wrong
        expected = (np.rint(1000 * metres(1, FOCAL)) / 1000).astype(np.float32)
        expected[:rows] = 0
        np.testing.assert_array_equal(depth(train(out), 1), expected)


def test_a_download_has_its_own_splits(tmp_path: Path, call: Call) -> None:
    write_arkit(tmp_path / "in/Training/1/1_frames", "1", focal=FOCAL)
    write_arkit(tmp_path / "in/Training/2", "2", focal=FOCAL * 1.5)
    write_arkit(tmp_path / "in/Validation/3", "3")
    (tmp_path / "in/Training/2/lowres_depth" / f"2_{MOMENT:.3f}.png").unlink()
    (tmp_path / "in/Training/2/lowres_wide.traj").unlink()
    status, said, wrong = call("prepare", "arkitscenes", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 0 and "5 training pairs" in said and "3 validation pairs" in said, wrong
    assert "2: 1 of 3 photographs have no depth of their name, left out" in said
    assert "2: 2 of 2 pairs have no pose" in said
    source, val = sources(tmp_path / "out")
    assert [source.focal_length_of(number) for number in range(5)] == [30, 30, 30, 45, 45]
    assert source.focal_length is None and val.group_of(0) == "3"
    status, _, said = call("prepare", "arkitscenes", tmp_path / "in", "--out", tmp_path / "b", "--val", "3")
    assert status == 2 and "has its own splits, Training/ and Validation/: leave out --val" in said


def replace_first(place: Path, part: str, pixels: np.ndarray) -> None:
    save(next((place / part).iterdir()), pixels)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (
            lambda place: (place / "lowres_depth").rename(place / "d"),
            (),
            r"holds no recording: ARKitScenes is prepared",
        ),
        (
            lambda place: (place / "lowres_wide.traj").write_text("1 2 3"),
            (),
            r"traj, line 1: '1 2 3' is not of the form",
        ),
        (
            lambda place: next((place / "lowres_wide_intrinsics").glob("*1.100*")).write_text("a b"),
            (),
            r"pincam, line 1: 'a b' is not of the form WIDTH HEIGHT FX",
        ),
        (lambda place: (place / "confidence").rename(place / "c"), ("--confidence", "2"), r"has no confidence/, which"),
        (lambda place: None, ("--confidence", "3"), r"--confidence"),
        (
            lambda place: replace_first(place, "confidence", np.full(SIZE, 255, np.uint8)),
            ("--confidence", "1"),
            r"does not hold confidences from 0 to 2",
        ),
        (lambda place: replace_first(place, "lowres_depth", np.ones(SIZE, np.uint8)), (), r"grey PNG of 16 bits"),
        (
            lambda place: replace_first(place, "lowres_depth", np.ones((48, 64), np.uint16)),
            (),
            r"is 48 x 64 pixels .* is 24 x 32: depth has to be registered",
        ),
        (
            lambda place: [
                path.rename(path.with_name(path.name.replace(VIDEO, "x")))
                for path in (place / "lowres_depth").iterdir()
            ],
            (),
            r"no photograph of lowres_wide/ has depth of its name",
        ),
    ],
)
def test_faults_of_arkitscenes_are_named(tmp_path: Path, spoil: Any, options: tuple, message: str, call: Call) -> None:
    place = write_arkit(tmp_path / VIDEO)
    spoil(place)
    status, _, said = call("prepare", "arkitscenes", place, "--out", tmp_path / "out", *options)
    assert status == 2 and re.search(message, said), said
    assert not (tmp_path / "out").exists()
