"""A photograph and its depth face alike, whatever rotation their files ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthjepa.data.config import DataConfig
from depthjepa.data.images import decode, tag_of, upright, upright_size
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import TrainingBatches, open_source
from depthjepa.data.pixel_maps import LOOKED_AT, decode_depth
from depthjepa.data.prepare.kitti import prepare_kitti
from depthjepa.faults import BadInput
from tiny_images import millimetres
from tiny_runs import Call

HEIGHT, WIDTH = 14, 18
DEPTH = millimetres(3, HEIGHT, WIDTH)
# The same scene told twice: what the photograph's grey is, the depth is in millimetres.
GREY = (DEPTH // 20).astype(np.uint8)
ORIENTATIONS = range(1, 9)
TAGGED = range(2, 9)
# What Pillow does to an image of each orientation, as NumPy says it.
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).T,
    8: np.rot90,
}


def save(path: Path, pixels: np.ndarray, tag: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if tag > 1:
        exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def pair(
    root: Path, name: str, tag: int, depth_tag: int = 1, *, depth: np.ndarray = DEPTH, suffix: str = "png"
) -> Path:
    """A pair in which the photograph is stored turned, and depth lies as given."""
    save(root / "train" / "rgb" / f"{name}.{suffix}", np.stack([GREY] * 3, axis=-1), tag)
    save(root / "train" / "depth" / f"{name}.png", depth, depth_tag)
    return root


def agrees(root: Path, **keys: object) -> None:
    """Refuse a sample whose depth is not that of its pixels."""
    sample = open_source(DataConfig(root=str(root), **keys), "train").sample(0)
    np.testing.assert_array_equal(np.floor(sample.depth[0].numpy() * 50 + 1e-3), sample.image[0].numpy())


@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_arrays_are_turned_as_pillow_turns_images(tmp_path: Path, tag: int) -> None:
    np.testing.assert_array_equal(upright(DEPTH, tag), UPRIGHT[tag](DEPTH))
    image = decode(save(tmp_path / "a.png", GREY, tag))
    np.testing.assert_array_equal(image[0].numpy(), upright(GREY, tag))
    depth = decode_depth(save(tmp_path / "b.png", DEPTH, tag), 1000.0)
    np.testing.assert_array_equal(depth[0].numpy(), upright(DEPTH, tag).astype(np.float32) / 1000)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, tag: int, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", np.stack([GREY] * 3, axis=-1), tag)
    assert tag_of(path) == tag
    assert upright_size(path) == tuple(decode(path).shape[1:]) == upright(GREY, tag).shape


@pytest.mark.parametrize("tag", TAGGED)
@pytest.mark.parametrize("which", ["photograph", "depth"])
def test_a_tag_of_one_file_alone_is_refused_before_anything_is_decoded(tmp_path: Path, tag: int, which: str) -> None:
    root = pair(tmp_path, "a", *((tag, 1) if which == "photograph" else (1, tag)))
    with pytest.raises(BadInput, match=rf"EXIF orientation {tag}.*data\.depth_orientation=stored .*=upright "):
        PairedFolder(root, "train")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_stored_depth_is_turned_with_its_photograph(tmp_path: Path, tag: int, suffix: str) -> None:
    agrees(pair(tmp_path, "a", tag, suffix=suffix), depth_orientation="stored")


@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_upright_depth_is_left_as_it_lies(tmp_path: Path, tag: int) -> None:
    agrees(pair(tmp_path, "a", tag, depth=UPRIGHT[tag](DEPTH)), depth_orientation="upright")


@pytest.mark.parametrize("said", [None, "stored", "upright"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_where_both_are_tagged_each_is_turned_by_its_own(tmp_path: Path, tag: int, said: str | None) -> None:
    agrees(pair(tmp_path, "a", tag, tag), depth_orientation=said)
    other = 3 if tag != 3 else 2  # what brings a depth file that lies in another way to where the photograph faces
    turned = upright(UPRIGHT[tag](DEPTH), other)  # 2 and 3 undo themselves
    agrees(pair(tmp_path, "a", tag, other, depth=turned) if tag > 1 else tmp_path, depth_orientation=said)


@pytest.mark.parametrize("tag", TAGGED)
def test_a_tag_of_the_depth_alone_is_stored_or_stale(tmp_path: Path, tag: int) -> None:
    root = pair(tmp_path, "a", 1, tag)
    agrees(root, depth_orientation="upright")
    lying = {6: 8, 8: 6}.get(tag, tag)  # the turn that `tag` undoes
    agrees(pair(tmp_path, "a", 1, tag, depth=upright(DEPTH, lying)), depth_orientation="stored")


@pytest.mark.parametrize("tag", [0, 9, 1])
def test_a_tag_that_turns_nothing_is_none(tmp_path: Path, tag: int) -> None:
    root = pair(tmp_path, "a", 1)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.stack([GREY] * 3, axis=-1)).save(root / "train" / "rgb" / "a.png", exif=exif)
    agrees(root)


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_depth_that_lies_otherwise_than_said_has_another_size(tmp_path: Path, tag: int) -> None:
    with pytest.raises(BadInput, match=r"14 x 18.*18 x 14.*data\.depth_orientation\) one of them lies on its side"):
        agrees(pair(tmp_path, "a", tag, depth=UPRIGHT[tag](DEPTH)), depth_orientation="stored")
    with pytest.raises(BadInput, match="one of them lies on its side"):
        agrees(pair(tmp_path, "a", 1, depth=DEPTH.T), depth_orientation="upright")


def test_a_tagged_pair_that_was_not_looked_at_is_refused_when_it_is_decoded(tmp_path: Path) -> None:
    for number in range(2 * LOOKED_AT):
        pair(tmp_path, f"{number:04}", 1)
    pair(tmp_path, "0000", 3)
    source = PairedFolder(tmp_path, "train")
    source.sample(1)
    with pytest.raises(BadInput, match=r"0000\.png is to be turned"):
        source.sample(0)


def test_in_a_mixture_and_in_batches_depth_is_that_of_the_pixels(tmp_path: Path) -> None:
    roots = [pair(tmp_path / "a", "a", 6), pair(tmp_path / "b", "b", 1)]
    joined = ",".join(map(str, roots))
    with pytest.raises(BadInput, match="is to be turned"):
        open_source(DataConfig(root=joined), "train")
    data = DataConfig(root=joined, depth_orientation="stored", image_size=16, crop_scale=(1.0, 1.0), crop_ratio=(1, 1))
    batches = TrainingBatches(
        source=open_source(data, "train"), data=data, masks=None, grid=(2, 2), seed=0, batch_size=2, steps=1
    )
    (batch,) = batches
    for image, depth in zip(batch.images[:, 0], batch.depth[:, 0], strict=True):
        apart = (image * 255 - depth * 50).abs()[depth > 0]
        assert apart.median() < 2  # views are interpolated, each its own way; turned otherwise it is 5 and more


def test_the_command_refuses_before_the_first_step(tmp_path: Path, call: Call) -> None:
    for number in range(4):
        pair(tmp_path / "pairs", str(number), 6 if number == 2 else 1)
    status, _, errors = call("train", "photos", f"data.root={tmp_path / 'pairs'}", "--out", tmp_path / "run")
    assert status == 2 and "data.depth_orientation=stored" in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_tagged_photographs_are_not_prepared_as_kitti(tmp_path: Path) -> None:
    drive = "2011_09_26_drive_0002_sync"
    save(tmp_path / "raw/2011_09_26" / drive / "image_02/data/0.png", np.stack([GREY] * 3, axis=-1), 3)
    save(tmp_path / "annotated/train" / drive / "proj_depth/groundtruth/image_02/0.png", DEPTH)
    with pytest.raises(BadInput, match=r"0\.png has an EXIF rotation \(3\)"):
        prepare_kitti(tmp_path / "annotated", tmp_path / "out", raw=tmp_path / "raw")
