"""A data set of the hub, read from a folder of its files and from a stand-in of the hub, beside what files give."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa.data.account import what_is_read
from depthjepa.data.config import DataConfig
from depthjepa.data.contents import contents_of
from depthjepa.data.hub.address import address_of
from depthjepa.data.images import decode
from depthjepa.data.layouts.hub import HubImages
from depthjepa.data.loading import has_validation, open_source, open_splits, source_name, view_batches
from depthjepa.data.metres import describe_depth
from depthjepa.data.pixel_maps import decode_depth
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput
from tiny_hub import SHA, hub_of
from tiny_images import millimetres, picture
from tiny_runs import GUIDED, Call, metrics, recipe_file, same_losses, start

datasets = pytest.importorskip("datasets")

WORDS = ("blue", "red")
Rows = Sequence[Mapping[str, Any]]


@pytest.fixture(autouse=True)
def kept_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library keeps of data sets lies in the folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "kept")


def content(pixels: np.ndarray, suffix: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG" if suffix == "jpg" else suffix, **options)
    return file.getvalue()


def turned(pixels: np.ndarray, tag: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return content(pixels, "jpg", exif=exif)


def stored(raw: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": raw, "path": path}


def write(folder: Path, features: Mapping[str, Any], **splits: Rows) -> Path:
    """A folder as the hub's: `data/SPLIT-00000-of-00001.parquet`."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        columns = {name: [row[name] for row in rows] for name in features}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        with contextlib.redirect_stderr(io.StringIO()):  # it shows a bar
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def labelled_rows(numbers: Sequence[int]) -> Rows:
    """Photographs of two classes that colour tells apart."""
    rows = []
    for number in numbers:
        pixels = picture(number)
        pixels[..., 2 * (number % 2 == 0)] = 255
        rows.append({"image": stored(content(pixels), f"{number:04}.png"), "label": number % 2, "text": "words"})
    return rows


def write_labelled(folder: Path, training: int = 24, validation: int = 8) -> Path:
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(WORDS)),
        "text": datasets.Value("string"),
    }
    return write(
        folder,
        features,
        train=labelled_rows(range(training)),
        validation=labelled_rows(range(1000, 1000 + validation)),
        test=labelled_rows(range(5)),
    )


def pairs(numbers: Sequence[int]) -> Rows:
    return [{"image": stored(content(picture(n))), "depth_map": stored(content(millimetres(n)))} for n in numbers]


def write_depth(folder: Path) -> Path:
    features = {"image": datasets.Image(), "depth_map": datasets.Image()}
    return write(folder, features, train=pairs(range(24)), val=pairs(range(1000, 1008)))


def opened(folder: Path, split: str = "train", **keys: Any) -> HubImages:
    source = open_source(DataConfig(root=f"hub:{folder}", **keys), split)
    assert isinstance(source, HubImages)
    return source


def refusal(folder: Path, split: str = "train", **keys: Any) -> str:
    with pytest.raises(BadInput) as fault:
        opened(folder, split, **keys)
    return str(fault.value).replace(str(folder), "FOLDER")


def test_images_are_what_the_same_files_in_a_folder_are(tmp_path: Path) -> None:
    grey = picture(4)[..., 0]
    files = {
        "a.png": content(picture(0)),
        "b.jpg": content(picture(1), "jpg"),
        "c.webp": content(picture(2), "webp"),
        "grey.png": content(grey),
        "deep.png": content(millimetres(5)),
        "turned.jpg": turned(picture(6)),
        "sheer.png": content(np.dstack([picture(7), grey])),
        "torn.png": content(picture(8))[:90],
        "text.jpg": b"no image",
        "empty.png": b"",
    }
    rows = [{"image": stored(raw, name)} for name, raw in files.items()]
    source = opened(write(tmp_path / "set", {"image": datasets.Image()}, train=[*rows, {"image": None}]))
    for index, (name, raw) in enumerate(files.items()):
        file = tmp_path / name
        file.write_bytes(raw)
        try:
            expected = decode(file)
        except UnreadableImage as fault:
            with pytest.raises(UnreadableImage) as own:
                source.sample(index)
            assert str(own.value) == f"{source.name}/train/{index}/{name}{str(fault).removeprefix(str(file))}"
            continue
        sample = source.sample(index)
        assert torch.equal(sample.image, expected) and sample.image.stride() == expected.stride(), name
        assert (sample.name, sample.label, sample.depth) == (f"train/{index}/{name}", -1, None)
        assert sample.name == source.name_of(index)
    with pytest.raises(UnreadableImage, match=rf"^{source.name}/train/{len(files)}: the row holds none$"):
        source.sample(len(files))
    assert source.classes == () and not source.has_depth


