"""Claims about photographs on the surfaces of rendered scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depthjepa.data.config import DataConfig
from depthjepa.data.loading import open_source, source_name
from depthjepa.data.scenes.layout import World
from depthjepa.data.scenes.photographs import SIDE, Photographs, open_photographs, rip_map
from depthjepa.data.scenes.rendering import render
from depthjepa.data.scenes.rooms import ROOMS
from depthjepa.data.scenes.streets import STREETS
from depthjepa.faults import BadInput
from tiny_images import picture, save, write_pairs
from tiny_runs import Call, run

WORLDS = pytest.mark.parametrize("world", [STREETS, ROOMS], ids=["streets", "rooms"])


def smooth_tile(seed: int) -> Tensor:
    """A tile in linear light whose details are several texels wide."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def photographs(*tiles: Tensor) -> Photographs:
    return Photographs(torch.cat([rip_map(tile) for tile in tiles]), "0")


def rows(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def look(of: Photographs, number: int, x: float, y: float, width: float, height: float) -> Tensor:
    found = of.seen(torch.tensor([[number]]), rows(x), rows(y), rows(width), rows(height))
    return torch.stack(found).flatten()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(6):
        coarse = torch.from_numpy(generator.random((1, 3, 5, 7)))
        pixels = torch.nn.functional.interpolate(coarse, (60, 84), mode="bicubic").clamp(0, 1)[0]
        save(tmp_path / "photographs" / f"{number}.png", (pixels * 255).byte().permute(1, 2, 0).numpy())
    return tmp_path / "photographs"


def test_every_resolution_holds_the_means_of_the_finest() -> None:
    tile = smooth_tile(1)
    packed = rip_map(tile).view(2 * SIDE, 2 * SIDE)
    square = torch.stack([packed >> bits & 255 for bits in (0, 8, 16)], dim=-1).double() / 255
    for vertical, horizontal in ((0, 0), (1, 4), (5, 0), (7, 7), (3, 2)):
        top, left = (2 * SIDE - 2 * (SIDE >> level) for level in (vertical, horizontal))
        tall, wide = SIDE >> vertical, SIDE >> horizontal
        kept = square[top : top + tall, left : left + wide].permute(2, 0, 1)
        mean = tile.view(3, tall, SIDE // tall, wide, SIDE // wide).mean((2, 4))
        assert torch.allclose(kept, mean.sqrt().double(), atol=0.5 / 255 + 1e-6)


def test_a_look_at_a_texel_is_that_texel_and_beyond_the_edge_is_the_mirror() -> None:
    tiles = smooth_tile(1), smooth_tile(2)
    both, fine = photographs(*tiles), 1 / SIDE
    for number, column, row in ((0, 0, 0), (1, 127, 3), (0, 64, 90)):
        x, y = (column + 0.5) / SIDE, (row + 0.5) / SIDE
        here = look(both, number, x, y, fine, fine)
        assert torch.allclose(here.sqrt(), tiles[number][:, row, column].sqrt(), atol=0.6 / 255)
        for same_x, same_y in ((-x, y), (2 - x, y), (x + 2, -y), (x - 4, y + 6)):
            assert torch.allclose(look(both, number, same_x, same_y, fine, fine), here, atol=1e-4)


def test_a_look_is_the_mean_over_a_pixel_that_may_be_far_longer_than_wide() -> None:
    tile = smooth_tile(3)
    one, generator = photographs(tile), torch.Generator().manual_seed(0)
    for width, height in ((1, 1), (8, 8), (16, 2), (2, 32), (64, 4), (128, 128)):
        errors, wrong_way = [], []
        for x, y in torch.rand(40, 2, generator=generator).tolist():
            column, row = (
                min(int(x * SIDE) // width, SIDE // width - 1),
                min(int(y * SIDE) // height, SIDE // height - 1),
            )
            window = tile[:, row * height : (row + 1) * height, column * width : (column + 1) * width].mean((1, 2))
            middle = (column + 0.5) * width / SIDE, (row + 0.5) * height / SIDE
            errors.append(look(one, 0, *middle, width / SIDE, height / SIDE) - window)
            wrong_way.append(look(one, 0, *middle, height / SIDE, width / SIDE) - window)
        assert float(torch.stack(errors).abs().max()) < 0.01
        if max(width, height) > 8 * min(width, height):  # the check has the power
            assert float(torch.stack(wrong_way).abs().max()) > 0.05


@WORLDS
def test_photographs_change_colours_and_nothing_else(world: World, folder: Path) -> None:
    read, numbers = open_photographs(str(folder)), np.arange(12)
    assert len(read) == 6
    plain, covered = (render(numbers, seed=2, size=(32, 48), world=world, photographs=of) for of in (None, read))
    for name in ("depth", "classes", "labels", "focal"):
        assert torch.equal(getattr(plain, name), getattr(covered, name))
    differ = (plain.images != covered.images).any(1).float().mean((1, 2))
    assert float(differ.median()) > 0.5


@WORLDS
def test_a_scene_with_photographs_is_the_same_in_any_batch(world: World, folder: Path) -> None:
    read, numbers = open_photographs(str(folder)), np.array([40, 3, 2**40, 17])
    together = render(numbers, seed=1, size=(24, 24), world=world, photographs=read).images
    for row in range(len(numbers)):
        alone = render(numbers[row : row + 1], seed=1, size=(24, 24), world=world, photographs=read).images
        assert torch.equal(alone[0], together[row])


@WORLDS
def test_a_grey_photograph_leaves_the_colour_of_the_paint(world: World) -> None:
    """Photographs without a pattern only scale colours: hues stay, and white ones are brighter than black ones."""
    grey, black = (photographs(torch.full((3, SIDE, SIDE), value)) for value in (0.5, 0.0))
    numbers = np.arange(16)
    plain, light, dark = (
        render(numbers, seed=2, size=(24, 24), world=world, photographs=of).images.float() for of in (None, grey, black)
    )
    assert float((light - dark).min()) >= -1 and float((light - dark).mean()) > 10
    share = torch.where((plain > dark + 1).any(1), dark.sum(1) / plain.sum(1).clamp(min=1), 1)
    covered = (share < 0.99).float().mean()
    assert 0.3 < float(covered) < 0.95  # some surfaces stay painted


def test_photographs_are_told_apart_by_their_files(folder: Path) -> None:
    config = DataConfig(root="scenes", image_size=16, scenes_train=4, scenes_val=2, scene_textures=str(folder))
    source, plain = open_source(config, "train"), open_source(replace(config, scene_textures=None), "train")
    digest = open_photographs(str(folder)).digest
    assert source.name_of(1) == f"scenes-0-{digest}/train/000001" and plain.name_of(1) == "scenes-0/train/000001"
    assert not torch.equal(source.sample(1).image, plain.sample(1).image)
    assert plain.name == source_name("scenes") == "scenes:0"  # figures of the two are of other data
    assert source.name == source_name("scenes", str(folder)) == f"scenes:0+{digest}"
    assert source_name(f"{folder},rooms:2", str(folder)) == f"{folder},rooms:2+{digest}"
    assert source_name("scenes", str(folder / "gone")) == "scenes:0"
    save(folder / "6.png", picture(3, 20, 20))
    after = open_source(config, "train")
    assert after.name_of(1) != source.name_of(1) and not torch.equal(after.sample(1).image, source.sample(1).image)


def test_faults_are_named(tmp_path: Path, folder: Path, call: Call) -> None:
    with pytest.raises(BadInput, match=r"data\.scene_textures=.*gone is no folder: give one of photographs"):
        open_photographs(str(tmp_path / "gone"))
    with pytest.raises(BadInput, match=r"data\.scene_textures='' is no folder"):
        open_photographs("")
    with pytest.raises(BadInput, match=r"data\.scene_textures=.*0\.png is a file, not a folder"):
        open_photographs(str(folder / "0.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"data\.scene_textures: .*empty holds no images \(accepted: \.jpg"):
        open_photographs(str(tmp_path / "empty"))
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"data\.scene_textures: .*broken\.jpg: .*: remove it from the photographs"):
        open_photographs(str(folder))
    pairs = write_pairs(tmp_path / "pairs", 3, 2)
    status, _, said = call(
        "train", "rgbd", f"data.root={pairs}", f"data.scene_textures={folder}", "--out", tmp_path / "x"
    )
    assert status == 2 and "data.scene_textures has no effect here: it takes rendered streets" in said
    assert "rendered rooms (rooms or rooms:SEED)" in said and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_run_goes_on_where_its_photographs_have_moved_and_is_told_apart_from_paint(
    tmp_path: Path, folder: Path, call: Call
) -> None:
    covered = (f"data.scene_textures={folder}", "data.scenes_train=16", "data.scenes_val=8")
    run(Path("scenes"), tmp_path / "run", *covered, "train.steps=1")
    (tmp_path / "run" / "summary.json").unlink()
    moved = folder.rename(tmp_path / "moved")
    status, _, fault = call("train", "photos", "--out", tmp_path / "run", "--resume")
    assert status == 2 and "goes on with data.scene_textures=PLACE" in fault
    status, _, fault = call("train", "photos", "--out", tmp_path / "run", "--resume", f"data.scene_textures={moved}")
    assert status == 0, fault
    status, _, fault = call("probe", tmp_path / "run", "correspond", f"data.scene_textures={moved}")
    assert status == 0, fault
    assert call("probe", tmp_path / "run", "correspond", "data.scene_textures=null")[0] == 0
    own, painted = sorted(each.name for each in (tmp_path / "run" / "probes").glob("correspond*.json"))[::-1]
    assert (own, painted) == ("correspond.json", "correspond-scenes_0.json")
