"""The keys `data.*`: what is read, and how it is cropped."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from depthjepa.data.layouts.table import DEFAULT_ROOT, check_kind
from depthjepa.settings import configuration

MILLIMETRES = 1000.0  # file units per metre, where nothing says otherwise

Positive = Annotated[int, Field(ge=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


@configuration
class DataConfig:
    """What is read, and how it is cropped.

    `root` has one of the layouts of `layouts/table.py`, or is several such roots, comma-separated, each with a weight
    if need be: `PATH*2,PATH*1`. `kind` insists on a layout.

    `depth_scale` 1000 leaves the scale to an RGB-D folder's `dataset.json` where that says another; any other value is
    insisted on. `val_prefixes` and `val_list` divide RGB-D pairs that have no `val/`: the pairs that they name are
    validation data, all others training data.

    `light` varies training views alone. A teacher network sees them as they are lit; a cache of its latents was made
    of the photographs themselves.
    """

    kind: Annotated[str, AfterValidator(check_kind)] | None = None  # None: told apart by what is in root
    root: str = DEFAULT_ROOT
    depth_scale: Annotated[float, Field(gt=0)] = MILLIMETRES  # file units per metre
    val_prefixes: tuple[str, ...] | None = None  # validation pairs by the beginnings of their IDs, as scene names are
    val_list: str | None = None  # the same from a text file: one ID, or beginning of IDs, a line
    image_size: Positive | tuple[Positive, Positive] = 224  # pixels; [height, width]
    classes: Positive | tuple[str, ...] | None = None  # the first N in sorted order, or the named ones
    images_per_class: Positive | None = None  # at most the first N of each, in train
    crop_scale: Range = (0.3, 1.0)  # shares of the image's area
    crop_ratio: Range = (3 / 4, 4 / 3)  # width / height of the crop against that of image_size (with depth: the image)
    flip: bool = False  # mirror one view in two
    light: Annotated[float, Field(ge=0, lt=1)] = 0.0  # brightness and contrast of a view times 1 - light to 1 + light
    workers: Annotated[int, Field(ge=0)] = 0  # processes that decode; 0: the main one
    memory_gib: Annotated[float, Field(ge=0)] = 2.0  # for decoded images of one size, in each rank; 0: keep none
    scenes_train: Positive = 4096
    scenes_val: Positive = 1024

    @field_validator("val_prefixes", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: int | tuple[str, ...] | None) -> int | tuple[str, ...] | None:
        if isinstance(value, tuple) and not 0 < len(value) == len(set(value)):
            raise ValueError("name at least one class, and each only once")
        return value

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the first number must not be larger than the second")
        return value

    @field_validator("crop_scale")
    @classmethod
    def _within_image(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop cannot be larger than the image: at most 1")
        return value

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the model sees, in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def divides_pairs(self) -> bool:
        """Whether it says which RGB-D pairs are validation data."""
        return self.val_prefixes is not None or self.val_list is not None
