"""Files on a disk: what is decoded, how folders are told apart, and which faults are named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from depthjepa.data import images
from depthjepa.data.config import DataConfig
from depthjepa.data.images import decode
from depthjepa.data.layouts.class_folder import ClassFolder
from depthjepa.data.layouts.flat import FlatFolder
from depthjepa.data.layouts.rgbd import PairedFolder
from depthjepa.data.loading import open_source
from depthjepa.data.pixel_maps import decode_depth
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = COLOURS, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def channels_last(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def pairs(root: Path, count: int = 3, split: str = "train") -> Path:
    for number in range(count):
        save(root / split / "rgb" / f"{number}.jpg")
        save(root / split / "depth" / f"{number}.png", np.full((20, 30), 1500, dtype=np.uint16))
    return root


# decoding


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG"])
def test_lossless_formats_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    image = decode(save(tmp_path / f"a.{suffix}"))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(channels_last(image), COLOURS)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats_come_back_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", quality=95)
    np.testing.assert_array_equal(channels_last(decode(path)), np.array(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    turned = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x.swapaxes(0, 1)[:, ::-1],
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: x.swapaxes(0, 1)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    smooth = np.add.outer(np.arange(20), np.arange(30) * 4).astype(np.uint8)
    pixels = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=-1)
    image = decode(save(tmp_path / f"a.{suffix}", pixels, exif=exif, **options))
    difference = channels_last(image).astype(int) - turned(pixels).astype(int)
    assert np.abs(difference).max() <= 4


def test_grey_and_bilevel_become_rgb(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        grey = decode(save(tmp_path / name, COLOURS[..., 0]))
        assert grey.shape == (3, 20, 30)
        assert (grey == grey[:1]).all()
    Image.fromarray(COLOURS[..., 0] > 99).save(tmp_path / "b.png")
    np.testing.assert_array_equal(decode(tmp_path / "b.png")[1].numpy(), (COLOURS[..., 0] > 99) * 255)


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((20, 30, 1), dtype=np.uint8)
    alpha[:10] = 255
    image = channels_last(decode(save(tmp_path / "a.png", np.concatenate([COLOURS, alpha], axis=-1))))
    np.testing.assert_array_equal(image[:10], COLOURS[:10])
    assert (image[10:] == 255).all()


def test_palette_images_take_their_colours(tmp_path: Path) -> None:
    indexed = Image.fromarray(COLOURS).quantize(16)
    indexed.save(tmp_path / "a.png")
    np.testing.assert_array_equal(channels_last(decode(tmp_path / "a.png")), np.array(indexed.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.arange(0, 65536, 109, dtype=np.uint16)[:600].reshape(20, 30)
    values[0, 0], values[0, 1] = 0, 65535
    image = decode(save(tmp_path / f"a.{suffix}", values))
    assert image.shape == (3, 20, 30)
    np.testing.assert_array_equal(image[2].numpy(), np.round(values / 257.0))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    expected = np.array(Image.open(tmp_path / "a.jpg").convert("RGB"))
    np.testing.assert_array_equal(channels_last(decode(tmp_path / "a.jpg")), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_damaged_files_are_named_with_a_reason(tmp_path: Path, suffix: str) -> None:
    whole = save(tmp_path / f"whole.{suffix}").read_bytes()
    for length in (0, 3, 30, len(whole) // 2, len(whole) * 3 // 4):
        path = tmp_path / f"cut{length}.{suffix}"
        path.write_bytes(whole[:length])
        with pytest.raises(UnreadableImage, match=rf"cut{length}\.{suffix}: ."):
            decode(path)


@pytest.mark.filterwarnings("ignore")
def test_any_damage_gives_a_picture_or_the_documented_fault(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for suffix in ("jpg", "png", "bmp", "webp", "tif"):
        whole = np.frombuffer(save(tmp_path / f"a.{suffix}").read_bytes(), dtype=np.uint8)
        for _ in range(40):
            broken = whole.copy()
            broken[random.integers(0, len(broken), 8)] = random.integers(0, 256, 8)
            (tmp_path / f"b.{suffix}").write_bytes(broken.tobytes())
            try:
                assert decode(tmp_path / f"b.{suffix}").shape[0] == 3
            except UnreadableImage as fault:
                assert f"b.{suffix}: " in str(fault)


def test_a_file_that_is_gone_and_a_float_image_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        decode(tmp_path / "gone.jpg")
    save(tmp_path / "a.tif", COLOURS[..., 0].astype(np.float32))
    with pytest.raises(UnreadableImage, match="floating-point"):
        decode(tmp_path / "a.tif")


# folders


def test_flat_folder_takes_images_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/b/c.webp", ".hidden.jpg", ".thumbnails/x.jpg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    for split in ("train", "val"):
        source = open_source(DataConfig(root=str(tmp_path)), split)
        assert [source.sample(i).name for i in range(len(source))] == ["a/b/c.webp", "a/z.png", "b.JPG"]
    assert source.classes == () and source.sample(0).label == -1 and not source.has_depth


def test_flat_folder_with_splits_keeps_them_apart(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png")
    save(tmp_path / "val" / "b.png")
    assert [FlatFolder(tmp_path, split).sample(0).name for split in ("train", "val")] == [
        "train/a.png",
        "val/b.png",
    ]


def classes(root: Path, per_class: int = 3) -> Path:
    for split in ("train", "val"):
        for word in ("bird", "cat", "dog"):
            for number in range(per_class):
                save(root / split / word / f"{number}.png")
    return root


def test_class_folder_and_its_subsets(tmp_path: Path) -> None:
    root = str(classes(tmp_path))

    def labels(split: str, **keys: object) -> tuple[tuple[str, ...], list[int]]:
        source = open_source(DataConfig(root=root, **keys), split)
        assert isinstance(source, ClassFolder)
        return source.classes, [source.sample(index).label for index in range(len(source))]

    assert labels("train") == (("bird", "cat", "dog"), [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert labels("train", classes=2, images_per_class=1) == (("bird", "cat"), [0, 1])
    assert labels("train", classes=("dog", "bird"), images_per_class=2) == (("dog", "bird"), [0, 0, 1, 1])
    assert labels("val", classes=("dog",), images_per_class=1) == (("dog",), [0, 0, 0])
    assert open_source(DataConfig(root=root, classes=("dog",)), "val").sample(1).name == "val/dog/1.png"


def test_scenes_are_rendered_at_the_size_asked_for() -> None:
    config = DataConfig(root="scenes:7", image_size=(32, 48), scenes_train=5, scenes_val=2)
    train, val = open_source(config, "train"), open_source(config, "val")
    assert (len(train), len(val), train.has_depth) == (5, 2, True)
    assert train.sample(0).image.shape == (3, 32, 48)


def test_rgbd_folder_gives_metres(tmp_path: Path) -> None:
    depth = np.array([[0, 1, 1500], [65535, 2, 3]], dtype=np.uint16)
    save(tmp_path / "train" / "rgb" / "a.png", COLOURS[:2, :3])
    save(tmp_path / "train" / "depth" / "a.png", depth)
    source = open_source(DataConfig(root=str(tmp_path), depth_scale=500.0), "train")
    sample = source.sample(0)
    assert source.has_depth and sample.name == "train/rgb/a.png"
    np.testing.assert_array_equal(sample.depth[0].numpy(), depth.astype(np.float32) / 500)


# faults


@pytest.mark.parametrize(
    ("make", "keys", "message"),
    [
        (lambda root: None, {"root": "{root}/nowhere"}, "there is no folder .*nowhere"),
        (lambda root: (root / "photos").mkdir(), {"root": "{root}/photo"}, "did you mean .*/photos'"),
        (lambda root: None, {"root": "scene"}, "did you mean 'scenes'"),
        (lambda root: None, {}, "holds no images"),
        (lambda root: (root / "train" / "cat").mkdir(parents=True), {}, "class 'cat' has no images"),
        (classes, {"classes": 4}, "data.classes=4, but there are 3 classes in .*train"),
        (classes, {"classes": ("brid",)}, r"no class 'brid' .*did you mean 'bird'\?"),
        (classes, {"kind": "rgbd"}, "has no train/rgb/"),
        (classes, {"kind": "scenes"}, "are no rendered scenes"),
        (classes, {"kind": "shards"}, "holds no tar shards of train"),
        (lambda root: (root / "train-000.tar").touch(), {}, "is no uncompressed tar: empty file"),
        (pairs, {"kind": "folder"}, "take data.kind=rgbd"),
        (pairs, {"classes": 2}, "data.classes needs a class folder"),
        (lambda root: save(root / "a.png"), {"images_per_class": 2}, "data.images_per_class needs a class"),
        (lambda root: save(root / "a.png"), {"root": "{root}/a.png"}, "is a file, not a folder"),
        (lambda root: save(root / "train" / "rgb" / "a.png"), {}, "has no train/depth/"),
        (lambda root: None, {"root": "scenes:x"}, "scenes:SEED"),
        (lambda root: None, {"root": "scenes*-1"}, r"PATH\*WEIGHT"),
        (lambda root: None, {"root": "scenes,"}, "empty path"),
    ],
)
def test_faults_of_the_root_are_named(tmp_path: Path, make: object, keys: dict, message: str) -> None:
    make(tmp_path)
    root = keys.get("root", "{root}").format(root=tmp_path)
    with pytest.raises(BadInput, match=message):
        open_source(DataConfig(**{**keys, "root": root}), "train")


def test_the_validation_split_must_fit_the_training_split(tmp_path: Path) -> None:
    root = classes(tmp_path)
    save(root / "val" / "emu" / "0.png")
    with pytest.raises(BadInput, match="classes that train has not: emu"):
        ClassFolder(root, "val")
    save(tmp_path / "other" / "train" / "cat" / "0.png")
    with pytest.raises(BadInput, match="without val/"):
        ClassFolder(tmp_path / "other", "val")


def test_rgb_and_depth_that_do_not_pair_up_are_counted_and_named(tmp_path: Path) -> None:
    pairs(tmp_path, 6)
    for number in range(5):
        (tmp_path / "train" / "depth" / f"{number}.png").unlink()
    save(tmp_path / "train" / "depth" / "x.png", np.ones((20, 30), dtype=np.uint16))
    with pytest.raises(BadInput) as fault:
        PairedFolder(tmp_path, "train", 1000.0)
    assert "5 of 6 photographs have no depth: 0, 1, 2 and 2 more" in str(fault.value)
    assert "1 of 2 depth files have no photograph: x" in str(fault.value)


def test_two_photographs_of_one_name_and_other_depth_formats_are_refused(tmp_path: Path) -> None:
    pairs(tmp_path / "twice")
    save(tmp_path / "twice" / "train" / "rgb" / "1.png")
    with pytest.raises(BadInput, match="several photographs of one name: 1"):
        PairedFolder(tmp_path / "twice", "train", 1000.0)
    pairs(tmp_path / "tif")
    save(tmp_path / "tif" / "train" / "depth" / "1.tif")
    with pytest.raises(BadInput, match=r"several formats, \d \.png .* and 1 \.tif \(1\.tif\): keep those of one there"):
        PairedFolder(tmp_path / "tif", "train", 1000.0)
    pairs(tmp_path / "jpg")
    save(tmp_path / "jpg" / "train" / "depth" / "1.jpg")
    with pytest.raises(BadInput, match=r"16-bit \.png files \(or .*\), but .*1\.jpg"):
        PairedFolder(tmp_path / "jpg", "train", 1000.0)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.ones((20, 31), dtype=np.uint16), r"depth/1\.png is 20 x 31 .* 1\.jpg is 20 x 30"),
        (
            np.ones((20, 30), dtype=np.uint8),
            r"depth/1\.png is PNG of mode L; depth must be a grey PNG of 16 bits",
        ),
        (np.ones((20, 30, 3), dtype=np.uint8), r"depth/1\.png is PNG of mode RGB; depth must be"),
    ],
)
def test_depth_of_another_size_or_of_8_bits_is_named(tmp_path: Path, depth: np.ndarray, message: str) -> None:
    pairs(tmp_path)
    save(tmp_path / "train" / "depth" / "1.png", depth)
    source = PairedFolder(tmp_path, "train", 1000.0)
    source.sample(0)
    with pytest.raises(BadInput, match=message):
        source.sample(1)


def test_damaged_depth_is_unreadable(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS[..., 0].astype(np.uint16))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnreadableImage, match=r"a\.png: "):
        decode_depth(path, 1000.0)


@pytest.mark.parametrize(
    "keys",
    [
        {"depth_scale": 0.0},
        {"image_size": 0},
        {"image_size": (32, -1)},
        {"crop_scale": (0.5, 0.3)},
        {"crop_scale": (0.5, 1.3)},
        {"crop_ratio": (0.0, 1.0)},
        {"classes": ("a", "a")},
        {"workers": -1},
        {"sizes": 3},
    ],
)
def test_impossible_keys_are_refused(keys: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        DataConfig(**keys)


# real data


@pytest.mark.parametrize(
    ("folder", "train", "val", "words", "depth"),
    [
        ("tinyimagenet64", 2500, 640, 20, False),
        ("kitti2015", 78, 20, 0, True),
        ("indoor160", 588, 51, 0, True),
    ],
)
def test_real_folders_are_read(real_data: Path, folder: str, train: int, val: int, words: int, depth: bool) -> None:
    config = DataConfig(root=str(real_data / folder))
    for split, count in (("train", train), ("val", val)):
        source = open_source(config, split)
        assert (len(source), len(source.classes), source.has_depth) == (count, words, depth)
        sample = source.sample(count - 1)
        assert sample.image.shape[0] == 3 and sample.label == words - 1
        if depth:
            assert 0 < sample.depth[sample.depth > 0].median() < 80


# JPEGs by torchcodec


def jpegs() -> Iterator[tuple[str, bytes]]:
    """Photographs of all kinds of JPEG, and damaged ones."""
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((97, 71)))
    for mode in ("RGB", "L", "CMYK"):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                content = io.BytesIO()
                options = {} if mode == "L" else {"subsampling": subsampling}
                Image.fromarray(smooth).convert(mode).save(content, "JPEG", progressive=progressive, **options)
                yield f"{mode} {subsampling} {progressive}", content.getvalue()
    for tag in range(1, 10):
        exif, content = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = tag
        Image.fromarray(smooth).save(content, "JPEG", exif=exif)
        yield f"orientation {tag}", content.getvalue()
    for share in (0.02, 0.5, 0.98):
        yield f"cut to {share}", content.getvalue()[: int(share * len(content.getvalue()))]
    for number in range(40):
        damaged = bytearray(content.getvalue())
        for place in rng.integers(150, len(damaged), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        yield f"damaged {number}", bytes(damaged)


def read(content: bytes, name: str) -> torch.Tensor | str:
    try:
        return images.decode_bytes(content, name)
    except UnreadableImage as fault:
        return str(fault)


def test_torchcodec_and_pillow_read_the_same_pixels_and_refuse_the_same_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torchcodec")
    assert images._jpeg_decoder() is not None
    fast = {name: read(content, name) for name, content in jpegs()}
    for name, content in jpegs():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        if not isinstance(fast[name], str):
            assert torch.equal(images.decode(tmp_path / f"{name}.jpg"), fast[name])
    monkeypatch.setattr(images, "_jpeg_decoder", lambda: None)
    slow = {name: read(content, name) for name, content in jpegs()}
    assert sum(isinstance(each, str) for each in slow.values()) > 4
    for name, pixels in slow.items():
        assert type(fast[name]) is type(pixels), name
        if isinstance(pixels, str):
            assert fast[name] == pixels
        else:
            assert torch.equal(fast[name], pixels) and fast[name].stride() == pixels.stride(), name


def test_torchcodec_of_another_torch_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchcodec")

    def broken(name: str) -> None:
        raise OSError("undefined symbol: _ZN3c10\nand more")

    monkeypatch.setattr(images.importlib, "import_module", broken)
    images._jpeg_decoder.cache_clear()
    try:
        with pytest.warns(UserWarning, match="torchcodec is not used, it cannot be loaded: undefined symbol: _ZN3c10$"):
            assert images._jpeg_decoder() is None
        name, content = next(jpegs())
        assert isinstance(read(content, name), torch.Tensor)
    finally:
        images._jpeg_decoder.cache_clear()
