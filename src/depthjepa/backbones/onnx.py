"""An ONNX file whose output is features: maps [b, d, rows, cols], or tokens [b, n, d] with or without prefixes.

The file says neither its normalisation nor where its patches lie: those of ours do (`convert --to onnx`), for others
ImageNet's normalisation is taken and the grid is read off a pass over an empty image. It runs on the CPU. Initial
weights are not told, so there is no random row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from depthjepa.config import RunConfig
from depthjepa.faults import BadInput
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

    def __init__(self, facts: Facts, session: Any, output: Output) -> None:
        super().__init__(facts)
        self.session, self.output = session, output
        (entry,) = session.get_inputs()
        self.entry, self.batch = entry.name, entry.shape[0] if isinstance(entry.shape[0], int) else None

    def maps(self, images: Float[Tensor, "b 3 h w"], layers: Sequence[int]) -> list[Maps]:
        """The one map that there is."""
        parts = [self._run(part) for part in torch.split(images, self.batch or len(images))]
        found = torch.cat(parts).to(images.device)
        if self.output.prefix is None:
            return [found]
        grid = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        return [without_prefix(found, self.output.prefix, grid, self.facts.name)]

    def _run(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        count = len(images)
        if self.batch is not None and count < self.batch:  # a file of a fixed batch: the rest is empty
            images = torch.cat([images, images.new_zeros(self.batch - count, *images.shape[1:])])
        (values,) = self.session.run([self.output.name], {self.entry: images.float().cpu().numpy()})
        return torch.from_numpy(values).float()[:count]


def _open(source: Source, settings: Sequence[str]) -> OpenedNetwork:
    refuse_shape(source.name, settings)
    session = _session(source.place, source.name)
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        taken = "; ".join(f"{each.name} {each.shape}" for each in inputs)
        raise BadInput(f"{source.name} takes {taken}: an encoder takes one input, images [batch, 3, height, width]")
    noted = session.get_modelmeta().custom_metadata_map
    size, fixed = _size(shape, noted)
    output, patch, width = _features(session, inputs[0], size, noted, source.name)
    said = {"mean", "deviation"} <= noted.keys()
    facts = Facts(
        name=source.name,
        widths=(width,),
        patch_size=patch,
        image_size=size,
        mean=tuple(json.loads(noted["mean"])) if said else IMAGENET_MEAN,
        deviation=tuple(json.loads(noted["deviation"])) if said else IMAGENET_DEVIATION,
        fixed=fixed,
    )
    prefix = f" after {output.prefix} others" if output.prefix else ""
    found = f"ONNX, output {output.name!r}: {'maps' if output.prefix is None else 'tokens'} of {patch} px{prefix}"
    assumed = [
        *["ImageNet's normalisation (an ONNX file does not say)"] * (not said),
        *[f"images of {SIDE} px (the file takes any size)"] * (not fixed and "image_size" not in noted),
        *size_assumed(facts),
    ]
    return OpenedNetwork(OnnxEncoder(facts, session, output), found, tuple(assumed), _no_initial)


def _no_initial(config: RunConfig) -> None:
    return None


def _session(path: Path, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError as fault:
        raise BadInput(f"{name} needs onnxruntime: pip install 'depthjepa[export]'") from fault
    if not path.is_file():
        raise BadInput(f"there is no file {name}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are for who exported the file
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # a damaged file raises whatever its bytes lead to
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise BadInput(f"{name} is no ONNX file that onnxruntime reads: {reason}") from fault


def _size(shape: Sequence[Any], noted: dict[str, str]) -> tuple[Size, bool]:
    """Height and width of its images, and whether it takes no others."""
    height, width = (side if isinstance(side, int) else None for side in shape[2:])
    stated = json.loads(noted["image_size"]) if "image_size" in noted else (SIDE, SIDE)
    return (height or stated[0], width or stated[1]), height is not None and width is not None


def _features(session: Any, entry: Any, size: Size, noted: dict[str, str], name: str) -> tuple[Output, int, int]:
    """The first output that is a grid of features, the stride of its grid [px] and its width."""
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else 1
    outputs = [each.name for each in session.get_outputs()]
    try:
        values = session.run(outputs, {entry.name: np.zeros((batch, 3, *size), np.float32)})
    except Exception as fault:
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise BadInput(f"{name} cannot be run on images of {size[0]} x {size[1]} px: {reason}") from fault
    shapes = {output: value.shape for output, value in zip(outputs, values, strict=True)}
    for output, shape in shapes.items():
        if len(shape) == 4 and shape[2] > 1 and size[0] // shape[2] == size[1] // shape[3]:
            return Output(output, None), size[0] // shape[2], int(shape[1])
        if len(shape) == 3 and (found := _grid(shape[1], size, noted)) is not None:
            patch, prefix = found
            return Output(output, prefix), patch, int(shape[2])
    given = ", ".join(f"{output} {list(shape)}" for output, shape in shapes.items())
    raise BadInput(
        f"{name} gives {given} for images of {size[0]} x {size[1]} px, and no grid of features: export it with an "
        f"output [batch, width, rows, columns] or [batch, tokens, width]"
    )


def _grid(tokens: int, size: Size, noted: dict[str, str]) -> tuple[int, int] | None:
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
