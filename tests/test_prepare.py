"""Official files of NYUv2 and KITTI as RGB-D folders, what `dataset.json` says, and pairs divided by scene."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from depthjepa.data.config import DataConfig
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import has_validation, open_source
from depthjepa.data.prepare import writing
from depthjepa.data.prepare.kitti import GARG, prepare_kitti
from depthjepa.data.prepare.nyuv2 import EIGEN, prepare_nyuv2
from depthjepa.faults import BadInput
from tiny_images import millimetres, picture, save, write_flat, write_pairs
from tiny_runs import Call, start


def both(root: Path, **keys: Any) -> tuple[Any, Any]:
    """Training and validation data of a folder."""
    config = DataConfig(root=str(root), **keys)
    return open_source(config, "train"), open_source(config, "val")


def names(source: Any) -> list[str]:
    return [source.name_of(index) for index in range(len(source))]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# NYUv2

SCENES = ("kitchen_0004", "kitchen_0004", "office_0001a", "bedroom_0076a", "study_room_0005b")


def labelled(
    path: Path, size: tuple[int, int] = (6, 8), count: int = 5, scenes: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write the labelled set as MATLAB 7.3 does; returns images [n, h, w, 3], raw and filled depth [n, h, w] [m]."""
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    filled = random.uniform(0.7, 9.9, (count, *size)).astype(np.float32)
    raw = np.where(random.random(filled.shape) < 0.3, 0, filled + np.float32(0.004)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["depths"] = filled.transpose(0, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
        if scenes:
            cells = file.create_dataset("scenes", (1, count), dtype=h5py.ref_dtype)
            for number in range(count):
                letters = np.array([[ord(letter)] for letter in SCENES[number % len(SCENES)]], dtype=np.uint16)
                cells[0, number] = file.create_dataset(f"#refs#/{number}", data=letters).ref
    return images, raw, filled


def official(path: Path, train: list[int], test: list[int]) -> Path:
    """Write `splits.mat` as it is published: MATLAB version 5, columns of doubles that count from 1."""
    columns = {"trainNdxs": train, "testNdxs": test}
    savemat(path, {key: np.array(value, dtype=np.float64)[:, None] for key, value in columns.items()})
    return path


def nyu(folder: Path, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    content = labelled(folder / "nyu_depth_v2_labeled.mat", **options)
    official(folder / "splits.mat", [5, 1, 2], [4])
    return content


@pytest.mark.parametrize("depth", ["raw", "filled"])
def test_nyuv2_is_upright_and_split_as_the_official_files_say(tmp_path: Path, depth: str, call: Call) -> None:
    images, raw, filled = nyu(tmp_path / "official")
    status, said, _ = call(
        "prepare",
        "nyuv2",
        tmp_path / "official" / "nyu_depth_v2_labeled.mat",
        "--out",
        tmp_path / "out",
        "--depth",
        depth,
    )
    train, val = both(tmp_path / "out")
    assert (status, names(val)) == (0, ["val/rgb/bedroom_0076a_0004.png"])
    stems = ["kitchen_0004_0001", "kitchen_0004_0002", "study_room_0005b_0005"]
    assert names(train) == [f"train/rgb/{stem}.png" for stem in stems]
    metres = raw if depth == "raw" else filled
    for place, number in enumerate((0, 1, 4)):
        sample = train.sample(place)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), images[number])
        np.testing.assert_allclose(sample.depth[0].numpy(), metres[number], rtol=0, atol=0.0005 + 1e-6)
        np.testing.assert_array_equal(sample.depth[0].numpy() == 0, metres[number] == 0)
    assert train.focal_length == val.focal_length == 518.8579
    share = 100 * np.mean(metres[[0, 1, 4]] > 0)
    assert f"3 training pairs, {share:.1f} % of their pixels measured; 1 validation pairs, " in said


def test_nyuv2_without_scene_names_and_with_a_split_in_hdf5(tmp_path: Path) -> None:
    nyu(tmp_path, scenes=False)
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["trainNdxs"], file["testNdxs"] = np.array([[2.0, 3.0]]), np.array([[1.0]])
    prepare_nyuv2(tmp_path, tmp_path / "out", splits=tmp_path / "other.mat")
    assert [names(source) for source in both(tmp_path / "out")] == [
        ["train/rgb/0002.png", "train/rgb/0003.png"],
        ["val/rgb/0001.png"],
    ]


def test_depth_that_is_not_finite_or_beyond_16_bits_is_not_measured(tmp_path: Path) -> None:
    nyu(tmp_path)
    odd = np.array([np.nan, np.inf, -1, 0.0004, 70, 65.535, 1.2345678, 10.0], dtype=np.float32)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["rawDepths"][0, :, 2] = odd
    prepare_nyuv2(tmp_path, tmp_path / "out")
    with Image.open(tmp_path / "out/train/depth/kitchen_0004_0001.png") as image:
        assert np.array(image)[2].tolist() == [0, 0, 0, 0, 0, 65535, 1235, 10000]
    depth = both(tmp_path / "out")[0].sample(0).depth[0, 2]
    torch.testing.assert_close(depth, torch.tensor([0, 0, 0, 0, 0, 0, 1.235, 10.0]), rtol=0, atol=0)


def test_eigen_crop_at_the_official_size_is_of_validation_data_alone(tmp_path: Path) -> None:
    nyu(tmp_path, size=(480, 640))
    prepare_nyuv2(tmp_path, tmp_path / "out", depth="filled")
    train, val = both(tmp_path / "out")
    expected = np.zeros((480, 640), dtype=bool)
    expected[45:471, 41:601] = True
    np.testing.assert_array_equal(val.sample(0).depth[0].numpy() > 0, expected)
    assert (train.sample(0).depth > 0).all()


# KITTI

DRIVES = {"train": ["2011_09_26_drive_0001_sync", "2011_10_03_drive_0034_sync"], "val": ["2011_09_26_drive_0002_sync"]}
FRAMES = ("0000000005", "0000000006")


def values(number: int, size: tuple[int, int]) -> np.ndarray:
    """Sparse depth in 1/256 m, no multiple of a millimetre, with values beyond 80 m."""
    random = np.random.default_rng(number)
    return np.where(random.random(size) < 0.2, random.integers(1, 22000, size), 0).astype(np.uint16)


def write_kitti(source: Path, raw: Path, size: tuple[int, int] = (12, 20), suffix: str = "png") -> None:
    number = 0
    for split, drives in DRIVES.items():
        for drive in drives:
            for camera in ("image_02", "image_03"):
                for frame in FRAMES:
                    save(
                        source / split / drive / "proj_depth/groundtruth" / camera / f"{frame}.png",
                        values(number, size),
                    )
                    photograph = raw / drive[:10] / drive / camera / "data" / f"{frame}.{suffix}"
                    save(photograph, picture(number, *size))
                    number += 1


@pytest.mark.parametrize("where", ["source", "below", "option"])
def test_kitti_keeps_the_values_of_its_files(tmp_path: Path, where: str, call: Call) -> None:
    source = tmp_path / "annotated"
    raw = {"source": source, "below": source / "raw", "option": tmp_path / "raw"}[where]
    write_kitti(source, raw)
    option = ("--raw", raw) if where == "option" else ()
    status, said, _ = call("prepare", "kitti", source, "--out", tmp_path / "out", *option)
    assert status == 0 and "8 training pairs, 1" in said and "; 4 validation pairs, " in said
    train, val = both(tmp_path / "out")
    ids = [
        f"{drive}/{camera}/{frame}"
        for drive in DRIVES["train"]
        for camera in ("image_02", "image_03")
        for frame in FRAMES
    ]
    assert names(train) == [f"train/rgb/{each}.png" for each in ids]
    for number in range(8):
        sample, stored = train.sample(number), values(number, (12, 20)).astype(np.float32)
        expected = np.where(stored <= 80 * 256, stored / 256, 0)
        np.testing.assert_array_equal(sample.depth[0].numpy(), expected)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), picture(number, 12, 20))
    assert (len(val), val.focal_length) == (4, 721.5377)
    # The two cameras of a drive see the same places.
    assert [train.group_of(number) for number in range(8)] == [each for each in DRIVES["train"] for _ in range(4)]


