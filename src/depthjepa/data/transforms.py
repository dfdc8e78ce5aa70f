"""Joint geometry of image and depth: crops, flips and fixed views, as pure functions.

The crop follows RandomResizedCrop (Szegedy et al. 2015, as in torchvision), drawn from numbers that are
handed in. Images are resized by antialiased bilinear interpolation. Depth, normals and labels take the value of the
nearest pixel centre, in integer arithmetic: nothing is interpolated across invalid pixels or edges.
Crops of a batch are resized one by one: as two matrix products of the whole batch, 128 to 64 pixels took a core of a
CPU five times as long, and 128 to 128 pixels six.
torchvision's joint resizing of `tv_tensors` is not used, because it takes a mask's nearest pixel by corner,
half a pixel off the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate

from depthjepa.data.samples import Sample

TRIES = 10
CROP_NUMBERS = 2 * TRIES + 3  # area and ratio of each try, then top, left and flip

Size = tuple[int, int]  # height, width in pixels


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """What is seen of a sample.

    `zoom` is the linear magnification against the whole image (1): the geometric mean over both axes of full
    side / seen side. `part` is what is seen, (top, left, height, width) as shares of the full sides.
    """

    image: UInt8[Tensor, "3 h w"]
    depth: Float[Tensor, "1 h w"] | None  # [m], 0 = invalid
    zoom: float
    part: tuple[float, float, float, float]
    mirrored: bool
    normals: Float[Tensor, "3 h w"] | None = None  # 0 = unknown
    label_map: UInt8[Tensor, "1 h w"] | None = None


def crop_box(
    numbers: Float64[ndarray, " numbers"],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draw RandomResizedCrop's rectangle from at least `CROP_NUMBERS` uniform numbers in [0, 1).

    The area is uniform in `scale` (shares of the image), width / height log-uniform in `ratio`; the first of
    10 tries that fits is placed uniformly, and when none fits the largest rectangle of a valid ratio is placed
    uniformly too (torchvision: centrally, so that the ends of a wide image would never be seen).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    draws: list[float] = numbers.tolist()
    for area_draw, ratio_draw in zip(draws[0 : 2 * TRIES : 2], draws[1 : 2 * TRIES : 2], strict=True):
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(low + ratio_draw * (high - low))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(draws[2 * TRIES] * (height - rows + 1))
            left = int(draws[2 * TRIES + 1] * (width - columns + 1))
            return Box(top, left, rows, columns)
    largest = _central_box(height, width, ratio)
    top = int(draws[2 * TRIES] * (height - largest.height + 1))
    left = int(draws[2 * TRIES + 1] * (width - largest.width + 1))
    return Box(top, left, largest.height, largest.width)


def flipped(numbers: Float64[ndarray, " numbers"]) -> bool:
    """Return whether the view of these numbers is mirrored (one in two)."""
    return bool(numbers[2 * TRIES + 2] < 0.5)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest central rectangle whose width / height lies within `ratio`."""
    rows, columns = height, width
    if width < ratio[0] * height:
        rows = max(1, min(height, round(width / ratio[0])))
    elif width > ratio[1] * height:
        columns = max(1, min(width, round(height * ratio[1])))
    return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def training_view(sample: Sample, box: Box, flip: bool, size: Size) -> View:
    """Cut `box` out of image, depth and label map, resize them to `size` (height, width) and mirror them if `flip`."""
    full_height, full_width = sample.image.shape[1:]
    zoom = math.sqrt(full_height / box.height * full_width / box.width)
    image = sample.image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.height, box.width) != size:
        image = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    depth = None if sample.depth is None else _nearest(sample.depth, box, size)
    normals = None if sample.normals is None else _nearest(sample.normals, box, size)
    label_map = None if sample.label_map is None else _nearest(sample.label_map, box, size)
    if flip:
        image = image.flip(-1)
        depth = None if depth is None else depth.flip(-1)
        normals = None if normals is None else normals.flip(-1) * normals.new_tensor([-1, 1, 1])[:, None, None]
        label_map = None if label_map is None else label_map.flip(-1)
    top, left, height, width = box
    part = (top / full_height, left / full_width, height / full_height, width / full_width)
    return View(image, depth, zoom, part, flip, normals=normals, label_map=label_map)


def whole_view(sample: Sample, size: Size) -> View:
    """Resize the whole image to `size`, whatever its proportions; zoom 1."""
    return training_view(sample, Box(0, 0, *sample.image.shape[1:]), False, size)


def centre_view(sample: Sample, size: Size) -> View:
    """Resize the largest central rectangle of the proportions of `size` to `size`: nothing is stretched."""
    aspect = size[1] / size[0]
    height, width = sample.image.shape[1:]
    return training_view(sample, _central_box(height, width, (aspect, aspect)), False, size)


def as_bytes(images: Float[Tensor, "k 3 h w"]) -> UInt8[ndarray, "k h w 3"]:
    """Return images in [0, 1] as pictures are kept and drawn."""
    pixels: UInt8[ndarray, "k h w 3"] = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def relit(image: UInt8[Tensor, "3 h w"], numbers: Float64[ndarray, " 2"], strength: float) -> UInt8[Tensor, "3 h w"]:
    """Multiply the brightness of an image, then its contrast, by factors uniform in [1 - strength, 1 + strength].

    `numbers` are two uniform numbers in [0, 1). What becomes brighter than white is white, as in an overexposed
    photograph.
    """
    # Loading this takes seconds, which are spared where nothing is relit: the default.
    from torchvision.transforms.v2 import functional

    brightness, contrast = (1 + strength * (2 * numbers - 1)).tolist()
    changed: Tensor = functional.adjust_contrast(functional.adjust_brightness(image, brightness), contrast)
    return changed


def _nearest(values: Shaped[Tensor, "c rows columns"], box: Box, size: Size) -> Shaped[Tensor, "c h w"]:
    # The centre of output pixel i lies at (i + 1/2) * side / size.
    rows = box.top + (2 * torch.arange(size[0]) + 1) * box.height // (2 * size[0])
    columns = box.left + (2 * torch.arange(size[1]) + 1) * box.width // (2 * size[1])
    return values[:, rows[:, None], columns]
