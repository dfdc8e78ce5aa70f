"""tools/surface_textures.py takes what may cover a surface, and nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "surface_textures.py"))


def rough(side: int = 300, tint: tuple[float, float, float] = (0.9, 0.8, 0.7)) -> Image.Image:
    """A rough surface: coarse and fine noise in one tint."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (side, side), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(4))
    grey = 128 + 4 * (np.asarray(coarse, np.float64) - 128)
    pixels = grey[..., None] * tint + draws.normal(0, 15, (side, side, 3))
    return Image.fromarray(pixels.clip(10, 245).astype(np.uint8))


def test_a_rough_surface_is_taken() -> None:
    assert TOOL["is_surface"](rough())


@pytest.mark.parametrize(
    "image",
    [
        rough(200),
        Image.new("RGB", (300, 300), (120, 110, 100)),
        rough(tint=(0.1, 0.09, 0.08)),
        rough(tint=(1.0, 0.1, 0.1)),
        Image.merge("RGBA", (*rough().split(), Image.new("L", (300, 300), 100))),
        rough().quantize(16).convert("RGB"),
        Image.merge("RGB", [Image.new("L", (300, 300), 128)] * 2 + [Image.new("L", (300, 300), 250)]),
    ],
    ids=["small", "flat", "dark", "harsh", "transparent", "drawn", "normal map"],
)
def test_what_is_no_surface_is_left_out(image: Image.Image) -> None:
    assert not TOOL["is_surface"](image)


def test_pictures_of_several_folders_are_written_once_as_squares(tmp_path: Path) -> None:
    for place in ("a/wall.png", "a/wall_normal.png", "b/deep/wall.png", "b/floor.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        rough(320).save(tmp_path / place)
    (tmp_path / "b" / "broken.png").write_bytes(b"nothing")
    assert TOOL["pick"]([tmp_path / "a", tmp_path / "b"], tmp_path / "out") == 2
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["floor.jpg", "wall.jpg"]
    assert Image.open(tmp_path / "out" / "wall.jpg").size == (256, 256)
    with pytest.raises(FileExistsError):
        TOOL["pick"]([tmp_path / "a"], tmp_path / "out")