@pytest.mark.parametrize("size", [(375, 1242), (370, 1224), (370, 1226), (374, 1238), (376, 1241), (352, 1216)])
def test_garg_crop_is_cut_off_as_in_usual_evaluations(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    shares = [0.40810811 * height, 0.99189189 * height, 0.03594771 * width, 0.96405229 * width]
    top, bottom, left, right = np.array(shares).astype(np.int32)
    assert GARG.pixels(height, width) == (slice(top, bottom), slice(left, right))
    if size == (375, 1242):
        assert (top, bottom, left, right) == (153, 371, 44, 1197)
        root = write_pairs(tmp_path, 1, 1)
        (root / "dataset.json").write_text(
            json.dumps({"evaluation_crop": {"name": GARG.name, "shares": GARG.shares}, "depth_scale": 256})
        )
        save(root / "val/rgb/1000.png", np.zeros((*size, 3), dtype=np.uint8))
        save(root / "val/depth/1000.png", np.full(size, 1280, dtype=np.uint16))
        expected = np.zeros(size, dtype=np.float32)
        expected[153:371, 44:1197] = 5
        np.testing.assert_array_equal(both(root)[1].sample(0).depth[0].numpy(), expected)


def test_crops_hold_for_other_sizes() -> None:
    assert EIGEN.pixels(240, 320) == (slice(22, 235), slice(20, 300))
    assert EIGEN.pixels(480, 640) == (slice(45, 471), slice(41, 601))


def test_a_list_of_eigens_kind_is_the_validation_data_and_its_drives_are_kept_out_of_training(tmp_path: Path) -> None:
    write_kitti(tmp_path / "source", tmp_path / "source", suffix="jpg")
    first, second = DRIVES["train"]
    depth = f"{first}/proj_depth/groundtruth/image_02/{FRAMES[1]}.png"
    lines = [
        f"2011_09_26/{first}/image_02/data/{FRAMES[1]}.png {depth} 721.5377",
        f"/2011_10_03/{second}/image_02/data/{FRAMES[0]}.jpg None 718.856",
        "",
    ]
    (tmp_path / "eigen.txt").write_text("\n".join(lines))
    prepare_kitti(tmp_path / "source", tmp_path / "out", split=tmp_path / "eigen.txt")
    train, val = both(tmp_path / "out")
    assert names(val) == [f"val/rgb/{first}/image_02/{FRAMES[1]}.jpg"]
    ids = [f"{DRIVES['val'][0]}/{camera}/{frame}" for camera in ("image_02", "image_03") for frame in FRAMES]
    assert names(train) == [f"train/rgb/{each}.jpg" for each in ids]


def test_kittis_own_selection_is_validation_data_without_a_crop(tmp_path: Path) -> None:
    stem = "2011_09_26_drive_0002_sync_{}_0000000008_image_02.png"
    depth = values(0, (12, 20))
    save(tmp_path / "in/groundtruth_depth" / stem.format("groundtruth_depth"), depth)
    save(tmp_path / "in/image" / stem.format("image"), picture(0, 12, 20))
    prepared = prepare_kitti(tmp_path / "in", tmp_path / "out")
    source = open_source(DataConfig(root=str(tmp_path / "out")), "val")
    sample = source.sample(0)
    assert source.group_of(0) == "2011_09_26_drive_0002_sync"
    assert prepared.pairs == {"val": 1} and sample.name == "val/rgb/" + stem.format("image")
    np.testing.assert_array_equal(sample.depth[0].numpy(), np.where(depth <= 20480, depth / np.float32(256), 0))


# going on


def test_a_stopped_preparation_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nyu(tmp_path / "official")
    prepare_nyuv2(tmp_path / "official", tmp_path / "whole")
    write, written = writing.whole_file, []

    def stop_in_the_third_pair(path: Path) -> Any:
        written.append(path)
        if len(written) == 6:
            path.parent.mkdir(parents=True)
            path.with_name(path.name + ".partial").write_bytes(b"cut short")
            raise KeyboardInterrupt
        return write(path)

    monkeypatch.setattr(writing, "whole_file", stop_in_the_third_pair)
    with pytest.raises(KeyboardInterrupt):
        prepare_nyuv2(tmp_path / "official", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(files(tmp_path / "out.partial")) == 1 + 5 + 1
    with pytest.raises(BadInput, match="holds nyuv2-raw, not nyuv2-filled"):
        prepare_nyuv2(tmp_path / "official", tmp_path / "out", depth="filled")

    written.clear()
    monkeypatch.setattr(writing, "whole_file", lambda path: (written.append(path), write(path))[1])
    again = prepare_nyuv2(tmp_path / "official", tmp_path / "out")
    assert [path.parent.name for path in written] == ["rgb", "depth"] * 2
    assert files(tmp_path / "out") == files(tmp_path / "whole") and not (tmp_path / "out.partial").exists()

    written.clear()
    assert prepare_nyuv2(tmp_path / "official", tmp_path / "out") == again and not written


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    nyu(tmp_path / "official", size=(480, 640), count=40)
    official(tmp_path / "official/splits.mat", list(range(1, 31)), list(range(31, 41)))
    process = start("prepare", "nyuv2", tmp_path / "official", "--out", tmp_path / "out")
    try:
        while not (tmp_path / "out.partial/train/depth/kitchen_0004_0002.png").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "out").exists()
    prepare_nyuv2(tmp_path / "official", tmp_path / "out")
    prepare_nyuv2(tmp_path / "official", tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_going_on_with_another_split_does_not_mix_the_splits(tmp_path: Path) -> None:
    nyu(tmp_path)
    prepare_nyuv2(tmp_path, tmp_path / "out")
    with pytest.raises(BadInput, match=r"train/rgb holds kitchen_0004_0001.png, which this source or split does not"):
        prepare_nyuv2(tmp_path, tmp_path / "out", splits=official(tmp_path / "other.mat", [2, 5], [1, 4]))


# faults, through the command line


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(path: Path, key: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]


def replace_key(path: Path, key: str, content: np.ndarray) -> None:
    without(path, key)
    with h5py.File(path, "r+") as file:
        file[key] = content


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda mat, splits: mat.unlink(), r"there is no .*labeled\.mat: .*http://horatio"),
        (lambda mat, splits: truncate(mat), r"labeled\.mat is no HDF5 file, or is damaged .*fetch it again from http"),
        (lambda mat, splits: official(mat, [1], [2]), r"labeled\.mat is no HDF5 file"),
        (
            lambda mat, splits: without(mat, "rawDepths"),
            r"has no rawDepths; it holds #refs#, depths, images and 1 more",
        ),
        (
            lambda mat, splits: replace_key(mat, "images", np.zeros((5, 3, 6, 8), np.uint8)),
            r"images are \(5, 3, 6, 8\)",
        ),
        (lambda mat, splits: replace_key(mat, "images", np.zeros((5, 3, 8, 6))), r"images are float64, expected uint8"),
        (lambda mat, splits: splits.unlink(), r"no .*splits\.mat; fetch it from http://.*, or give --splits FILE"),
        (lambda mat, splits: truncate(splits), r"splits\.mat is no MATLAB file, or is damaged"),
        (lambda mat, splits: splits.write_text("1 2 3"), r"splits\.mat is no MATLAB file"),
        (lambda mat, splits: savemat(splits, {"trainNdxs": [1.0]}), r"splits\.mat has no testNdxs"),
        (lambda mat, splits: official(splits, [1, 2], [2]), r"names 1 pairs twice"),
        (lambda mat, splits: official(splits, [0, 2], [3]), r"names pair 0, but there are pairs 1 to 5"),
        (lambda mat, splits: official(splits, [6], [3]), r"names pair 6, but there are pairs 1 to 5"),
        (lambda mat, splits: official(splits, [1.5], [3]), r"trainNdxs should hold whole numbers"),
        (lambda mat, splits: (mat.parent / "out").mkdir() or (mat.parent / "out/a").touch(), "out exists and was not"),
    ],
)
def test_faults_of_nyuv2_are_one_line(tmp_path: Path, call: Call, spoil: Any, message: str) -> None:
    nyu(tmp_path)
    spoil(tmp_path / "nyu_depth_v2_labeled.mat", tmp_path / "splits.mat")
    status, _, said = call("prepare", "nyuv2", tmp_path / "nyu_depth_v2_labeled.mat", "--out", tmp_path / "out")
    assert status == 2 and said.count("\n") == 1
    assert re.search(message, said), said