def test_files_beside_each_other_are_read_in_place_with_their_folders_as_classes(tmp_path: Path) -> None:
    for number in range(6):
        file = tmp_path / "set" / "train" / WORDS[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(picture(number)) if number else b"torn")
    source = opened(tmp_path / "set")
    assert source.classes == WORDS and sorted(source.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    found = {source.name_of(index).rpartition("/")[2]: index for index in range(6)}
    sample = source.sample(found["3.png"])
    assert sample.label == 1
    assert torch.equal(sample.image, decode(tmp_path / "set" / "train" / "red" / "3.png"))
    with pytest.raises(UnreadableImage, match=rf"set/train/{found['0.png']}/0.png: train/blue/0.png: it is no image"):
        source.sample(found["0.png"])
    sizes = source.stamps()[:, 0]
    assert sizes[found["0.png"]] == 4 and sizes[found["3.png"]] == len(content(picture(3)))
    (tmp_path / "set" / "train" / "red" / "3.png").unlink()
    with pytest.raises(UnreadableImage, match=r"train/red/3\.png: No such file"):
        source.sample(found["3.png"])


def test_classes_splits_and_what_is_passed_over(tmp_path: Path) -> None:
    folder = write_labelled(tmp_path / "set")
    config = DataConfig(root=f"hub:{folder}")
    data = open_splits(config)
    assert (len(data["train"]), len(data["val"])) == (24, 8) and has_validation(config)
    assert data["train"].classes == data["val"].classes == WORDS
    assert [data["train"].sample(index).label for index in range(4)] == [0, 1, 0, 1]
    assert data["val"].sample(3).name == "validation/3/1003.png"
    assert what_is_read(config, data) == (
        f"data: hub:{folder} is a data set of the Hugging Face hub: train 24 images, val 8; 2 classes (blue, red); "
        f"ignored: 1 column text, 1 split test"
    )
    assert source_name(config.root) == data["train"].name == f"hub:{folder}"


def test_a_data_set_without_validation_data_has_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"image": datasets.Image()}, train=pairs(range(3)), test=pairs(range(2)))
    assert not has_validation(DataConfig(root=f"hub:{folder}"))
    assert refusal(folder, "val") == "hub:FOLDER has no split validation or val or valid; it has train, test"
    shutil.rmtree(folder)
    write(folder, {"image": datasets.Image()}, test=pairs(range(2)))
    assert refusal(folder) == "hub:FOLDER has no split train; it has test"


def test_a_part_of_the_classes_and_of_their_images(tmp_path: Path) -> None:
    folder = write_labelled(tmp_path / "set")
    few = opened(folder, images_per_class=2)
    assert [few.name_of(index).split("/")[1] for index in range(len(few))] == ["0", "1", "2", "3"]
    red = opened(folder, classes=("red",), images_per_class=3)
    assert (red.classes, red.labels.tolist()) == (("red",), [0, 0, 0])
    assert [red.sample(index).name for index in range(3)] == [f"train/{n}/{n:04}.png" for n in (1, 3, 5)]
    assert red.stamps().tolist() == opened(folder, classes=("red",)).stamps()[:3].tolist()
    assert opened(folder, "val", images_per_class=1, classes=("red", "blue")).labels.tolist() == [1, 0] * 4
    assert opened(folder, classes=1).classes == ("blue",)
    assert refusal(folder, classes=3) == "data.classes=3, but there are 2 classes in hub:FOLDER"
    assert refusal(folder, classes=("rde",)).startswith("data.classes: no class 'rde' in hub:FOLDER (did you mean 'red")
    without = "needs labels, and hub:FOLDER has no column of classes that is read"
    assert refusal(folder, hub_label="none", images_per_class=1) == f"data.images_per_class {without}"


