"""Checkpoints: whole or absent, loaded strictly, and enough to go on with exactly the same run.

A file of ours holds tensors and plain values only, so it is read with `weights_only=True`: the networks, the
optimiser, the step, the configuration, the class names and the teacher's whitening. Runs whose networks are sharded
keep the same in parts (`checkpoint_parts`). `load` takes checkpoints of other layouts as well (see `formats`) and
gives them the configuration that their tensors tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from depthjepa import checkpoint_parts, optim
from depthjepa.config import RunConfig, to_mapping
from depthjepa.configuring import build_config, read_resolved
from depthjepa.faults import BadInput
from depthjepa.formats import reference
from depthjepa.formats.opening import KINDS, open_file, open_folder, open_name
from depthjepa.formats.weights import Contents, Weights, Which, assemble, beginnings, load_strictly
from depthjepa.guidance.target import Whitening
from depthjepa.logbook import REST, RunFolder, plain, step_of_parts, whole_file
from depthjepa.method import build_method
from depthjepa.model.predictor import Predictor
from depthjepa.model.vit import VisionTransformer

FORMAT = 3
KEPT = ("step", "epoch", "config", "classes", "model", "optimizer", "whitening", "floor", "skipped", "reference")
RENAMED = {"head.": "guide.head."}  # beginnings of the names of a guided run's weights, in format 2 and now


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds, under the names of our networks (`context_encoder.`, `target_encoder.`, …).

    `layout` is `depthjepa` or a foreign one; of those, `holds` says what was found and `assumed` what was not said.
    `reference` keeps what only the reference's layout knows (of a file of that layout its whole training state), so
    that it can be written back as it was.
    """

    step: int
    epoch: float  # completed ones
    config: RunConfig
    classes: tuple[str, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    whitening: Whitening | None
    floor: float | None
    skipped: tuple[str, ...]
    path: Path
    lost: tuple[str, ...] = ()  # what the run asked for and this version no longer has, as KEY=VALUE
    layout: str = "depthjepa"
    holds: str = ""
    assumed: tuple[str, ...] = ()
    reference: dict[str, Any] | None = None

    @property
    def run(self) -> Path | None:
        """The run folder that the file lies in, None outside one."""
        folder = self.path.parent.parent
        inside = self.path.parent.name == "checkpoints" and (folder / "config.yaml").is_file()
        return folder if inside else None

    def which(self, wanted: Which = "target") -> Which:
        """The encoder that stands for the wanted one: where a file holds one encoder only, it serves as both."""
        held = {key.partition("_encoder.")[0] for key in self.model}
        order: tuple[Which, ...] = (wanted, "target", "context", "single")
        return next(which for which in order if which in held)

    def part(self, name: str) -> Weights:
        """Tensors of one network, without its prefix; empty where the file does not hold it."""
        return {key.removeprefix(f"{name}."): value for key, value in self.model.items() if key.startswith(f"{name}.")}

    def encoder(self, which: Which = "target") -> VisionTransformer:
        """Build one encoder around its weights, in eval mode."""
        weights = self.part(f"{self.which(which)}_encoder")
        return assemble(self.config.model, self.config.grid, weights, self.path)


def content(
    *,
    step: int,
    epoch: float,
    config: RunConfig,
    classes: tuple[str, ...],
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    whitening: Whitening | None,
    floor: float | None,
    skipped: tuple[str, ...],
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint of ours holds, as it is written; `model` and `optimizer` are state dictionaries."""
    return {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "config": to_mapping(config),
        "classes": list(classes),
        "model": dict(model),
        "optimizer": dict(optimizer),
        "whitening": None if whitening is None else {"mean": whitening.mean, "deviation": whitening.deviation},
        "floor": floor,
        "skipped": list(skipped),
        "reference": None if reference is None else dict(reference),
    }


def save(path: Path, held: Mapping[str, Any]) -> None:
    """Write a `content` into one file: to a neighbour first, flushed to the disk, then renamed.

    Raises `RunStopped` when the disk is full; the checkpoint that was there stays as it was.
    """
    with whole_file(path) as file:
        torch.save(dict(held), file)


def load(
    checkpoint: str | Path,
    settings: Sequence[str] = (),
    like: RunConfig | None = None,
    *,
    moments: bool = False,
    held: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Read a checkpoint of any layout; its tensors stay in the file until they are used.

    `checkpoint` is a run folder (its newest checkpoint), a file, a Hugging Face or timm folder, a hub id or a timm
    name. `settings` (`model.heads=3`, …) complete the configuration of a foreign layout, which says little of it; what
    is still not said is taken from `like`.

    A checkpoint in parts is read into memory, the optimiser's `moments` where they are asked for; a process that has
    shares of the networks (`held`, their state dictionary) reads its shares alone.

    Raises:
        BadInput: nothing is there, a file is truncated, unsafe or of no known layout, or tensors do not fit.
    """
    path, heads = Path(checkpoint), _heads(settings, like)
    path = path.parent if path.name == REST else path
    if path.is_dir():
        last = path if (path / REST).is_file() else RunFolder(path).checkpoint()
        if last is not None and last.is_dir():
            return _own(_parts(path, last, moments, held), last)
        if last is not None:
            return _own(open_file(last), last)
        if step_of_parts(path) is not None:
            raise BadInput(
                f"{path} is what a kill has left of a checkpoint, {REST} is not there: give the run folder, of which "
                f"the newest whole one is taken"
            )
        if (path / "config.yaml").exists():
            raise BadInput(f"{path} holds no checkpoint: {path / 'checkpoints' / 'last.pt'} is not there")
        return from_contents(open_folder(path, heads=heads), path / "config.json", settings, like)
    if path.is_file():
        found = open_file(path, heads)
        return from_contents(found, path, settings, like) if isinstance(found, Contents) else _own(found, path)
    if path.suffix in (".pt", ".pth", ".tar", ".safetensors") or path.is_absolute():
        raise BadInput(f"there is no checkpoint {path}: give {KINDS}")
    return from_contents(open_name(str(checkpoint), heads), path, settings, like)


def refuse_lost(saved: Checkpoint) -> None:
    """Refuse to build the guide or to go on with a run that needs what this version no longer has; say what."""
    if saved.lost:
        raise BadInput(
            f"{saved.path} was trained with {', '.join(saved.lost)}, which this version no longer has: its encoder can "
            f"be probed, embedded and converted, but the run cannot go on, nor its own head be asked"
        )


def _parts(asked: Path, path: Path, moments: bool, held: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """The content of a checkpoint in parts; of a run that goes on meanwhile the next one, where this one is gone."""
    try:
        return checkpoint_parts.read(path, moments=moments, held=held)
    except BadInput:
        newer = RunFolder(asked).checkpoint()
        if path.exists() or newer is None or not newer.is_dir():
            raise
        return checkpoint_parts.read(newer, moments=moments, held=held)


def _own(content: Any, path: Path) -> Checkpoint:
    if not isinstance(content, dict) or "format" not in content or "config" not in content:
        held = f" (its keys: {beginnings(map(str, content))})" if isinstance(content, dict) and content else ""
        raise BadInput(f"{path} is not a checkpoint: it is neither depthjepa's nor of a layout that it reads{held}")
    if content["format"] not in (2, FORMAT):
        raise BadInput(f"{path} has format {content['format']}, and this version of depthjepa reads 2 and {FORMAT}")
    if absent := [each for each in KEPT if each not in content]:
        raise BadInput(f"{path} is no whole checkpoint: {', '.join(absent)} is missing; copy or write it again")
    config, lost = read_resolved(content["config"])
    model, optimizer = content["model"], content["optimizer"]
    if content["format"] == 2 and config.train.objective == "jepa":
        model, optimizer = _renamed(model, optimizer)
    white = content["whitening"]
    return Checkpoint(
        step=content["step"],
        epoch=content["epoch"],
        config=config,
        lost=lost,
        classes=tuple(content["classes"]),
        model=model,
        optimizer=optimizer,
        whitening=None if white is None else Whitening(white["mean"], white["deviation"]),
        floor=content["floor"],
        skipped=tuple(content["skipped"]),
        path=path,
        reference=content["reference"],
    )


def _renamed(model: dict[str, Tensor], optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Networks and optimiser of format 2 under today's names."""

    def now(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in RENAMED.items() if name.startswith(old)), name)

    groups = [group | {"param_names": list(map(now, group["param_names"]))} for group in optimizer["param_groups"]]
    return {now(key): value for key, value in model.items()}, {**optimizer, "param_groups": groups}


def _heads(settings: Sequence[str], like: RunConfig | None) -> int | None:
    """Attention heads by the settings or by a run that is to start from the file: most layouts leave them out."""
    said = _said(settings, "model.heads")
    if isinstance(said, int) and said > 0:
        return said
    return like.model.shape.heads if like else None


def _said(settings: Sequence[str], key: str) -> Any:
    """What the last setting of a key says, None without one."""
    values = [text.partition("=")[2] for text in settings if text.startswith(f"{key}=")]
    return yaml.safe_load(values[-1]) if values else None


def from_contents(
    contents: Contents, path: Path, settings: Sequence[str] = (), like: RunConfig | None = None
) -> Checkpoint:
    """Give foreign contents the configuration that they tell, and check every tensor against it; see `load`."""
    config = _configuration(contents, settings, like)
    for which, weights in contents.encoders.items():
        assemble(config.model, config.grid, weights, f"{contents.source} ({which} encoder)")
    if contents.predictor is not None:
        with torch.device("meta"):
            predictor = Predictor(config.predictor, config.model.shape, config.grid)
        load_strictly(predictor, contents.predictor, f"{contents.source} (predictor)", assign=True)
    model = {
        f"{which}_encoder.{key}": value
        for which, weights in contents.encoders.items()
        for key, value in weights.items()
    }
    model |= {f"predictor.{key}": value for key, value in (contents.predictor or {}).items()}
    training = contents.training or {}
    return Checkpoint(
        step=reference.steps_of(training),
        epoch=float(training.get("epoch") or 0),
        config=config,
        classes=(),
        model=model,
        optimizer={},
        whitening=None,
        floor=None,
        skipped=(),
        path=path,
        layout=contents.layout,
        holds=contents.holds,
        assumed=contents.assumed,
        reference=contents.training,
    )


def _configuration(contents: Contents, settings: Sequence[str], like: RunConfig | None) -> RunConfig:
    image_size, patch = contents.image_size, contents.model.patch_size
    positions = next(iter(contents.encoders.values()))["pos_embed"].shape[1]
    given = _said(settings, "data.image_size") or (like.data.size if like else None)
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(side, int) for side in given):
        # Sides that make as many patches as there are positions are believed, others are what to stretch to.
        image_size = tuple(given) if (given[0] // patch) * (given[1] // patch) == positions else image_size
    if image_size is None and _said(settings, "data.image_size"):
        raise BadInput(
            f"{contents.source} has positions for {positions} patches of {patch} px, and data.image_size={given} has "
            f"another number of them"
        )
    if image_size is None:
        raise BadInput(
            f"{contents.source} has positions for an image that is not square, and does not say its sides: give "
            f"data.image_size=[HEIGHT,WIDTH]{_class_token(positions)}"
        )
    content = to_mapping(RunConfig())
    content["name"] = Path(contents.source).name.removesuffix(".tar").rpartition(".")[0] or Path(contents.source).name
    content["model"] = plain({key: getattr(contents.model, key) for key in content["model"]})
    content["data"] |= {
        "root": "",
        "image_size": image_size[0] if image_size[0] == image_size[1] else plain(image_size),
    }
    if contents.predictor is not None:
        blocks = {key.split(".")[1] for key in contents.predictor if key.startswith("predictor_blocks.")}
        width = contents.predictor["mask_token"].shape[-1] if "mask_token" in contents.predictor else 0
        content["predictor"] = {"depth": len(blocks), "width": width}
    if contents.training:
        content["masks"] |= {"bias": "reference"}
        sizes = [contents.training.get(key) for key in ("batch_size", "world_size")]
        if all(isinstance(size, int) and size > 0 for size in sizes):
            content["train"] |= {"batch_size": sizes[0] * sizes[1]}  # type: ignore[operator]
        if isinstance(contents.training.get("lr"), float):
            content["optim"] |= {"lr": contents.training["lr"]}
    return build_config(content, [text for text in settings if not text.startswith("data.image_size=")])


def _class_token(positions: int) -> str:
    patches = positions - 1
    if math.isqrt(patches) ** 2 != patches:
        return ""
    return f" (or it has a class token, {positions} positions = {patches} + 1: encoders of I-JEPA have patches alone)"


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
