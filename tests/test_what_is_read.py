"""What is read is told, and what is not: odd folders are read as what they are called, or refused with what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthjepa import training
from depthjepa.data import images, listing
from depthjepa.data.account import what_is_read
from depthjepa.data.config import DataConfig
from depthjepa.data.layouts import flat, shards
from depthjepa.data.listing import image_names, list_images
from depthjepa.data.loading import has_validation, open_source, open_splits
from depthjepa.data.shards.place import Folder
from depthjepa.faults import BadInput
from tiny_images import millimetres, picture, save, write_classes, write_flat, write_pairs
from tiny_runs import tiny


def told(root: Path | str, **keys: object) -> str:
    config = DataConfig(**{"root": str(root), "scenes_train": 3, "scenes_val": 2, "image_size": 16, **keys})
    return what_is_read(config, open_splits(config))


def names(root: Path, split: images.Split = "train") -> list[str]:
    source = open_source(DataConfig(root=str(root)), split)
    return [source.name_of(index) for index in range(len(source))]


def refused(root: Path, split: images.Split = "train", **keys: object) -> str:
    with pytest.raises(BadInput) as fault:
        open_source(DataConfig(root=str(root), **keys), split)
    assert "\n" not in str(fault.value)
    return str(fault.value).replace(str(root), "ROOT")


def some(folder: Path, *more: str, count: int = 2) -> Path:
    """Images, and empty files of other names."""
    for number in range(count):
        save(folder / f"{number}.png", picture(number, 8, 8))
    for name in more:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_run_says_first_what_it_reads_and_keeps_it(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", 4)
    some(root / "train" / "red" / "deep", "notes.txt", ".DS_Store", "Thumbs.db", "b.heic", count=0)
    some(root / "train", count=3)
    said: list[str] = []
    training.train(tiny(root, "train.steps=1"), tmp_path / "run", say=said.append)
    assert said[0] == (
        f"data: {root} is a class folder: train 8 images, val 8; 2 classes (blue, red); ignored: 3 images right in "
        f"train/, 1 .db, 1 .heic (pip install 'depthjepa[heic]' reads them), 1 .txt, 1 hidden"
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["data"] == said[0]


def test_every_layout_is_told(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3, 2)
    (pairs / "train" / "depth" / "notes.txt").touch()
    flat_root = write_flat(tmp_path / "flat", 3)
    assert told(pairs) == f"data: {pairs} is an RGB-D folder: train 3 images, val 2; with depth; ignored: 1 .txt"
    assert told(flat_root).endswith("flat folder of images: train 3 images, val 3 (the same ones: nothing is held out)")
    assert told("scenes").startswith("data: scenes:0 is rendered scenes: train 3 images, val 2; ")
    mixed = told(f"{flat_root},{pairs}")
    assert mixed.startswith(f"data: {flat_root} is a flat folder of images, {pairs} is an RGB-D folder: train 6 images")
    assert mixed.endswith("ignored: 1 .txt")


def test_each_real_folder_is_read_once(tmp_path: Path) -> None:
    some(tmp_path / "beside")
    root = some(tmp_path / "photos", count=1)
    some(root / "deep" / "er")
    for place, link in (
        (root / "up", ".."),
        (root / "deep" / "up", "../.."),
        (root / "deep" / "er" / "self", "."),
        (root / "also", "deep"),
        (root / "a", str(tmp_path / "beside")),
        (root / "b", str(tmp_path / "beside")),
    ):
        place.symlink_to(link)
    found = list_images(root)
    assert found.names == ["0.png", "a/0.png", "a/1.png", "deep/er/0.png", "deep/er/1.png"]
    assert found.ignored == {"link to a folder that is read already, or lies above": 5}


def test_what_systems_leave_is_ignored_and_counted(tmp_path: Path) -> None:
    root = some(tmp_path / "photos", "._0.png", "Thumbs.db", "README")
    for name in ("thumbnails", "@eaDir", "__MACOSX", ".thumbnails"):
        some(root / name)
    found = list_images(root)
    assert found.names == ["0.png", "1.png"]
    expected = {"hidden": 2, ".db": 1, "without an ending": 1, "thumbnails/": 1, "@eaDir/": 1, "__MACOSX/": 1}
    assert found.ignored == expected
    assert image_names(root / "thumbnails") == ["0.png", "1.png"]  # asked for by itself
    shutil.rmtree(root / "@eaDir")
    assert image_names(some(tmp_path / "other" / "thumbnails").parent) == ["thumbnails/0.png", "thumbnails/1.png"]


def test_pipes_sockets_and_devices_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(some(tmp_path / "photos"))
    os.mkfifo("pipe.png")
    Path("link.png").symlink_to("pipe.png")
    Path("zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.png")
        assert list_images(Path()).ignored == {"pipe, socket or device": 4}
    assert image_names(Path()) == ["0.png", "1.png"]


def test_broken_links_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    root = some(tmp_path / "photos")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "circle.png").symlink_to("circle.png")
    assert image_names(root) == ["0.png", "1.png", "circle.png", "gone.png"]


def test_a_folder_that_cannot_be_listed_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = some(tmp_path / "photos")
    some(root / "shut")
    scandir = os.scandir

    def refusing(place: Path) -> object:
        if Path(place).name == "shut":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    assert refused(root) == "ROOT/shut cannot be listed: Permission denied"


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2", ".JPG", ".Tif"])
def test_a_format_that_pillow_reads_is_read(tmp_path: Path, suffix: str) -> None:
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
    Image.fromarray(picture(1)).save(tmp_path / f"a{suffix}", kind)
    assert names(tmp_path) == [f"a{suffix}"]
    decoded = images.decode(tmp_path / f"a{suffix}").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(decoded - picture(1)).mean() < 20


def test_heic_is_read_where_the_plug_in_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in is played by an opener that takes PNG: what is tested is that it is asked for, and only then."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "pillow_heif.py").write_text("asked = []\ndef register_heif_opener():\n    asked.append(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    save(tmp_path / "photos" / "a.png", picture(1))
    shutil.copy(tmp_path / "photos" / "a.png", tmp_path / "photos" / "b.HEIC")
    assert told(tmp_path / "photos").endswith("ignored: 1 .heic (pip install 'depthjepa[heic]' reads them)")
    monkeypatch.setattr(flat, "SUFFIXES", (*images.SUFFIXES, *images.HEIC))
    monkeypatch.setattr(listing, "SUFFIXES", (*images.SUFFIXES, *images.HEIC))
    source = open_source(DataConfig(root=str(tmp_path / "photos")), "train")
    assert [source.sample(index).image.shape[0] for index in range(len(source))] == [3, 3]
    import pillow_heif  # type: ignore[import-not-found]

    assert pillow_heif.asked == [1]


def test_a_folder_of_other_formats_alone_says_which(tmp_path: Path) -> None:
    some(tmp_path / "phone", "a.HEIC", "b.heic", "c.mov", count=0)
    assert "there are 2 .heic (pip install 'depthjepa[heic]' reads them), 1 .mov)" in refused(tmp_path / "phone")
    root = write_classes(tmp_path / "classes", 1)
    some(root / "train" / "new", "a.gif", count=0)
    assert "class 'new' has no images in ROOT/train" in refused(root)
    assert "; there are 1 .gif)" in refused(root)


def pairs_called(folder: Path, colour: str, depth: str) -> None:
    save(folder / colour / "0.png", picture(0))
    save(folder / depth / "0.png", millimetres(0))


@pytest.mark.parametrize(
    ("place", "colour", "depth", "advice"),
    [
        (".", "color", "depth", "ROOT holds depth/ beside color/, .*: rename color/ to rgb/; to train on all"),
        (".", "RGB", "Depth", "rename RGB/ to rgb/ and Depth/ to depth/; to"),
        (".", "images", "depth_maps", "rename images/ to rgb/ and depth_maps/ to depth/; to"),
        ("train", "color", "depth", "ROOT/train holds depth/ beside color/, .*: rename color/ to rgb/; to"),
        ("train/scene1", "color", "depth", "rename color/ to rgb/, move them right below ROOT, or below its train/"),
        ("scene1", "rgb", "depth", "ROOT/scene1 holds depth/ beside rgb/, .*: move them right below ROOT"),
        (".", "cam_front", "depth", "holds depth/, which holds depth maps, .*rename the folder of the photographs to"),
    ],
)
def test_depth_beside_photographs_of_another_name_is_not_trained_on(
    tmp_path: Path, place: str, colour: str, depth: str, advice: str
) -> None:
    root = tmp_path / "data"
    pairs_called(root / place, colour, depth)
    assert re.search(advice, refused(root))
    for kind in ["flat"] + ["folder"] * (not place.startswith("train")):
        assert len(open_source(DataConfig(root=str(root), kind=kind), "train")) == 2  # who insists, gets them


def test_a_class_called_depth_is_a_class(tmp_path: Path) -> None:
    for word in ("depth", "table"):
        some(tmp_path / "train" / word)
    assert open_source(DataConfig(root=str(tmp_path)), "train").classes == ("depth", "table")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("train", "validation", "test"), ("Train", "Val", "Test"), ("training", "valid", "")],
)
@pytest.mark.parametrize("below", ["", "cat"])
def test_splits_are_what_they_are_called(tmp_path: Path, train: str, val: str, test: str, below: str) -> None:
    for split, count in ((train, 3), (val, 2), (test, 4)):
        if split:
            some(tmp_path / split / below, count=count)
    assert {Path(name).parts[0] for name in names(tmp_path)} == {train}
    assert {Path(name).parts[0] for name in names(tmp_path, "val")} == {val}
    assert (len(names(tmp_path)), len(names(tmp_path, "val"))) == (3, 2)
    assert (f"1 {test}/ beside {train}/" in told(tmp_path)) == bool(test)


def test_a_test_split_is_neither_trained_nor_validated_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        some(tmp_path / split)
    assert names(tmp_path) == ["train/0.png", "train/1.png"]
    assert not has_validation(DataConfig(root=str(tmp_path)))
    assert refused(tmp_path, "val") == "ROOT has no val/ beside test/ and train/"
    assert told(tmp_path).endswith("train 2 images, no val; ignored: 1 test/ beside train/")


def test_a_split_without_training_images_is_refused(tmp_path: Path) -> None:
    some(tmp_path)
    some(tmp_path / "valid")
    assert refused(tmp_path) == (
        "ROOT holds valid/ and no train/: move the training images into train/, or rename valid/ where its images are "
        "for training too"
    )
    some(tmp_path / "train")
    some(tmp_path / "val")
    assert refused(tmp_path) == "ROOT holds both val/ and valid/: join them, or rename one"


def test_what_lies_beside_the_splits_is_told(tmp_path: Path) -> None:
    for split in ("train", "val", "extra"):
        some(tmp_path / split)
    some(tmp_path)
    assert told(tmp_path).endswith(f"ignored: 2 images right in {tmp_path.name}/, 1 extra/ beside train/")


def test_a_flat_validation_folder_beside_class_folders_says_what_is_needed(tmp_path: Path) -> None:
    root = write_classes(tmp_path, 2)
    shutil.rmtree(root / "val")
    save(root / "val" / "ILSVRC2012_val_00000001.JPEG", picture(1))
    assert refused(root, "val") == (
        "ROOT/val has no class folders; 1 images lie in it without any (ILSVRC2012_val_00000001.JPEG, …): sort them "
        "into val/CLASS/ by the data set's list of labels, or move val/ away to train without validation data"
    )


def test_two_classes_are_not_one_folder(tmp_path: Path) -> None:
    root = write_classes(tmp_path, 2)
    (root / "train" / "scarlet").symlink_to("red")
    assert refused(root) == "classes 'red' and 'scarlet' of ROOT/train are one folder: one is a link to it"
    (root / "train" / "scarlet").unlink()
    (root / "train" / "blue" / "more").symlink_to("../red")
    some(root / "train" / "@eaDir")
    assert [name for name in names(root) if "more" in name or "@" in name] == []


def write_tar(path: Path, add: Callable[[tarfile.TarFile, Path], None], *, mode: str = "w") -> Path:
    folder = write_flat(path.with_name("loose"), 4)
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as shard:
        add(shard, folder)
    return path


def test_links_in_a_tar_are_the_files_they_mean(tmp_path: Path) -> None:
    def add(shard: tarfile.TarFile, folder: Path) -> None:
        for number in range(2):
            os.link(folder / f"000{number}.png", folder / f"twin{number}.png")
            (folder / f"soft{number}.png").symlink_to(f"000{number}.png")
        (folder / "outside.png").symlink_to("/nowhere/a.png")
        for file in sorted(folder.iterdir()):
            shard.add(file, f"deep/{file.name}")
        shard.add(folder / "0000.png", "notes.txt")

    path = write_tar(tmp_path / "a.tar", add)
    source = shards.TarShards(Folder(path), "train")
    read = {source.name_of(index).rpartition("/")[2]: source.sample(index).image for index in range(len(source))}
    assert list(read) == [*(f"000{n}.png" for n in range(4)), "soft0.png", "soft1.png", "twin0.png", "twin1.png"]
    for number in range(2):
        for name in (f"soft{number}.png", f"twin{number}.png"):
            assert read[name].equal(read[f"000{number}.png"])
    assert source.ignored == {"link to what the tar does not hold before it": 1, ".txt": 1}


def test_labels_of_dotted_keys_are_read_and_other_members_told(tmp_path: Path) -> None:
    def add(shard: tarfile.TarFile, folder: Path) -> None:
        for number, file in enumerate(sorted(folder.iterdir())):
            shard.add(file, f"{number}.view.png")
            for name in (f"{number}.view.cls", f"{number}.json"):
                (folder.parent / name).write_text(str(number % 2))
                shard.add(folder.parent / name, name)

    source = shards.TarShards(Folder(write_tar(tmp_path / "a.tar", add)), "train")
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert source.ignored == {".json": 4}
    assert told(tmp_path / "a.tar").endswith("2 classes (0, 1); ignored: 4 .json")


@pytest.mark.parametrize(("name", "mode"), [("train-0.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")])
def test_compressed_tars_are_refused_with_how_to_unpack_them(tmp_path: Path, name: str, mode: str) -> None:
    path = write_tar(tmp_path / "tars" / name, lambda shard, folder: shard.add(folder, "a"), mode=mode)
    assert refused(path.parent).startswith(f"ROOT holds {name}, a compressed tar: images are read in place, so unpack")
    assert refused(path) == "data.root=ROOT is a file, not a folder: unpack it first"
