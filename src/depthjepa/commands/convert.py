"""From one checkpoint layout to another: nothing is computed, tensors keep every bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from depthjepa import runtime
from depthjepa.backbones.as_ours import CLOSE, tokens_apart
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.checkpoints.reference_training import own_training, reference_training
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import to_mapping
from depthjepa.faults import BadInput, nearest
from depthjepa.formats.flat import facts_of, write_flat
from depthjepa.formats.onnx import write_onnx
from depthjepa.formats.reference import steps_of, write_reference
from depthjepa.formats.timm import write_timm
from depthjepa.formats.transformers import write_huggingface
from depthjepa.formats.weights import Weights, Which, assemble
from depthjepa.logbook import RunFolder
from depthjepa.model.blocks import PLAIN
from depthjepa.model.vit import ModelConfig

Layout = Literal["depthjepa", "checkpoint", "reference", "hf", "timm", "onnx", "safetensors"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
OPTIMISER = "optimiser"


def convert(source: str, target: Path, to: str, which: Which = "target", settings: Sequence[str] = ()) -> list[str]:
    """Write `target` in another layout; return in words what was found, assumed, written and left out.

    `to`: `depthjepa` (a run folder, which `train --resume` goes on with), `checkpoint` (the checkpoint of one, in one
    file), `reference` (`.pth.tar`), `hf` and `timm` (folders), `onnx`, `safetensors` (files). The last four hold one
    encoder, `which`. `settings` complete what a foreign source does not say (`model.heads=3`,
    `data.image_size=[64,192]`, for a run folder any key).

    Raises:
        BadInput: the source cannot be read, the target exists, or settings are given for a checkpoint of ours.
    """
    if to not in LAYOUTS:
        raise BadInput(f"there is no layout {to!r}{nearest(to, LAYOUTS)}: choose from {', '.join(LAYOUTS)}")
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise BadInput(f"{target} exists already: give a new path")
    saved = load_checkpoint(source, settings, moments=True)
    if saved.layout == "depthjepa":
        if settings:
            raise BadInput(f"{source} says all about itself: {settings[0]} is for checkpoints of other layouts")
        said = [f"{source}: run {saved.config.name} at step {saved.step}"]
    else:
        said = [f"{source}: layout {saved.layout}, holds {saved.holds}"]
    said += [f"assumed: {what}" for what in saved.assumed]
    size = saved.config.data.size
    if any(text.startswith("data.image_size=") for text in settings) and build_config({}, settings).data.size != size:
        raise BadInput(
            f"{source} is an encoder of {size[0]} x {size[1]} px: conversion keeps its positions as they are"
        )
    if to in ("depthjepa", "checkpoint"):
        return [*said, *_write_own(saved, target, to)]
    if to == "reference":
        return [*said, *_write_reference(saved, target)]
    return [*said, *_write_encoder(saved, target, to, which)]


def _write_own(saved: Checkpoint, target: Path, to: str) -> list[str]:
    optimizer, kept = saved.optimizer, saved.reference
    if saved.layout != "depthjepa":
        optimizer, kept = own_training(saved)
    held = checkpoint.content(
        step=saved.step,
        epoch=saved.epoch,
        config=saved.config,
        classes=saved.classes,
        model=saved.model,
        optimizer=optimizer,
        whitening=saved.whitening,
        floor=saved.floor,
        skipped=saved.skipped,
        reference=kept,
    )
    if to == "checkpoint":
        checkpoint.save(target, held)
        words = [f"{target}: a checkpoint in one file, of step {saved.step}"]
    else:
        checkpoint.save(target / "checkpoints" / "last.pt", held)
        RunFolder(target).begin(to_mapping(saved.config), runtime.environment())
        words = [f"{target}: a run folder at step {saved.step}"]
    if not optimizer:
        without = "optimiser state" if saved.part("predictor") else "predictor and optimiser state"
        words.append(f"without {without}: start other runs from it (init.checkpoint), it cannot be resumed")
    return words


def _write_reference(saved: Checkpoint, target: Path) -> list[str]:
    if saved.config.model.traits != PLAIN:
        raise BadInput(
            "the reference's layout knows no class tokens, no layer scales and one norm_eps: convert it --to hf, timm "
            "or safetensors"
        )
    encoders: dict[str, Weights] = {
        which: saved.part(f"{saved.which(which)}_encoder") for which in ("context", "target")
    }
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
    if absent := [what for what in ("predictor", OPTIMISER) if what not in _held(saved)]:
        words.append(f"not in the source: {', '.join(absent)}")
    if training and saved.optimizer and learned < saved.step:
        words.append(f"encoder and predictor learned in {learned} of {saved.step} steps, in the others the head alone")
    kept = {"context encoder", "target encoder", "single encoder", *written, *[OPTIMISER] * ("opt" in training)}
    if left := [what for what in _held(saved) if what not in kept]:
        words.append(f"left out, since the layout has no place for it: {', '.join(left)}")
    return words


def _held(saved: Checkpoint) -> list[str]:
    """What a checkpoint holds, in words: its networks, the state of its optimiser, what is known of its teacher."""
    networks = sorted({key.split(".")[0].replace("_", " ") for key in saved.model})
    optimizer = bool(saved.optimizer) or "opt" in (saved.reference or {})
    return [*networks, *[OPTIMISER] * optimizer, *["teacher's statistics"] * (saved.whitening is not None)]


def _write_encoder(saved: Checkpoint, target: Path, to: str, which: Which) -> list[str]:
    held = saved.which(which)
    weights = saved.part(f"{held}_encoder")
    model, size = saved.config.model, saved.config.data.size
    facts = facts_of(held, model, size, saved.config.name, saved.step)
    words = [f"{target}: layout {to}, the {held} encoder, {model.shape.width} wide, {size[0]} x {size[1]} px"]
    if held != which:
        words.append(f"there is no {which} encoder in the source")
    if to == "hf":
        write_huggingface(target, weights, model, size, facts)
    elif to == "timm":
        if model.norm_eps != PLAIN.eps:
            model, apart = _with_usual_eps(saved, held)
            words.append(
                f"norms with timm's epsilon {PLAIN.eps} for {saved.config.model.norm_eps}: tokens move by {apart:.1g}"
            )
        write_timm(target, weights, model, size, facts)
        words.append(f"load it with timm.create_model('local-dir:{target}', pretrained=True)")
    elif to == "safetensors":
        write_flat(target, weights, facts)
    else:
        worst = write_onnx(saved.encoder(which), target, size, facts)
        words.append(
            f"images [batch, 3, {size[0]}, {size[1]}], normalised, to tokens; onnxruntime agrees to {worst:.1g}"
        )
    if left := [what for what in _held(saved) if what != f"{held} encoder"]:
        words.append(f"left out: {', '.join(left)}")
    return words


def _with_usual_eps(saved: Checkpoint, held: Which) -> tuple[ModelConfig, float]:
    """The encoder's size with the epsilon that timm's norms have, and how far tokens of random images move by that.

    In their deviations. Raises `BadInput` where that is more than rounding makes of them.
    """
    config = saved.config
    model = replace(config.model, norm_eps=PLAIN.eps)
    weights = saved.part(f"{held}_encoder")
    own, usual = (assemble(each, config.grid, weights, saved.path) for each in (config.model, model))
    apart = tokens_apart(own, usual, config.data.size)
    if not apart < CLOSE:
        raise BadInput(
            f"model.norm_eps={config.model.norm_eps}, and timm's norms have {PLAIN.eps}, by which tokens move by "
            f"{apart:.1g} of their deviation: convert it --to hf or safetensors"
        )
    return model, apart
