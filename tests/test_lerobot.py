"""LeRobot data sets with depth, through the command line, read as an RGB-D folder."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiny_images import picture
from tiny_recordings import SIZE, depth, metres, names, sources, train
from tiny_runs import Call

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FRONT, DEPTH = "observation.images.front", "observation.images.front_depth"
FOCAL = 30.0


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=kind)
    return content.getvalue()


def stored(number: int, unit: str | None) -> np.ndarray:
    """Depth as LeRobot's recorder stores it: whole millimetres, or metres in floats."""
    values = metres(number, FOCAL)
    values[0] = 0
    return values.astype(np.float32) if unit == "m" else np.rint(1000 * values).astype(np.uint16)


def features(unit: str | None = "mm", cameras: tuple[str, ...] = (FRONT,), **other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"action": {"dtype": "float32", "shape": [6]}}
    for camera in cameras:
        facts = {"is_depth_map": True} | ({"depth_unit": unit} if unit else {})
        found[camera] = {"dtype": "image", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
        found[f"{camera}_depth"] = {"dtype": "image", "shape": [*SIZE, 1], "info": facts}
    return found | other


def write_lerobot(
    root: Path,
    version: str = "v3.0",
    unit: str | None = "mm",
    lengths: tuple[int, ...] = (3, 2),
    cameras: tuple[str, ...] = (FRONT,),
    kinds: tuple[str, str] = ("PNG", "TIFF"),
    **info: Any,
) -> Path:
    """A data set as its own writer lays it out: a file for each episode up to 2.1, several in one from 3.0 on."""
    (root / "meta").mkdir(parents=True)
    content = {"codebase_version": version, "fps": 30, "features": features(unit, cameras), "splits": {"train": "0:9"}}
    (root / "meta/info.json").write_text(json.dumps(content | info))
    tables = []
    for episode, frames in enumerate(lengths):
        columns: dict[str, Any] = {
            "action": [[0.0] * 6] * frames,
            "episode_index": [episode] * frames,
            "frame_index": list(range(frames)),
        }
        for camera in cameras:
            shots = [encoded(picture(10 * episode + frame, *SIZE), kinds[0]) for frame in range(frames)]
            maps = [encoded(stored(episode + frame, unit), kinds[1]) for frame in range(frames)]
            for key, files in ((camera, shots), (f"{camera}_depth", maps)):
                columns[key] = [{"bytes": each, "path": f"frame-{frame:06}"} for frame, each in enumerate(files)]
        tables.append(pyarrow.table(columns))
    if version.startswith("v3"):
        (root / "data/chunk-000").mkdir(parents=True)
        with parquet.ParquetWriter(root / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
    else:
        for episode, table in enumerate(tables):
            path = root / f"data/chunk-000/episode_{episode:06}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table, path)
    return root


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(("unit", "kinds"), [("mm", ("PNG", "TIFF")), ("m", ("JPEG", "TIFF")), ("mm", ("PNG", "PNG"))])
def test_depth_of_robots_is_read_in_the_unit_that_is_said(
    tmp_path: Path, version: str, unit: str, kinds: tuple[str, str], call: Call
) -> None:
    root = write_lerobot(tmp_path / "in", version, unit, kinds=kinds)
    options = ("--registered", "--val", "episode_000001")
    status, said, wrong = call("prepare", "lerobot", root, "--out", tmp_path / "out", *options)
    assert status == 0 and "3 training pairs" in said and "2 validation pairs" in said, wrong
    source, val = sources(tmp_path / "out")
    suffix = "png" if kinds[0] == "PNG" else "jpg"
    assert names(source) == [f"episode_000000/{frame:06}.{suffix}" for frame in range(3)]
    assert val.group_of(0) == "episode_000001"
    for number in range(3):
        expected = (np.rint(1000 * metres(number, FOCAL)) / 1000).astype(np.float32)
        expected[0] = 0
        np.testing.assert_array_equal(depth(source, number), expected)
    pixels = val.sample(1).image.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels - picture(11, *SIZE)).mean() < (1e-9 if suffix == "png" else 8)


def test_a_folder_that_was_made_by_other_options_is_not_gone_on_with(tmp_path: Path, call: Call) -> None:
    root, out = write_lerobot(tmp_path / "in", unit=None), tmp_path / "out"
    prepare = ("prepare", "lerobot", root, "--out", out, "--registered")
    assert call(*prepare, "--depth-unit", "metres")[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    status, _, errors = call(*prepare, "--depth-unit", "millimetres")
    assert status == 2 and "lerobot-metres" in errors
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before


def test_several_depth_cameras_and_every_second_frame(tmp_path: Path, call: Call) -> None:
    root = write_lerobot(tmp_path / "in", cameras=(FRONT, "observation.images.wrist"))
    status, said, wrong = call("prepare", "lerobot", root, "--out", tmp_path / "out", "--registered", "--every", "2")
    assert status == 0 and "6 training pairs" in said, wrong
    assert "no focal length is known of episode_000000, episode_000001" in said
    found = names(train(tmp_path / "out"))
    assert found[:2] == ["episode_000000/front/000000.png", "episode_000000/front/000002.png"]
    assert found[-1] == "episode_000001/wrist/000000.png"


def test_its_own_validation_episodes_are_kept(tmp_path: Path, call: Call) -> None:
    root = write_lerobot(tmp_path / "in", lengths=(1, 1, 1), splits={"train": "0:2", "val": "2:3"})
    status, said, wrong = call("prepare", "lerobot", root, "--out", tmp_path / "out", "--registered")
    assert status == 0 and "2 training pairs" in said and "1 validation pairs" in said, wrong


def test_images_beside_the_tables_and_frames_without_any(tmp_path: Path, call: Call) -> None:
    root = write_lerobot(tmp_path / "in", "v2.1", lengths=(3,))
    path = root / "data/chunk-000/episode_000000.parquet"
    table = parquet.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    for key, kind in ((FRONT, "png"), (DEPTH, "tiff")):
        for frame, each in enumerate(columns[key]):
            file = root / "images" / key / f"frame_{frame:06}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(each["bytes"])
            columns[key][frame] = {"bytes": None, "path": str(file.relative_to(root))}
    columns[DEPTH][1] = {"bytes": None, "path": None}
    parquet.write_table(pyarrow.table(columns), path)
    status, said, wrong = call("prepare", "lerobot", root, "--out", tmp_path / "out", "--registered")
    assert status == 0 and "2 training pairs" in said, wrong
    assert "episode_000000: 1 of 3 frames lack a photograph or depth, left out" in said
    np.testing.assert_allclose(depth(train(tmp_path / "out"), 1)[1:], metres(2, FOCAL)[1:], atol=0.0006)


def as_video(key: str) -> dict[str, Any]:
    found = features()
    return found | {key: found[key] | {"dtype": "video"}}


def unflagged() -> dict[str, Any]:
    found = features()
    return found | {DEPTH: found[DEPTH] | {"info": {}}}


def test_what_is_not_said_is_asked_for(tmp_path: Path, call: Call) -> None:
    root = write_lerobot(tmp_path / "in", features=unflagged())

    def prepared(*options: str) -> tuple[int, str]:
        status, _, said = call("prepare", "lerobot", root, "--out", tmp_path / "out", *options)
        return status, said

    status, said = prepared("--registered")
    assert status == 2 and f"flags no depth map (is_depth_map): give --depth FEATURE, of {FRONT}, {DEPTH}" in said
    status, said = prepared("--depth", DEPTH)
    assert status == 2 and "does not say the unit" in said and "give --depth-unit, one of metres, centimetres" in said
    status, said = prepared("--depth", DEPTH, "--depth-unit", "millimetres")
    assert status == 2 and "nothing in a LeRobot data set says whether depth lies on the photographs" in said
    assert "give --registered if your recorder did" in said
    status, said = prepared("--depth", DEPTH, "--depth-unit", "millimetres", "--registered")
    assert status == 0, said


@pytest.mark.parametrize(
    ("info", "options", "message"),
    [
        ({"codebase_version": "v1.6"}, (), r"codebase_version='v1\.6': versions 2\.x and 3\.0 are read"),
        ({"features": [1]}, (), r"names no features"),
        ({"features": as_video(DEPTH)}, (), r"front_depth is a video: .*quantised to 12 bits .*--dataset\.video=false"),
        ({"features": as_video(FRONT)}, (), r"front is a video, which is not read here; record with --dataset\.video"),
        ({"features": features("cm")}, (), r"depth_unit='cm' of .*front_depth should be mm or m"),
        ({}, ("--depth-unit", "metres"), r"says millimetres of .*: leave out --depth-unit metres"),
        ({}, ("--depth-unit", "inches"), r"there is no unit 'inches'"),
        ({}, ("--depth", "front_depht"), r"--depth: no images are named 'front_depht'"),
        ({}, ("--photographs", DEPTH), r"has no photographs beside .*front_depth"),
        ({"splits": {"val": "some"}}, (), r"the split 'some' is not of the form FIRST:END; give --val EPISODE"),
        ({}, ("--val", "episode_00001"), r"no recording 'episode_00001' \(did you mean 'episode_000001'\?\)"),
    ],
)
def test_faults_of_a_data_set_are_named(tmp_path: Path, info: dict, options: tuple, message: str, call: Call) -> None:
    root = write_lerobot(tmp_path / "in", **info)
    status, _, said = call("prepare", "lerobot", root, "--out", tmp_path / "out", "--registered", *options)
    assert status == 2 and re.search(message, said), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (picture(0, *SIZE), r"front_depth is TIFF of 8 bits or of colours: depth drawn for people"),
        (np.zeros(SIZE, np.uint8), r"front_depth is TIFF of 8 bits or of colours"),
        (
            np.ones((12, 16), np.uint16),
            r"front_depth is 12 x 16 pixels .*, its photograph 24 x 32: depth has to be regis",
        ),
        (None, r"front_depth: .* it is damaged"),
    ],
)
def test_wrong_depth_of_a_frame_is_named(tmp_path: Path, pixels: Any, message: str, call: Call) -> None:
    root = write_lerobot(tmp_path / "in", "v2.1", lengths=(2,))
    path = root / "data/chunk-000/episode_000000.parquet"
    table = parquet.read_table(path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    columns[DEPTH][1]["bytes"] = b"cut" if pixels is None else encoded(pixels, "TIFF")
    parquet.write_table(pyarrow.table(columns), path)
    status, _, said = call("prepare", "lerobot", root, "--out", tmp_path / "out", "--registered")
    assert status == 2 and re.search(message, said), said


def test_missing_and_damaged_files_are_named(tmp_path: Path, call: Call) -> None:
    def refused(root: Path) -> str:
        status, _, said = call("prepare", "lerobot", root, "--out", tmp_path / "out", "--registered")
        assert status == 2, said
        return said

    assert "meta/info.json: a LeRobot data set has meta/info.json and data/" in refused(tmp_path / "gone")
    root = write_lerobot(tmp_path / "in", "v2.1")
    first, second = sorted((root / "data/chunk-000").iterdir())
    table = parquet.read_table(first)
    parquet.write_table(table.drop_columns([DEPTH]), first)
    assert f"has no {DEPTH}" in refused(root)
    parquet.write_table(table.drop_columns([DEPTH]).append_column(DEPTH, [[1, 2, 3]]), first)
    assert "does not hold images (int64)" in refused(root)
    first.write_bytes(first.read_bytes()[:80])
    assert "episode_000000.parquet is damaged or incomplete" in refused(root)
    first.unlink()
    second.unlink()
    assert "data holds no Parquet files" in refused(root)
