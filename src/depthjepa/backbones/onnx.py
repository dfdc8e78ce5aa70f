"""An ONNX file whose output is features: maps [b, d, rows, cols], or tokens [b, n, d] with or without prefixes.

The file says neither its normalisation nor where its patches lie: those of ours do (`convert --to onnx`), for others
ImageNet's normalisation is taken and the grid is read off a pass over an empty image. It runs on the CPU. Initial
weights are not told, so there is no random row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from depthjepa.backbones.network import (
    Facts,
    Maps,
    NetworkEncoder,
    OpenedNetwork,
    Size,
    refuse_shape,
    size_assumed,
    without_prefix,
)
from depthjepa.backbones.opening import Family, Source
from depthjepa.config.run_config import RunConfig
from depthjepa.faults import BadInput
from depthjepa.formats.onnx_session import OnnxSession
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN

SIDE = 224  # px, where a file takes any size
MOST_PREFIXES = 17  # a class token, one of distillation, and registers: published networks have 0 to 9


@dataclass(frozen=True, slots=True)
class Output:
    """The output that is features: its name, and how many tokens stand before those of the patches (None: maps)."""

    name: str
    prefix: int | None


class OnnxEncoder(NetworkEncoder):
    """A session of onnxruntime; see the module."""

    def __init__(self, facts: Facts, session: OnnxSession, output: Output) -> None:
        super().__init__(facts)
        self.session, self.output = session, output

    def maps(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Maps]:
        """The one map that there is."""
        (found,) = self.session.run([self.output.name], images)
        if self.output.prefix is None:
            return [found]
        grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        return [without_prefix(found, self.output.prefix, grid, self.facts.name)]


def _open(source: Source, settings: Sequence[str]) -> OpenedNetwork:
    refuse_shape(source.name, settings)
    session = OnnxSession(source.place, source.name, "export")
    noted = session.metadata
    stated = json.loads(noted["image_size"]) if "image_size" in noted else (SIDE, SIDE)
    size = session.sides[0] or stated[0], session.sides[1] or stated[1]
    fixed = None not in session.sides
    output, patch, width = _features(session, size, noted)
    normalised = {"mean", "deviation"} <= noted.keys()
    facts = Facts(
        name=source.name,
        widths=(width,),
        patch_size=patch,
        image_size=size,
        mean=tuple(json.loads(noted["mean"])) if normalised else IMAGENET_MEAN,
        deviation=tuple(json.loads(noted["deviation"])) if normalised else IMAGENET_DEVIATION,
        fixed=fixed,
    )
    prefix = f" after {output.prefix} others" if output.prefix else ""
    found = f"ONNX, output {output.name!r}: {'maps' if output.prefix is None else 'tokens'} of {patch} px{prefix}"
    assumed = [
        *["ImageNet's normalisation (an ONNX file does not say)"] * (not normalised),
        *[f"images of {SIDE} px (the file takes any size)"] * (not fixed and "image_size" not in noted),
        *size_assumed(facts),
    ]
    return OpenedNetwork(OnnxEncoder(facts, session, output), found, tuple(assumed), _no_initial)


def _no_initial(config: RunConfig) -> None:
    return None


def _features(session: OnnxSession, size: Size, noted: Mapping[str, str]) -> tuple[Output, int, int]:
    """The first output that is a grid of features, the stride of its grid [px] and its width."""
    values = session.run(session.outputs, torch.zeros(1, 3, *size))
    shapes = {output: tuple(value.shape) for output, value in zip(session.outputs, values, strict=True)}
    for output, shape in shapes.items():
        if len(shape) == 4 and shape[2] > 1 and size[0] // shape[2] == size[1] // shape[3]:
            return Output(output, None), size[0] // shape[2], int(shape[1])
        if len(shape) == 3 and (found := _grid(shape[1], size, noted)) is not None:
            patch, prefix = found
            return Output(output, prefix), patch, int(shape[2])
    given = ", ".join(f"{output} {list(shape)}" for output, shape in shapes.items())
    raise BadInput(
        f"{session.name} gives {given} for images of {size[0]} x {size[1]} px, and no grid of features: export it with "
        f"an output [batch, width, rows, columns] or [batch, tokens, width]"
    )


def _grid(tokens: int, size: Size, noted: Mapping[str, str]) -> tuple[int, int] | None:
    """Patch size and number of prefixes: the grid that leaves fewest tokens over; None where all leave too many."""
    if "patch_size" in noted:
        patches = [int(noted["patch_size"])]
    else:
        patches = [side for side in range(2, min(size)) if size[0] % side == 0 and size[1] % side == 0]
    over = {patch: tokens - math.prod(size) // patch**2 for patch in patches}
    fits = {patch: left for patch, left in over.items() if 0 <= left <= MOST_PREFIXES}
    if not fits:
        return None
    patch = min(fits, key=lambda each: fits[each])
    return patch, fits[patch]


FAMILY = Family(claims=lambda source: source.place.suffix == ".onnx", open=_open)
