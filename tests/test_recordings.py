"""Recordings of RGB-D cameras in their own layouts, through the command line, read as an RGB-D folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depthjepa.data.prepare import recordings
from depthjepa.data.prepare.recordings import associated
from depthjepa.data.prepare.tum import prepare_tum
from depthjepa.data.prepare.writing import link
from depthjepa.locks import locked
from tiny_images import picture, save
from tiny_recordings import PLACES, SIZE, depth, metres, names, sees_the_wall, sources, train, turn
from tiny_runs import Call

# TUM RGB-D

FOCAL = {"freiburg1": 517.3, "freiburg2": 520.9, "freiburg3": 535.4}
START = 1305031102.1758
NARROW = 30.0  # [px] of the test's camera, for poses that are to be checked


def write_tum(
    place: Path, frames: int = 3, late: float = 0.004, poses: bool = True, focal: float = NARROW, first: int = 0
) -> Path:
    """A recording whose depth is `late` seconds behind its photographs, with poses at 100 Hz."""
    listed: dict[str, list[str]] = {
        part: [f"# {part}", "# file: 'x.bag'", "# timestamp filename"] for part in ("rgb", "depth")
    }
    truth = ["# ground truth trajectory", "# timestamp tx ty tz qx qy qz qw"]
    for frame in range(frames):
        moment = START + frame / 30
        stored = np.rint(5000 * metres(first + frame, focal)).astype(np.uint16)
        stored[0, :4] = 0
        for part, when, pixels in (("rgb", moment, picture(frame, *SIZE)), ("depth", moment + late, stored)):
            save(place / part / f"{when:.6f}.png", pixels)
            listed[part].append(f"{when:.6f} {part}/{when:.6f}.png")
        x, y, z, w = Rotation.from_matrix(turn(first + frame)).as_quat()
        where = PLACES[(first + frame) % 3]
        for shift in (-0.012, 0.002):  # the nearest in time counts
            values = where if shift > 0 else (9.0, 9.0, 9.0)
            truth.append(f"{moment + shift:.4f} {' '.join(map(str, values))} {x:.8f} {y:.8f} {z:.8f} {w:.8f}")
    for part, lines in listed.items():
        (place / f"{part}.txt").write_text("\n".join(lines) + "\n")
    if poses:
        (place / "groundtruth.txt").write_text("\n".join(truth) + "\n")
    return place


def test_tum_brings_together_what_is_of_one_time_and_knows_where_the_camera_was(tmp_path: Path, call: Call) -> None:
    place = write_tum(tmp_path / "in" / "rgbd_dataset_freiburg1_desk")
    status, said, wrong = call("prepare", "tum", place, "--out", tmp_path / "out")
    assert status == 0, wrong
    assert "3 training pairs, 99.5 % of their pixels measured" in said
    source = train(tmp_path / "out")
    assert names(source) == [f"rgbd_dataset_freiburg1_desk/{START + n / 30:.6f}.png" for n in range(3)]
    for number in range(3):
        stored = np.rint(5000 * metres(number, NARROW))
        stored[0, :4] = 0
        np.testing.assert_array_equal(depth(source, number), (stored / 5000).astype(np.float32))
        np.testing.assert_array_equal(source.sample(number).image.permute(1, 2, 0).numpy(), picture(number, *SIZE))
    assert source.focal_length_of(0) == 517.3 and source.knows_focal_length
    assert source.group_of(0) == "rgbd_dataset_freiburg1_desk"
    # The camera of these tiny pictures is another one, which its owner says.
    facts = json.loads((tmp_path / "out/dataset.json").read_text())
    (tmp_path / "out/dataset.json").write_text(json.dumps(facts | {"focal_length": NARROW}))
    sees_the_wall(train(tmp_path / "out"), NARROW)


def test_several_recordings_are_divided_as_wholes_and_keep_their_cameras(tmp_path: Path, call: Call) -> None:
    for name in ("freiburg1_a", "freiburg3_b", "mine"):
        write_tum(tmp_path / "in" / name, frames=4)
    (tmp_path / "in" / "other").mkdir()
    arguments = ("prepare", "tum", tmp_path / "in", "--out", tmp_path / "out", "--val", "freiburg3_b", "--every", "2")
    status, said, wrong = call(*arguments)
    assert status == 0, wrong
    assert "4 training pairs" in said and "2 validation pairs" in said
    assert "no focal length is known of mine" in said
    source, val = sources(tmp_path / "out")
    assert [val.group_of(number) for number in range(2)] == ["freiburg3_b"] * 2
    assert [source.focal_length_of(number) for number in range(4)] == [517.3, 517.3, None, None]
    assert val.focal_length_of(0) == 535.4 and not source.knows_focal_length
    assert [name.rpartition("/")[2] for name in names(val)] == [f"{START + n / 30:.6f}.png" for n in (0, 2)]
    assert call(*arguments)[:2] == (0, said)  # again: it counts


def test_what_has_no_other_half_is_left_out_and_said(tmp_path: Path, call: Call) -> None:
    place = write_tum(tmp_path / "freiburg2_x", frames=3)
    lines = (place / "depth.txt").read_text().splitlines()
    (place / "depth.txt").write_text("\n".join(lines[:-1]))
    lines = (place / "groundtruth.txt").read_text().splitlines()
    (place / "groundtruth.txt").write_text("\n".join(lines[:4]))
    status, said, _ = call("prepare", "tum", place, "--out", tmp_path / "out")
    assert status == 0 and "2 training pairs" in said
    assert "freiburg2_x: 1 of 3 photographs have no depth of their time, left out" in said
    assert "freiburg2_x: 1 of 2 pairs have no pose" in said
    assert len(train(tmp_path / "out")._poses) == 1


@pytest.mark.parametrize("seed", range(6))
def test_association_is_that_of_the_benchmarks_tool(seed: int) -> None:
    """Against the plain way: all differences below the limit, the smallest first, each moment once."""
    random = np.random.default_rng(seed)
    first = np.sort(random.uniform(0, 1, 40))
    second = random.permutation(np.sort(random.uniform(0, 1, 36)))
    near = sorted((abs(a - b), a, b) for a in first for b in second if abs(a - b) < 0.02)
    left, right, expected = set(first), set(second), []
    for _, a, b in near:
        if a in left and b in right:
            left.remove(a)
            right.remove(b)
            expected.append((a, b))
    assert [(first[a], second[b]) for a, b in associated(first, second, 0.02)] == sorted(expected)


def test_a_stopped_preparation_goes_on_and_does_not_mix_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    place = write_tum(tmp_path / "freiburg1_a", frames=4)
    prepare_tum(place, tmp_path / "whole")
    linked: list[Path] = []

    def stop_in_the_third_pair(source: Path, target: Path) -> None:
        linked.append(target)
        if len(linked) == 6:
            raise KeyboardInterrupt
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(recordings, "link", stop_in_the_third_pair)
        with pytest.raises(KeyboardInterrupt):
            prepare_tum(place, tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    status, _, said = call("prepare", "tum", place, "--out", tmp_path / "out", "--every", "3")
    assert status == 2 and "holds tum-rgbd of another source or other options, not tum-rgbd: choose another" in said
    prepare_tum(place, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def eight_bits(place: Path) -> None:
    path = next((place / "depth").iterdir())
    save(path, np.full(SIZE, 7, dtype=np.uint8))


def cut(part: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        path = next((place / part).iterdir())
        path.write_bytes(path.read_bytes()[:60])

    return spoil


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda place: (place / "rgb.txt").unlink(), (), r"holds no recording: .*rgb\.txt, depth\.txt.*https://cvg"),
        (replaced("depth.txt", "1.5 depth/a.png\n"), (), r"no photograph and depth file are less than 0\.02 s apart"),
        (lambda place: None, ("--max-difference", "0.001"), r"are less than 0\.001 s apart \(--max-difference\)"),
        (replaced("rgb.txt", "# nothing\n"), (), r"rgb\.txt names no files: fetch the recording again"),
        (
            replaced("rgb.txt", "soon rgb/1.png\n"),
            (),
            r"rgb\.txt, line 1: 'soon rgb/1\.png' is not of the form TIMESTAMP",
        ),
        (replaced("groundtruth.txt", "1 2 3\n"), (), r"groundtruth\.txt, line 1: '1 2 3' is not of the form .*QW"),
        (
            replaced("groundtruth.txt", "1 a 2 3 0 0 0 1\n"),
            (),
            r"groundtruth\.txt: the line of 1\.0000 is not of the f",
        ),
        (lambda place: next((place / "rgb").iterdir()).unlink(), (), r"1 files .* are missing: there is no .*rgb/1305"),
        (eight_bits, (), r"depth must be a grey PNG of 16 bits, metres x .*5000.*in 8 bits the metres are lost"),
        (cut("depth"), (), r"depth/.*damaged or incomplete"),
        (cut("rgb"), (), r"rgb/.*damaged or incomplete; fetch it from https://cvg"),
        (
            lambda place: save(next((place / "depth").iterdir()), np.ones((9, 9), np.uint16)) and None,
            (),
            r"is 9 x 9 pixels .* is 24 x 32: depth has to be registered to the photograph",
        ),
        (lambda place: None, ("--val", "freiburg1_b"), r"no recording 'freiburg1_b' \(did you mean 'freiburg1_a'\?\)"),
        (lambda place: None, ("--val", "freiburg1_a"), r"--val names all 1 recordings: none is left for training"),
        (lambda place: None, ("--val", ","), r"--val names no recording"),
        (lambda place: None, ("--every", "0"), r"--every' should be greater than or equal to 1"),
    ],
)
def test_faults_of_tum_are_named(tmp_path: Path, spoil: Any, options: tuple, message: str, call: Call) -> None:
    place = write_tum(tmp_path / "freiburg1_a")
    spoil(place)
    status, out, said = call("prepare", "tum", place, "--out", tmp_path / "out", *options)
    assert status == 2 and re.search(message, said), said
    assert not (tmp_path / "out").exists() and not out


# RealSense


def write_realsense(place: Path, frames: int = 3, camera: dict[str, Any] | None = None, scale: float = 1000) -> Path:
    for frame in range(frames):
        save(place / "color" / f"{frame:05}.jpg", picture(frame, *SIZE))
        save(place / "depth" / f"{frame:05}.png", np.rint(scale * metres(frame, NARROW)).astype(np.uint16))
    facts = {"width": SIZE[1], "height": SIZE[0], "intrinsic_matrix": [615.5, 0, 0, 0, 615.0, 0, 16, 12, 1]}
    content = facts | {"depth_scale": scale} if camera is None else camera
    (place / "intrinsic.json").write_text(json.dumps(content))
    return place


def test_realsense_has_the_scale_and_camera_of_its_file(tmp_path: Path, call: Call) -> None:
    for name in ("desk", "hall"):
        write_realsense(tmp_path / "in" / name, scale=4000)
    status, said, wrong = call(
        "prepare", "realsense", tmp_path / "in", "--out", tmp_path / "out", "--val", "hall", "--every", "2"
    )
    assert status == 0 and "2 training pairs, 100.0 %" in said and "2 validation pairs" in said, wrong
    source, val = sources(tmp_path / "out")
    assert names(source) == ["desk/00000.jpg", "desk/00002.jpg"] and val.group_of(1) == "hall"
    np.testing.assert_array_equal(depth(source, 1), (np.rint(4000 * metres(2, NARROW)) / 4000).astype(np.float32))
    assert source.focal_length == 615.5 and not source.tells_pairs()


def test_a_link_is_written_where_it_leads_and_a_mounted_disk_is_not(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_realsense(tmp_path / "in")
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "data")
    for _ in range(2):  # it is written, then it is there
        status, said, wrong = call("prepare", "realsense", source, "--out", tmp_path / "out")
        assert status == 0 and "3 training pairs" in said, wrong
    assert len(list((tmp_path / "disk" / "data" / "train" / "rgb").rglob("*.jpg"))) == 3
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "mounted")
    status, _, wrong = call("prepare", "realsense", source, "--out", tmp_path / "mounted")
    assert status == 2 and "mounted is where a disk is mounted" in wrong
    assert not [*tmp_path.glob("*.partial"), *tmp_path.glob(".lock*")]


def test_one_process_at_a_time_prepares_a_folder(tmp_path: Path, call: Call) -> None:
    source = write_realsense(tmp_path / "in")
    with locked(tmp_path, name=".lock-out"):
        status, _, wrong = call("prepare", "realsense", source, "--out", tmp_path / "out")
    assert status == 2 and "in use by process" in wrong
    assert call("prepare", "realsense", source, "--out", tmp_path / "out")[0] == 0


def test_realsense_of_the_older_recorder_needs_its_scale(tmp_path: Path, call: Call) -> None:
    place = write_realsense(tmp_path / "in")
    content = json.loads((place / "intrinsic.json").read_text())
    del content["depth_scale"]
    (place / "intrinsic.json").unlink()
    (place / "camera_intrinsic.json").write_text(json.dumps(content))
    status, _, said = call("prepare", "realsense", place, "--out", tmp_path / "out")
    assert status == 2 and "nothing says how many units of depth are a metre in in" in said
    status, _, said = call("prepare", "realsense", place, "--out", tmp_path / "out", "--depth-scale", "0.001")
    assert status == 2 and "the other way round: give --depth-scale 1000, units per metre" in said
    for wrong in ("0", "-1000"):
        status, _, said = call("prepare", "realsense", place, "--out", tmp_path / "out", "--depth-scale", wrong)
        assert status == 2 and "should be units of depth per metre, above 0" in said
    status, _, said = call("prepare", "realsense", place, "--out", tmp_path / "out", "--depth-scale", "1000")
    assert status == 0, said
    np.testing.assert_array_equal(
        depth(train(tmp_path / "out"), 0), (np.rint(1000 * metres(0, NARROW)) / 1000).astype(np.float32)
    )


def drawn(path: Path) -> None:
    save(path, picture(0, *SIZE))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda place: (place / "depth").rename(place / "deep"), (), r"holds no recording: .*color/ beside depth/"),
        (lambda place: drawn(place / "depth/00000.png"), (), r"mode RGB: depth drawn for people .*RSBagReader"),
        (
            lambda place: save(place / "depth/00000.png", np.zeros(SIZE, np.uint8)),
            (),
            r"mode L: depth drawn for people in colours or in 8 bits",
        ),
        (cut("depth"), (), r"depth/0000\d\.png.*damaged or incomplete"),
        (replaced("intrinsic.json", "{"), (), r"intrinsic\.json cannot be read: it is not JSON"),
        (replaced("intrinsic.json", "[]"), (), r"intrinsic\.json should hold \{\.\.\.\}"),
        (replaced("intrinsic.json", '{"width": 32, "height": 24}'), (), r"should hold width, height, intrinsic_matrix"),
        (lambda place: write_realsense(place, camera={"width": 640, "height": 480, "depth_scale": 1000,
            "intrinsic_matrix": [1.5] + [0] * 8}), (), r"is 24 x 32 pixels .* is of 480 x 640"),
        (lambda place: None, ("--depth-scale", "500"), r"depth scales differ \(500, 1000 units a metre"),
        (
            lambda place: [path.rename(path.with_name(f"x{path.name}")) for path in (place / "depth").iterdir()],
            (),
            r"no photograph of color/ has depth of its name",
        ),
        (lambda place: save(place / "color/00000.png", picture(0, *SIZE)), (), r"two files of one name: 00000\.jpg, 0"),
    ],
)  # fmt: skip
def test_faults_of_realsense_are_named(tmp_path: Path, spoil: Any, options: tuple, message: str, call: Call) -> None:
    place = write_realsense(tmp_path / "one")
    spoil(place)
    status, _, said = call("prepare", "realsense", place, "--out", tmp_path / "out", *options)
    assert status == 2 and re.search(message, said), said
    assert not (tmp_path / "out").exists()


# ZED


def write_zed(place: Path, frames: int = 3, alpha: int | None = 255) -> Path:
    for frame in range(frames):
        fourth = np.full((*SIZE, 1), alpha or 0, dtype=np.uint8)
        photograph = picture(frame, *SIZE)
        stored = np.rint(1000 * metres(frame, NARROW)).astype(np.uint16)
        stored[0] = 65535  # infinitely far, where conversion to 16 bits stops at the largest number
        stored[1] = 0
        save(
            place / f"left{frame:06}.png",
            photograph if alpha is None else np.concatenate([photograph, fourth], axis=-1),
        )
        save(place / f"depth{frame:06}.png", stored)
    return place


@pytest.mark.parametrize("alpha", [255, 0, None])
def test_zed_photographs_lose_the_fourth_channel_and_depth_its_infinities(
    tmp_path: Path, alpha: int | None, call: Call
) -> None:
    place = write_zed(tmp_path / "room", alpha=alpha)
    status, said, wrong = call("prepare", "zed", place, "--out", tmp_path / "out", "--every", "2")
    assert status == 0 and "2 training pairs" in said, wrong
    assert "no focal length is known of room" in said
    source = train(tmp_path / "out")
    assert names(source) == ["room/000000.png", "room/000002.png"] and source.group_of(0) == "room"
    np.testing.assert_array_equal(source.sample(1).image.permute(1, 2, 0).numpy(), picture(2, *SIZE))
    expected = (np.rint(1000 * metres(2, NARROW)) / 1000).astype(np.float32)
    expected[:2] = 0
    np.testing.assert_array_equal(depth(source, 1), expected)


def test_zed_takes_a_focal_length(tmp_path: Path, call: Call) -> None:
    place = write_zed(tmp_path / "room")
    status, said, _ = call("prepare", "zed", place, "--out", tmp_path / "out", "--focal-length", "700.5")
    assert status == 0 and "focal length" not in said and train(tmp_path / "out").focal_length == 700.5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: [path.unlink() for path in place.glob("left*")], r"holds no recording: a ZED recording is"),
        (lambda place: [path.unlink() for path in place.glob("depth*")], r"no depth beside its left .*--mode 4"),
        (
            lambda place: drawn(place / "depth000001.png"),
            r"mode RGB: depth drawn .*export the recording again with --mo",
        ),
        (
            lambda place: save(place / "depth000001.png", np.zeros((*SIZE, 4), np.uint8)),
            r"mode RGBA: depth drawn for people",
        ),
        (lambda place: (place / "left000001.png").write_bytes(b"no"), r"left000001\.png.*damaged or incomplete"),
        (lambda place: save(place / "depth000001.png", np.ones((4, 4), np.uint16)), r"is 4 x 4 pixels"),
    ],
)
def test_faults_of_zed_are_named(tmp_path: Path, spoil: Any, message: str, call: Call) -> None:
    place = write_zed(tmp_path / "one")
    spoil(place)
    status, _, said = call("prepare", "zed", place, "--out", tmp_path / "out")
    assert status == 2 and re.search(message, said), said