FRAME = f"image_02/data/{FRAMES[0]}.png"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda source, raw: shutil.rmtree(source), r"there is no folder .*source: .*https://www\.cvlibs\.net"),
        (lambda source, raw: [shutil.rmtree(source / part) for part in ("train", "val")], r"holds no annotated depth"),
        (lambda source, raw: shutil.rmtree(raw), r"raw holds no photographs: expected DATE/DRIVE_sync.*raw_data\.php"),
        (
            lambda source, raw: (raw / "2011_09_26" / DRIVES["val"][0] / FRAME).unlink(),
            rf"1 of 12 depth maps have no photograph: there is no .*{FRAMES[0]}\.png; fetch",
        ),
        (lambda source, raw: truncate(raw / "2011_09_26" / DRIVES["val"][0] / FRAME), r"data/.*\.png: .*damaged"),
        (
            lambda source, raw: truncate(
                source / "val" / DRIVES["val"][0] / f"proj_depth/groundtruth/image_02/{FRAMES[0]}.png"
            ),
            r"groundtruth/image_02/.*\.png: .*damaged or incomplete",
        ),
        (
            lambda source, raw: save(raw / "2011_09_26" / DRIVES["val"][0] / FRAME, picture(0, 12, 21)),
            r"is 12 x 20 pixels \(height x width\), its photograph .* is 12 x 21",
        ),
        (
            lambda source, raw: shutil.copytree(source / "val" / DRIVES["val"][0], source / "train" / DRIVES["val"][0]),
            r"4 of 12 pairs come twice, in one split or in both: 2011_09_26_drive_0002_sync/image_02/",
        ),
    ],
)
def test_faults_of_kitti_are_one_line(tmp_path: Path, call: Call, spoil: Any, message: str) -> None:
    write_kitti(tmp_path / "source", tmp_path / "raw")
    spoil(tmp_path / "source", tmp_path / "raw")
    status, _, said = call(
        "prepare", "kitti", tmp_path / "source", "--raw", tmp_path / "raw", "--out", tmp_path / "out"
    )
    assert status == 2 and said.count("\n") == 1
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("kitchen/a.png b.png", r"line 1: 'kitchen/a\.png b\.png' is not of the form PHOTOGRAPH DEPTH \[FOCAL\]"),
        (f"2011_09_26/{DRIVES['val'][0]}/{FRAME} None 721.5", "lists no pair with depth"),
        (f"2011_09_26/{DRIVES['val'][0]}/{FRAME} nowhere.png", "1 of 9 listed depth maps are missing: .*nowhere.png"),
    ],
)
def test_faults_of_a_list_are_named(tmp_path: Path, call: Call, text: str | None, message: str) -> None:
    write_kitti(tmp_path / "source", tmp_path / "source")
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    status, _, said = call(
        "prepare", "kitti", tmp_path / "source", "--out", tmp_path / "out", "--split", tmp_path / "list.txt"
    )
    assert status == 2 and re.search(message, said), said


