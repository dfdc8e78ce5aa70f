"""The layout of the released I-JEPA code: one `.pth.tar` with networks, optimiser and counters.

Keys: `encoder`, `predictor`, `target_encoder` (state dictionaries, each name behind `module.`, which DDP puts there),
`opt` (AdamW), `scaler`, `epoch` (completed ones), `loss`, `batch_size` (a process), `world_size`, `lr` (the peak).
Its optimiser numbers parameters in four groups: decayed ones of the encoder, of the predictor, then those of both that
are not decayed (biases and vectors). The fixed positions are parameters there, so they have numbers but no state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthjepa.faults import BadInput
from depthjepa.formats.weights import INSIDE, Contents, Weights, describe, few
from depthjepa.logbook import whole_file

PREFIX = "module."
PARTS = ("encoder", "predictor", "target_encoder")
TRAINING = ("opt", "scaler", "epoch", "loss", "batch_size", "world_size", "lr")
ADAMW = {"amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False}


def is_reference(content: Any) -> bool:
    """Whether a read file has this layout."""
    return isinstance(content, dict) and any(isinstance(content.get(part), dict) for part in ("encoder", PARTS[2]))


def read_reference(content: Mapping[str, Any], source: str | Path, heads: int | None = None) -> Contents:
    """Bring a read file under our names; raises `BadInput` that names what is left over or missing."""
    if left_over := sorted(content.keys() - {*PARTS, *TRAINING}):
        raise BadInput(f"{source} is no checkpoint of the I-JEPA code: left over {few(left_over)}")
    parts = {part: _bare(content[part], f"{source}: its {part}") for part in PARTS if part in content}
    encoders = {which: parts[part] for which, part in (("target", PARTS[2]), ("context", PARTS[0])) if part in parts}
    model, image_size, assumed = describe(next(iter(encoders.values())), source, otherwise=heads)
    training = {key: content[key] for key in TRAINING if key in content}
    words = [f"{which} encoder" for which in encoders] + ["predictor"] * ("predictor" in parts)
    if "opt" in training:
        words.append(f"optimiser after epoch {training.get('epoch', '?')}")
    holds = ", ".join(words)
    return Contents(
        str(source),
        "reference",
        holds,
        encoders,  # type: ignore[arg-type]
        model,
        image_size,
        parts.get("predictor"),
        training or None,
        assumed,
    )


def _bare(weights: Any, what: str) -> Weights:
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise BadInput(f"{what} should hold tensors by their names, and nothing else")
    return {INSIDE.sub("", key).removeprefix(PREFIX): value for key, value in weights.items()}


def write_reference(
    path: Path, encoders: Mapping[str, Weights], predictor: Weights | None, training: Mapping[str, Any]
) -> None:
    """Write a file of this layout; what is absent (predictor, training state) is left out."""
    parts = {"encoder": encoders["context"], "predictor": predictor, "target_encoder": encoders["target"]}
    content: dict[str, Any] = {
        part: OrderedDict((PREFIX + key, value) for key, value in weights.items())
        for part, weights in parts.items()
        if weights is not None
    }
    with whole_file(path) as file:
        torch.save(content | dict(training), file)


def parameter_order(encoder: Weights, predictor: Weights) -> list[list[str]]:
    """Names of the parameters in each of the optimiser's four groups, as `context_encoder.NAME`, `predictor.NAME`."""
    named = [("context_encoder.", encoder), ("predictor.", predictor)]
    return [
        [prefix + key for key, value in weights.items() if _decayed(key, value) is decayed]
        for decayed in (True, False)
        for prefix, weights in named
    ]


def _decayed(key: str, value: Tensor) -> bool:
    return "bias" not in key and value.ndim != 1


def optimizer_by_name(opt: Any, order: list[list[str]], source: str | Path) -> dict[str, dict[str, Any]]:
    """State of each parameter by its name; raises `BadInput` where the groups are not the reference's."""
    if not isinstance(opt, Mapping) or not {"param_groups", "state"} <= opt.keys():
        raise BadInput(f"{source}: its optimiser has no groups and states")
    groups = [list(group["params"]) for group in opt["param_groups"]]
    if [len(group) for group in groups] != [len(names) for names in order]:
        raise BadInput(
            f"{source}: its optimiser has groups of {[len(group) for group in groups]} parameters, not the "
            f"{[len(names) for names in order]} of encoder and predictor"
        )
    numbered = {
        number: name
        for group, names in zip(groups, order, strict=True)
        for number, name in zip(group, names, strict=True)
    }
    if left_over := sorted(str(number) for number in opt["state"].keys() - numbered.keys()):
        raise BadInput(f"{source}: its optimiser has states of unknown parameters {few(left_over)}")
    return {numbered[number]: state for number, state in opt["state"].items()}


def steps_of(training: Mapping[str, Any]) -> int:
    """Updates that an optimiser has made, 0 where there is none."""
    opt = training.get("opt")
    states = opt.get("state", {}).values() if isinstance(opt, Mapping) else ()
    return max((int(state.get("step", 0)) for state in states), default=0)


def optimizer_from_names(
    states: Mapping[str, Mapping[str, Any]], order: list[list[str]], settings: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The reference's optimiser state from states by name and the settings of the four groups."""
    numbers = {name: number for number, name in enumerate(name for names in order for name in names)}
    return {
        "state": {number: dict(states[name]) for name, number in numbers.items() if name in states},
        "param_groups": [
            {**group, "params": [numbers[name] for name in names]} for group, names in zip(settings, order, strict=True)
        ],
    }


def group_settings(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> list[dict[str, Any]]:
    """Settings of the four groups as the reference's AdamW has them after a step."""
    shared = {"betas": betas, "eps": eps, **ADAMW, "fused": None, "decoupled_weight_decay": True}
    decayed = {"lr": lr, "weight_decay": weight_decay, **shared}
    kept = {"WD_exclude": True, "weight_decay": 0, "lr": lr, **shared}
    return [decayed, decayed, kept, kept]
