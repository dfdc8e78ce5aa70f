"""The keys `data.*`: what is read, and how it is cropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator

from depthjepa.data.layouts.table import DEFAULT_ROOT, check_kind, kinds
from depthjepa.settings import are_sides, configuration

MILLIMETRES = 1000.0  # file units per metre, where nothing says otherwise

# A map beside a photograph that its EXIF tag turns: it lies as the camera's sensor stored the photograph and is turned
# as well, or it is upright as it lies.
DepthOrientation = Literal["stored", "upright"]

Kind = Annotated[str, AfterValidator(check_kind), WithJsonSchema({"enum": kinds()})]
Positive = Annotated[int, Field(ge=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

HUB_COLUMNS = ("hub_image", "hub_label", "hub_depth")

# What says how the images of one root are divided, picked, named or covered, and what its depth files mean.
OF_ITS_OWN: dict[str, Any] = {
    **dict.fromkeys(
        ("kind", "classes", "images_per_class", "val_prefixes", "val_list", "scene_textures", *HUB_COLUMNS)
    ),
    "depth_scale": MILLIMETRES,
    "depth_orientation": None,
}


@configuration
class DataConfig:
    """What is read, and how it is cropped.

    `light` varies training views alone. A teacher network sees them as they are lit; a cache of its latents was made
    of the photographs themselves.
    """

    kind: Kind | None = None
    """Layout to insist on; null: told apart by what is in root."""
    root: str = DEFAULT_ROOT
    """Folder, tar, hub:ID or scenes[:SEED]; several comma-separated, each with a weight if need be: A*2,B*1."""
    depth_scale: Annotated[float, Field(gt=0)] = MILLIMETRES
    """Units of depth files per metre; 1000 leaves it to an RGB-D folder's dataset.json where that says another."""
    depth_orientation: DepthOrientation | None = None
    """How depth and label maps lie beside a photograph with an EXIF rotation: stored (turned with it) or upright."""
    val_prefixes: tuple[str, ...] | None = None
    """Beginnings (whole words; with a * any) of the IDs of pairs that are validation data, where no val/ is."""
    val_list: str | None = None
    """Text file that says the same: an ID, or the beginning of IDs, a line."""
    image_size: Positive | tuple[Positive, Positive] = 224
    """Side of what the model sees [px], or height and width."""
    classes: Positive | tuple[str, ...] | None = None
    """First N classes in sorted order, or the named ones ([2]: the one called 2); null: all."""
    images_per_class: Positive | None = None
    """Most training images of a class, the first ones; null: all."""
    crop_scale: Range = (0.3, 1.0)
    """Area of training crops as shares of the image's, from and to."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Width / height of crops, from and to, against that of image_size; with depth: against the image's."""
    flip: bool = False
    """Mirror half of the training views."""
    light: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Brightness and contrast of a training view are multiplied by 1 - light to 1 + light."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode images; 0: the main one."""
    memory_gib: Annotated[float, Field(ge=0)] = 2.0
    """Most memory for decoded images of one size that are kept, in each process [GiB]; 0: keep none."""
    cache: str | None = None
    """Folder that keeps pieces of shards at an address; null: shards in the cache folder of depthjepa."""
    cache_gib: Annotated[float, Field(gt=0)] = 20.0
    """Most that is kept of shards at an address, by all processes of a machine together [GiB]."""
    window_gib: Annotated[float, Field(gt=0)] = 1.0
    """Parts of shards at an address that are shuffled among themselves in an epoch's order [GiB]; other roots: all."""
    hub_image: str | None = None
    """Column of a hub data set with the images; null: the only one, or the one called image, img, rgb or photo."""
    hub_label: str | None = None
    """Column with the classes; null: the only one, or the one called label or labels; none: no labels."""
    hub_depth: str | None = None
    """Column with the depth; null: the one called depth or depth_map; none: no depth."""
    scenes_train: Positive = 4096
    """Rendered training images of scenes or rooms."""
    scenes_val: Positive = 1024
    """Rendered validation images of scenes or rooms."""
    scene_textures: str | None = None
    """Folder of photographs that cover surfaces, ground and sky of scenes and rooms; null: paint alone."""

    @field_validator("val_prefixes", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return value if value is None or isinstance(value, (list, tuple)) else (value,)

    @field_validator("classes", mode="before")
    @classmethod
    def _number_or_one_or_several(cls, value: object) -> object:
        return value if type(value) is int or value is None or isinstance(value, (list, tuple)) else (value,)

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

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_side_or_two(cls, value: object) -> object:
        if not are_sides(value):
            raise ValueError("should be one side [px], or height and width as [48, 64]")
        return value

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the model sees, in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    def elsewhere(self, root: str) -> DataConfig:
        """The same for other data: how its images are divided, picked and named, and its unit of depth, stay here."""
        return replace(self, root=root, **OF_ITS_OWN)

    @property
    def divides_pairs(self) -> bool:
        """Whether it says which pairs are validation data."""
        return self.val_prefixes is not None or self.val_list is not None
