"""What a data set says of itself in `dataset.json`: units, range, the rectangle that is judged, camera, places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, field_validator
from pydantic.dataclasses import dataclass as configuration

from depthjepa.faults import BadInput
from depthjepa.settings import STRICT, parse_json

DATASET = "dataset.json"
EXACT = ConfigDict(**STRICT, strict=True)  # 2 is no name, and "2" no number
UNITS = {"metres": 1.0, "centimetres": 100.0, "millimetres": 1000.0}  # file units per metre
Share = Annotated[float, Field(ge=0, le=1)]


def check_pose(value: tuple[float, ...]) -> tuple[float, ...]:
    """The rows of [turn | place] themselves; refuses what holds no turn, and a mirror."""
    if len(value) != 12:
        raise ValueError("should be the 12 numbers of the rows of [turn | place]")
    (a, b, c), (d, e, f), (g, h, i) = rows = [value[first : first + 3] for first in (0, 4, 8)]
    products = [sum(x * y for x, y in zip(one, other, strict=True)) for one in rows for other in rows]
    if any(abs(each - (place % 4 == 0)) > 0.01 for place, each in enumerate(products)):
        raise ValueError("holds no turn: its rows should be of length 1 and upright to each other")
    if a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) < 0:
        raise ValueError("is a mirror and no turn: of one set of axes, camera's or place's, a direction is reversed")
    return value


PoseRows = Annotated[tuple[float, ...], AfterValidator(check_pose)]


@configuration(frozen=True, slots=True, config=EXACT)
class EvaluationCrop:
    """The rectangle that a benchmark judges, as shares of the image's sides: it holds for any size.

    Whole pixels are the shares of the sides cut off after the point, as usual evaluation code has it; `bottom` and
    `right` are the first that are left out.
    """

    name: str
    shares: tuple[Share, Share, Share, Share]  # top, left, bottom, right

    @field_validator("shares")
    @classmethod
    def _not_empty(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError("should be [top, left, bottom, right] with top < bottom and left < right")
        return value

    def pixels(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the rectangle in an image of `height` x `width`."""
        # 471 / 480 x 480 must be 471. What is added exceeds the rounding of doubles, and is too little to lift the
        # 366.9999993 rows that Garg's crop leaves of 370.
        top, left, bottom, right = (
            int(share * side + 1e-9) for share, side in zip(self.shares, (height, width) * 2, strict=True)
        )
        return slice(top, bottom), slice(left, right)


@configuration(frozen=True, slots=True, config=EXACT)
class DatasetFacts:
    """What `dataset.json` says of an RGB-D folder; every key may be left out."""

    name: str | None = None
    depth_scale: PositiveFloat | None = None  # file units per metre; None: what data.depth_scale says
    # The same in words. Left out of the text that tells whether data have changed: the scale that it means is in there.
    depth_unit: Literal["metres", "centimetres", "millimetres"] | None = field(default=None, repr=False)
    range: tuple[PositiveFloat, PositiveFloat] | None = None  # nearest and farthest [m]; depth beyond it is invalid
    evaluation_crop: EvaluationCrop | None = None  # depth outside of it is invalid in validation data
    focal_length: PositiveFloat | None = None  # [px] at the full width of the images
    # Beginnings of IDs with their scene or place, as in `groups.json`. Left out of the text that tells whether data
    # have changed: they change nothing that is trained on.
    groups: tuple[tuple[str, str], ...] | None = field(default=None, repr=False)
    # Of each ID that has one, the camera's pose in its group: the three rows of [turn | place], by which a point of the
    # camera (x right, y down, z forward) goes to the place's own axes [m]. Left out as groups are.
    poses: dict[str, PoseRows] | None = field(default=None, repr=False)

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("should be [nearest, farthest] in metres with nearest < farthest")
        return value

    @property
    def units_per_metre(self) -> float | None:
        """File units per metre, by `depth_scale` or `depth_unit`; None: neither is given."""
        return self.depth_scale if self.depth_unit is None else UNITS[self.depth_unit]


def dataset_facts(root: Path) -> DatasetFacts:
    """What the `dataset.json` of an RGB-D folder says, or several of them together; without one, nothing is said.

    Raises `BadInput` for a file that is not JSON, unknown keys and values of another type, with file and key, and for
    two files, or two keys, that say different things.
    """
    return facts_told([(str(path), path.read_bytes()) for path in facts_files(root)], str(root))


def facts_told(files: Iterable[tuple[str, bytes]], root: str) -> DatasetFacts:
    """What several `dataset.json` (name, content) of a data set say together; raises what `dataset_facts` raises."""
    said: dict[str, tuple[str, Any]] = {}
    for path, content in files:
        facts = parse_json(content, path, DatasetFacts)
        for key in facts.__dataclass_fields__:
            value = getattr(facts, key)
            if value is None:
                continue
            other, before = said.setdefault(key, (path, value))
            if before != value:
                raise BadInput(f"{other} and {path} say different things of {key}: give one {DATASET}, in {root}")
    facts = DatasetFacts(**{key: value for key, (_, value) in said.items()})
    if facts.depth_scale not in (None, facts.units_per_metre):
        raise BadInput(
            f"{said['depth_unit'][0]}: depth_unit={facts.depth_unit} is depth_scale={facts.units_per_metre:g}, and "
            f"depth_scale={facts.depth_scale:g} is said as well: leave one of them out"
        )
    return facts


def facts_files(root: Path) -> list[Path]:
    """Files named `dataset.json`, in any case of letters, of an RGB-D folder and of its splits."""
    return [
        path
        for place in (root, root / "train", root / "val")
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name.lower() == DATASET and path.is_file()
    ]
