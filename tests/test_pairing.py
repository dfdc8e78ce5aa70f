"""Photographs and depth files pair by exact names, and beginnings of names end where words end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depthjepa.data.config import DataConfig
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import open_source
from depthjepa.data.samples import Source
from depthjepa.faults import BadInput
from tiny_images import millimetres, picture, save


def pairs(root: Path, photographs: tuple[str, ...], depths: tuple[str, ...], split: str = "train") -> Path:
    """Photographs and depth files of these names; the n-th depth file is that of picture n."""
    for number, name in enumerate(photographs):
        save(root / split / "rgb" / name, picture(number, 14, 18))
    for number, name in enumerate(depths):
        save(root / split / "depth" / name, millimetres(number, 14, 18))
    return root


def metres(source: Source, index: int) -> np.ndarray:
    return source.sample(index).depth[0].numpy()


def test_a_name_with_a_dot_is_another_name(tmp_path: Path) -> None:
    root = pairs(tmp_path, ("z.jpg", "z.k.jpg", "z.k.l.png"), ("z.png", "z.k.png", "z.k.l.png"))
    source = PairedFolder(root, "train")
    assert [source.name_of(number) for number in range(3)] == [
        f"train/rgb/{n}" for n in ("z.jpg", "z.k.jpg", "z.k.l.png")
    ]
    for number in range(3):
        np.testing.assert_array_equal(metres(source, number), millimetres(number, 14, 18).astype(np.float32) / 1000)


@pytest.mark.parametrize(
    ("photographs", "depths", "message"),
    [
        # other names between the two files of one
        (("z.jpg", "z.k.jpg", "z.png"), ("z.png", "z.k.png"), r"several photographs of one name: z\.jpg, z\.png"),
        (("IMG_1.jpg", "IMG_1.jpeg"), ("IMG_1.png",), r"several photographs of one name: IMG_1\.jpeg, IMG_1\.jpg"),
        (("a.jpg",), ("a.png", "a.PNG"), r"several depth files of one name: a\.PNG, a\.png"),
        (
            ("z.k.jpg",),
            ("z.png",),
            r"1 of 1 photographs have no depth: z\.k; 1 of 1 depth files have no photograph: z;",
        ),
        (("z.jpg",), ("z.k.png",), r"the nearest to rgb/z\.jpg is depth/z\.k\.png"),
        (("0001.jpg", "0002.jpg"), ("0001_depth.png", "0002_depth.png"), r"to rgb/0001\.jpg is depth/0001_depth\.png"),
        (("0001.jpg", "0002.jpg"), ("0001.depth.png", "0002.depth.png"), r"to rgb/0001\.jpg is depth/0001\.depth\.png"),
        (("0001.jpg", "0002.jpg"), ("depth_0001.png", "depth_0002.png"), r"to rgb/0001\.jpg is depth/depth_0001\.png"),
        (("rgb_07.jpg", "rgb_08.jpg"), ("depth_07.png", "depth_08.png"), r"to rgb/rgb_07\.jpg is depth/depth_07\.png"),
        (("IMG_1.jpg",), ("img_1.png",), r"the nearest to rgb/IMG_1\.jpg is depth/img_1\.png"),
        (("a.jpg", "b.jpg"), ("b.png",), "1 of 2 photographs have no depth: a"),
        (("b.jpg",), ("a.png", "b.png"), "1 of 2 depth files have no photograph: a"),
        (("a/1.jpg",), ("1.png",), r"the nearest to rgb/a/1\.jpg is depth/1\.png"),
    ],
)
def test_what_does_not_pair_is_refused_with_the_nearest_name(
    tmp_path: Path, photographs: tuple[str, ...], depths: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        PairedFolder(pairs(tmp_path, photographs, depths), "train")


@pytest.mark.parametrize(("part", "other"), [("rgb", "b.heic"), ("depth", "b.pfm")])
def test_a_file_of_another_format_is_named_as_the_reason(tmp_path: Path, part: str, other: str) -> None:
    root = pairs(tmp_path, ("a.jpg", "b.jpg"), ("a.png", "b.png"))
    next((root / "train" / part).glob("b.*")).rename(root / "train" / part / other)
    with pytest.raises(BadInput, match=rf"{part}/{other} is there, but of a format that is not read"):
        PairedFolder(root, "train")


def test_suffixes_may_be_in_any_case(tmp_path: Path) -> None:
    root = pairs(tmp_path, ("1.JPG", "2.Png", "3.jpeg"), ("1.png", "2.PNG", "3.Png"))
    source = PairedFolder(root, "train")
    for number in range(3):
        np.testing.assert_array_equal(metres(source, number), millimetres(number, 14, 18).astype(np.float32) / 1000)


NAMES = ("bath.1", "bathroom_1", "scene_1", "scene_10_1", "scene_1_1", "scene_1_2", "scene_2/1", "scene_2b/1")


@pytest.mark.parametrize(
    ("word", "taken"),
    [
        ("scene_1", {"scene_1", "scene_1_1", "scene_1_2"}),
        ("scene_1_", {"scene_1_1", "scene_1_2"}),
        ("scene_1*", {"scene_1", "scene_10_1", "scene_1_1", "scene_1_2"}),
        ("scene_10", {"scene_10_1"}),
        ("scene_2", {"scene_2/1"}),
        ("scene_2/", {"scene_2/1"}),
        ("bath", {"bath.1"}),
        ("bath*", {"bath.1", "bathroom_1"}),
        ("scene", {name for name in NAMES if name.startswith("scene")}),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_beginning_ends_where_a_word_ends(tmp_path: Path, word: str, taken: set[str], listed: bool) -> None:
    root = pairs(tmp_path, tuple(f"{name}.png" for name in NAMES), tuple(f"{name}.png" for name in NAMES))
    file = tmp_path / "list.txt"
    file.write_text(f"{word}\n", encoding="utf-8-sig")  # with the mark that some editors write
    config = DataConfig(root=str(root), **({"val_list": str(file)} if listed else {"val_prefixes": (word,)}))
    found = {
        split: {source.name_of(number).removeprefix("train/rgb/").removesuffix(".png") for number in range(len(source))}
        for split in ("train", "val")
        for source in [open_source(config, split)]
    }
    if listed and word in NAMES:  # an ID in a list means that pair alone
        taken = {word}
    assert found == {"train": set(NAMES) - taken, "val": taken}


def test_a_beginning_within_a_word_is_refused_with_the_way_to_say_it(tmp_path: Path) -> None:
    root = pairs(tmp_path, tuple(f"{name}.png" for name in NAMES), tuple(f"{name}.png" for name in NAMES))
    with pytest.raises(BadInput, match=r"begins with 'scen' and ends there .*scene_1, .* write 'scen\*'"):
        open_source(DataConfig(root=str(root), val_prefixes=("scen",)), "train")
