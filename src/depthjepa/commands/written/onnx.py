"""One encoder as a file that onnxruntime runs."""

from __future__ import annotations

from depthjepa.commands.written.layout import OneEncoder, of_one_encoder
from depthjepa.formats.onnx import write_onnx


def write(encoder: OneEncoder) -> list[str]:
    """Write the file, and run it beside the encoder."""
    height, width = encoder.size
    worst = write_onnx(encoder.saved.encoder(encoder.which), encoder.target, encoder.size, encoder.facts)
    return [f"images [batch, 3, {height}, {width}], normalised, to tokens; onnxruntime agrees to {worst:.1g}"]


LAYOUT = of_one_encoder("onnx", write)
