"""One encoder as a folder that timm reads."""

from __future__ import annotations

from dataclasses import replace

from depthjepa.backbones.as_ours import CLOSE, tokens_apart
from depthjepa.commands.written.layout import OneEncoder, of_one_encoder
from depthjepa.faults import BadInput
from depthjepa.formats.timm import write_timm
from depthjepa.formats.weights import assemble
from depthjepa.model.blocks import PLAIN
from depthjepa.model.vit import ModelConfig


def write(encoder: OneEncoder) -> list[str]:
    """Write the folder, with timm's epsilon of the norms where that makes no difference."""
    model, words = encoder.model, []
    if model.norm_eps != PLAIN.eps:
        model, apart = _with_usual_eps(encoder)
        words.append(f"norms with timm's epsilon {PLAIN.eps} for {encoder.model.norm_eps}: tokens move by {apart:.1g}")
    write_timm(encoder.target, encoder.weights, model, encoder.size, encoder.facts)
    return [*words, f"load it with timm.create_model('local-dir:{encoder.target}', pretrained=True)"]


def _with_usual_eps(encoder: OneEncoder) -> tuple[ModelConfig, float]:
    """The encoder's size with the epsilon that timm's norms have, and how far tokens of random images move by that.

    In their deviations. Raises `BadInput` where that is more than rounding makes of them.
    """
    saved = encoder.saved
    model = replace(encoder.model, norm_eps=PLAIN.eps)
    own, usual = (assemble(each, saved.config.grid, encoder.weights, saved.path) for each in (encoder.model, model))
    apart = tokens_apart(own, usual, encoder.size)
    if not apart < CLOSE:
        raise BadInput(
            f"model.norm_eps={encoder.model.norm_eps}, and timm's norms have {PLAIN.eps}, by which tokens move by "
            f"{apart:.1g} of their deviation: convert it --to hf or safetensors"
        )
    return model, apart


LAYOUT = of_one_encoder("timm", write)
