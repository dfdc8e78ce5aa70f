"""Teachers in ONNX files: any depth network that was exported with images [b, 3, h, w] as its one input.

Such a file names its outputs and says nothing of them. Here `depth` is larger = farther, `disparity` larger = nearer,
and an output of several channels is features; what other names mean, units and normalisation are told by the keys
`guidance.teacher_*` or by a JSON beside the file (`Notes`), and never guessed. Images in [0, 1] go in as they are
unless one of the two says otherwise.

All depth becomes larger = nearer: metres become -log(depth / m) as with `transformers_depth`, depth of unknown scale
its negative, disparity stays. Maps are taken on the sides that the network was given; features on their own grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as configuration
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.onnx_session import OnnxSession
from depthjepa.guidance.config import Colour, Direction, FeatureGuidance, Unit
from depthjepa.guidance.target import CELL, Description, Zoomed, bilinear
from depthjepa.guidance.teachers.loading import TeacherKind
from depthjepa.losses import Latents
from depthjepa.settings import STRICT, read_json

MULTIPLE = 32  # px: what most networks of convolutions halve away
NEAREST = 1e-3  # m; smaller predictions count as this before the logarithm
NAMED: dict[str, Direction] = {"depth": "farther", "disparity": "nearer"}
TRIED = (128, 192)  # px, about: unequal, so that an output that keeps the size of an example is noticed
ZOOMED: dict[Unit, Zoomed] = {"metres": "log added", "1/metres": "multiplied", "relative": "unchanged"}
UNITS = {
    ("nearer", "relative"): "inverse depth of unknown scale and shift",
    ("nearer", "1/metres"): "1/m",
    ("farther", "relative"): "depth of unknown scale and shift, negated",
    ("farther", "metres"): "-log(depth / m)",
    ("undirected", "relative"): "features",
}


@configuration(frozen=True, slots=True, config=STRICT)
class Notes:
    """What may stand in NAME.json beside NAME.onnx; `direction` and `unit` are of its `output`."""

    output: str | None = None  # null: any
    direction: Direction | None = None
    unit: Unit | None = None
    mean: Colour | None = None
    deviation: Colour | None = None
    multiple: PositiveInt | None = None  # of the sides of images [px]
    what: str = ""  # a remark for people


@dataclass(frozen=True, slots=True)
class Given:
    """What the network gives: an output and what its numbers are."""

    output: str
    direction: Direction
    unit: Unit
    channels: int
    stride: int  # px a cell of its output


class OnnxDepth:
    """A frozen depth network in an ONNX file; `load_onnx` makes one. Images are RGB in [0, 1]."""

    def __init__(self, session: OnnxSession, given: Given, mean: Colour, deviation: Colour, multiple: int) -> None:
        self.session, self.given, self.multiple = session, given, multiple
        self.mean, self.deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))

    def to(self, device: torch.device | str) -> OnnxDepth:
        """Let it run on a device; returns the teacher itself."""
        self.session.to(torch.device(device))
        return self

    def describe(self) -> Description:
        given = self.given
        return Description(
            f"{self.session.path.stem} {given.output}",
            given.channels,
            given.stride,
            UNITS[given.direction, given.unit],
            "undirected" if given.direction == "undirected" else "larger = nearer",
            stochastic=False,
            needs_depth=False,
            zoomed=ZOOMED[given.unit],
        )

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        """Latents of a batch's crops, resized to 8 px a cell, up to sides that the network takes."""
        values = self._compute(batch.images, (CELL * cells[0], CELL * cells[1]))
        known = values.isfinite()
        return Latents(torch.where(known, values, 0.0), known)

    def latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows cols"]:
        """Return the latents of images in [0, 1]; rows and cols are `sides` over the stride that `describe` states."""
        return self._compute(images, (images.shape[-2], images.shape[-1]))

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the sides [px] that the network takes for an image: the file's own, else rounded up."""
        rows, columns = (-(-side // self.multiple) * self.multiple for side in (height, width))
        return self.session.sides[0] or rows, self.session.sides[1] or columns

    def _compute(self, images: Float[Tensor, "b 3 h w"], wanted: tuple[int, int]) -> Float[Tensor, "b c rows cols"]:
        size = self.sides(*wanted)
        pixels = bilinear(images.float(), size)
        pixels = (pixels - self.mean.to(pixels)) / self.deviation.to(pixels)
        (values,) = self.session.run((self.given.output,), pixels)
        if values.ndim == 3:
            values = values[:, None]
        if self.given.direction == "farther":
            values = -values.clamp(min=NEAREST).log() if self.given.unit == "metres" else -values
        # Other cells come of a network that makes 16 pixels of a patch of 14, say.
        return bilinear(values, (size[0] // self.given.stride, size[1] // self.given.stride))


def load_onnx(
    checkpoint: str | Path,
    *,
    output: str = "depth",
    direction: Direction | None = None,
    unit: Unit | None = None,
    mean: Colour | None = None,
    deviation: Colour | None = None,
    multiple: int | None = None,
) -> OnnxDepth:
    """Open a depth network in an ONNX file, on the CPU.

    What is left out is what NAME.json beside NAME.onnx says (`Notes`), else a default.

    Args:
        checkpoint: the file; it takes images [b, 3, h, w] alone and gives [b, h, w], [b, 1, h, w], or features
            [b, c, rows, cols], on a grid that follows the images' sides.
        output: its output. `depth` means the one that the JSON names, else `depth`, `disparity` or the only one.
        direction: what a larger number means: `nearer`, `farther`, or `undirected`, which features are.
        unit: `metres` (of depth), `1/metres` (of disparity), or `relative`: no known scale.
        mean: taken from images in [0, 1].
        deviation: what they are divided by then.
        multiple: of what their sides [px] are multiples, where the file fixes none; 32 by default.

    Raises `BadInput` for a file that is missing, damaged, takes something else, has no such output, or whose output
    does not follow the size of its input; where the meaning of the output is not told; and without onnxruntime.
    """
    path = Path(checkpoint)
    if path.suffix != ".onnx":
        raise BadInput(f"{checkpoint} is no ONNX file: give a file NAME.onnx")
    session = OnnxSession(path, str(checkpoint), "teachers")
    notes = read_notes(path)
    multiple = multiple or notes.multiple or MULTIPLE
    mean, deviation = mean or notes.mean or (0.0, 0.0, 0.0), deviation or notes.deviation or (1.0, 1.0, 1.0)
    if not all(deviation):
        raise BadInput(f"deviation={list(deviation)} for {checkpoint}: images cannot be divided by 0")
    chosen = _choose(output, notes, session)
    if notes.output not in (None, chosen):
        notes = replace(notes, direction=None, unit=None)
    channels, stride = _grid(session, chosen, multiple)
    way = direction or notes.direction or NAMED.get(chosen) or ("undirected" if channels > 1 else None)
    if way is None:
        raise BadInput(
            f"what a larger number of the output {chosen!r} of {checkpoint} means is not told: give "
            f"guidance.teacher_direction=nearer (inverse depth, disparity) or farther (depth)"
        )
    told = unit or notes.unit or "relative"
    if (way, told) not in UNITS or (channels > 1 and way != "undirected"):
        held = "several channels are features: undirected, relative" if channels > 1 else _possible(way)
        raise BadInput(f"the output {chosen!r} of {checkpoint} cannot be {way} in {told}: {held}")
    return OnnxDepth(session, Given(chosen, way, told, channels, stride), mean, deviation, multiple)


def read_notes(path: Path) -> Notes:
    """What the JSON beside an ONNX file says; without one, nothing. Raises `BadInput` for one of another form."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return Notes()
    return read_json(file, Notes, f"it may hold {', '.join(Notes.__dataclass_fields__)}")


def _choose(asked: str, notes: Notes, session: OnnxSession) -> str:
    """The output that is meant by `guidance.teacher_output`."""
    known = session.outputs
    wanted = notes.output if asked == "depth" and notes.output is not None else asked
    if wanted in known:
        return wanted
    if wanted == "depth" and ("disparity" in known or len(known) == 1):
        return "disparity" if "disparity" in known else known[0]
    raise BadInput(
        f"{session.name} has no output {wanted!r}{nearest(wanted, known)}: name one of {', '.join(known)} "
        f"(guidance.teacher_output)"
    )


def _grid(session: OnnxSession, output: str, multiple: int) -> tuple[int, int]:
    """Channels of an output, and its stride [px]; refuses one that does not follow the sides of its input.

    A map of one channel whose grid divides no sides is resampled to the network's input: a stride of 1.
    """
    low, high = (-(-side // multiple) * multiple for side in TRIED)
    sizes = {
        tuple(own or side for own, side in zip(session.sides, way, strict=True)) for way in ((low, high), (high, low))
    }
    channels, strides = 1, set()
    for height, width in sorted(sizes):
        (values,) = session.run((output,), torch.zeros(1, 3, height, width))
        if values.ndim not in (3, 4) or values.numel() == 0:
            raise BadInput(f"{session.name} gives {output} {list(values.shape)}: expected [b, h, w] or [b, c, h, w]")
        channels = 1 if values.ndim == 3 else int(values.shape[1])
        rows, columns = values.shape[-2:]
        # To a pixel of the output: sides of 1.14 times the input's are rounded.
        if abs(rows * width / height - columns) > 1 + width / height:
            raise BadInput(
                f"{session.name} gives {output} {list(values.shape)} for images of {height} x {width} px: its output "
                f"does not follow its input. Export it at fixed sides, with the batch alone dynamic"
            )
        strides.add(height // rows if height % rows == 0 and width % columns == 0 else 1)
    if len(strides) > 1:
        raise BadInput(
            f"the output {output} of {session.name} does not follow the sides of its input. Export it at fixed sides, "
            f"with the batch alone dynamic"
        )
    return channels, strides.pop()


def _possible(way: Direction) -> str:
    return f"{way} may be {' or '.join(unit for known, unit in UNITS if known == way)} (guidance.teacher_unit)"


def build(guidance: FeatureGuidance) -> OnnxDepth:
    """Open the file that `guidance.teacher_checkpoint` names; raises `BadInput`."""
    if guidance.teacher_checkpoint is None:
        raise BadInput("guidance.teacher=onnx needs guidance.teacher_checkpoint: the ONNX file of a depth network")
    return load_onnx(
        guidance.teacher_checkpoint,
        output=guidance.teacher_output,
        direction=guidance.teacher_direction,
        unit=guidance.teacher_unit,
        mean=guidance.teacher_mean,
        deviation=guidance.teacher_deviation,
        multiple=guidance.teacher_multiple,
    )


def weights(guidance: FeatureGuidance) -> dict[str, str | Path | None]:
    """The file, what is noted beside it, and weights that were exported beside it."""
    if guidance.teacher_checkpoint is None:
        return {}
    path = Path(guidance.teacher_checkpoint)
    beside = {"teacher_notes": path.with_suffix(".json"), "teacher_data": path.with_name(f"{path.name}.data")}
    return {"teacher_checkpoint": path, **{key: file for key, file in beside.items() if file.is_file()}}


SETTINGS = (
    "teacher_output", "teacher_direction", "teacher_unit", "teacher_mean", "teacher_deviation", "teacher_multiple",
)  # fmt: skip
TEACHER = TeacherKind(build, load_onnx, SETTINGS, weights, ("teacher_checkpoint",))
