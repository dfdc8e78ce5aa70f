"""Pick, from folders of pictures, those that look like surfaces or views: for `data.scene_textures`.

python tools/surface_textures.py usr/share/backgrounds usr/share/games/supertuxkart/data textures

Left out: small, transparent, flat, dark, glaring, harshly coloured or drawn pictures, normal maps, and files whose name
says that they are letters, lights or parts of an interface. The others are written as squares of 256 px.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SIDE, LOOKED_AT = 256, 128  # px: of what is written, of what is judged
NO_SURFACE = (
    *("normal", "_n.", "_nm", "gloss", "spec", "emit", "logo", "text", "sign", "icon", "gui", "flag", "particle"),
    *("skid", "smoke", "light", "fire", "lava", "glow", "mask", "sky"),
)
COLOURS = 120  # fewer of 32,768: drawn


def is_surface(image: Image.Image) -> bool:
    """Whether a picture may cover a wall, a street or a sky."""
    if min(image.size) < SIDE:
        return False
    if "A" in image.getbands() or "transparency" in image.info:
        opacity = np.asarray(image.convert("RGBA").resize((64, 64)))[..., 3]
        if (opacity < 250).mean() > 0.02:
            return False
    bytes_ = np.asarray(image.convert("RGB").resize((LOOKED_AT, LOOKED_AT), Image.Resampling.BOX))
    pixels = bytes_ / 255
    grey, brightest, darkest = pixels.mean(-1), pixels.max(-1), pixels.min(-1)
    red, green, blue = pixels.mean((0, 1))
    normal_map = blue > 0.8 and abs(red - 0.5) < 0.12 and abs(green - 0.5) < 0.12
    saturation = ((brightest - darkest) / (brightest + 1e-3)).mean()
    clipped = ((grey < 0.02) | (grey > 0.98)).mean()
    colours = len(np.unique((bytes_ // 8).reshape(-1, 3), axis=0))
    return bool(
        not normal_map
        and saturation <= 0.62
        and 0.03 <= grey.std() <= 0.3
        and brightest.mean() >= 0.12
        and clipped <= 0.12
        and colours >= COLOURS
    )


def pick(sources: list[Path], out: Path) -> int:
    """Write what looks like a surface; return how many. Of two files of one name the first is taken."""
    out.mkdir(parents=True)
    files = [file for source in sources for file in sorted(source.rglob("*"))]
    for file in files:
        if file.suffix.lower() not in {".jpg", ".jpeg", ".png"} or any(
            word in file.name.lower() for word in NO_SURFACE
        ):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # palettes with transparency: it is looked at above
                with Image.open(file) as image:
                    place = out / f"{file.stem}.jpg"
                    if not place.exists() and is_surface(image):
                        square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
                        square.save(place, quality=92)
        except UnidentifiedImageError:
            print(f"{file} is no image")
    return len(list(out.iterdir()))


def main() -> None:
    """Pick textures from folders."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sources", type=Path, nargs="+")
    arguments.add_argument("out", type=Path, help="a new folder")
    asked = arguments.parse_args()
    print(f"{pick(asked.sources, asked.out)} pictures in {asked.out}")


if __name__ == "__main__":
    main()
