"""What depth files hold is said in metres before anything learns from them, and what looks wrong is named."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from depthjepa.commands.probe import probe
from depthjepa.data.config import DataConfig
from depthjepa.data.dataset_facts import dataset_facts
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import open_source
from depthjepa.data.metres import describe_depth
from depthjepa.faults import BadInput
from depthjepa.training import train
from tiny_images import picture, save, write_pairs
from tiny_runs import Call, recipe_file, run, tiny

HEIGHT, WIDTH = 48, 64
Planted = Callable[[np.ndarray], np.ndarray]


def room(number: int) -> np.ndarray:
    """Metres of a floor before a wall, with the noise of a sensor, float64 [48, 64]; a tenth is not measured (0)."""
    random = np.random.default_rng(number)
    depth = np.minimum(3.2 + 0.1 * (number % 7), 60 / (1 + np.arange(HEIGHT)))[:, None] + 0.2 * random.random(
        (HEIGHT, WIDTH)
    )
    return np.where(random.random(depth.shape) < 0.1, 0.0, depth)


def millimetres(metres: np.ndarray) -> np.ndarray:
    return np.rint(1000 * metres)


def pairs(root: Path, planted: Planted = millimetres, count: int = 12, split: str = "train", **facts: object) -> Path:
    """Rooms whose depth files hold `planted(metres)`."""
    for number in range(count):
        save(root / split / "rgb" / f"{number:02}.png", picture(number, HEIGHT, WIDTH))
        save(root / split / "depth" / f"{number:02}.png", planted(room(number)).astype(np.uint16))
    if facts:
        (root / "dataset.json").write_text(json.dumps(facts))
    return root


def lines(root: Path | str, **keys: object) -> list[str]:
    return describe_depth(open_source(DataConfig(root=str(root), **keys), "train"))


def warnings(root: Path, **keys: object) -> list[str]:
    first, *others = lines(root, **keys)
    assert first.startswith(f"depth of {root}: ") and all(each.startswith("warning: ") for each in others)
    return others


# the line


def test_the_line_says_range_median_share_and_scale(tmp_path: Path) -> None:
    pairs(tmp_path, count=40)
    places = (2 * np.arange(32) + 1) * 40 // 64  # an even spread
    metres = np.concatenate([millimetres(room(number)).ravel().astype(np.float32) / 1000 for number in places])
    known = metres[metres > 0]
    assert lines(tmp_path) == [
        f"depth of {tmp_path}: {known.min():.3g} to {known.max():.3g} m, median {np.median(known):.3g} m, "
        f"{len(known) / len(metres):.0%} of pixels measured (32 of 40 pairs, 1000 file units a metre)"
    ]


def test_each_folder_of_a_mixture_has_its_line_and_scenes_have_none(tmp_path: Path) -> None:
    pairs(tmp_path / "a")
    pairs(tmp_path / "b", lambda metres: 500 * metres, depth_scale=500)
    found = lines(f"{tmp_path / 'a'}*2,{tmp_path / 'b'}*1,scenes*1", scenes_train=2)
    assert [each.partition(":")[0] for each in found] == [f"depth of {tmp_path / 'a'}", f"depth of {tmp_path / 'b'}"]
    assert "12 of 12 pairs, 500 file units a metre" in found[1]
    assert lines("scenes", scenes_train=2) == []


@pytest.mark.parametrize("folder", ["indoor160", "kitti2015", "driving_lidar", "indoor", "indoor_many"])
def test_real_depth_gives_no_warning(real_data: Path, folder: str) -> None:
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} here")
    assert warnings(real_data / folder) == []


@pytest.mark.parametrize(
    ("name", "planted", "keys"),
    [
        ("KITTI's own scale", lambda metres: np.rint(256 * 5 * metres), {"depth_scale": 256.0}),
        ("TUM's own scale", lambda metres: 5 * millimetres(metres), {"depth_scale": 5000.0}),
        ("centimetres, said so", lambda metres: np.rint(100 * metres), {"depth_scale": 100.0}),
        ("rounded to a centimetre", lambda metres: 10 * np.rint(100 * metres), {}),
        ("one distance everywhere", lambda metres: np.full_like(metres, 1500), {}),
    ],
)
def test_depth_that_is_what_it_says_gives_no_warning(tmp_path: Path, name: str, planted: Planted, keys: dict) -> None:
    assert warnings(pairs(tmp_path, planted), **keys) == [], name


# what looks wrong


def rotated(metres: np.ndarray) -> np.ndarray:
    """SUN RGB-D's files, of which (d >> 3) | (d << 13) are millimetres."""
    exact = millimetres(metres).astype(np.uint16)
    return (exact << 3) | (exact >> 13)


