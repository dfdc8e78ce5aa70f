"""The layout of the I-JEPA code: two encoders, the predictor, and what training goes on with."""

from __future__ import annotations

from pathlib import Path

from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reference_training import reference_training
from depthjepa.commands.written.layout import OPTIMISER, WrittenLayout, held_by
from depthjepa.faults import BadInput
from depthjepa.formats.reference import steps_of, write_reference
from depthjepa.formats.weights import Weights, Which
from depthjepa.model.blocks import PLAIN


def write(saved: Checkpoint, target: Path, which: Which) -> list[str]:
    """Write both encoders, and predictor and training state where the layout has a place for them."""
    if saved.config.model.traits != PLAIN:
        raise BadInput(
            "the reference's layout knows no class tokens, no layer scales and one norm_eps: convert it --to hf, timm "
            "or safetensors"
        )
    encoders: dict[str, Weights] = {each: saved.part(f"{saved.which(each)}_encoder") for each in ("context", "target")}
    predictor = saved.part("predictor") or None
    loss = saved.config.loss
    if loss.pixel or len(loss.target_layers) > 1:  # its outputs are more than the layout knows
        predictor = None
    training = dict(reference_training(saved)) if predictor is not None else {}
    learned = steps_of(training)
    if saved.optimizer and not learned:
        training.pop("opt", None)
    write_reference(target, encoders, predictor, training)
    written = ["encoder", "target_encoder", *["predictor"] * (predictor is not None), *["opt"] * ("opt" in training)]
    words = [f"{target}: layout reference, with {', '.join(written)}"]
    if saved.which("target") == saved.which("context"):
        words.append(f"both encoders are the source's one, the {saved.which()} encoder")
    if absent := [what for what in ("predictor", OPTIMISER) if what not in held_by(saved)]:
        words.append(f"not in the source: {', '.join(absent)}")
    if training and saved.optimizer and learned < saved.step:
        words.append(f"encoder and predictor learned in {learned} of {saved.step} steps, in the others the head alone")
    kept = {"context encoder", "target encoder", "single encoder", *written, *[OPTIMISER] * ("opt" in training)}
    if left := [what for what in held_by(saved) if what not in kept]:
        words.append(f"left out, since the layout has no place for it: {', '.join(left)}")
    return words


LAYOUT = WrittenLayout(write)
