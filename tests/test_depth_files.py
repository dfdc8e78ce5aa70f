"""Depth as floats: TIFF, EXR and NPY beside photographs, their unit always said, never guessed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa.data.config import DataConfig
from depthjepa.data.contents import contents_of
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import open_source
from depthjepa.data.metres import describe_depth
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput, RunStopped
from tiny_images import millimetres, picture, save, write_pairs
from tiny_runs import GUIDED, Call, run

SIZE = (14, 18)
ODD = (np.nan, np.inf, -np.inf, -1.0, 0.0)  # none of which was measured


def write_depth(path: Path, values: np.ndarray, channel: str = "Z") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".exr":
        exr = pytest.importorskip("OpenEXR")
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        exr.File(header, {channel: np.ascontiguousarray(values)}).write(str(path))
    else:
        Image.fromarray(values).save(path)


def metres(number: int) -> np.ndarray:
    return millimetres(number, *SIZE).astype(np.float32) / np.float32(1000)


def folder(root: Path, suffix: str, scale: float = 1.0, dtype: Any = np.float32, **facts: object) -> Path:
    """Three training pairs and a validation pair whose depth is in a format and unit; the first row is odd."""
    for split, numbers in (("train", (0, 1, 2)), ("val", (9,))):
        for number in numbers:
            values = metres(number).astype(np.float64) * scale
            if np.dtype(dtype).kind == "f":
                values[0, : len(ODD)] = ODD
            save(root / split / "rgb" / f"{number}.png", picture(number, *SIZE))
            stored = values if np.dtype(dtype).kind == "f" else np.rint(values)
            write_depth(root / split / "depth" / f"{number}{suffix}", stored.astype(dtype))
    if facts:
        (root / "dataset.json").write_text(json.dumps(facts))
    return root


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".tiff", np.float32),
        (".TIF", np.float32),
        (".exr", np.float32),
        (".exr", np.float16),
        (".npy", np.float32),
        (".npy", np.float16),
        (".npy", np.float64),
        (".npy", ">f4"),
    ],
)
@pytest.mark.parametrize(
    ("scale", "facts", "keys"),
    [
        (1, {"depth_unit": "metres"}, {}),
        (100, {"depth_unit": "centimetres"}, {}),
        (1000, {"depth_unit": "millimetres"}, {}),
        (1000, {"depth_scale": 1000}, {}),
        (100, {"depth_scale": 100, "depth_unit": "centimetres"}, {}),
        (1, {}, {"depth_scale": 1.0}),
        (100, {"depth_unit": "metres"}, {"depth_scale": 100.0}),  # insisted on
    ],
)
def test_floats_are_read_in_the_unit_that_is_said(
    tmp_path: Path, suffix: str, dtype: Any, scale: float, facts: dict, keys: dict
) -> None:
    root = folder(tmp_path, suffix, scale, dtype, **facts)
    source = open_source(DataConfig(root=str(root), **keys), "train")
    assert len(source) == 3
    for number in range(3):
        expected = torch.from_numpy(metres(number))
        expected[0, : len(ODD)] = 0
        found = source.sample(number).depth[0]
        rounding = 1e-3 if np.dtype(dtype) == np.float16 else 2e-7
        torch.testing.assert_close(found, expected, rtol=rounding, atol=0)
        assert torch.equal(found > 0, expected > 0)


def test_whole_numbers_of_npy_need_a_unit_as_well(tmp_path: Path) -> None:
    root = folder(tmp_path, ".npy", 1000, np.uint16)
    with pytest.raises(BadInput, match="nothing says which unit"):
        PairedFolder(root, "train")
    (root / "dataset.json").write_text('{"depth_unit": "millimetres"}')
    np.testing.assert_array_equal(PairedFolder(root, "train").sample(1).depth[0].numpy(), metres(1))


@pytest.mark.parametrize("suffix", [".tiff", ".exr", ".npy"])
def test_an_unsaid_unit_is_refused_with_the_median_in_each(tmp_path: Path, suffix: str, call: Call) -> None:
    root = folder(tmp_path / "pairs", suffix, 1000)
    status, _, said = call("train", "rgbd", f"data.root={root}", "--out", tmp_path / "out")
    median = float(np.median(metres(0)[metres(0) > 0]))  # the first rows are not measured
    assert status == 2 and said.count("\n") == 1
    assert re.search(
        rf"depth.0\{suffix}: nothing says which unit these depth files are in; the median of 0\{suffix}", said
    )
    for value, word in ((median * 1000, "metres"), (median * 10, "centimetres"), (median, "millimetres")):
        assert f"{value:.3g} m in {word}" in said
    assert 'write {"depth_unit": "metres"} (or centimetres, millimetres) into' in said and "dataset.json" in said
    assert "or give data.depth_scale" in said
    PairedFolder(root, "train", 500.0)  # any scale but the default is insisted on
    (root / "train" / "depth" / f"0{suffix}").write_bytes(b"cut short")
    with pytest.raises(BadInput, match=r"depth files are in: write \{"):
        PairedFolder(root, "train")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"depth_unit": "metres", "depth_scale": 1000}, r"depth_unit=metres is depth_scale=1, and depth_scale=1000 is"),
        ({"depth_unit": "inches"}, r"depth_unit='inches': should be 'metres', 'centimetres' or 'millimetres'"),
    ],
)
def test_a_unit_that_contradicts_itself_is_refused(tmp_path: Path, facts: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        PairedFolder(folder(tmp_path, ".npy", **facts), "train")


def test_png_takes_its_unit_in_words_too(tmp_path: Path) -> None:
    root = write_pairs(tmp_path, 1, 1)
    (root / "dataset.json").write_text('{"depth_unit": "centimetres"}')
    np.testing.assert_array_equal(
        PairedFolder(root, "train").sample(0).depth[0].numpy(), millimetres(0).astype(np.float32) / np.float32(100)
    )


def test_metres_in_floats_are_shown_and_a_spike_is_told_in_metres(tmp_path: Path) -> None:
    root = folder(tmp_path, ".npy", depth_unit="metres")
    for path in (root / "train/depth").glob("*.npy"):
        values = np.load(path)
        values[5] = 9.8
        np.save(path, values)
    shown, warned = describe_depth(open_source(DataConfig(root=str(root)), "train"))
    assert re.search(r"1\.5 to 9\.8 m, median .* m, .* \(3 of 3 pairs, 1 file units a metre\)", shown)
    assert re.search(r"of it is 9\.8 m, the largest number there", warned)


# the wrong ones


def spoil_tiff_rgb(path: Path) -> None:
    Image.fromarray(picture(0, *SIZE)).save(path)


def spoil_tiff_pages(path: Path) -> None:
    image = Image.fromarray(metres(0))
    image.save(path, save_all=True, append_images=[image])


def spoil_tiff_turned(path: Path) -> None:
    Image.fromarray(metres(0)).save(path, tiffinfo={274: 6})


def exr_of(**channels: np.ndarray) -> Any:
    def write(path: Path) -> None:
        exr = pytest.importorskip("OpenEXR")
        exr.File({}, channels).write(str(path))

    return write


def npy_of(values: np.ndarray) -> Any:
    return lambda path: np.save(path, values)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("suffix", "spoil", "message"),
    [
        (".tiff", spoil_tiff_rgb, r"0\.tiff is TIFF of mode RGB; depth must be a TIFF of one channel"),
        (".tiff", spoil_tiff_pages, r"0\.tiff holds 2 pages: write depth as a TIFF of one page"),
        (".tiff", spoil_tiff_turned, r"0\.tiff has an EXIF rotation \(6\): write depth"),
        (".tiff", lambda path: Image.fromarray(metres(0)[:9]).save(path), r"0\.tiff is 9 x 18 .*its photograph 0\.png"),
        (".exr", exr_of(RGB=np.zeros((*SIZE, 3), np.float32)), r"has the channels B, G, R: depth must be the only one"),
        (
            ".exr",
            exr_of(Z=np.zeros(SIZE, np.uint32)),
            r"holds uint32 \[14, 18\]; depth must be \[height, width\] of floa",
        ),
        (".npy", npy_of(np.zeros((*SIZE, 1))), r"holds float64 \[14, 18, 1\]; depth must be \[height, width\]"),
        (".npy", npy_of(np.zeros(SIZE, np.uint8)), r"holds uint8 \[14, 18\]; .* of floats or of uint16"),
        (".npy", npy_of(np.zeros((9, 18))), r"0\.npy is 9 x 18 pixels"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, suffix: str, spoil: Any, message: str) -> None:
    root = folder(tmp_path, suffix, depth_unit="metres")
    spoil(root / "train/depth" / f"0{suffix}")
    source = PairedFolder(root, "train")
    with pytest.raises(BadInput, match=message):
        source.sample(0)
    assert source.sample(1).depth is not None


@pytest.mark.parametrize("suffix", [".tiff", ".exr", ".npy"])
@pytest.mark.parametrize("spoil", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_text("no depth")])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, spoil: Any) -> None:
    root = folder(tmp_path, suffix, depth_unit="metres")
    spoil(root / "train/depth" / f"0{suffix}")
    with pytest.raises(UnreadableImage, match=rf"0\{suffix}: "):
        PairedFolder(root, "train").sample(0)


def test_the_depth_channel_of_several_is_taken(tmp_path: Path) -> None:
    root = folder(tmp_path, ".exr", depth_unit="metres")
    layer = metres(0)
    exr_of(**{"Layer.Depth.Z": layer, "Layer.R": 0 * layer})(root / "train/depth/0.exr")
    np.testing.assert_array_equal(PairedFolder(root, "train").sample(0).depth[0].numpy(), layer)


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    root = folder(tmp_path, ".npy", depth_unit="metres")
    write_depth(root / "train/depth/0.tif", metres(0))
    with pytest.raises(
        BadInput, match=r"several formats, 1 \.tif \(0\.tif\) and 3 \.npy \(0\.npy\): keep those of one"
    ):
        PairedFolder(root, "train")


def test_without_openexr_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, ".exr", depth_unit="metres")
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "OpenEXR" else find(name))
    monkeypatch.delitem(sys.modules, "OpenEXR")
    with pytest.raises(BadInput, match=r"0\.exr: .* not installed: pip install 'depthjepa\[exr\]'"):
        PairedFolder(root, "train")


def test_a_run_learns_from_floats_and_goes_on_with_them_alone(
    tmp_path: Path, stop_after: Callable[[int | None], None]
) -> None:
    root = write_pairs(tmp_path / "pairs", 12, 4)
    for path in root.rglob("depth/*.png"):
        with Image.open(path) as image:
            np.save(path.with_suffix(".npy"), np.array(image).astype(np.float32) / 1000)
        path.unlink()
    (root / "dataset.json").write_text('{"depth_unit": "metres"}')
    settings = (*GUIDED, "train.steps=2", "evaluation.pictures=1")
    stop_after(1)
    with pytest.raises(RunStopped, match="stopped at step 1 of 2"):
        run(root, tmp_path / "run", *settings)
    stop_after(None)
    path = root / "train/depth/0003.npy"
    kept = path.read_bytes()
    np.save(path, np.load(path) + 1)
    with pytest.raises(BadInput, match=r"was begun with other data: train: 1 changed \(train/rgb/0003\.png\)"):
        run(root, tmp_path / "run", *settings, resume=True)
    path.write_bytes(kept)
    assert run(root, tmp_path / "run", *settings, resume=True)["finished"]


# what is known of the files


@pytest.mark.parametrize("suffix", [".tiff", ".npy"])
def test_a_replaced_file_of_the_same_size_is_noticed(tmp_path: Path, suffix: str) -> None:
    root = folder(tmp_path, suffix, depth_unit="metres")
    before = contents_of({"train": PairedFolder(root, "train")})
    assert contents_of({"train": PairedFolder(root, "train")}) == before
    path = root / f"train/depth/1{suffix}"
    size = path.stat().st_size
    write_depth(path, metres(5))
    assert path.stat().st_size == size and contents_of({"train": PairedFolder(root, "train")}) != before


def test_what_is_known_of_folders_of_png_is_as_it_was(tmp_path: Path) -> None:
    source = PairedFolder(write_pairs(tmp_path, 2, 1), "train")
    (tmp_path / "dataset.json").write_text('{"name": "mine", "depth_scale": 500}')
    known = PairedFolder(tmp_path, "train").stamps()
    sizes = [[(tmp_path / f"train/{part}/{n:04}.png").stat().st_size for part in ("rgb", "depth")] for n in range(2)]
    np.testing.assert_array_equal(known[:, :2], sizes)
    np.testing.assert_array_equal(source.stamps()[:, :2], sizes)
    # checksums of what is said, as folders of earlier versions have them
    assert [source.stamps()[0, 2], known[0, 2]] == [3728938109, 921990797]