def test_rows_without_labels_are_not_mixed_with_labelled_ones(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(WORDS))}
    rows = [dict(row) for row in labelled_rows(range(4))]
    folder = write(tmp_path / "none", features, train=[row | {"label": -1} for row in rows])
    assert opened(folder).classes == () and opened(folder).labels.tolist() == [-1] * 4
    rows[2]["label"] = None
    folder = write(tmp_path / "some", features, train=rows)
    assert refusal(folder) == (
        "hub:FOLDER/train/2 has no label in the column label, but other rows have: data.hub_label=none reads all of "
        "them without"
    )
    assert opened(folder, hub_label="none").classes == ()


def row_of(features: Mapping[str, Any]) -> dict[str, Any]:
    made = {"Image": stored(content(picture(1))), "ClassLabel": 1, "Value": 1}
    return {name: made[type(each).__name__] for name, each in features.items()}


@pytest.mark.parametrize(
    ("columns", "keys", "found"),
    [
        (("left", "right"), {}, "several columns of images (left, right): choose one, data.hub_image=left"),
        (("left", "right"), {"hub_image": "right"}, "right"),
        (
            ("left", "right"),
            {"hub_image": "rigth"},
            "no such column of images (did you mean 'right'?); it has left, ri",
        ),
        (("left", "right"), {"hub_image": "none"}, "data.hub_image=none: hub:FOLDER has no such column"),
        (("mask", "img"), {}, "img"),
        (("image", "rgb"), {}, "several columns of images (image, rgb): choose one, data.hub_image=image"),
        (("x:int",), {}, "hub:FOLDER has no column of images; its columns: x (int64)"),
        (
            ("Image", "fine:class", "coarse:class"),
            {},
            "several columns of classes (fine, coarse): choose one, data.hub_l",
        ),
        (("Image", "fine:class", "coarse:class"), {"hub_label": "fine"}, "Image"),
        (("Image", "fine:class", "label:class"), {}, "Image"),
        (("image", "label:int"), {"hub_label": "label"}, "no such column of classes; it has none"),
        (("image", "depth", "depth_map"), {}, "several columns of depth (images or arrays) (depth, depth_map): choose"),
        (("image", "depth"), {}, "depth must be a grey PNG of 16 bits"),
        (("image", "depth"), {}, "data.hub_depth=none reads the images without it"),
        (("image", "depth"), {"hub_depth": "none"}, "image"),
        (("image", "x:int"), {"hub_depth": "x"}, "no such column of depth (images or arrays); it has image"),
    ],
)
def test_columns_tell_themselves_or_are_named(
    tmp_path: Path, columns: Sequence[str], keys: dict[str, str], found: str
) -> None:
    kinds = {"": datasets.Image(), "int": datasets.Value("int64"), "class": datasets.ClassLabel(names=list(WORDS))}
    features = {name: kinds[kind] for name, _, kind in (each.partition(":") for each in columns)}
    folder = write(tmp_path / "set", features, train=[row_of(features)])
    if found in features:
        assert opened(folder, **keys).image_column == found
    else:
        assert found in refusal(folder, **keys)


def test_depth_may_be_named_as_one_likes(tmp_path: Path) -> None:
    rows = [{"image": row["image"], "z": row["depth_map"]} for row in pairs(range(2))]
    folder = write(tmp_path / "set", {"image": datasets.Image(), "z": datasets.Image()}, train=rows)
    assert not opened(folder).has_depth  # of two columns of images, one is called as such
    assert opened(folder, hub_depth="z").has_depth


