"""Which images know one another: where groups come from, and that folds of them share nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthjepa.data.groups import (
    BLOCKS,
    FOLDS,
    divide,
    group_by_name,
    group_in,
    part_in,
    places_of,
    read_groups,
)
from depthjepa.data.layouts.flat import FlatFolder
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.layouts.scenes import Scenes
from depthjepa.data.order import Mixture
from depthjepa.data.samples import Chosen, Source
from depthjepa.faults import BadInput
from tiny_images import save, write_flat


def folder(root: Path, train: Iterable[str], val: Iterable[str] = ()) -> Path:
    """An RGB-D folder of pairs with these IDs."""
    for split, identities in (("train", train), ("val", val)):
        for identity in identities:
            save(root / split / "rgb" / f"{identity}.png", np.zeros((4, 4, 3), np.uint8))
            save(root / split / "depth" / f"{identity}.png", np.full((4, 4), 1000, np.uint16))
    return root


def frames(counts: dict[str, int]) -> list[str]:
    """IDs of so many frames of each scene."""
    return [f"{scene}_{number:02}" for scene, count in counts.items() for number in range(count)]


def say(root: Path, content: Any, file: str = "groups.json") -> Path:
    (root / file).write_text(json.dumps(content))
    return root


def groups_of(source: Source) -> list[str | None]:
    return [group_in(source, index) for index in range(len(source))]


def everything(source: Source) -> Any:
    return divide(source, range(len(source)))


def test_the_first_beginning_that_fits_counts(tmp_path: Path) -> None:
    root = say(folder(tmp_path, ["a1_0", "a2_0", "b_0"]), {"groups": [["a1", "first"], ["a", "second"], ["", "rest"]]})
    assert groups_of(PairedFolder(root, "train")) == ["first", "second", "rest"]
    swapped = {"groups": [["a", "second"], ["a1", "first"], ["", "rest"]], "what": "drives"}
    assert groups_of(PairedFolder(say(root, swapped), "train")) == ["second", "second", "rest"]


def test_an_id_that_no_beginning_fits_is_refused_by_name(tmp_path: Path) -> None:
    source = PairedFolder(say(folder(tmp_path, ["a_0", "b_0"]), {"groups": [["a", "first"]]}), "train")
    assert group_in(source, 0) == "first"
    with pytest.raises(
        BadInput, match=rf"{tmp_path}: no beginning among its groups fits the ID b_0: add \[\"b_0\", GR"
    ):
        everything(source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"it is not JSON \(EOF while parsing"),
        ("", "it is not JSON"),
        (
            "[]",
            r'^\S+json: the file should hold .*; it holds {"groups": \[\["beginning of IDs", "group"\], …\]}',
        ),
        ('{"groups": ["a", "b"]}', r"groups\.0='a': .*; it holds"),
        ('{"groups": [["a", 1]]}', r"groups\.0\.1=1: .*string; it holds"),
        ('{"groups": [["a", "b", "c"]]}', r"groups\.0.*; it holds"),
        ('{"group": [["a", "b"]]}', r"unknown key 'group' \(did you mean 'groups'\?\); it holds"),
        ('{"focal_length_px": [["a", -5]]}', r'focal_length_px\.0\.1=-5: .*may hold "focal_length_px": \[\["beginning'),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_form(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "groups.json").write_text(text)
    with pytest.raises(BadInput, match=said) as fault:
        read_groups(tmp_path)
    assert str(fault.value).startswith(f"{tmp_path / 'groups.json'}: ")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_bytes(b'{"what": "caf\xe9"}')
    with pytest.raises(BadInput, match=r"groups\.json: it is not text"):
        read_groups(tmp_path)


def test_a_mark_at_the_beginning_of_the_file_is_none_of_its_content(tmp_path: Path) -> None:
    assert read_groups(tmp_path) is None
    content = {"groups": [["a", "café"]], "focal_length_px": [["a", 525]]}
    (tmp_path / "groups.json").write_text(json.dumps(content), encoding="utf-8-sig")
    found = read_groups(tmp_path)
    assert found is not None and found.group_of("a_1") == "café" and found.group_of("b_1") is None
    assert found.focal_length_of("a_1") == 525 and found.focal_length_of("b_1") is None


def test_dataset_json_may_say_groups_and_groups_json_the_rest(tmp_path: Path) -> None:
    root = say(folder(tmp_path, ["a_0", "b_0"]), {"groups": [["a", "first"], ["b", "second"]]}, "dataset.json")
    assert groups_of(PairedFolder(root, "train")) == ["first", "second"]
    say(root, {"groups": [["", "all"]], "focal_length_px": [["a", 525]]})
    source = PairedFolder(root, "train")
    assert groups_of(source) == ["first", "second"]  # what dataset.json says of its own data counts
    assert [source.focal_length_of(index) for index in (0, 1)] == [525, None]
    with pytest.raises(BadInput, match=r"dataset\.json: groups\.0"):
        PairedFolder(say(root, {"groups": ["a"]}, "dataset.json"), "train")


def test_groups_in_dataset_json_change_nothing_that_is_trained_on(tmp_path: Path) -> None:
    root = say(folder(tmp_path, ["a_0", "b_0"]), {"depth_scale": 1000}, "dataset.json")
    before = PairedFolder(root, "train").stamps()
    say(root, {"depth_scale": 1000, "groups": [["", "all"]]}, "dataset.json")
    np.testing.assert_array_equal(PairedFolder(root, "train").stamps(), before)
    say(root, {"depth_scale": 1000, "range": [1, 9]}, "dataset.json")  # which is trained on
    assert (PairedFolder(root, "train").stamps() != before).any()


@pytest.mark.parametrize(
    ("identity", "group"),
    [
        ("kitchen_0004_17", "kitchen_0004"),
        ("kitchen/0017", "kitchen"),
        ("house/kitchen_left_17", "house/kitchen_left"),
        ("drive/image_02/0000000005", "drive/image_02"),
        ("0017", None),
        ("_17", None),
        ("house/_17", "house"),
    ],
)
def test_an_id_tells_its_group_up_to_the_last_underscore_or_by_its_folder(identity: str, group: str | None) -> None:
    assert group_by_name(identity) == group


def test_pairs_without_a_word_are_grouped_by_their_ids(tmp_path: Path) -> None:
    root = folder(tmp_path, ["0001", "bath_1", "bath_2", "hall/1"])
    assert groups_of(PairedFolder(root, "train")) == [None, "bath", "bath", "hall"]
    assert groups_of(PairedFolder(say(root, {"groups": []}), "train")) == [None, "bath", "bath", "hall"]


def test_every_rendered_scene_is_a_place_of_its_own() -> None:
    train, val = (Scenes(0, split, 6, (16, 16)) for split in ("train", "val"))
    found = [*groups_of(train), *groups_of(val)]
    assert None not in found and len(set(found)) == 12


def test_groups_of_one_name_in_two_data_sets_are_told_apart(tmp_path: Path) -> None:
    sources = [PairedFolder(folder(tmp_path / name, ["hall_1", "hall_2"]), "train") for name in ("a", "b")]
    mixed = Mixture(sources)
    found = groups_of(mixed)
    assert found[0] == found[1] != found[2] == found[3]
    assert [part_in(mixed, index) for index in range(4)] == [0, 0, 1, 1] and part_in(sources[0], 1) == 0
    assert groups_of(Chosen(mixed, np.array([3, 0]))) == [found[3], found[0]]
    unknown = Mixture([sources[0], PairedFolder(folder(tmp_path / "c", ["1"]), "train")])
    assert groups_of(unknown) == [found[0], found[0], None]


def test_folds_share_no_group_and_are_as_large_as_they_can_be(tmp_path: Path) -> None:
    counts = {"a": 1, "b": 9, "c": 4, "d": 4, "e": 5, "f": 3, "g": 3, "h": 1}
    source = PairedFolder(folder(tmp_path, frames(counts)), "train")
    found = everything(source)
    assert found.by == "8 groups"
    folds = {
        group: {int(found.fold[i]) for i, other in enumerate(groups_of(source)) if other == group} for group in counts
    }
    assert all(len(each) == 1 for each in folds.values())
    # 30 images: the nine of b stand alone, and the other 21 are four folds of five or six.
    assert sorted(Counter(found.fold.tolist()).values()) == [5, 5, 5, 6, 9]
    np.testing.assert_array_equal(everything(source).fold, found.fold)


def test_images_that_are_not_used_are_in_no_fold(tmp_path: Path) -> None:
    source = PairedFolder(folder(tmp_path, frames(dict.fromkeys("abcdefg", 2))), "train")
    numbers = [0, 1, 3, 4, 6, 9, 10]  # of a, b, c, d, e, f
    found = divide(source, numbers)
    assert found.by == "6 groups"
    assert (found.fold >= 0).nonzero()[0].tolist() == numbers
    assert found.fold[0] == found.fold[1] and set(found.fold[numbers]) == set(range(FOLDS))


@pytest.mark.parametrize(
    "identities",
    [frames(dict.fromkeys("abcd", 25)), [*frames(dict.fromkeys("abcdef", 16)), *"1234"]],
    ids=["four groups", "some unknown"],
)
def test_without_five_known_groups_blocks_of_neighbours_are_dealt_out(
    tmp_path: Path, identities: Sequence[str]
) -> None:
    source = PairedFolder(folder(tmp_path, identities), "train")
    found = everything(source)
    assert found.by == "25 blocks of consecutive images" and len(source) == 100
    blocks = found.fold.reshape(BLOCKS, 4)
    assert (blocks == np.arange(BLOCKS)[:, None] % FOLDS).all()


def test_fewer_images_than_blocks_are_blocks_of_one(tmp_path: Path) -> None:
    source = PairedFolder(folder(tmp_path, [f"{number:02}" for number in range(7)]), "train")
    found = everything(source)
    assert found.by == "7 blocks of consecutive images" and found.fold.tolist() == [0, 1, 2, 3, 4, 0, 1]
    nothing = divide(source, [])
    assert nothing.fold.tolist() == [-1] * 7


def test_each_data_set_of_a_mixture_is_divided_by_itself(tmp_path: Path) -> None:
    known = PairedFolder(folder(tmp_path / "known", frames(dict.fromkeys("abcde", 2))), "train")
    plain = PairedFolder(folder(tmp_path / "plain", [f"{number:02}" for number in range(30)]), "train")
    found = everything(Mixture([known, plain]))
    assert found.by == "5 groups and 25 blocks of consecutive images"
    np.testing.assert_array_equal(found.fold[:10], everything(known).fold)
    np.testing.assert_array_equal(found.fold[10:], everything(plain).fold)
    assert everything(Mixture([known, known])).by == "5 groups"


def test_places_tell_which_scenes_of_validation_training_has(tmp_path: Path) -> None:
    roots = [
        folder(tmp_path / "a", ["bath_1", "hall_1", "hall_2"], ["hall_3", "loft_1"]),
        folder(tmp_path / "b", ["hall_1", "7"], ["8", "hall_2"]),
    ]
    train, val = (Mixture([PairedFolder(root, split) for root in roots]) for split in ("train", "val"))
    # Sorted by name, b's training images are 7 and hall_1.
    found = places_of(train, np.array([0, 1, 2, 3, 4]), val, np.array([0, 1, 3]))
    assert found.parts == tuple(map(str, roots))
    assert found.train_part.tolist() == [0, 0, 0, 1, 1] and found.val_part.tolist() == [0, 0, 1, 1]
    hall, other = f"{roots[0]}: hall", f"{roots[1]}: hall"
    assert dict(found.train_group) == {1: hall, 2: hall, 4: other}
    assert dict(found.val_group) == {0: hall, 1: f"{roots[0]}: loft", 3: other}
    assert (found.folds.fold >= 0).all()


def test_sources_without_places_have_none(tmp_path: Path) -> None:
    source = FlatFolder(write_flat(tmp_path, 6))
    assert groups_of(source) == [None] * 6
    found = places_of(source, np.arange(6), source, np.arange(6))
    assert not found.train_group and not found.val_group and found.parts == (str(tmp_path),)