@pytest.mark.parametrize(
    ("planted", "keys", "message"),
    [
        (lambda m: np.where(m == 0, 65535, millimetres(m)), {}, "is 65.535 m, 65535 in the files, .*range="),
        (lambda m: np.where(m == 0, 9999, millimetres(m)), {}, "is 9.999 m, 9999 in the files, .*range="),
        (lambda m: np.where(m == 0, 10000, 1000 * m), {"depth_scale": 500.0}, "is 20 m, 10000 in the files"),
        (millimetres, {"depth_scale": 1.0}, r"a median of \S+ m is farther than cameras see: data\.depth_scale"),
        (np.rint, {}, r"a median of 0\.003 m is nearer than cameras see: data\.depth_scale"),
        (lambda m: 5 * millimetres(m), {}, r"multiples of 5, .*TUM.*read at 1000 \(data\.depth_scale\)"),
        (rotated, {}, r"multiples of 8, .*SUN.*data\.depth_scale=8000"),
        (lambda m: 257 * np.rint(255 * m / m.max()), {}, "of 8 bits, or whole numbers of disparity"),
        (
            lambda m: 256 * np.rint(np.divide(60, m, where=m > 0, out=np.zeros_like(m))),
            {},
            "whole numbers of disparity",
        ),
        (
            lambda m: np.rint(np.divide(9000, m, where=m > 0, out=np.zeros_like(m))),
            {},
            "in 12 of 12 pairs it is farther below .* disparity",
        ),
        (lambda m: millimetres(m)[::-1], {}, r"farther below .* upside down \(data\.depth_orientation\)"),
    ],
)
def test_each_fault_has_its_warning_and_the_key_that_mends_it(
    tmp_path: Path, planted: Planted, keys: dict, message: str
) -> None:
    found = warnings(pairs(tmp_path, planted), **keys)
    assert any(re.search(message, each) for each in found), found


def test_a_range_in_dataset_json_mends_a_missing_value(tmp_path: Path) -> None:
    pairs(tmp_path, lambda metres: np.where(metres == 0, 65535, millimetres(metres)), range=[0.1, 10])
    assert warnings(tmp_path) == []


def test_a_range_that_leaves_out_most_tells_of_a_wrong_scale(tmp_path: Path) -> None:
    pairs(tmp_path, lambda metres: np.rint(256 * 12 * metres), range=[0.1, 20])
    (found,) = warnings(tmp_path, depth_scale=256.0)
    assert "range=[0.1, 20] in its dataset.json leaves out" in found and "data.depth_scale" in found


def test_pairs_without_any_depth_are_counted(tmp_path: Path) -> None:
    pairs(tmp_path)
    for number in (3, 5):
        save(tmp_path / "train" / "depth" / f"{number:02}.png", np.zeros((HEIGHT, WIDTH), dtype=np.uint16))
    (found,) = warnings(tmp_path)
    assert "2 of 12 pairs have no pixel that counts" in found


def test_what_guidance_does_not_learn_is_told(tmp_path: Path) -> None:
    source = PairedFolder(pairs(tmp_path), "train")
    assert len(describe_depth(source, (0.1, 100.0), "a, b")) == 1
    _, found = describe_depth(source, (4.0, 100.0), "a, b")
    assert "is not within 4 to 100 m (a, b)" in found
    with pytest.raises(BadInput, match=r"none of what was looked at is within 50 to 100 m \(a, b\)"):
        describe_depth(source, (50.0, 100.0), "a, b")


# runs


PIXEL = ("guidance.kind=pixel",)
USES = [
    ("guidance.kind=feature", "guidance.teacher=depth"),
    PIXEL,
    ("train.objective=supervised",),
]