def test_depth_is_what_the_same_files_of_a_folder_hold(tmp_path: Path) -> None:
    source = opened(write_depth(tmp_path / "set"))
    (tmp_path / "a.png").write_bytes(content(millimetres(3)))
    sample = source.sample(3)
    assert source.has_depth and sample.depth is not None
    assert torch.equal(sample.depth, decode_depth(tmp_path / "a.png", 1000.0))
    assert torch.equal(opened(tmp_path / "set", depth_scale=500.0).sample(3).depth, 2 * sample.depth)
    said = describe_depth(source)
    assert len(said) == 1 and said[0].startswith(f"depth of {source.name}: ") and "24 of 24 pairs" in said[0]
    assert describe_depth(opened(tmp_path / "set", hub_depth="none")) == []
    both = next(view_batches(source, (56, 72)))
    assert torch.equal(both.depth[3], sample.depth)


@pytest.mark.parametrize("kind", ["tiff", "array", "lists"])
def test_the_unit_of_floats_is_said(tmp_path: Path, kind: str) -> None:
    metres = millimetres(1).astype(np.float32) / 1000
    metres[5, 5] = np.nan
    if kind == "tiff":
        feature, value = datasets.Image(), stored(content(metres, "tiff"))
    elif kind == "array":
        feature, value = datasets.Array2D((56, 72), "float32"), metres
    else:
        feature, value = datasets.List(datasets.List(datasets.Value("float32"))), metres
    rows = [{"image": stored(content(picture(1))), "depth": each} for each in (value, value, None)]
    folder = write(tmp_path / "set", {"image": datasets.Image(), "depth": feature}, train=rows)
    said = refusal(folder)
    assert said.startswith("hub:FOLDER: nothing says which unit the float32 of the column depth are in; the median of ")
    assert "2.65 m in metres, 0.0265 m in centimetres" in said and "give data.depth_scale" in said
    expected = torch.from_numpy(np.nan_to_num(metres))
    source = opened(folder, depth_scale=1.0)
    assert torch.equal(source.sample(1).depth[0], expected) and not source.whole_numbers
    with pytest.raises(UnreadableImage, match="train/2, column depth: the row holds none"):
        source.sample(2)
    torch.testing.assert_close(opened(folder, depth_scale=1000.001).sample(1).depth[0], expected / 1000)


def test_whole_numbers_of_sixteen_bits_are_millimetres_in_a_tiff_as_well(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "depth": datasets.Image()}
    rows = [{"image": picture(n), "depth": Image.fromarray(millimetres(n))} for n in range(3)]
    folder = write(tmp_path / "set", features, train=rows)  # encoded by the library
    sample = opened(folder).sample(2)
    assert torch.equal(sample.depth[0], torch.from_numpy(millimetres(2) / np.float32(1000)))
    rows[1]["depth"] = Image.fromarray(millimetres(1).astype(np.float32))
    folder = write(tmp_path / "mixed", features, train=rows)
    with pytest.raises(BadInput, match=r"train/1, column depth holds float32, and the first of the column whole numbe"):
        opened(folder).sample(1)


def test_depth_is_turned_with_its_photograph(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "depth": datasets.Image()}
    rows = [{"image": stored(turned(picture(1))), "depth": stored(content(millimetres(1)))}]
    folder = write(tmp_path / "set", features, train=rows)
    with pytest.raises(BadInput, match=r"train/0 is to be turned \(EXIF orientation 6\) and .*, column depth has no"):
        opened(folder).sample(0)
    sample = opened(folder, depth_orientation="stored").sample(0)
    assert sample.image.shape[1:] == sample.depth.shape[1:] == (72, 56)
    assert torch.equal(sample.depth[0], torch.from_numpy(np.rot90(millimetres(1), -1) / np.float32(1000)))
    with pytest.raises(BadInput, match="they must have the same size"):
        opened(folder, depth_orientation="upright").sample(0)


