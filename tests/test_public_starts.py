"""Claims about starting from public vision transformers: the tokens are the library's, before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from depthjepa import load_encoder
from depthjepa.backbones.as_ours import as_ours
from depthjepa.backbones.network import OpenedNetwork
from depthjepa.backbones.opening import open_backbone
from depthjepa.checkpoints.checkpoint import Checkpoint
from depthjepa.checkpoints.foreign import from_contents
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.faults import BadInput
from depthjepa.formats.weights import PREFIX
from depthjepa.optim import parameter_groups
from tiny_runs import Call, run

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

WIDTH, DEPTH, HEADS, HIDDEN, SIDE, PATCH = 48, 3, 3, 96, 32, 8
SMALL = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2, "img_size": SIDE, "patch_size": PATCH}
CONFIG = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.3,
}
PREPROCESSOR = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def drawn(network: Any) -> Any:
    """Every parameter at random: what begins at 0 or 1 (tokens, scales, norms) must not be able to hide."""
    generator = torch.Generator().manual_seed(1)
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.data = (1 + 0.2 * noise) if "norm" in name and name.endswith("weight") else 0.2 * noise
    return network.eval()


def write_timm(folder: Path, architecture: str, **arguments: Any) -> Any:
    from timm.models import save_for_hf

    network = drawn(timm.create_model(architecture, **SMALL, **arguments))
    save_for_hf(network, str(folder), model_config={"num_classes": network.num_classes}, safe_serialization=True)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"model_args": SMALL | arguments}))
    return network


def write_transformers(folder: Path, model: str, config: str, **arguments: Any) -> Any:
    network = drawn(getattr(transformers, model)(getattr(transformers, config)(**CONFIG, **arguments)))
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return network


@dataclass(frozen=True)
class Start:
    write: Callable[[Path], Any]
    prefix: int
    scaled: bool = False


STARTS = {
    "timm DINOv2": Start(lambda f: write_timm(f, "vit_small_patch14_dinov2", init_values=0.3, num_classes=0), 1, True),
    "timm DINOv2 with registers": Start(
        lambda f: write_timm(f, "vit_small_patch14_reg4_dinov2", init_values=0.3, num_classes=0), 5, True
    ),
    "timm DeiT": Start(lambda f: write_timm(f, "deit_tiny_patch16_224"), 1),
    "timm distilled DeiT": Start(lambda f: write_timm(f, "deit_tiny_distilled_patch16_224"), 2),
    "timm MAE": Start(lambda f: write_timm(f, "vit_base_patch16_224", num_classes=0), 1),
    "Dinov2Model": Start(lambda f: write_transformers(f, "Dinov2Model", "Dinov2Config", mlp_ratio=2), 1, True),
    "Dinov2ForImageClassification": Start(
        lambda f: write_transformers(f, "Dinov2ForImageClassification", "Dinov2Config", mlp_ratio=2), 1, True
    ),
    "Dinov2WithRegistersModel": Start(
        lambda f: write_transformers(
            f, "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", mlp_ratio=2, num_register_tokens=3
        ),
        4,
        True,
    ),
    "ViTMAEForPreTraining": Start(
        lambda f: write_transformers(
            f, "ViTMAEForPreTraining", "ViTMAEConfig", intermediate_size=HIDDEN, decoder_hidden_size=24,
            decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=48,
        ),
        1,
    ),
    "ViTForImageClassification": Start(
        lambda f: write_transformers(f, "ViTForImageClassification", "ViTConfig", intermediate_size=HIDDEN), 1
    ),
    "DeiTModel": Start(lambda f: write_transformers(f, "DeiTModel", "DeiTConfig", intermediate_size=HIDDEN), 2),
}  # fmt: skip
ALL = pytest.mark.parametrize("name", STARTS)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def library_tokens(folder: Path) -> Tensor:
    with torch.no_grad():
        found: Tensor = load_encoder(folder)(images())
    return found


def opened(folder: Path) -> OpenedNetwork:
    found = open_backbone(folder)
    assert isinstance(found, OpenedNetwork)
    return found


def saved(folder: Path) -> Checkpoint:
    return from_contents(as_ours(opened(folder)), folder)


def keys(config: Any) -> list[str]:
    """The keys of `model` that make a run fit."""
    model = config.model
    shape = {**model.shape._asdict(), "patch_size": PATCH, "prefix_tokens": model.prefix_tokens}
    given = [f"model.{key}={value}" for key, value in shape.items()]
    given += [f"model.layer_scale={model.layer_scale or 'null'}", f"model.norm_eps={model.norm_eps}"]
    sides = [f"model.{key}={list(getattr(model, key))}" for key in ("mean", "deviation")]
    return [*given, *(side.replace(" ", "") for side in sides)]


TRAINING = (
    "predictor.width=48",
    "predictor.depth=2",
    "train.batch_size=8",
    "train.steps=4",
    "train.precision=fp32",
    "masks.min_keep=1",
    "data.root=scenes",
    "data.scenes_train=16",
    "data.scenes_val=8",
    f"data.image_size={SIDE}",
    "train.device=cpu",
    "data.workers=0",
)


@ALL
def test_tokens_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    STARTS[name].write(tmp_path / "there")
    found = saved(tmp_path / "there")
    assert found.config.model.prefix_tokens == STARTS[name].prefix
    assert (found.config.model.layer_scale is not None) == STARTS[name].scaled
    encoder, expected = found.encoder(), library_tokens(tmp_path / "there")
    with torch.no_grad():
        ours = encoder(images())
        early, late = encoder.features(images(), [0, -1])
        kept = encoder(images(), torch.arange(encoder.grid[0] * encoder.grid[1]).expand(2, -1))
        (theirs,) = load_encoder(tmp_path / "there").features(images(), [0])
    assert float((ours - expected).abs().max() / expected.std()) < 1e-4
    assert torch.equal(late, ours) and torch.allclose(kept, ours, atol=1e-5)
    assert float((early - theirs).abs().max() / theirs.std()) < 1e-4


def test_tokens_before_the_patches_are_attended_to(tmp_path: Path) -> None:
    """With other registers the tokens of patches change; the number of tokens does not."""
    STARTS["timm DINOv2 with registers"].write(tmp_path / "there")
    found = saved(tmp_path / "there")
    encoder = found.encoder()
    with torch.no_grad():
        before = encoder(images())
        encoder.prefix_tokens.mul_(-1)
        after = encoder(images())
    assert before.shape == after.shape == (2, (SIDE // PATCH) ** 2, WIDTH)
    assert float((before - after).abs().max()) > 0.01


@ALL
@pytest.mark.slow
def test_a_run_starts_from_it_and_goes_back(tmp_path: Path, name: str, call: Call) -> None:
    _there_and_back(tmp_path, name, call)


@pytest.mark.slow
def test_one_with_registers_starts_a_run_and_goes_back(tmp_path: Path, call: Call) -> None:
    _there_and_back(tmp_path, "timm DINOv2 with registers", call)


def _there_and_back(tmp_path: Path, name: str, call: Call) -> None:
    there, run = tmp_path / "there", tmp_path / "run"
    STARTS[name].write(there)
    asked = ["train", "photos", *TRAINING, *keys(saved(there).config), f"init.checkpoint={there}", "--out", run]
    status, said, fault = call(*asked)
    assert status == 0, fault
    prefix = STARTS[name].prefix
    assert f"{prefix} token{'s' * (prefix > 1)} before the patches" in said + fault
    assert ("with layer scale" in said + fault) == STARTS[name].scaled
    trained = load_encoder(run)
    with torch.no_grad():
        tokens = trained(images())
    assert float((tokens - library_tokens(there)).abs().max()) > 1e-4  # it has learned
    eps = load_checkpoint(run).config.model.norm_eps
    for to in ("hf", "timm", "safetensors", "onnx"):
        target = tmp_path / (f"{to}.onnx" if to == "onnx" else to)
        status, said, fault = call("convert", run, target, "--to", to)
        assert status == 0, fault
        assert ("norms with timm's epsilon" in said) == (to == "timm" and eps != 1e-6)
        with torch.no_grad():
            back = torch.cat([load_encoder(target)(images()[:count]) for count in (1, 2)])
        assert float((back - tokens[[0, 0, 1]]).abs().max() / tokens.std()) < 1e-4, to
    status, _, fault = call("convert", run, tmp_path / "file.pth.tar", "--to", "reference")
    assert status == 2 and "knows no class tokens" in fault


@pytest.mark.slow
def test_a_run_from_it_resumes_and_is_guided(
    tmp_path: Path, call: Call, stop_after: Callable[[int | None], None]
) -> None:
    there = tmp_path / "there"
    STARTS["timm DINOv2 with registers"].write(there)
    guided = ("guidance.kind=pixel", "guidance.read=dense", "optim.layer_decay=0.8", "init.frozen_steps=1")
    asked = ["train", "photos", *TRAINING, *keys(saved(there).config), f"init.checkpoint={there}", *guided]
    assert call(*asked, "--out", tmp_path / "whole")[0] == 0
    stop_after(2)
    assert call(*asked, "--out", tmp_path / "parts")[0] != 0
    stop_after(None)
    assert load_checkpoint(tmp_path / "parts").step == 2
    status, _, fault = call(*asked, "--out", tmp_path / "parts", "--resume")
    assert status == 0, fault
    whole, parts = (load_checkpoint(tmp_path / out).model for out in ("whole", "parts"))
    assert f"context_encoder.{PREFIX}" in whole and whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_what_does_not_fit_is_told_with_what_does(tmp_path: Path, call: Call) -> None:
    there = tmp_path / "there"
    STARTS["timm DINOv2 with registers"].write(there)
    asked = ["train", "photos", *TRAINING, f"init.checkpoint={there}", "--out", tmp_path / "run"]
    status, _, fault = call(*asked, "model.patch_size=8")
    assert status == 2 and "model.prefix_tokens=0 here and 5 there" in fault
    advice = fault.strip().rpartition("; take ")[2].split()
    assert {f"model.width={WIDTH}", "model.prefix_tokens=5", "model.layer_scale=1e-05"} <= set(advice)
    status, _, fault = call(*asked, "model.patch_size=8", *advice)
    assert status == 0, fault


def test_tokens_before_the_patches_learn_as_what_enters_the_first_block(tmp_path: Path) -> None:
    STARTS["timm DINOv2"].write(tmp_path / "there")
    encoder = saved(tmp_path / "there").encoder().requires_grad_(True)
    named = [(f"context_encoder.{name}", value) for name, value in encoder.named_parameters()]
    groups = parameter_groups(named, 0.5)
    (own,) = (group for group in groups if any(name.endswith(PREFIX) for name, _ in group["params"]))  # type: ignore[attr-defined]
    assert own["scale"] == 0.5 ** (DEPTH + 1) and not own["decayed"]


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rotary positions": (
        lambda f: write_transformers(f, "DINOv3ViTModel", "DINOv3ViTConfig", intermediate_size=HIDDEN),
        "holds DINOv3ViTModel of transformers, which computes otherwise than our encoder: a run starts from DeiTModel",
    ),
    "another activation": (
        lambda f: write_transformers(f, "ViTModel", "ViTConfig", intermediate_size=HIDDEN, hidden_act="quick_gelu"),
        "hidden_act='quick_gelu': our encoder has 'gelu'",
    ),
    "gated blocks": (
        lambda f: write_transformers(f, "Dinov2Model", "Dinov2Config", mlp_ratio=2, use_swiglu_ffn=True),
        "mlp.fc1",
    ),
    "no final norm": (
        lambda f: write_timm(f, "vit_base_patch16_224", global_pool="avg", class_token=True),
        "whose tokens go through no final norm",
    ),
    "a norm before the blocks": (
        lambda f: write_timm(f, "vit_base_patch16_224", num_classes=0, pre_norm=True),
        "left over norm_pre.bias, norm_pre.weight",
    ),
    "no transformer": (
        lambda f: _write_resnet(f),
        "whose class ResNet is no plain vision transformer: a run starts from timm's VisionTransformer or",
    ),
}


def _write_resnet(folder: Path) -> None:
    from timm.models import save_for_hf

    network = timm.create_model("resnet10t", num_classes=0)
    save_for_hf(network, str(folder), model_config={"num_classes": 0}, safe_serialization=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    write, words = REFUSED[name]
    write(tmp_path / "there")
    with pytest.raises(BadInput) as fault:
        saved(tmp_path / "there")
    assert words in str(fault.value) and "there" in str(fault.value)


@pytest.mark.slow
def test_norms_that_timm_cannot_have_are_refused_where_it_shows(tmp_path: Path, call: Call) -> None:
    run(Path("scenes"), tmp_path / "run", "data.scenes_train=16", "train.steps=1", "model.norm_eps=0.3")
    status, _, fault = call("convert", tmp_path / "run", tmp_path / "timm", "--to", "timm")
    assert status == 2 and "model.norm_eps=0.3, and timm's norms have 1e-06, by which tokens move by" in fault
    assert not (tmp_path / "timm").exists()
    status, _, fault = call("convert", tmp_path / "run", tmp_path / "hf", "--to", "hf")
    assert status == 2 and "no class for an encoder with a layer scale or another norm_eps and no class token" in fault
    assert call("convert", tmp_path / "run", tmp_path / "out.safetensors", "--to", "safetensors")[0] == 0
    with torch.no_grad():
        again = load_encoder(tmp_path / "out.safetensors")(torch.zeros(1, 3, 48, 48))
        assert torch.equal(again, load_encoder(tmp_path / "run")(torch.zeros(1, 3, 48, 48)))


@pytest.mark.slow
def test_dinov2_of_transformers_cannot_have_wide_images(tmp_path: Path, call: Call) -> None:
    """Its class stretches positions from a square whatever their grid is, and would give other tokens."""
    wide = ("data.image_size=[32,72]", "model.prefix_tokens=1", "model.layer_scale=0.1", "masks.min_keep=1")
    run(Path("scenes"), tmp_path / "run", "data.scenes_train=16", "train.steps=1", *wide)
    status, _, fault = call("convert", tmp_path / "run", tmp_path / "hf", "--to", "hf")
    assert status == 2 and "DINOv2 has positions of square images alone: convert it --to timm or safetensors" in fault
    assert call("convert", tmp_path / "run", tmp_path / "timm", "--to", "timm")[0] == 0
    views = torch.randn(2, 3, 32, 72, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, back = (load_encoder(tmp_path / each)(views) for each in ("run", "timm"))
    assert float((back - ours).abs().max() / ours.std()) < 1e-4