@pytest.mark.parametrize("settings", USES)
def test_a_run_that_learns_from_depth_shows_its_metres(tmp_path: Path, settings: tuple[str, ...]) -> None:
    said: list[str] = []
    config = tiny(write_pairs(tmp_path / "pairs", 8, 4), *settings, "train.steps=1")
    train(config, tmp_path / "run", say=said.append)
    assert sum(each.startswith(f"depth of {tmp_path / 'pairs'}: ") for each in said) == 1


def test_a_run_that_does_not_says_nothing_of_them(tmp_path: Path) -> None:
    said: list[str] = []
    train(tiny(write_pairs(tmp_path / "pairs", 8, 4), "train.steps=1"), tmp_path / "run", say=said.append)
    assert said and not any("depth of" in each for each in said)


@pytest.mark.parametrize("settings", USES)
@pytest.mark.parametrize(
    ("planted", "facts", "message"),
    [
        (np.zeros_like, {}, "no pixel of the 12 pairs that were looked at is measured: all of them are 0"),
        (millimetres, {"range": [50, 80]}, r"the files hold \S+ to \S+ m at 1000 .*range=\[50, 80\] in its dataset"),
    ],
)
def test_depth_that_is_invalid_everywhere_stops_a_run_before_it_writes(
    tmp_path: Path, call: Call, settings: tuple[str, ...], planted: Planted, facts: dict, message: str
) -> None:
    root = pairs(tmp_path / "pairs", planted, **facts)
    recipe = recipe_file(tmp_path / "tiny.yaml", root, *settings, "train.steps=1")
    status, _, errors = call("train", recipe, "--out", tmp_path / "run")
    assert status == 2 and re.search(message, errors) and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_depth_probe_shows_metres_to_those_who_listen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pairs(tmp_path / "pairs", 8, 4)
    run(root, tmp_path / "run", "train.steps=1")
    capsys.readouterr()
    said: list[str] = []
    probe(tmp_path / "run", "depth", say=said.append)
    assert sum(each.startswith(f"depth of {root}: ") for each in said) == 1
    probe(tmp_path / "run", "depth")
    printed = capsys.readouterr()
    assert "depth of" not in printed.out + printed.err


# dataset.json


@pytest.mark.parametrize("place", [".", "train", "val"])
@pytest.mark.parametrize("name", ["dataset.json", "Dataset.JSON", "DATASET.json"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_dataset_json_is_found_wherever_people_put_it(tmp_path: Path, place: str, name: str, mark: bytes) -> None:
    for split in ("train", "val"):
        pairs(tmp_path, split=split, count=2)
    (tmp_path / place / name).write_bytes(mark + b'{"depth_scale": 500}')
    for split in ("train", "val"):
        depth = PairedFolder(tmp_path, split).sample(0).depth
        np.testing.assert_array_equal(depth[0].numpy(), millimetres(room(0)).astype(np.float32) / 500)


def test_dataset_json_in_sixteen_bits_is_read(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"name": "mine"}', encoding="utf-16")
    assert dataset_facts(tmp_path).name == "mine"


def test_several_that_agree_are_one(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "dataset.json").write_text('{"name": "mine", "depth_scale": 500}')
    (tmp_path / "train" / "dataset.json").write_text('{"depth_scale": 500, "range": [1, 9], "name": null}')
    facts = dataset_facts(tmp_path)
    assert (facts.name, facts.depth_scale, facts.range) == ("mine", 500, (1, 9))


@pytest.mark.parametrize("other", ["train/dataset.json", "val/Dataset.json", "DATASET.JSON"])
def test_several_that_contradict_each_other_are_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / "dataset.json").write_text('{"depth_scale": 500}')
    (tmp_path / other).write_text('{"depth_scale": 5000}')
    with pytest.raises(BadInput, match=r"say different things of depth_scale: give one dataset\.json"):
        dataset_facts(tmp_path)


def test_a_dataset_json_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(b'{"name": "\xff\xfe\xfd"}')
    with pytest.raises(BadInput, match=r"dataset\.json: it is not text"):
        dataset_facts(tmp_path)