def test_data_that_were_changed_are_noticed_and_moved_ones_are_the_same(tmp_path: Path) -> None:
    def digest(folder: Path, **keys: Any) -> str:
        return contents_of({"train": opened(folder, **keys)})["train"].digest

    folder = write_labelled(tmp_path / "set")
    before = digest(folder)
    moved = shutil.copytree(folder, tmp_path / "other")
    os.utime(moved / "data" / "train-00000-of-00001.parquet", (1, 1))
    assert digest(moved) == before
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(WORDS))}
    rows = [dict(row) for row in labelled_rows(range(24))]
    assert digest(write(tmp_path / "same", features, train=rows)) == before
    for number, change in enumerate(({"label": 1}, {"image": stored(content(picture(50)), "0002.png")})):
        changed = [row | change if place == 2 else row for place, row in enumerate(rows)]
        assert digest(write(tmp_path / f"changed{number}", features, train=changed)) != before

    features = {"image": datasets.Image(), "depth": datasets.Array2D((56, 72), "float32")}
    depths = [{"image": rows[n]["image"], "depth": millimetres(n).astype(np.float32)} for n in range(3)]
    before = digest(write(tmp_path / "depth", features, train=depths), depth_scale=999.0)
    depths[1]["depth"] = depths[1]["depth"] * 2
    assert digest(write(tmp_path / "depth2", features, train=depths), depth_scale=999.0) != before
    features["depth"] = datasets.Image()
    tiffs = [row | {"depth": stored(content(row["depth"], "tiff"))} for row in depths]
    before = digest(write(tmp_path / "tiff", features, train=tiffs), depth_scale=999.0)
    assert len({len(row["depth"]["bytes"]) for row in tiffs}) == 1
    tiffs[1]["depth"] = tiffs[0]["depth"]
    assert digest(write(tmp_path / "tiff2", features, train=tiffs), depth_scale=999.0) != before


def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(write_labelled(tmp_path / "set")))
    loaded.save_to_disk(tmp_path / "saved")
    loaded["train"].save_to_disk(tmp_path / "one")
    for place, validation in (("saved", True), ("one", False)):
        source = opened(tmp_path / place)
        assert torch.equal(source.sample(3).image, opened(tmp_path / "set").sample(3).image)
        assert has_validation(DataConfig(root=f"hub:{tmp_path / place}")) == validation


def first_pixels(source: HubImages) -> tuple[int, list[int]]:
    sample = source.sample(3)
    return sample.label, sample.image[:, 0, 0].tolist()


def test_a_source_travels_without_its_images(tmp_path: Path) -> None:
    source = opened(write_labelled(tmp_path / "set", training=200))
    packed = pickle.dumps(source)
    assert len(packed) < 30_000 < sum(source.stamps()[:, 0])
    assert first_pixels(pickle.loads(packed)) == first_pixels(source)


