"""Recordings of iPads and iPhones in their own layouts, through the command line, read as an RGB-D folder."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from depthjepa.data.prepare import record3d
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


# Record3D

LARGE = (72, 96)  # rows and columns of photographs, three times those of depth


def photograph(number: int) -> np.ndarray:
    """Three times as large as what a pair has of it, and the same once brought to its size."""
    return picture(number, *SIZE).repeat(3, axis=0).repeat(3, axis=1)


def metadata(frames: int, **other: Any) -> dict[str, Any]:
    """Of a camera whose axes are x right, y up, z backwards."""
    poses = []
    for frame in range(frames):
        turned = Rotation.from_matrix(turn(frame) @ np.diag([1, -1, -1])).as_quat()
        poses.append([*map(float, turned), *PLACES[frame % 3]])
    matrix = [3 * FOCAL, 0, 0, 0, 3 * FOCAL, 0, 48, 36, 1]
    facts = {"w": LARGE[1], "h": LARGE[0], "dw": SIZE[1], "dh": SIZE[0], "K": matrix, "fps": 60, "poses": poses}
    return facts | other


def jpeg(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=100, subsampling=0)
    return content.getvalue()


def write_r3d(path: Path, frames: int = 3, replaced: dict[str, bytes] | None = None, **other: Any) -> Path:
    lzfse = pytest.importorskip("lzfse")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"metadata": json.dumps(metadata(frames, **other)).encode(), "icon": b"", "sound.m4a": b""}
    for frame in range(frames):
        values = metres(frame, FOCAL).astype(np.float32)
        values[0, :3] = np.nan
        sure = np.full(SIZE, 2, dtype=np.uint8)
        sure[1:4] = 1
        content[f"rgbd/{frame}.jpg"] = jpeg(photograph(frame))
        content[f"rgbd/{frame}.depth"] = lzfse.compress(values.tobytes())
        content[f"rgbd/{frame}.conf"] = lzfse.compress(sure.tobytes())
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (content | (replaced or {})).items():
            archive.writestr(name, text)
    return path


def write_export(place: Path, frames: int = 3, **other: Any) -> Path:
    exr = pytest.importorskip("OpenEXR")
    (place / "depth").mkdir(parents=True)
    (place / "rgb").mkdir()
    (place / "metadata.json").write_text(json.dumps(metadata(frames, **other)))
    for frame in range(frames):
        (place / "rgb" / f"{frame}.jpg").write_bytes(jpeg(photograph(frame)))
        exr.File({}, {"R": metres(frame, FOCAL).astype(np.float32)}).write(str(place / "depth" / f"{frame}.exr"))
    return place


@pytest.mark.parametrize("kind", ["r3d", "exported", "above the export"])
def test_record3d_has_photographs_of_its_depth_s_size_and_our_axes(tmp_path: Path, kind: str, call: Call) -> None:
    if kind == "r3d":
        place = write_r3d(tmp_path / "walk.r3d", 12)
    else:
        place = write_export(tmp_path / "walk" / "EXR_RGBD", 12)
        place = place if kind == "exported" else place.parent
    status, said, wrong = call("prepare", "record3d", place, "--out", tmp_path / "out")
    assert status == 0 and said.count("\n") == 1 and "12 training pairs" in said, wrong + said
    source = train(tmp_path / "out")
    assert names(source) == [f"walk/{frame:06}.png" for frame in range(12)]  # in the order of the frames
    for number in (0, 11):
        expected = (np.rint(1000 * metres(number, FOCAL)) / 1000).astype(np.float32)
        if kind == "r3d":
            expected[0, :3] = 0
        np.testing.assert_array_equal(depth(source, number), expected)
        pixels = source.sample(number).image.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pixels - picture(number, *SIZE)).mean() < 3  # a JPEG
    assert source.focal_length == FOCAL and source.group_of(0) == "walk"
    sees_the_wall(source, FOCAL)


def test_many_recordings_are_not_open_at_once(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_r3d(tmp_path / "in" / f"{number}.r3d", frames=1)
    most, write = [0], record3d.write_recordings

    def counting(*given: Any, **keys: Any) -> Any:
        most.append(sum(str(each.resolve()).endswith(".r3d") for each in Path("/proc/self/fd").iterdir()))
        return write(*given, **keys)

    monkeypatch.setattr(record3d, "write_recordings", counting)
    status, _, wrong = call("prepare", "record3d", tmp_path / "in", "--out", tmp_path / "out")
    assert status == 0 and 0 < max(most) <= 2, wrong


def test_an_iphone_that_has_not_moved_looks_along_minus_z(tmp_path: Path, call: Call) -> None:
    """Against the words of Apple's manual: y is up, and the camera looks along -z."""
    place = write_export(tmp_path / "one", 1, poses=[[0, 0, 0, 1, 0.5, 0, 0]])
    assert call("prepare", "record3d", place, "--out", tmp_path / "out")[0] == 0
    pose = train(tmp_path / "out")._poses[0]
    above_ahead = np.array([0.5, 1.0, -4.0])  # of the place, one metre above the camera and four before it
    np.testing.assert_allclose(pose.turn.T @ (above_ahead - pose.place), [0.0, -1.0, 4.0], atol=1e-6)


