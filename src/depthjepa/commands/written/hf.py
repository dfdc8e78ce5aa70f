"""One encoder as a folder that transformers reads."""

from __future__ import annotations

from depthjepa.commands.written.layout import OneEncoder, of_one_encoder
from depthjepa.formats.transformers import write_huggingface


def write(encoder: OneEncoder) -> list[str]:
    """Write the folder."""
    write_huggingface(encoder.target, encoder.weights, encoder.model, encoder.size, encoder.facts)
    return []


LAYOUT = of_one_encoder("hf", write)