@pytest.mark.slow
def test_a_spawned_process_reads_it(tmp_path: Path) -> None:
    source = opened(write_labelled(tmp_path / "set"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(first_pixels, source).result() == first_pixels(source)


def test_what_a_root_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b@c").mkdir()
    (tmp_path / "my" / "set").mkdir(parents=True)
    for root, place, config, revision, folder in (
        ("hub:owner/name", "owner/name", None, None, None),
        ("hub:owner/name:some", "owner/name", "some", None, None),
        ("hub:owner/name@v1", "owner/name", None, "v1", None),
        ("hub:owner/name:some@refs/pr/1", "owner/name", "some", "refs/pr/1", None),
        ("hub:a:b@c", "a:b@c", None, None, Path("a:b@c")),
        ("hub:my/set:some", "my/set", "some", None, Path("my/set")),
        ("hub:./owner/name", "./owner/name", None, None, Path("owner/name")),
        ("hub:/gone", "/gone", None, None, Path("/gone")),
    ):
        found = address_of(root)
        assert (found.place, found.config, found.revision, found.folder) == (place, config, revision, folder)
    assert source_name("hub:owner/name:some@v1*2,scenes") == "hub:owner/name:some@v1,scenes:0"
    assert source_name(f"hub:{tmp_path}/my//set") == f"hub:{tmp_path}/my/set"


@pytest.mark.parametrize(
    ("root", "keys", "message"),
    [
        ("hub:", {}, "names no data set of the hub: write hub:OWNER/NAME, hub:OWNER/NAME:CONFIG, "),
        ("set", {"kind": "hub"}, "data.root=set names no data set of the hub: write hub:OWNER/NAME"),
        ("hub:ste", {}, "there is no folder ste (did you mean 'set'?); a data set of the hub is OWNER/NAME"),
        ("hub:set@v1", {}, "a folder has no revisions; write hub:set"),
        (
            "hub:set:other",
            {},
            "BuilderConfig 'other' not found. Available: ['default']; a configuration is named behind ",
        ),
        (
            "hub:two",
            {},
            "Please pick one among the available configs: ['a', 'b']; a configuration is named behind the ",
        ),
        ("hub:two:a", {}, "hub:two:a has no column of images; its columns: x (int64)"),
        ("hub:empty", {}, "data.root=hub:empty: The directory at"),
        ("hub:damaged", {}, "data.root=hub:damaged: "),
        ("hub:script", {}, "Dataset scripts are no longer supported, but found script.py"),
        ("hub:set", {"kind": "folder"}, "data.kind=folder, but hub:set is a data set of the Hugging Face hub: take "),
        ("hub:set", {"val_list": "x"}, "hub:set is no labelled folder or RGB-D folder"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, keys: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("set"), {"image": datasets.Image()}, train=pairs(range(1)))
    for name in ("two/a", "two/b", "empty", "damaged", "script"):
        Path(name).mkdir(parents=True)
    Path("damaged", "train.parquet").write_bytes(b"PAR1 torn")
    Path("script", "script.py").write_text("raise SystemExit(3)")
    for name in "ab":
        Path("two", name, "t.csv").write_text("x\n1\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/t.csv\n" for name in "ab")
    Path("two", "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(BadInput) as fault:
        open_source(DataConfig(root=root, **keys), "train")
    assert message in str(fault.value) and "\n" not in str(fault.value)


def test_without_the_library_the_extra_is_named(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    status, output, errors = call("train", "photos", "data.root=hub:owner/name", "--out", tmp_path / "run")
    assert (status, output) == (2, "")
    assert errors == "depthjepa: hub:owner/name is read by the library datasets: pip install 'depthjepa[hub]'\n"


def test_columns_are_named_for_data_sets_of_the_hub_alone(call: Call) -> None:
    status, _, errors = call("train", "demo", "data.hub_image=left")
    assert status == 2 and "data.hub_image has no effect here: it takes a data set of the Hugging Face hub" in errors


def test_a_run_learns_from_labelled_images_goes_on_and_is_probed(
    tmp_path: Path, call: Call, stop_after: Callable[[int | None], None]
) -> None:
    folder = write_labelled(tmp_path / "set")
    root, out = Path(f"hub:{folder}"), tmp_path / "run"
    recipe = recipe_file(tmp_path / "tiny.yaml", root, "data.workers=2", "train.steps=4", "data.memory_gib=0")
    stop_after(2)
    status, output, errors = call("train", recipe, "--out", out)
    assert status != 0 and "stopped at step 2 of 4" in errors, errors
    stop_after(None)
    assert f"data: hub:{folder} is a data set of the Hugging Face hub: train 24 images, val 8; 2 classes" in output
    moved = shutil.move(folder, tmp_path / "moved")
    resume = ("train", recipe, "--out", out, "--resume")
    status, _, errors = call(*resume)
    assert status == 2 and "there is no folder" in errors and "goes on with data.root=PLACE" in errors
    write_labelled(folder, training=23)
    status, _, errors = call(*resume)
    assert status == 2 and "was begun with other data: train: 1 removed (train/23/0023.png)" in errors
    status, _, errors = call(*resume, f"data.root=hub:{moved}")
    assert (status, errors) == (0, ""), errors
    status, output, errors = call("probe", out, "linear")
    assert (status, errors) == (0, "") and "linear" in output, errors

    whole = tmp_path / "whole"
    again = call("train", recipe, "--out", whole, f"data.root=hub:{moved}", "data.workers=0")
    assert again[0] == 0, again
    one, other = ([each["loss"] for each in metrics(run) if "loss" in each] for run in (out, whole))
    assert len(one) == 4 and one == other


@pytest.mark.slow
def test_a_run_learns_from_depth_and_the_depth_probe_judges_it(tmp_path: Path, call: Call) -> None:
    root, out = Path(f"hub:{write_depth(tmp_path / 'set')}"), tmp_path / "run"
    recipe = recipe_file(tmp_path / "tiny.yaml", root, *GUIDED, "data.workers=2", "train.steps=2")
    status, output, errors = call("train", recipe, "--out", out)
    assert (status, errors) == (0, ""), errors
    assert "with depth" in output and "depth of hub:" in output
    status, output, errors = call("probe", out, "depth")
    assert status == 0 and "blocks of consecutive images" in output, output
    plain = tmp_path / "pairs"
    for split, numbers in (("train", range(24)), ("val", range(1000, 1008))):
        for number in numbers:
            for part, pixels in (("rgb", picture(number)), ("depth", millimetres(number))):
                file = plain / split / part / f"{number:04}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content(pixels))
    recipe = recipe_file(tmp_path / "other.yaml", plain, *GUIDED, "train.steps=2")
    assert call("train", recipe, "--out", tmp_path / "files")[0] == 0
    same_losses(out, tmp_path / "files")


READ = """
import sys
from depthjepa.data.config import DataConfig
from depthjepa.data.loading import open_source
from depthjepa.faults import BadInput
open_source(DataConfig(root="scenes"), "train")
assert "datasets" not in sys.modules, "loaded where no hub is asked"
for root in sys.argv[1:]:
    try:
        source = open_source(DataConfig(root=root), "train")
        print(root, len(source), source.sample(1).name)
    except BadInput as fault:
        print(fault)
"""


def read(roots: Sequence[str], **told: str) -> list[str]:
    """What a new process says of some roots."""
    known = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **told}
    done = subprocess.run(
        [sys.executable, "-c", READ, *roots], capture_output=True, text=True, env={**os.environ, **known}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_an_id_is_fetched_kept_and_read_offline(tmp_path: Path) -> None:
    write_labelled(tmp_path / "served" / "datasets" / "owner" / "name")
    home = str(tmp_path / "home")
    with hub_of(tmp_path / "served") as address:
        found = read(
            ["hub:owner/name", "hub:owner/name@v1", "hub:owner/name@v2", "hub:owner/gone", "hub:owner/name:other"],
            HF_ENDPOINT=address,
            HF_HOME=home,
        )
    assert found[:2] == [f"hub:owner/name{end} 24 train/1/0001.png" for end in ("", "@v1")]
    assert "Revision 'v2' doesn't exist for dataset 'owner/name' on the Hub" in found[2]
    gone = "Dataset 'owner/gone' doesn't exist on the Hub or cannot be accessed"
    assert found[3] == f"data.root=hub:owner/gone: {gone}; nor is there a folder owner/gone here"
    assert "BuilderConfig 'other' not found" in found[4]
    revisions = ("", "@v1", f"@{SHA}", f"@{SHA[::-1]}")
    roots = [*(f"hub:owner/name{revision}" for revision in revisions), "hub:owner/unknown"]
    kept = read(roots, HF_DATASETS_OFFLINE="1", HF_HOME=home)
    assert kept[:3] == [f"{root} 24 train/1/0001.png" for root in roots[:3]]
    assert kept[3] == (
        f"hub:owner/name: the hub does not answer, and what is kept here is of revision {SHA}, not known to be "
        f"{SHA[::-1]}"
    )
    assert kept[4].startswith("data.root=hub:owner/unknown: Couldn't reach 'owner/unknown' on the Hub (OfflineModeIs")


@pytest.mark.slow
def test_an_id_that_cannot_be_reached_is_one_message(tmp_path: Path) -> None:
    told = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    words = ("train", "photos", "data.root=hub:owner/name", "--out", tmp_path / "run")
    process = start(*words, told=told)
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert errors == (
        "depthjepa: data.root=hub:owner/name: Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled); nor is "
        "there a folder owner/name here\n"
    )
    assert not (tmp_path / "run").exists()