def test_a_data_set_that_is_not_known_and_an_option_of_the_other_one_are_refused(tmp_path: Path, call: Call) -> None:
    status, _, said = call("prepare", "nyu", tmp_path, "--out", tmp_path / "out")
    assert status == 2 and "did you mean 'nyuv2'?" in said
    status, _, said = call("prepare", "nyuv2", tmp_path, "--out", tmp_path / "out", "--raw", tmp_path)
    assert status == 2 and "No such option" in said
    status, _, said = call("prepare", "nyuv2", tmp_path, "--out", tmp_path / "out", "--depth", "row")
    assert status == 2 and "there is no depth 'row' (did you mean 'raw'?)" in said


# dataset.json


def facts(root: Path, **content: object) -> Path:
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_the_scale_of_a_folder_is_its_own_unless_another_is_insisted_on(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 1, 1)
    stored = torch.from_numpy(millimetres(0).astype(np.float32))
    for scale, keys in ((1000, {}), (500, {"depth_scale": 500.0})):
        torch.testing.assert_close(both(root, **keys)[0].sample(0).depth[0], stored / scale)
    facts(root, depth_scale=256)
    for scale, keys in ((256, {}), (256, {"depth_scale": 1000.0}), (500, {"depth_scale": 500.0})):
        torch.testing.assert_close(both(root, **keys)[0].sample(0).depth[0], stored / scale)


