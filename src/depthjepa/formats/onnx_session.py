"""ONNX files of other people: opened, asked what they take and give, and run, whatever batch they were exported for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthjepa.faults import BadInput

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxSession:
    """A session of onnxruntime that takes images [b, 3, h, w] alone.

    `sides` are the height and width [px] that the file fixes, None where it takes any; `metadata` what its exporter
    noted in it.
    """

    def __init__(self, path: Path, name: str, extra: str) -> None:
        """Open a file on the CPU; `name` stands in messages, `extra` is the set of packages that holds onnxruntime.

        Raises `BadInput` for a file that is missing, damaged or takes something else, and without onnxruntime.
        """
        self.path, self.name, self._extra = path, name, extra
        if not path.is_file():
            raise BadInput(f"there is no file {name}")
        self._open((CPU,))
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            taken = "; ".join(f"{each.name} {each.shape}" for each in inputs)
            raise BadInput(f"{name} takes {taken}: expected one input, images [batch, 3, height, width]")
        if inputs[0].type not in FLOATS:
            raise BadInput(f"{name} takes images of {inputs[0].type}: expected {', '.join(FLOATS)}")
        self.entry: str = inputs[0].name
        self._kind = FLOATS[inputs[0].type]
        self.batch, height, width = (side if isinstance(side, int) else None for side in (shape[0], *shape[2:]))
        self.sides = height, width
        self.metadata: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.outputs = tuple(str(each.name) for each in self.session.get_outputs())

    def to(self, device: torch.device) -> None:
        """Run where the images are, if this onnxruntime can; else say so once, and stay on the CPU."""
        if device.type != "cuda":
            return
        import onnxruntime

        if CUDA not in onnxruntime.get_available_providers():
            warnings.warn(
                f"{self.name} runs on the CPU: this onnxruntime knows no GPU; install onnxruntime-gpu in its place",
                stacklevel=2,
            )
            return
        self._open(((CUDA, {"device_id": device.index or 0}), CPU))

    def _open(self, providers: Sequence[Any]) -> None:
        try:
            import onnxruntime
        except ImportError as fault:
            raise BadInput(f"{self.name} needs onnxruntime: pip install 'depthjepa[{self._extra}]'") from fault
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are for who exported the file
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=list(providers))
        except Exception as fault:  # a damaged file raises whatever its bytes lead to
            raise BadInput(f"{self.name} is no ONNX file that onnxruntime reads: {_reason(fault)}") from fault

    def run(self, outputs: Sequence[str], images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Named outputs for images, float32 and where these are; of a file of a fixed batch, in parts of that size.

        Raises `BadInput` where the file cannot be run on images of this size.
        """
        found = [self._part(outputs, part) for part in torch.split(images, self.batch or max(1, len(images)))]
        return [torch.cat(values).to(images.device) for values in zip(*found, strict=True)]

    def _part(self, outputs: Sequence[str], images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        count = len(images)
        if self.batch is not None and count < self.batch:  # the rest is empty
            images = torch.cat([images, images.new_zeros(self.batch - count, *images.shape[1:])])
        try:
            values = self.session.run(list(outputs), {self.entry: images.float().cpu().numpy().astype(self._kind)})
        except Exception as fault:
            height, width = images.shape[-2:]
            raise BadInput(f"{self.name} cannot be run on images of {height} x {width} px: {_reason(fault)}") from fault
        return [torch.from_numpy(np.asarray(each)).float()[:count] for each in values]


def _reason(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