def test_confidence_and_intrinsics_of_each_frame(tmp_path: Path, call: Call) -> None:
    own = [[3 * focal, 3 * focal, 48, 36] for focal in (29, 30, 33)]
    place = write_r3d(tmp_path / "in" / "a.r3d", perFrameIntrinsicCoeffs=own)
    write_r3d(tmp_path / "in" / "b.r3d", 2, poses=[[0, 0, 0, 1, 0, 0, 0]] * 2)
    options = ("--confidence", "2", "--val", "b")
    status, said, wrong = call("prepare", "record3d", place.parent, "--out", tmp_path / "out", *options)
    assert status == 0 and "3 training pairs" in said and "2 validation pairs" in said, wrong
    assert "b: 2 of 2 pairs have no pose" in said
    source, val = sources(tmp_path / "out")
    assert source.focal_length == 30 and val.group_of(0) == "b"
    assert not depth(source, 1)[1:4].any() and depth(source, 1)[4:].all()


@pytest.mark.parametrize(
    ("replaced", "other", "options", "message"),
    [
        ({"metadata": b"{"}, {}, (), r"a\.r3d: metadata cannot be read: it is not JSON"),
        ({"rgbd/1.depth": b"bvx2"}, {}, (), r"rgbd/1\.depth is damaged, or not of LZFSE"),
        ({"rgbd/1.jpg": b"none"}, {}, (), r"photograph 1: .*it is damaged"),
        ({"rgbd/1.jpg": jpeg(picture(0, 50, 96))}, {}, (), r"photograph 1 is 50 x 96 .* its depth 24 x 32"),
        ({"rgbd/1.jpg": jpeg(picture(0, 12, 16))}, {}, (), r"photograph 1 is 12 x 16 .* and not smaller"),
        ({}, {"dw": 30}, (), r"holds 3072 bytes, and 24 x 30 pixels .* are 2880"),
        ({}, {"dw": "32"}, (), r"dw and dh in its metadata should be whole numbers"),
        ({}, {"poses": [[1, 2]]}, (), r"poses in its metadata should be lists of seven numbers"),
        ({}, {}, ("--val", "a"), r"--val names all 1 recordings"),
    ],
)
def test_faults_of_r3d_files_are_named(
    tmp_path: Path, replaced: dict, other: dict, options: tuple, message: str, call: Call
) -> None:
    place = write_r3d(tmp_path / "a.r3d", replaced=replaced, **other)
    status, _, said = call("prepare", "record3d", place, "--out", tmp_path / "out", *options)
    assert status == 2 and re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_other_faults_of_record3d_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    def refused(place: Path, *options: str) -> str:
        status, _, said = call("prepare", "record3d", place, "--out", tmp_path / "out", *options)
        assert status == 2, said
        return said

    assert "there is no" in refused(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "holds no recording: Record3D is prepared from a .r3d file" in refused(tmp_path / "empty")
    export = write_export(tmp_path / "in" / "EXR_RGBD")
    assert "has no confidence: leave out --confidence, or export the recording as .r3d" in refused(
        export, "--confidence", "1"
    )
    (export / "depth/1.exr").write_bytes(b"no")
    assert "1.exr" in (said := refused(export)) and "the file is damaged; export the recording again" in said
    shutil.rmtree(export / "rgb")
    assert "has no rgb/, which an export as EXR + JPG has" in refused(export)
    (tmp_path / "a.r3d").write_bytes(b"no archive")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lzfse" else find(name))
    assert "pip install 'depthjepa[record3d]'" in refused(tmp_path / "a.r3d")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "lzfse" else find(name))
    assert "a.r3d is no .r3d file, or is damaged" in refused(tmp_path / "a.r3d")
