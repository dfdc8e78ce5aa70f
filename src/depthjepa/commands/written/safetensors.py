"""One encoder as a file of weights."""

from __future__ import annotations

from depthjepa.commands.written.layout import OneEncoder, of_one_encoder
from depthjepa.formats.flat import write_flat


def write(encoder: OneEncoder) -> list[str]:
    """Write the file."""
    write_flat(encoder.target, encoder.weights, encoder.facts)
    return []


LAYOUT = of_one_encoder("safetensors", write)
