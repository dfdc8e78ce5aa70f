"""The state of a training between our checkpoints and those of the I-JEPA reference, both ways."""

from __future__ import annotations

from typing import Any

import torch

from depthjepa import optim
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.formats import reference
from depthjepa.method import build_method


def own_training(saved: Checkpoint) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Optimiser state as a run of ours keeps it, and what only the reference's layout knows; for a foreign checkpoint.

    Raises:
        BadInput: its optimiser is not that of its encoder and predictor.
    """
    training, encoder, predictor = saved.reference, saved.part("context_encoder"), saved.part("predictor")
    if not training or "opt" not in training or not encoder or not predictor:
        return {}, None
    opt = training["opt"]
    states = reference.optimizer_by_name(opt, reference.parameter_order(encoder, predictor), saved.path)
    with torch.device("meta"):
        method = build_method(saved.config, None, classes=0)
    optimizer = optim.build_optimizer(method, saved.config.optim).state_dict()
    decayed, kept = opt["param_groups"][0], opt["param_groups"][2]
    for group in optimizer["param_groups"]:
        group |= {"lr": decayed["lr"], "weight_decay": (decayed if group["decayed"] else kept)["weight_decay"]}
        # On the meta device nothing is fused; runs of ours are.
        group |= {"fused": True}
    named = optim.names_by_number(optimizer).items()
    optimizer["state"] |= {number: states[name] for number, name in named if name in states}
    settings = [{key: value for key, value in group.items() if key != "params"} for group in opt["param_groups"]]
    counters = {key: value for key, value in training.items() if key != "opt"}
    return optimizer, counters | {"param_groups": settings}


def reference_training(saved: Checkpoint) -> dict[str, Any]:
    """Optimiser and counters as the reference's layout has them; empty where the checkpoint holds no training."""
    if saved.layout == "reference":
        return saved.reference or {}
    if not saved.optimizer:
        return {}
    order = reference.parameter_order(saved.part("context_encoder"), saved.part("predictor"))
    groups = saved.optimizer["param_groups"]
    named = optim.names_by_number(saved.optimizer).items()
    states = {name: saved.optimizer["state"][number] for number, name in named if number in saved.optimizer["state"]}
    if saved.reference is not None:
        settings, rest = saved.reference["param_groups"], saved.reference
        counters = {key: value for key, value in rest.items() if key != "param_groups"}
    else:
        # With layer decay the full rate is that of what stands above the encoder's blocks.
        top = {"decayed": True, "role": "encoder", "scale": 1.0}
        last = next(group for group in groups if top.items() <= group.items())
        settings = reference.group_settings(last["lr"], last["betas"], last["eps"], last["weight_decay"])
        counters = {
            "scaler": None,
            "epoch": int(saved.epoch),
            "loss": float("nan"),  # the reference's mean over an epoch; a checkpoint of ours does not keep it
            "batch_size": saved.config.train.batch_size,
            "world_size": 1,
            "lr": saved.config.optim.lr,
        }
    return {"opt": reference.optimizer_from_names(states, order, settings), **counters}