def test_depth_beyond_the_range_is_invalid_in_both_splits(tmp_path: Path) -> None:
    root = facts(write_pairs(tmp_path, 1, 1), range=[2.0, 4.0])
    for source, number in zip(both(root), (0, 1000), strict=True):
        metres = millimetres(number).astype(np.float32) / 1000
        assert (metres > 4).any() and ((metres > 0) & (metres < 2)).any()
        expected = np.where((metres >= 2) & (metres <= 4), metres, 0)
        np.testing.assert_array_equal(source.sample(0).depth[0].numpy(), expected)
        assert source.focal_length is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dataset\.json: it is not JSON"),
        ("[1]", r"dataset\.json: the file should hold"),
        ('{"depth_scal": 3}', r"dataset\.json: unknown key 'depth_scal' \(did you mean 'depth_scale'\?\)"),
        ('{"depth_scale": "256"}', r"dataset\.json: depth_scale='256': should be a valid number"),
        ('{"depth_scale": 0}', r"depth_scale=0.*: should be greater than 0"),
        ('{"depth_scale": true}', r"depth_scale=True: should be a valid number"),
        ('{"range": [10, 0.1]}', r"range=\[10, 0\.1\]: should be \[nearest, farthest\] in metres"),
        ('{"range": [10]}', r"'range\.1' is missing"),
        ('{"evaluation_crop": "eigen"}', r"evaluation_crop='eigen': should "),
        ('{"evaluation_crop": {"shares": [0, 0, 1, 1]}}', r"'evaluation_crop\.name' is missing"),
        ('{"evaluation_crop": {"name": "a", "shares": [0, 0, 1, 1], "x": 1}}', r"unknown key 'evaluation_crop\.x'"),
        ('{"evaluation_crop": {"name": "a", "shares": [0, 0, 471, 601]}}', r"shares\.2=471: should be less than"),
        ('{"evaluation_crop": {"name": "a", "shares": [0.5, 0, 0.5, 1]}}', r"shares=.*: should be \[top, left"),
        ('{"focal_length": -1, "name": 3}', r"name=3: should be a valid string; focal_length=-1: should be greater"),
    ],
)
def test_faults_of_dataset_json_name_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    (write_pairs(tmp_path, 1, 1) / "dataset.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        open_source(DataConfig(root=str(tmp_path)), "train")


# pairs divided by scene

IDENTITIES = ("bath_1", "bath_10", "bath_2", "kitchen/a", "kitchen/b", "office_1", "office_2")


def scenes(root: Path, below: str = ".") -> Path:
    for number, identity in enumerate(IDENTITIES):
        save(root / below / "rgb" / f"{identity}.jpg", picture(number))
        save(root / below / "depth" / f"{identity}.png", millimetres(number))
    return root


@pytest.mark.parametrize("below", [".", "train"])
@pytest.mark.parametrize(
    ("keys", "val"),
    [
        ({"val_prefixes": ("bath", "office_2")}, {"bath_1", "bath_10", "bath_2", "office_2"}),
        ({"val_prefixes": ("bath_1",)}, {"bath_1"}),
        ({"val_prefixes": ("bath_1*",)}, {"bath_1", "bath_10"}),
        ({"val_prefixes": "kitchen"}, {"kitchen/a", "kitchen/b"}),
        ({"val_list": "bath_1\n\n kitchen \n"}, {"bath_1", "kitchen/a", "kitchen/b"}),  # an ID means that pair alone
        ({"val_list": "bath_1\nbath\n"}, {"bath_1", "bath_10", "bath_2"}),
    ],
)
def test_pairs_without_val_are_divided_by_name(tmp_path: Path, below: str, keys: dict, val: set[str]) -> None:
    root = scenes(tmp_path / "pairs", below)
    if "val_list" in keys:
        (tmp_path / "list.txt").write_text(keys["val_list"])
        keys = {"val_list": str(tmp_path / "list.txt")}
    train, held_out = both(root, **keys)
    assert has_validation(DataConfig(root=str(root), **keys))
    identities = [
        {name.partition("rgb/")[2].removesuffix(".jpg") for name in names(part)} for part in (train, held_out)
    ]
    assert identities == [set(IDENTITIES) - val, val]
    number = IDENTITIES.index(min(val))
    metres = millimetres(number).astype(np.float32) / 1000
    np.testing.assert_array_equal(held_out.sample(0).depth[0].numpy(), metres)
    assert held_out.sample(0).name == held_out.name_of(0) and (root / held_out.name_of(0)).is_file()


def test_any_division_puts_every_pair_into_one_split(tmp_path: Path) -> None:
    root = scenes(tmp_path / "pairs")
    random = np.random.default_rng(0)
    divided = 0
    for _ in range(60):
        chosen = random.choice(IDENTITIES, random.integers(1, 4))
        words = [word[: random.integers(1, len(word) + 1)] + "*" for word in chosen]
        (tmp_path / "list.txt").write_text("\n".join(words))
        for keys in ({"val_prefixes": tuple(words)}, {"val_list": str(tmp_path / "list.txt")}):
            try:
                train, val = (names(part) for part in both(root, **keys))
            except BadInput as fault:
                assert "matches all 7 pairs" in str(fault)
                continue
            assert train and val and sorted(train + val) == sorted(f"rgb/{each}.jpg" for each in IDENTITIES)
            divided += 1
    assert divided > 80


def test_the_evaluation_crop_is_of_the_pairs_that_are_held_out(tmp_path: Path) -> None:
    crop = {"name": "middle", "shares": [0.25, 0.25, 0.75, 0.75]}
    root = facts(scenes(tmp_path), evaluation_crop=crop)
    train, val = both(root, val_prefixes=("office",))
    assert (train.sample(0).depth[0, 2:] > 0).all()
    expected = np.zeros((56, 72), dtype=bool)
    expected[14:42, 18:54] = True
    np.testing.assert_array_equal(val.sample(0).depth[0].numpy() > 0, expected)


@pytest.mark.parametrize("below", [".", "train"])
def test_without_a_division_all_pairs_are_training_data(tmp_path: Path, below: str) -> None:
    config = DataConfig(root=str(scenes(tmp_path, below)))
    assert len(open_source(config, "train")) == 7 and not has_validation(config)
    with pytest.raises(BadInput, match=r"has no val/: say which pairs are validation data.*data\.val_prefixes"):
        open_source(config, "val")


@pytest.mark.parametrize(
    ("make", "keys", "message"),
    [
        (scenes, {"val_prefixes": ("bath", "kitchn")}, r"begins with 'kitchn' \(did you mean 'kitchen/.'\?\)"),
        (scenes, {"val_prefixes": ("bath", "kitchen", "office")}, r"data\.val_prefixes matches all 7 pairs"),
        (scenes, {"val_prefixes": ("",)}, r"matches all 7 pairs"),
        (scenes, {"val_prefixes": ()}, r"data\.val_prefixes names no pairs"),
        (scenes, {"val_list": "nowhere.txt"}, r"data\.val_list=nowhere\.txt cannot be read: No such file"),
        (scenes, {"val_list": "a", "val_prefixes": ("a",)}, "both say which pairs .*: give one"),
        (write_pairs, {"val_prefixes": ("00",)}, r"has its own val/"),
        (
            lambda root: write_flat(root, 3),
            {"val_prefixes": ("00",)},
            r"data\.val_prefixes divides labelled pairs or RGB-D pairs, but",
        ),
        (scenes, {"kind": "folder"}, "take data.kind=rgbd"),
    ],
)
def test_faults_of_a_division_are_named(tmp_path: Path, make: Any, keys: dict, message: str) -> None:
    make(tmp_path)
    with pytest.raises(BadInput, match=message):
        open_source(DataConfig(root=str(tmp_path), **keys), "train")


def test_rendered_scenes_are_not_divided() -> None:
    with pytest.raises(BadInput, match=r"data\.val_list divides .*RGB-D pairs, but scenes:0 is no .*RGB-D folder"):
        open_source(DataConfig(val_list="list.txt", scenes_train=2), "train")


def test_photographs_that_do_not_pair_up_are_named_in_a_flat_folder_too(tmp_path: Path) -> None:
    (scenes(tmp_path) / "depth/bath_2.png").unlink()
    with pytest.raises(BadInput, match="1 of 7 photographs have no depth: bath_2"):
        PairedFolder(tmp_path, "train")
