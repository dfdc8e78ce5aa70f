"""An encoder as ONNX: normalised images [batch, 3, h, w] to tokens [batch, n, d], any batch, one image size."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import writing
from depthjepa.model.vit import VisionTransformer

LARGEST = 1.5 * 2**30  # bytes of weights in one file: protocol buffers end at 2 GiB
TOLERANCE = 1e-4


def write_onnx(encoder: VisionTransformer, path: Path, image_size: tuple[int, int], facts: Mapping[str, Any]) -> float:
    """Export an encoder and compare it with onnxruntime; return the largest difference.

    It is traced with a batch of 2 and compared at 1 and 3. Over 1.5 GiB the weights stand beside the file, in
    `NAME.data`, and a batch of 1 has to do: such an encoder takes seconds an image.

    Raises:
        BadInput: the packages for it are not installed.
        RunStopped: onnxruntime gives other tokens (by more than 1e-4); nothing is written.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as fault:
        raise BadInput("ONNX needs packages of its own: pip install 'depthjepa[export]'") from fault
    example = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
    beside = sum(p.numel() * p.element_size() for p in encoder.parameters()) > LARGEST
    program = torch.onnx.export(
        encoder,
        (example,),
        input_names=["images"],
        output_names=["tokens"],
        dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({key: str(value) for key, value in facts.items()})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Weights beside the file go by its name, so both are written under their names elsewhere and moved when sound.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as place:
            written = Path(place) / path.name
            program.save(written, external_data=beside)
            worst = _largest_difference(encoder, written, image_size, (1,) if beside else (1, 3))
            if not worst <= TOLERANCE:
                raise RunStopped(f"onnxruntime gives other tokens than the encoder, by up to {worst:.2g}: not written")
            for file in sorted(Path(place).iterdir(), reverse=True):  # the weights first
                file.replace(path.parent / file.name)
    return worst


def _largest_difference(
    encoder: VisionTransformer, path: Path, image_size: tuple[int, int], batches: tuple[int, ...]
) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in batches:
        images = torch.randn(count, 3, *image_size, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = encoder(images)
        (tokens,) = session.run(["tokens"], {"images": images.numpy()})
        worst = max(worst, float((torch.from_numpy(tokens) - expected).abs().max()))
    return worst
