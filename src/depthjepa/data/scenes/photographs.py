"""Photographs that cover the surfaces of rendered scenes.

Each is a square tile that goes on beyond its edges as its mirror image. It is kept at every pair of resolutions, half
as fine each time across and up (a rip map, Larson 1990), so that one look tells the mean over a pixel that is far
longer than wide, as on a road that runs to the horizon.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn.functional import interpolate

from depthjepa.data.contents import file_sizes
from depthjepa.data.images import SUFFIXES, decode
from depthjepa.data.listing import list_images
from depthjepa.data.order import evenly
from depthjepa.data.samples import UnreadableImage
from depthjepa.faults import BadInput
from depthjepa.progress import track

SIDE = 128  # of a tile [texel]
MOST = 512  # photographs that are kept: 134 MB
_LEVELS = SIDE.bit_length()  # 128 to 1 texels


@dataclass(frozen=True, slots=True)
class Photographs:
    """Tiles of photographs. `digest` tells them from others, by the names and sizes of their files."""

    # Of each tile 2 SIDE by 2 SIDE: all resolutions. Square roots of linear light, 8 bits each of red, green and blue
    # in one number from its lowest: looked up together they take half the time.
    texels: Int32[Tensor, " texels"]
    digest: str

    def __len__(self) -> int:
        return len(self.texels) // (4 * SIDE * SIDE)

    def to(self, device: torch.device) -> Photographs:
        """The same on a device."""
        return Photographs(self.texels.to(device), self.digest)

    def seen(
        self,
        number: Int64[Tensor, "n k"],
        across: Float[Tensor, "n k"],
        up: Float[Tensor, "n k"],
        width: Float[Tensor, "n k"],
        height: Float[Tensor, "n k"],
    ) -> list[Float[Tensor, "n k"]]:
        """Mean colour, in linear light, of tile `number` around a place, over a pixel of that width and height [tile].

        Of four texels of the resolution whose texels are as large as the pixel, or up to half as large.
        """
        column, near_x, right = _between_texels(across, width)
        row, near_y, below = _between_texels(up, height)
        first, line = number * (4 * SIDE * SIDE), 2 * SIDE
        corners = [
            self._colours(first + each_row * line + each_column)
            for each_row in (row, row + below)
            for each_column in (column, column + right)
        ]
        upper = corners[0] + (corners[1] - corners[0]) * near_x
        lower = corners[2] + (corners[3] - corners[2]) * near_x
        root = (upper + (lower - upper) * near_y) * (1 / 255)
        return list(root * root)

    def _colours(self, place: Int64[Tensor, "n k"]) -> Float[Tensor, "3 n k"]:
        """The texels at places, unpacked, 0 to 255."""
        packed = self.texels.index_select(0, place.view(-1)).view_as(place)
        shifts = torch.tensor([0, 8, 16], dtype=torch.int32, device=packed.device).view(3, 1, 1)
        return torch.bitwise_right_shift(packed, shifts).bitwise_and(255).float()


def _between_texels(place: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side of a tile: the texel before a place, the share of the next, and its distance (0 at an edge)."""
    # The exponent of a float32 is the whole part of its logarithm, exactly, and without computing one.
    level = ((width * SIDE).view(torch.int32).bitwise_right_shift(23) - 127).clamp(0, _LEVELS - 1)
    texels = torch.bitwise_right_shift(torch.full_like(level, SIDE), level)
    folded = place - 2 * torch.floor(place * 0.5)
    inside = ((1 - (1 - folded).abs()) * texels - 0.5).clamp(min=0)
    inside = torch.minimum(inside, (texels - 1).to(inside.dtype))
    before = torch.floor(inside)
    begins = 2 * SIDE - 2 * texels  # the resolutions lie one after the other
    step = (before + 1 < texels).long()
    return (begins + before.int()).long(), inside - before, step


def rip_map(tile: Float[Tensor, "3 side side"]) -> Int32[Tensor, " texels"]:
    """All resolutions of a tile in linear light, beside and below each other, as `Photographs.texels` holds them."""
    whole = torch.zeros(3, 2 * SIDE, 2 * SIDE)
    tall = tile
    for vertical in range(_LEVELS):
        wide, top = tall, 2 * SIDE - (2 * SIDE >> vertical)
        for horizontal in range(_LEVELS):
            left = 2 * SIDE - (2 * SIDE >> horizontal)
            whole[:, top : top + wide.shape[1], left : left + wide.shape[2]] = wide
            if horizontal + 1 < _LEVELS:
                wide = (wide[..., 0::2] + wide[..., 1::2]) / 2
        if vertical + 1 < _LEVELS:
            tall = (tall[:, 0::2] + tall[:, 1::2]) / 2
    red, green, blue = (whole.clamp(0, 1).sqrt() * 255 + 0.5).int().flatten(1)
    packed: Tensor = red | green << 8 | blue << 16
    return packed


def open_photographs(folder: str) -> Photographs:
    """Read the photographs below a folder, `MOST` evenly chosen ones where there are more.

    Raises `BadInput` where there is no folder, no image in it, or one that cannot be read.
    """
    place = Path(folder).expanduser()
    if not folder or not place.is_dir():
        fault = "is a file, not a folder" if folder and place.is_file() else "is no folder"
        raise BadInput(f"data.scene_textures={folder or repr(folder)} {fault}: give one of photographs")
    chosen = _chosen(place)
    if not chosen:
        raise BadInput(f"data.scene_textures: {place} holds no images (accepted: {' '.join(SUFFIXES)})")
    return _read(place, chosen, _digest(place, chosen))


def digest_of(folder: str) -> str:
    """What tells the photographs of a folder from others, without reading them; empty where there are none."""
    place = Path(folder).expanduser()
    chosen = _chosen(place) if folder and place.is_dir() else ()
    return _digest(place, chosen) if chosen else ""


def _chosen(place: Path) -> tuple[str, ...]:
    names = list_images(place).names
    return tuple(names[number] for number in evenly(MOST, len(names)))


def _digest(place: Path, names: tuple[str, ...]) -> str:
    digest = hashlib.blake2b("\0".join(names).encode(errors="surrogateescape"), digest_size=4)
    digest.update(file_sizes(place, names).astype("<i8").tobytes())
    return digest.hexdigest()


def covered_name(name: str, digest: str) -> str:
    """The name of scenes under photographs."""
    return f"{name}+{digest}" if digest else name


@functools.lru_cache(maxsize=2)
def _read(folder: Path, names: tuple[str, ...], digest: str) -> Photographs:
    """Read them once in a process: training and validation scenes, runs and probes share them."""
    tiles = []
    for name in track(names, "photographs for surfaces", len(names)):
        try:
            image = decode(folder / name)
        except UnreadableImage as fault:
            raise BadInput(f"data.scene_textures: {fault}: remove it from the photographs") from fault
        side = min(image.shape[1:])
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        square = image[None, :, top : top + side, left : left + side].float()
        root = interpolate(square, (SIDE, SIDE), mode="bilinear", antialias=True)[0] / 255
        tiles.append(rip_map(root * root))
    return Photographs(torch.cat(tiles), digest)
