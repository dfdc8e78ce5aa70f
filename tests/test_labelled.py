"""Labelled folders: which label map belongs to which photograph, what is read of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from depthjepa.data.account import what_is_read
from depthjepa.data.cameras import focal_length_in
from depthjepa.data.config import DataConfig
from depthjepa.data.groups import group_in
from depthjepa.data.images import Split
from depthjepa.data.layouts import labelled, scenes
from depthjepa.data.layouts.labelled import LabelledFolder
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import TrainingBatches, open_source, open_splits, view_batches
from depthjepa.data.metres import describe_depth
from depthjepa.data.order import Mixture
from depthjepa.data.samples import VOID, Chosen, Segmented, segment_classes
from depthjepa.data.scenes.rendering import render
from depthjepa.data.transforms import Box, training_view
from depthjepa.faults import BadInput
from depthjepa.grid import patchify
from tiny_images import CLASSES, indices, millimetres, picture, save, write_flat, write_labelled, write_pairs
from tiny_runs import Call


def maps(root: Path | str, split: Split = "train", **keys: object) -> list[np.ndarray]:
    source = open_source(DataConfig(**{"root": str(root), **keys}), split)
    assert isinstance(source, Segmented)
    found = [source.labelled_sample(index).label_map for index in range(len(source))]
    return [each.numpy()[0] for each in found if each is not None]


def refused(root: Path, split: Split = "train", **keys: object) -> str:
    with pytest.raises(BadInput) as fault:
        maps(root, split, **keys)
    assert "\n" not in str(fault.value)
    return str(fault.value).replace(str(root), "ROOT")


def test_photographs_and_label_maps_are_read_as_they_are(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, 3, 2)
    source = open_source(DataConfig(root=str(root)), "val")
    assert isinstance(source, LabelledFolder) and segment_classes(source) == CLASSES
    assert not source.has_depth and not source.classes and len(source) == 2
    for place, number in enumerate((1000, 1001)):
        sample = source.labelled_sample(place)
        assert sample.name == source.name_of(place) == f"val/rgb/{number}.png" and sample.label == -1
        assert sample.label_map is not None and sample.label_map.dtype == torch.uint8
        assert np.array_equal(sample.label_map[0], indices(number))
        assert np.array_equal(sample.image.permute(1, 2, 0), picture(number))
        assert sample.label_map[0, 0, 0] == VOID
    line = what_is_read(DataConfig(root=str(root)), open_splits(DataConfig(root=str(root))))
    assert line == f"data: {root} is a labelled folder: train 3 images, val 2; with label maps of 4 classes"


def test_training_does_not_open_label_maps(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, 3, 1)
    source = open_source(DataConfig(root=str(root)), "train")
    assert isinstance(source, LabelledFolder)
    before = source.stamps()
    for file in (root / "train" / "labels").iterdir():
        file.write_bytes(b"no image")
    assert np.array_equal(source.stamps(), before)  # a run goes on, too
    data = DataConfig(root=str(root), image_size=16)
    batches = TrainingBatches(source=source, data=data, masks=None, grid=(2, 2), seed=0, batch_size=3, steps=4)
    assert [(len(batch.skipped), batch.label_map) for batch in batches] == [(0, None)] * 4
    (batch,) = view_batches(source, (16, 16))
    assert batch.label_map is None and len(batch.index) == 3
    with pytest.raises(BadInput, match=r"none of the 3 images .* first fault: .*0000\.png: it is no image"):
        list(view_batches(source, (16, 16), label_maps=True))


def test_a_palette_counts_by_its_indices_and_any_case_of_the_ending_is_read(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, 2, 1)
    for number, colours in ((0, 256), (1, 4)):
        file = root / "train" / "labels" / f"{number:04}.png"
        values = indices(number)
        values[values == VOID] = VOID if colours == 256 else 3
        coloured = Image.fromarray(values)
        coloured.putpalette(np.random.default_rng(0).integers(0, 256, 3 * colours, dtype=np.uint8).tobytes())
        coloured.save(file, bits=8 if colours == 256 else 2)
        assert Image.open(file).mode == "P"
        file.rename(file.with_suffix(".PNG"))
        assert np.array_equal(maps(root)[number], values)


@pytest.mark.parametrize("tag", range(2, 9))
def test_a_rotation_turns_the_map_with_its_photograph(tmp_path: Path, tag: int) -> None:
    """Stored with the tag, both are turned alike; without one on the map, what is said of it decides."""
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[tag]  # what undoes it

    def stored(pixels: np.ndarray) -> np.ndarray:
        turned = Image.fromarray(pixels)
        exif = turned.getexif()
        exif[ExifTags.Base.Orientation] = back
        from PIL import ImageOps

        return np.asarray(ImageOps.exif_transpose(turned))

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for split in ("train", "val"):
        for name, own in (("both", {"exif": exif}), ("photograph", {})):
            for folder, pixels, more in (("rgb", picture(3), {"exif": exif}), ("labels", indices(3), own)):
                file = tmp_path / name / split / folder / "a.png"
                file.parent.mkdir(parents=True)
                Image.fromarray(stored(pixels)).save(file, **more)
            shutil.copy(tmp_path / "classes.txt", tmp_path / name)
    assert np.array_equal(maps(tmp_path / "both")[0], indices(3))
    assert np.array_equal(maps(tmp_path / "photograph", depth_orientation="stored")[0], indices(3))
    message = refused(tmp_path / "photograph")
    assert message.startswith(f"ROOT/train/rgb/a.png is to be turned (EXIF orientation {tag})")
    assert "say how the label map lies, data.depth_orientation=stored" in message


def test_depth_beside_the_labels_is_read_as_well(tmp_path: Path) -> None:
    root = write_labelled(write_pairs(tmp_path, 3, 2), 3, 2)
    source = open_source(DataConfig(root=str(root)), "val")
    assert isinstance(source, LabelledFolder) and source.has_depth
    sample = source.labelled_sample(1)
    assert sample.depth is not None and sample.label_map is not None
    assert np.array_equal(sample.label_map[0], indices(1001))
    assert np.allclose(sample.depth[0] * 1000, millimetres(1001), rtol=1e-5)
    assert source.stamps().shape == (2, 3)
    alone = open_source(DataConfig(root=str(root), kind="rgbd"), "val")
    assert segment_classes(alone) == () and alone.sample(1).depth is not None


def test_of_depth_beside_labels_all_is_known_that_an_rgbd_folder_tells(tmp_path: Path) -> None:
    root = write_labelled(write_pairs(tmp_path, 3, 2), 3, 2)
    facts = {"name": "x", "depth_scale": 100.0, "focal_length": 50.0, "range": [1.0, 500.0]}
    (root / "dataset.json").write_text(json.dumps(facts))
    labelled, pairs = (open_source(DataConfig(root=str(root), kind=kind), "train") for kind in ("labelled", "rgbd"))
    assert isinstance(labelled, LabelledFolder) and isinstance(pairs, PairedFolder)
    assert describe_depth(labelled) == describe_depth(pairs) != []
    assert focal_length_in(labelled, 0) == focal_length_in(pairs, 0) == 50.0
    assert labelled.knows_focal_length and labelled.depth_range == pairs.depth_range
    assert np.array_equal(labelled.stamps(), pairs.stamps())


def test_groups_are_those_beside_the_data_or_in_the_names(tmp_path: Path) -> None:
    root = write_labelled(tmp_path / "a", 3, 2)
    for split, name, new in (("train", "0000", "kitchen_0000"), ("train", "0001", "kitchen_0001")):
        for folder in ("rgb", "labels"):
            (root / split / folder / f"{name}.png").rename(root / split / folder / f"{new}.png")
    source = open_source(DataConfig(root=str(root)), "train")
    assert [group_in(source, index) for index in range(3)] == [None, "kitchen", "kitchen"]
    (root / "groups.json").write_text(json.dumps({"groups": [["kit", "one"], ["0", "two"]], "focal_length_px": []}))
    source = open_source(DataConfig(root=str(root)), "train")
    assert [group_in(source, index) for index in range(3)] == ["two", "one", "one"]


def test_undivided_pairs_are_divided_by_name(tmp_path: Path) -> None:
    root = write_labelled(tmp_path / "split", 6, 1)
    whole = tmp_path / "whole"
    shutil.copytree(root / "train", whole)
    shutil.copy(root / "classes.txt", whole)
    keys = {"val_prefixes": ("0001", "0004")}
    assert [np.array_equal(one, indices(n)) for one, n in zip(maps(whole, "val", **keys), (1, 4), strict=True)] == [
        True,
        True,
    ]
    assert len(maps(whole, "train", **keys)) == 4 and len(maps(whole)) == 6
    assert "has no val/: say which pairs" in refused(whole, "val")


def test_rendered_streets_have_label_maps() -> None:
    source = scenes.Scenes(3, "val", 4, (24, 32))
    sample = source.labelled_sample(2)
    assert segment_classes(source)[:3] == ("sky", "ground", "building")
    rendered = render(np.array([2 + 2**40]), seed=3, size=(24, 32))
    assert sample.label_map is not None and torch.equal(sample.label_map, rendered.classes)
    assert sample.depth is not None and ((sample.depth == 0) == (sample.label_map == 0)).all()


def test_mixtures_and_choices_keep_label_maps_of_equal_classes(tmp_path: Path) -> None:
    one, two = write_labelled(tmp_path / "one", 2, 1), write_labelled(tmp_path / "two", 3, 1)
    found = maps(f"{one},{two}")
    assert [np.array_equal(each, indices(number)) for each, number in zip(found, (0, 1, 0, 1, 2), strict=True)] == [
        True
    ] * 5
    source = open_source(DataConfig(root=f"{one},{two}"), "train")
    assert isinstance(source, Mixture)
    chosen = Chosen(source, np.array([4, 0]))
    assert segment_classes(chosen) == CLASSES
    label_map = chosen.labelled_sample(0).label_map
    assert label_map is not None and np.array_equal(label_map[0], indices(2))
    (two / "classes.txt").write_text("a\nb\nc\nd\n")
    assert segment_classes(open_source(DataConfig(root=f"{one},{two}"), "train")) == ()
    assert segment_classes(open_source(DataConfig(root=f"{one},{write_flat(tmp_path / 'flat', 2)}"), "train")) == ()


def test_views_take_the_nearest_label_and_invent_none(tmp_path: Path) -> None:
    source = open_source(DataConfig(root=str(write_labelled(tmp_path, 3, 1))), "train")
    (batch,) = view_batches(source, (14, 18), label_maps=True)
    assert batch.label_map is not None and batch.label_map.shape == (3, 1, 14, 18)
    for place in range(3):  # by 4 on both sides: the nearest centre of 4 pixels is the third one's
        assert np.array_equal(batch.label_map[place, 0], indices(place)[2::4, 2::4])
    assert torch.equal(batch.to(torch.device("cpu")).label_map, batch.label_map)  # type: ignore[arg-type]
    assert isinstance(source, LabelledFolder)
    view = training_view(source.labelled_sample(0), Box(10, 20, 28, 36), True, (28, 36))
    assert view.label_map is not None
    assert np.array_equal(view.label_map[0], indices(0)[10:38, 20:56][:, ::-1])
    (workers,) = view_batches(source, (14, 18), label_maps=True, workers=1)
    assert torch.equal(workers.label_map, batch.label_map)  # type: ignore[arg-type]


def test_patches_of_a_label_map_are_those_of_the_photograph() -> None:
    labels = torch.arange(24, dtype=torch.uint8).view(1, 1, 4, 6)
    assert patchify(labels, 2)[0].tolist()[1] == [2, 3, 8, 9]


def labels_of(root: Path, pixels: np.ndarray, name: str = "train/labels/0001.png") -> Path:
    save(root / name, pixels)
    return root


def coloured(root: Path) -> Path:
    return labels_of(root, picture(1))


def deep(root: Path) -> Path:
    return labels_of(root, indices(1).astype(np.uint16))


def beyond(root: Path) -> Path:
    values = indices(1)
    values[5, 7:10] = 4
    return labels_of(root, values)


def smaller(root: Path) -> Path:
    return labels_of(root, indices(1)[:-2])


def aside(root: Path) -> Path:
    return labels_of(root, np.ascontiguousarray(indices(1).T))


def four_bits(root: Path) -> Path:
    """Written by hand: Pillow writes 1 or 8 bits of grey, and multiplies by 17 what it reads of 4."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + bytes(36) for _ in range(56)))
    head = struct.pack(">IIBBBBB", 72, 56, 4, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (root / "train/labels/0001.png").write_bytes(content)
    return root


def jpeg(root: Path) -> Path:
    Image.fromarray(indices(1)).save(root / "train/labels/0001.png", format="JPEG")
    return root


def without(name: str) -> Callable[[Path], Path]:
    def remove(root: Path) -> Path:
        (root / name).unlink()
        return root

    return remove


def classes(text: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        (root / "classes.txt").write_text(text)
        return root

    return write


def test_the_names_of_classes_may_begin_with_a_mark_and_end_in_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\ufeffroad \nsky\n\n", encoding="utf-8")
    assert labelled.class_names(tmp_path) == ("road", "sky")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (coloured, "ROOT/train/labels/0001.png is RGB of 8 bits; a label map is a PNG of 8-bit grey or a palette"),
        (deep, "ROOT/train/labels/0001.png is grey of 16 bits; a label map is"),
        (four_bits, "ROOT/train/labels/0001.png is grey of 4 bits; a label map is"),
        (jpeg, "ROOT/train/labels/0001.png is no PNG but JPEG; a label map is"),
        (
            beyond,
            "ROOT/train/labels/0001.png holds the value 4 in 3 of 4032 pixels, but ROOT/classes.txt names 4 classes: "
            "a label map holds their indices, 0 to 3, and 255 for void",
        ),
        (
            smaller,
            "ROOT/train/labels/0001.png is 54 x 72 pixels (height x width), its photograph 0001.png is 56 x 72: they "
            "must have the same size",
        ),
        (
            aside,
            "is 72 x 56 pixels (height x width), its photograph 0001.png is 56 x 72: they must have the same size;",
        ),
        (
            without("train/labels/0001.png"),
            "ROOT/train: rgb/ and labels/ do not pair up; 1 of 3 photographs have no label map: 0001; the files of a "
            "pair have one name up to the suffix: the nearest to rgb/0001.png is labels/",
        ),
        (
            without("train/rgb/0002.png"),
            "ROOT/train: rgb/ and labels/ do not pair up; 1 of 3 label maps have no photograph: 0002",
        ),
        (
            without("classes.txt"),
            "ROOT is read as a labelled folder, but has no classes.txt: write the names of the classes there, one a "
            "line, in the order of the indices in labels/",
        ),
        (classes("\n"), "ROOT/classes.txt is empty"),
        (classes("a\n\nb\n"), "ROOT/classes.txt, line 2 is empty"),
        (classes("a\nb\na\n"), "ROOT/classes.txt names a class twice: a"),
        (classes("\n".join(map(str, range(256)))), "ROOT/classes.txt names 256 classes, and label maps of 8 bits have"),
    ],
)
def test_faults_are_named(tmp_path: Path, spoil: Callable[[Path], Path], message: str) -> None:
    assert message in refused(spoil(write_labelled(tmp_path, 3, 1)))


def test_a_kind_that_is_insisted_on_says_what_is_missing(tmp_path: Path) -> None:
    root = write_flat(tmp_path, 2)
    (root / "classes.txt").write_text("a\nb\n")
    message = refused(root, kind="labelled")
    assert message.startswith("ROOT is read as a labelled folder, but has no train/rgb/ (needed: train/rgb/ID.jpg and ")


def test_the_command_says_so_in_one_line(tmp_path: Path, call: Call) -> None:
    root = coloured(write_labelled(tmp_path, 6, 2))
    small = Path(__file__).parents[1] / "releases" / "pretrained-small.safetensors"
    status, _, errors = call("probe", small, "segment", "--data", root, "data.image_size=16")
    assert status == 2 and "0001.png is RGB of 8 bits" in errors and "Traceback" not in errors
