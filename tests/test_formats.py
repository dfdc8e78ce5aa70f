"""Checkpoints go from layout to layout without losing a bit, and what is not one is refused in one sentence.

Most tests start from a checkpoint of the reference's layout that is written out here name by name, with other tensors
in each of its networks, so that a wrong one would be noticed.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import depthjepa
from depthjepa import cost
from depthjepa.backbones.opening import load_encoder
from depthjepa.checkpoints import checkpoint
from depthjepa.checkpoints.reading import load_checkpoint
from depthjepa.commands.convert import convert
from depthjepa.config.reading import build_config, load_config
from depthjepa.config.run_config import differences as other_keys
from depthjepa.config.run_config import to_mapping
from depthjepa.data.scenes.rendering import render
from depthjepa.evaluation.diagnostics import rank_me
from depthjepa.faults import BadInput
from depthjepa.formats.weights import Weights, describe
from depthjepa.logbook import RunFolder
from depthjepa.method import build_encoder, build_method
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, SHAPES, Shape, VisionTransformer
from depthjepa.warm_start import start_from
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import GUIDED, SETTINGS, Call, differences, metrics, run, tiny, weights

SMALL = Shape(width=24, depth=2, heads=3, hidden=96)
NARROW = 12  # width of the predictor
PATCH, SIZE = 8, (32, 32)
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 7}
ENDINGS = {"reference": ".pth.tar", "safetensors": ".safetensors", "onnx": ".onnx"}
LAYOUTS = ("reference", "hf", "timm", "safetensors", "depthjepa")
Which = Literal["target", "context"]


def block_shapes(place: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    narrowing = {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
        weight = (linear | narrowing).get(part, (width,))
        shapes |= {f"{place}.{part}.weight": weight, f"{place}.{part}.bias": weight[:1]}
    return shapes


def encoder_shapes(shape: Shape = SMALL, patch: int = PATCH, tokens: int = 16) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, tokens, shape.width)}
    shapes |= {"patch_embed.proj.weight": (shape.width, 3, patch, patch), "patch_embed.proj.bias": (shape.width,)}
    for number in range(shape.depth):
        shapes |= block_shapes(f"blocks.{number}", shape.width, shape.hidden)
    return shapes | {"norm.weight": (shape.width,), "norm.bias": (shape.width,)}


def predictor_shapes(shape: Shape = SMALL, tokens: int = 16) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, NARROW), "predictor_pos_embed": (1, tokens, NARROW)}
    shapes |= {"predictor_embed.weight": (NARROW, shape.width), "predictor_embed.bias": (NARROW,)}
    shapes |= block_shapes("predictor_blocks.0", NARROW, 4 * NARROW)
    shapes |= {"predictor_norm.weight": (NARROW,), "predictor_norm.bias": (NARROW,)}
    return shapes | {"predictor_proj.weight": (shape.width, NARROW), "predictor_proj.bias": (shape.width,)}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def fabricated(
    size: tuple[int, int] = SIZE,
    shape: Shape = SMALL,
    prefix: str = "module.",
    scaler: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A file's content as the reference's trainer writes it, after 5 steps in 2 epochs."""
    tokens = size[0] // PATCH * (size[1] // PATCH)
    shapes = {"encoder": encoder_shapes(shape, tokens=tokens), "predictor": predictor_shapes(shape, tokens)}
    shapes["target_encoder"] = shapes["encoder"]
    networks = {part: drawn(shapes[part], seed) for seed, part in enumerate(shapes)}
    trained = [(part, key) for part in ("encoder", "predictor") for key in shapes[part]]
    decayed = {(part, key): "bias" not in key and len(shapes[part][key]) > 1 for part, key in trained}
    ordered = sorted(trained, key=lambda name: (not decayed[name], name[0]))  # encoder before predictor
    groups, state, number = [], {}, 0
    rates = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False, "foreach": None}
    rates |= {"capturable": False, "differentiable": False, "fused": None, "decoupled_weight_decay": True}
    for (is_decayed, _), names in itertools.groupby(ordered, key=lambda name: (decayed[name], name[0])):
        numbers = []
        for part, key in names:
            if not key.endswith("pos_embed"):  # a parameter without gradient
                moments = drawn({"exp_avg": shapes[part][key], "exp_avg_sq": shapes[part][key]}, 100 + number)
                state[number] = {"step": torch.tensor(5.0), **moments}
            numbers.append(number)
            number += 1
        own = {"weight_decay": 0.17} if is_decayed else {"WD_exclude": True, "weight_decay": 0}
        groups.append({"lr": 3.25e-4, **own, **rates, "params": numbers})
    behind = {part: {prefix + key: value for key, value in named.items()} for part, named in networks.items()}
    counters = {"epoch": 2, "loss": 0.3125, "batch_size": 4, "world_size": 2, "lr": 1e-3}
    return {**behind, "opt": {"state": state, "param_groups": groups}, "scaler": scaler, **counters}


def bare(weights: Weights) -> Weights:
    return {key.removeprefix("module."): value for key, value in weights.items()}


def write(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fabricated checkpoint as a file."""
    return write(tmp_path_factory.mktemp("small") / "small.pth.tar", fabricated())


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without optimiser, which is faster to read."""
    content = fabricated()
    del content["opt"]
    return write(tmp_path_factory.mktemp("untrained") / "untrained.pth.tar", content)


@pytest.fixture(scope="module")
def layouts(small: Path) -> dict[str, Path]:
    """The target encoder of the fabricated checkpoint in every layout."""
    return {layout: written(small, small.parent / "every", layout) for layout in LAYOUTS}


def written(source: Path, stem: Path, layout: str, which: Which = "target", *settings: str) -> Path:
    """Convert to a path with the layout's ending."""
    target = stem.with_name(stem.name + f"-{layout}" + ENDINGS.get(layout, ""))
    convert(str(source), target, layout, which, settings)
    return target


def encoder_of(source: Path, which: Which = "target") -> Weights:
    return load_checkpoint(source).part(f"{which}_encoder")


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(9))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def released(parity: Path) -> tuple[Path, Weights, VisionTransformer]:
    """The reference's own file, the numbers beside it, and its target encoder built from those numbers."""
    numbers = load_file(parity / "ijepa.safetensors")
    target = {key.removeprefix("final.target."): value for key, value in numbers.items() if "final.target." in key}
    encoder = VisionTransformer(Shape(48, 3, 3, 192), 8, (8, 8))
    encoder.load_state_dict(target)
    return parity / "reference-ijepa.pth.tar", numbers, encoder.eval().requires_grad_(False)


def test_the_reference_s_target_encoder_is_the_one_that_is_loaded(
    released: tuple[Path, Weights, VisionTransformer],
) -> None:
    file, numbers, encoder = released
    assert differences(encoder_of(file), dict(encoder.state_dict())) == []
    context = {key.removeprefix("final.encoder."): numbers[key] for key in numbers if "final.encoder." in key}
    assert differences(encoder_of(file, "context"), context) == []
    images = numbers["images"][0]
    assert torch.equal(depthjepa.load_encoder(file)(images), encoder(images))
    assert not torch.equal(depthjepa.load_encoder(file, "context")(images), encoder(images))


def test_transformers_loads_a_converted_checkpoint(
    released: tuple[Path, Weights, VisionTransformer], tmp_path: Path, call: Call
) -> None:
    transformers = pytest.importorskip("transformers")
    file, numbers, encoder = released
    status, said, _ = call("convert", file, tmp_path / "hf", "--to", "hf")
    assert status == 0
    assert "the target encoder" in said
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(model).__name__ == "IJepaModel"
    assert not any(info.values()), info
    images = numbers["images"].flatten(0, 1)
    with torch.no_grad():
        close(model.eval()(images).last_hidden_state, encoder(images))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ready = torch.as_tensor(np.asarray(processor(pixels, return_tensors="np")["pixel_values"]))
    mean, deviation = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    close(ready[0].double(), torch.from_numpy((pixels.transpose(2, 0, 1) / 255 - mean) / deviation), 1e-5)
    assert processor(pixels[:40, :50], return_tensors="np")["pixel_values"].shape == (1, 3, 64, 64)


def test_transformers_loads_an_encoder_of_images_that_are_not_square(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file = write(tmp_path / "wide.pth.tar", fabricated((32, 96)))
    folder = written(file, tmp_path / "wide", "hf", "target", "data.image_size=[32, 96]")
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    images = pictures(size=(32, 96))
    with torch.no_grad():
        close(model.eval()(images).last_hidden_state, depthjepa.load_encoder(folder)(images))


def test_timm_loads_a_converted_checkpoint_strictly(
    released: tuple[Path, Weights, VisionTransformer], tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    file, numbers, encoder = released
    folder = written(file, tmp_path / "own", "timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.state_dict().keys() == encoder.state_dict().keys()
    images = numbers["images"].flatten(0, 1)
    with torch.no_grad():
        close(model.forward_features(images), encoder(images))
        close(model(images), encoder(images).mean(1))
    data = timm.data.resolve_model_data_config(model)
    assert (tuple(data["mean"]), tuple(data["std"])) == (IMAGENET_MEAN, IMAGENET_DEVIATION)
    assert (tuple(data["input_size"]), data["crop_pct"], data["interpolation"]) == ((3, 64, 64), 1.0, "bilinear")
    stored = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in stored.items() if key != "norm.bias"}, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_timm_loads_an_encoder_of_images_that_are_not_square(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = write(tmp_path / "wide.pth.tar", fabricated((32, 96)))
    folder = written(file, tmp_path / "wide", "timm", "target", "data.image_size=[32, 96]")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = pictures(size=(32, 96))
    with torch.no_grad():
        close(model.forward_features(images), depthjepa.load_encoder(folder)(images))


@pytest.mark.parametrize("shape", [Shape(24, 1, 2, 97), Shape(28, 1, 2, 61)])  # 61 / 28 * 28 < 61, and timm cuts
def test_timm_gets_every_width_of_the_hidden_layer(tmp_path: Path, shape: Shape) -> None:
    timm = pytest.importorskip("timm")
    file = write(tmp_path / "odd.pth.tar", {"encoder": drawn(encoder_shapes(shape), 0)})
    folder = written(file, tmp_path / "odd", "timm", "target", "model.heads=2")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert differences(dict(model.state_dict()), drawn(encoder_shapes(shape), 0)) == []


def test_onnxruntime_gives_the_encoder_s_tokens_at_any_batch(small: Path, tmp_path: Path, call: Call) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    file, encoder = tmp_path / "small.onnx", depthjepa.load_encoder(small)
    assert call("convert", small, file, "--to", "onnx")[0] == 0
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        images = pictures(count)
        (tokens,) = session.run(["tokens"], {"images": images.numpy()})
        close(torch.from_numpy(tokens), encoder(images), 1e-4)
    assert session.get_modelmeta().custom_metadata_map["encoder"] == "target"


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(LAYOUTS, 2)))
def test_there_and_back_every_bit_is_the_same(untrained: Path, tmp_path: Path, one: str, other: str) -> None:
    which: Which = "target" if LAYOUTS.index(one) < LAYOUTS.index(other) else "context"
    first = untrained if one == "reference" else written(untrained, tmp_path / "first", one, which)
    second = written(first, tmp_path / "second", other, which)
    third = written(second, tmp_path / "third", one, which)
    part = "target_encoder" if which == "target" else "encoder"
    expected = bare(fabricated()[part])
    for file in (first, second, third):
        loaded = load_checkpoint(file)
        assert loaded.which(which) == which
        assert differences(loaded.part(f"{loaded.which(which)}_encoder"), expected) == []
        assert (loaded.config.data.size, loaded.config.model.shape) == (SIZE, SMALL)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "depthjepa"])
def test_images_that_are_not_square_stay_so(tmp_path: Path, layout: str) -> None:
    file = write(tmp_path / "wide.pth.tar", fabricated((32, 96)))
    with pytest.raises(BadInput, match=r"not square, .* give data\.image_size=\[HEIGHT,WIDTH\]"):
        load_checkpoint(file)
    with pytest.raises(BadInput, match=r"48 patches of 8 px, and data\.image_size=\[48, 96\] has another"):
        load_checkpoint(file, ["data.image_size=[48, 96]"])
    there = written(file, tmp_path / "there", layout, "target", "data.image_size=[32, 96]")
    settings = ["data.image_size=[32, 96]"] if layout == "reference" else []  # the one that does not say
    loaded = load_checkpoint(there, settings)
    assert loaded.config.data.size == (32, 96)
    assert differences(loaded.part("target_encoder"), bare(fabricated((32, 96))["target_encoder"])) == []


@pytest.mark.parametrize("scaler", [None, SCALER], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("prefix", ["module.", ""], ids=["ddp", "bare"])
def test_a_reference_file_comes_back_with_its_whole_training(
    tmp_path: Path, scaler: dict[str, Any] | None, prefix: str
) -> None:
    file = write(tmp_path / "one.pth.tar", fabricated(prefix=prefix, scaler=scaler))
    back = written(written(file, tmp_path / "run", "depthjepa"), tmp_path / "back", "reference")
    assert_same_training(back, fabricated(scaler=scaler))


def test_the_reference_s_own_file_comes_back_with_its_whole_training(parity: Path, tmp_path: Path) -> None:
    file = parity / "reference-ijepa.pth.tar"
    back = written(written(file, tmp_path / "run", "depthjepa"), tmp_path / "back", "reference")
    assert_same_training(back, torch.load(file, weights_only=True))


def assert_same_training(file: Path, expected: dict[str, Any]) -> None:
    found = torch.load(file, weights_only=True)
    assert list(found["opt"]["param_groups"]) == expected["opt"]["param_groups"]
    for part in ("encoder", "predictor", "target_encoder"):
        assert list(found[part]) == list(expected[part])  # in this order the reference numbers its parameters
        found[part], expected[part] = dict(found[part]), dict(expected[part])
    assert differences(found, expected) == []


def test_names_with_and_without_the_prefix_of_ddp_are_read_alike(small: Path, tmp_path: Path) -> None:
    plain, loaded = load_checkpoint(write(tmp_path / "bare.pth.tar", fabricated(prefix=""))), load_checkpoint(small)
    assert differences(plain.model, loaded.model) == []
    assert (plain.step, plain.epoch, plain.holds) == (loaded.step, loaded.epoch, loaded.holds)


def test_a_checkpoint_of_ours_says_what_the_reference_says(small: Path, tmp_path: Path) -> None:
    """Step, epoch and every state by the name of its parameter."""
    loaded, content = load_checkpoint(written(small, tmp_path / "run", "depthjepa")), fabricated()
    assert (loaded.step, loaded.epoch) == (5, 2.0)
    assert (loaded.config.train.batch_size, loaded.config.optim.lr) == (8, 1e-3)
    assert (loaded.config.predictor.depth, loaded.config.predictor.width) == (1, NARROW)
    names = {part: list(bare(content[part])) for part in ("encoder", "predictor")}
    states = states_by_name(loaded.optimizer)
    assert states.keys() == {
        f"{'context_encoder' if part == 'encoder' else part}.{key}"
        for part, keys in names.items()
        for key in keys
        if not key.endswith("pos_embed")
    }
    number = content["opt"]["param_groups"][1]["params"]  # the predictor's decayed ones: mask token, positions, …
    assert differences(states["predictor.mask_token"], content["opt"]["state"][number[0]]) == []
    assert differences(states["predictor.predictor_embed.weight"], content["opt"]["state"][number[2]]) == []
    number = content["opt"]["param_groups"][2]["params"]
    assert differences(states["context_encoder.patch_embed.proj.bias"], content["opt"]["state"][number[0]]) == []
    assert differences(states["context_encoder.norm.bias"], content["opt"]["state"][number[-1]]) == []


def states_by_name(optimizer: dict[str, Any]) -> dict[str, Any]:
    return {
        name: optimizer["state"][number]
        for group in optimizer["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
        if number in optimizer["state"]
    }


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unguided run of 6 steps in `run` on the data in `pairs`, and its checkpoint of step 3 as `half.pt`."""
    place = tmp_path_factory.mktemp("halfway")
    write_pairs(place / "pairs")
    save = checkpoint.save

    def kept(path: Path, held: Mapping[str, Any]) -> None:
        save(path, held)
        if held["step"] == 3:
            shutil.copy(path, place / "half.pt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", kept)
        patch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
        run(place / "pairs", place / "run", *LENGTH)
    return place


LENGTH = ("train.steps=6", "train.checkpoint_every=3", "optim.lr=4e-3", "optim.momentum=0.8")


def test_a_run_of_ours_goes_through_the_reference_s_layout_unchanged(halfway: Path, tmp_path: Path) -> None:
    file = written(halfway / "half.pt", tmp_path / "half", "reference")
    ours = torch.load(halfway / "half.pt", weights_only=True)
    back = load_checkpoint(written(file, tmp_path / "back", "depthjepa", "target", "model.heads=2"))
    assert (back.step, ours["step"], back.epoch, ours["epoch"]) == (3, 3, 1.0, 1.0)
    assert differences(back.model, dict(ours["model"])) == []
    assert differences(states_by_name(back.optimizer), states_by_name(ours["optimizer"])) == []


def test_in_a_file_of_ours_every_number_belongs_to_the_reference_s_parameter(halfway: Path, tmp_path: Path) -> None:
    content = torch.load(written(halfway / "half.pt", tmp_path / "half", "reference"), weights_only=True)
    shape = Shape(32, 2, 2, 128)
    assert list(bare(content["encoder"])) == list(encoder_shapes(shape, tokens=36))
    assert list(bare(content["predictor"])) == list(predictor_shapes(shape, tokens=36))
    example = fabricated()["opt"]["param_groups"]  # another width, the same names in the same order
    groups = content["opt"]["param_groups"]
    assert [group["params"] for group in groups] == [group["params"] for group in example]
    assert [group.keys() for group in groups] == [group.keys() for group in example]
    parts = {"encoder": bare(content["encoder"]), "predictor": bare(content["predictor"])}
    ordered = [
        (part, key)
        for decayed in (True, False)
        for part, named in parts.items()
        for key, value in named.items()
        if ("bias" not in key and value.ndim > 1) is decayed
    ]
    states = states_by_name(torch.load(halfway / "half.pt", weights_only=True)["optimizer"])
    for number, (part, key) in enumerate(ordered):
        if not key.endswith("pos_embed"):
            name = f"{'context_encoder' if part == 'encoder' else part}.{key}"
            assert differences(content["opt"]["state"][number], states[name]) == []
    assert content["opt"]["state"].keys() == {
        number for number, (_, key) in enumerate(ordered) if not key.endswith("pos_embed")
    }
    assert (content["epoch"], content["batch_size"], content["world_size"], content["lr"]) == (1, 8, 1, 4e-3)


def test_a_run_that_went_through_the_reference_s_layout_goes_on_to_the_same_end(
    halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the layout does not say has to be given: heads, data, length, masks, and the rates but their peak."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    file = written(halfway / "half.pt", tmp_path / "half", "reference")
    told = ("model.patch_size", "model.width", "model.depth", "predictor", "train.batch_size", "optim.lr")
    said = [text for text in (*SETTINGS, *LENGTH) if not text.startswith(told)]
    said += ["name=tiny", f"data.root={halfway / 'pairs'}", "masks.bias=unbiased"]
    folder = written(file, tmp_path / "on", "depthjepa", "target", *said)
    config = load_config(folder / "config.yaml")
    # Spelt in another way, the same network.
    expected = tiny(halfway / "pairs", *LENGTH)
    assert other_keys(to_mapping(config), to_mapping(expected)) == ["model.hidden", "model.size"]
    assert config.model.shape == expected.model.shape
    depthjepa.train(config, folder, resume=True, say=lambda _: None)
    assert [record["step"] for record in metrics(folder)] == [4, 5, 6]
    assert metrics(folder) == metrics(halfway / "run")[3:]
    on, through = weights(folder), weights(halfway / "run")
    assert differences(dict(on["model"]), dict(through["model"])) == []
    assert differences(on["optimizer"], through["optimizer"]) == []


def test_what_the_reference_s_layout_has_no_place_for_is_named(
    halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    run(halfway / "pairs", tmp_path / "guided", *GUIDED, "train.steps=1")
    said = convert(str(tmp_path / "guided"), tmp_path / "guided.pth.tar", "reference")
    assert said[-1] == "left out, since the layout has no place for it: guide, teacher's statistics"
    loaded = load_checkpoint(
        written(tmp_path / "guided.pth.tar", tmp_path / "on", "depthjepa", "target", "model.heads=2")
    )
    trained = weights(tmp_path / "guided")
    assert (
        differences(
            loaded.model, {key: value for key, value in trained["model"].items() if not key.startswith("guide.")}
        )
        == []
    )
    kept = {key: state for key, state in states_by_name(trained["optimizer"]).items() if not key.startswith("guide.")}
    assert differences(states_by_name(loaded.optimizer), kept) == []


def test_a_run_that_started_from_another_is_written_with_predictor_and_optimiser(
    halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a third one takes encoders and predictor over from the file."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    run(halfway / "pairs", tmp_path / "on", f"init.checkpoint={halfway / 'run'}", "optim.layer_decay=0.5", *LENGTH)
    file, said = written_and_said(tmp_path / "on", tmp_path / "on", "reference")
    assert said == ["layout reference, with encoder, target_encoder, predictor, opt"]
    trained = weights(tmp_path / "on")
    back = load_checkpoint(written(file, tmp_path / "back", "depthjepa", "target", "model.heads=2"))
    assert differences(states_by_name(back.optimizer), states_by_name(trained["optimizer"])) == []
    config = tiny(halfway / "pairs", f"init.checkpoint={file}", "train.steps=1")
    method = build_method(config, None, classes=0)
    assert "predictor taken as well" in start_from(method, config)
    assert differences(dict(method.state_dict()), dict(trained["model"])) == []


@pytest.mark.parametrize(("frozen", "learned"), [(2, 4), (6, 0)])
def test_steps_in_which_the_head_alone_learned_are_told_from_those_of_the_optimiser(
    halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: int, learned: int
) -> None:
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    asked = (*GUIDED, *LENGTH, f"init.checkpoint={halfway / 'run'}", f"init.frozen_steps={frozen}")
    run(halfway / "pairs", tmp_path / "run", *asked)
    file, said = written_and_said(tmp_path / "run", tmp_path / "run", "reference")
    held = ", opt" if learned else ""
    left = "guide, teacher's statistics" if learned else "guide, optimiser, teacher's statistics"
    assert said == [
        f"layout reference, with encoder, target_encoder, predictor{held}",
        f"encoder and predictor learned in {learned} of 6 steps, in the others the head alone",
        f"left out, since the layout has no place for it: {left}",
    ]
    back = load_checkpoint(written(file, tmp_path / "back", "depthjepa", "target", "model.heads=2"))
    trained = states_by_name(weights(tmp_path / "run")["optimizer"])
    kept = {key: state for key, state in trained.items() if not key.startswith("guide.")}
    assert bool(kept) is bool(learned)
    assert differences(states_by_name(back.optimizer) if back.optimizer else {}, kept) == []


def test_a_supervised_run_leaves_out_head_and_optimiser_and_says_so(tmp_path: Path, call: Call) -> None:
    run(write_classes(tmp_path / "classes"), tmp_path / "run", "train.objective=supervised", "train.steps=1")
    file, said = written_and_said(tmp_path / "run", tmp_path / "run", "reference")
    assert said == [
        "layout reference, with encoder, target_encoder",
        "both encoders are the source's one, the context encoder",
        "not in the source: predictor",
        "left out, since the layout has no place for it: head, optimiser",
    ]
    content = torch.load(file, weights_only=True)
    assert content.keys() == {"encoder", "target_encoder"}
    expected = load_checkpoint(tmp_path / "run").part("context_encoder")
    assert differences(bare(content["encoder"]), expected) == differences(bare(content["target_encoder"]), expected)


@pytest.mark.parametrize("source", ["hf", "timm", "safetensors"])
def test_a_foreign_encoder_has_no_predictor_and_no_optimiser_and_that_is_said(
    layouts: dict[str, Path], tmp_path: Path, source: str
) -> None:
    file, said = written_and_said(layouts[source], tmp_path / "one", "reference")
    assert said[1:] == [
        "both encoders are the source's one, the target encoder",
        "not in the source: predictor, optimiser",
    ]
    assert torch.load(file, weights_only=True).keys() == {"encoder", "target_encoder"}
    folder, said = written_and_said(layouts[source], tmp_path / "run", "depthjepa")
    assert said[1].startswith("without predictor and optimiser state: ")
    assert not load_checkpoint(folder).optimizer


@pytest.mark.parametrize("layout", ["hf", "timm", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_layout_of_one_encoder_says_what_it_leaves_out(small: Path, tmp_path: Path, layout: str) -> None:
    _, said = written_and_said(small, tmp_path / "one", layout)
    assert said[-1] == "left out: context encoder, predictor, optimiser"
    one = written(small, tmp_path / "target", "safetensors")
    _, said = written_and_said(one, tmp_path / "again", layout)
    assert not [line for line in said if line.startswith("left out")]


def written_and_said(source: Path, stem: Path, layout: str) -> tuple[Path, list[str]]:
    """Convert; the target and what is said of it, without its path."""
    target = stem.with_name(stem.name + f"-{layout}" + ENDINGS.get(layout, ""))
    found = convert(str(source), target, layout)
    lines = [line for line in found if not line.startswith((f"{source}: ", "assumed: "))]
    return target, [line.removeprefix(f"{target}: ") for line in lines]


@pytest.mark.parametrize(("options", "part"), [((), "target_encoder"), (("--which", "context"), "encoder")])
def test_which_chooses_the_encoder_and_the_file_says_which_it_holds(
    small: Path,
    tmp_path: Path,
    call: Call,
    options: tuple[str, ...],
    part: str,
) -> None:
    which = "context" if options else "target"
    status, said, _ = call("convert", small, tmp_path / "one.safetensors", "--to", "safetensors", *options)
    assert status == 0
    assert f"the {which} encoder, 24 wide, 32 x 32 px" in said
    assert differences(load_file(tmp_path / "one.safetensors"), bare(fabricated()[part])) == []
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        note = json.loads(file.metadata()["depthjepa"])
    assert note == {
        "encoder": which,
        "heads": 3,
        "patch_size": 8,
        "image_size": [32, 32],
        "mean": list(IMAGENET_MEAN),
        "deviation": list(IMAGENET_DEVIATION),
        "run": "small",
        "step": 5,
    }


@pytest.mark.parametrize("layout", ["safetensors", "hf", "timm"])
def test_a_file_of_one_encoder_serves_as_both_and_it_is_said(small: Path, tmp_path: Path, layout: str) -> None:
    one = written(small, tmp_path / "one", layout, "context")
    expected = bare(fabricated()["encoder"])
    for which in ("target", "context"):
        encoder = depthjepa.load_encoder(one, which)
        assert differences(dict(encoder.state_dict()), expected) == []
    said = convert(str(one), tmp_path / "again.safetensors", "safetensors", "target")
    assert said[0] == f"{one}: layout {layout}, holds context encoder"
    assert "the context encoder" in said[1]
    assert said[2] == "there is no target encoder in the source"
    said = convert(str(one), tmp_path / "both.pth.tar", "reference")
    assert said[2] == "both encoders are the source's one, the context encoder"
    content = torch.load(tmp_path / "both.pth.tar", weights_only=True)
    assert content.keys() == {"encoder", "target_encoder"}
    assert differences(bare(content["encoder"]), expected) == []
    assert differences(bare(content["target_encoder"]), expected) == []


@pytest.mark.parametrize("layout", ["safetensors", "hf", "timm"])
def test_a_file_of_others_does_not_say_which_encoder_it_holds_and_that_is_said(
    layouts: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    copy = copied(layouts[layout], tmp_path / layouts[layout].name)
    store(copy, load_file(stored(copy)))  # without our note
    assert "does not say which" in load_checkpoint(copy).holds
    assert differences(dict(depthjepa.load_encoder(copy).state_dict()), bare(fabricated()["target_encoder"])) == []


def test_a_pickle_of_one_encoder_under_our_names_is_read(tmp_path: Path) -> None:
    """As timm and torch users save a network's state."""
    file = write(tmp_path / "flat.pth", bare(fabricated()["target_encoder"]))
    assert "does not say which" in load_checkpoint(file).holds
    assert differences(dict(depthjepa.load_encoder(file).state_dict()), bare(fabricated()["target_encoder"])) == []


@pytest.mark.parametrize("part", ["encoder", "target_encoder"])
def test_a_reference_file_of_one_encoder_is_read(tmp_path: Path, part: str) -> None:
    content = fabricated()
    file = write(tmp_path / "one.pth.tar", {part: content[part]})
    assert load_checkpoint(file).holds == ("target encoder" if part == "target_encoder" else "context encoder")
    assert differences(dict(depthjepa.load_encoder(file).state_dict()), bare(content[part])) == []


def copied(source: Path, target: Path) -> Path:
    """A copy that may be changed."""
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    return Path(shutil.copy(source, target))


def stored(checkpoint: Path) -> Path:
    """The file that holds the tensors."""
    return checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint


def store(checkpoint: Path, tensors: Weights) -> None:
    save_file({key: value.clone() for key, value in tensors.items()}, stored(checkpoint))


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_that_transformers_wrote_is_read(parity: Path) -> None:
    expected = load_file(parity / "hf-ijepa" / "expected.safetensors")
    encoder = depthjepa.load_encoder(parity / "hf-ijepa")
    images, tokens = sorted(expected.values(), key=lambda value: -value.ndim)
    close(encoder(images), tokens)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("layer_norm_eps", 1e-12, "layer_norm_eps=1e-12"),
        ("layer_norm_eps", None, "layer_norm_eps=1e-12"),  # transformers' default
        ("model_type", "vit", "'vit'"),
        ("qkv_bias", False, "qkv_bias=False"),
        ("hidden_act", "relu", "hidden_act='relu'"),
        ("num_channels", 1, "num_channels=1"),
    ],
)
def test_an_encoder_that_computes_something_else_is_refused(
    layouts: dict[str, Path], tmp_path: Path, key: str, value: object, said: str
) -> None:
    folder = copied(layouts["hf"], tmp_path / "hf")
    change(folder / "config.json", **{key: value})
    with pytest.raises(BadInput, match=said):
        load_checkpoint(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads"])
def test_a_config_that_leaves_out_what_is_needed_is_refused(layouts: dict[str, Path], tmp_path: Path, key: str) -> None:
    folder = copied(layouts["hf"], tmp_path / "hf")
    change(folder / "config.json", **{key: None})
    with pytest.raises(BadInput, match=key):
        load_checkpoint(folder)


@pytest.mark.parametrize("layout", ["hf", "timm"])
@pytest.mark.parametrize("form", ["shards", "pickle"])
def test_shards_and_a_pickle_are_read_like_one_file(
    layouts: dict[str, Path], tmp_path: Path, layout: str, form: str
) -> None:
    folder = copied(layouts[layout], tmp_path / layout)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        shards = {f"model-0000{number + 1}-of-00002.safetensors": names[number::2] for number in range(2)}
        for shard, keys in shards.items():
            save_file({key: tensors[key] for key in keys}, folder / shard)
        index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = depthjepa.load_encoder(folder)
    assert differences(dict(loaded.state_dict()), bare(fabricated()["target_encoder"])) == []
    if form == "shards":
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(BadInput, match=r"model-00002-of-00002\.safetensors is not there"):
            load_checkpoint(folder)


def forget(folder: Path) -> None:
    """Take our note out of a folder's header: what is left is what the library itself writes."""
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_folder_s_own_normalisation_is_followed(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(layouts["hf"], tmp_path / "hf")
    change(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.25, 0.5])
    loaded = load_checkpoint(folder)
    assert (loaded.config.model.mean, loaded.config.model.deviation) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    assert loaded.assumed == ()
    for layout in ("timm", "safetensors", "depthjepa", "hf"):
        again = load_checkpoint(written(folder, tmp_path / "again", layout)).config.model
        assert (again.mean, again.deviation) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    (folder / "preprocessor_config.json").unlink()
    forget(folder)
    for settings in ((), ("model.heads=2",)):  # what is said of the heads says nothing of the normalisation
        loaded = load_checkpoint(folder, settings)
        assert loaded.config.model.mean == IMAGENET_MEAN
        assert loaded.assumed == ("ImageNet's mean and deviation (no preprocessor_config.json)",)


def test_the_published_folders_wrong_normalisation_is_not_followed(tmp_path: Path) -> None:
    shape = Shape(1280, 1, 16, 4)
    tensors = {key: torch.zeros(size) for key, size in encoder_shapes(shape, 1, 1).items()}
    folder = written(write(tmp_path / "wide.pth.tar", {"encoder": tensors}), tmp_path / "wide", "hf")
    said = ["model.mean=[0.5,0.5,0.5]", "model.deviation=[0.5,0.5,0.5]"]
    ours = written(tmp_path / "wide.pth.tar", tmp_path / "ours", "hf", "context", *said)
    assert load_checkpoint(ours).config.model.mean == (0.5, 0.5, 0.5)  # who wrote it meant it
    forget(folder)
    change(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    loaded = load_checkpoint(folder)
    assert (loaded.config.model.mean, loaded.config.model.deviation) == (IMAGENET_MEAN, IMAGENET_DEVIATION)
    assert "its preprocessor says 0.5" in loaded.assumed[0]


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(name)}


def beside(name: str) -> Callable[[Weights], Weights]:
    return lambda tensors: tensors | {name: torch.zeros(3)}


def reshaped(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda tensors: {key: torch.zeros(shape) if key.endswith(name) else value for key, value in tensors.items()}


STRICT = [
    ("norm2.bias", without("1.norm2.bias"), r"missing blocks\.1\.norm2\.bias"),
    ("cls_token", beside("cls_token"), r"an encoder with a class token.*: cls_token; encoders of I-JEPA have patches"),
    ("blocks.2", beside("blocks.2.norm1.bias"), r"missing blocks\.2\.\S+, .* and \d+ more"),
    ("mlp", reshaped("1.mlp.fc2.weight", 24, 97), r"blocks\.1\.mlp\.fc2\.weight is \(24, 97\), expected \(24, 96\)"),
    ("qkv", reshaped("0.attn.qkv.bias", 71), r"blocks\.0\.attn\.qkv\.bias is \(71,\), expected \(72,\)"),
    ("positions", reshaped("pos_embed", 64, 24), r"does not hold an encoder .*: .*other dimensions"),
    ("flat positions", reshaped("pos_embed", 24), r"does not hold an encoder .*: .*other dimensions"),
    ("patches", reshaped("patch_embed.proj.weight", 24, 192), r"does not hold an encoder .*: .*other dimensions"),
    ("grey", reshaped("patch_embed.proj.weight", 24, 1, 8, 8), r"an encoder of 1 channels"),
]


@pytest.mark.parametrize("layout", ["reference", "timm", "safetensors"])
@pytest.mark.parametrize(("edit", "said"), [row[1:] for row in STRICT], ids=[row[0] for row in STRICT])
def test_tensors_that_do_not_fit_are_named(
    layouts: dict[str, Path], tmp_path: Path, layout: str, edit: Callable[[Weights], Weights], said: str
) -> None:
    copy = tmp_path / layouts[layout].name
    if layout == "reference":
        content = fabricated()
        write(copy, content | {"target_encoder": edit(bare(content["target_encoder"]))})
    else:
        copied(layouts[layout], copy)
        store(copy, edit(load_file(stored(copy))))
    with pytest.raises(BadInput, match=said) as fault:
        load_checkpoint(copy)
    assert str(copy) in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("part", ["encoder", "predictor", "target_encoder"])
def test_each_network_of_a_reference_file_is_held_to_its_names(tmp_path: Path, part: str) -> None:
    content, name = fabricated(), {"predictor": "predictor_norm.bias"}.get(part, "norm.bias")
    told = {"encoder": "context encoder", "target_encoder": "target encoder"}.get(part, part)
    for edit, said in (
        (without(f"module.{name}"), f"missing {name}"),
        (beside("module.surplus"), "left over surplus"),
        (reshaped(f"module.{name}", 5), rf"{name} is \(5,\), expected"),
    ):
        file = write(tmp_path / "changed.pth.tar", content | {part: edit(content[part])})
        with pytest.raises(BadInput, match=rf"changed\.pth\.tar \({told}\) .*{said}"):
            load_checkpoint(file)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without("layer.1.layernorm_after.bias"), r"missing encoder\.layer\.1\.layernorm_after\.bias"),
        (without("layer.0.attention.attention.key.weight"), r"missing encoder\.layer\.0\.attention\.attention\.key"),
        (beside("embeddings.cls_token"), r"left over embeddings\.cls_token"),
        (beside("pooler.dense.weight"), r"left over pooler\.dense\.weight"),
        (beside("encoder.layer.2.output.dense.bias"), r"left over encoder\.layer\.2\.output\.dense\.bias"),
        (reshaped("layer.1.output.dense.weight", 24, 97), r"fc2\.weight is \(24, 97\), expected \(24, 96\)"),
        (reshaped("layer.0.attention.attention.query.bias", 23), r"attn\.qkv\.bias is \(71,\), expected \(72,\)"),
        (reshaped("layer.0.attention.attention.query.weight", 24, 23), r"query\.weight|attn\.qkv\.weight"),
    ],
)
def test_tensors_of_a_hugging_face_folder_that_do_not_fit_are_named(
    layouts: dict[str, Path], tmp_path: Path, edit: Callable[[Weights], Weights], said: str
) -> None:
    folder = copied(layouts["hf"], tmp_path / "hf")
    store(folder, edit(load_file(stored(folder))))
    with pytest.raises(BadInput, match=said):
        load_checkpoint(folder)


def test_what_a_reference_file_holds_beyond_its_layout_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "more.pth.tar", fabricated() | {"ema_schedule": [1.0], "classifier": {}})
    with pytest.raises(BadInput, match=r"more\.pth\.tar .* left over classifier, ema_schedule"):
        load_checkpoint(file)


def optimizer_of(groups: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
    content = fabricated()
    content["opt"]["param_groups"] = groups(content["opt"]["param_groups"])
    return content


@pytest.mark.parametrize(
    "content",
    [
        optimizer_of(lambda groups: groups[:3]),
        optimizer_of(lambda groups: groups[::-1]),
        optimizer_of(lambda groups: [*groups[:3], groups[3] | {"params": groups[3]["params"][:-1]}]),
        fabricated() | {"opt": {**fabricated()["opt"], "state": {999: {}}}},
        fabricated() | {"opt": None},
        fabricated() | {"opt": {}},
    ],
    ids=["groups", "order", "parameters", "states", "none", "empty"],
)
def test_an_optimiser_that_is_not_the_reference_s_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    file = write(tmp_path / "other.pth.tar", content)
    with pytest.raises(BadInput, match=r"other\.pth\.tar.* optimiser"):
        convert(str(file), tmp_path / "run", "depthjepa")
    assert not (tmp_path / "run").exists()
    assert depthjepa.load_encoder(file).width == SMALL.width  # the encoder is none the worse for it


@pytest.mark.parametrize(
    "content",
    [
        fabricated() | {"predictor": None},
        fabricated() | {"predictor": 3},
        {"encoder": fabricated()["encoder"] | {"module.norm.bias": 3.0}},
        {"encoder": fabricated()["encoder"] | {"module.patch_embed.proj.weight": [1.0]}},
        bare(fabricated()["encoder"]) | {"patch_embed.proj.weight": 3.0},
        bare(fabricated()["encoder"]) | {"norm.bias": None},
    ],
    ids=["none", "number", "number-in-network", "list-in-network", "number-in-flat", "none-in-flat"],
)
def test_what_stands_where_tensors_belong_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"other\.pth\.tar"):
        load_checkpoint(write(tmp_path / "other.pth.tar", content))


class Planted:
    """Unpickles by a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, legacy, pickled])
@pytest.mark.parametrize("place", ["part", "tensor", "training"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, save: Callable[[Any, Path], None], place: str, call: Call
) -> None:
    for function, argument in (
        (os.system, f"touch {tmp_path / 'ran'}"),
        (os.mkdir, str(tmp_path / "ran")),
        (eval, f"open({str(tmp_path / 'ran')!r}, 'w')"),
    ):
        planted = Planted(function, argument)
        content: dict[str, Any] = {"encoder": {"module.pos_embed": torch.zeros(1, 4, 8)}}
        if place == "part":
            content["encoder"] = planted
        elif place == "tensor":
            content["encoder"]["module.norm.bias"] = planted
        else:
            content["opt"] = planted
        save(content, tmp_path / "planted.pth.tar")
        status, _, errors = call("convert", tmp_path / "planted.pth.tar", tmp_path / "out", "--to", "hf")
        assert status == 2
        assert errors.count("\n") == 1
        assert "planted.pth.tar would run code when it is read" in errors
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_pickle_of_another_protocol_does_not_run_either(tmp_path: Path) -> None:
    (tmp_path / "planted.pt").write_bytes(pickle.dumps({"encoder": Planted(os.mkdir, str(tmp_path / "ran"))}))
    with pytest.raises(BadInput, match=r"planted\.pt"):
        load_checkpoint(tmp_path / "planted.pt")
    assert not (tmp_path / "ran").exists()


def test_a_planted_pytorch_model_bin_does_not_run(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(layouts["hf"], tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    for content, said in ((Planted(os.mkdir, str(tmp_path / "ran")), "would run code"), ([torch.zeros(3)], "list")):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(BadInput, match=rf"pytorch_model\.bin .*{said}"):
            load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.0003, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("form", ["reference", "legacy", "safetensors", "hf", "timm", "depthjepa"])
def test_a_truncated_file_is_refused_in_words_that_fit(
    layouts: dict[str, Path], tmp_path: Path, form: str, share: float
) -> None:
    if form == "legacy":
        legacy(fabricated(), tmp_path / "whole.pth.tar")
        copy = file = tmp_path / "whole.pth.tar"
    else:
        copy = copied(layouts[form], tmp_path / layouts[form].name)
        file = copy / "checkpoints" / "last.pt" if form == "depthjepa" else stored(copy)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match="is empty" if share == 0 else "truncated") as fault:
        load_checkpoint(copy)
    assert str(file) in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_file_from_before_the_zip_layout_is_read(small: Path, tmp_path: Path) -> None:
    legacy(fabricated(), tmp_path / "old.pth.tar")
    assert differences(load_checkpoint(tmp_path / "old.pth.tar").model, load_checkpoint(small).model) == []


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("pointer.pth.tar", lambda path: path.write_text(POINTER), "is a text file, .* 'version https://git-lfs"),
        ("pointer.safetensors", lambda path: path.write_text(POINTER), "is a text file, .* 'version https://git-lfs"),
        ("page.pth.tar", lambda path: path.write_text("<!DOCTYPE html>\n" * 99), "is a text file, .*<!DOCTYPE"),
        ("list.pth.tar", lambda path: torch.save([torch.zeros(3)], path), "holds a list"),
        ("tensor.pth.tar", lambda path: torch.save(torch.zeros(3), path), "holds a Tensor"),
        ("nothing.pth.tar", lambda path: torch.save({}, path), "is not a checkpoint"),
        ("noise.pth.tar", lambda path: path.write_bytes(bytes(range(256)) * 9), "is not a checkpoint"),
        ("noise.safetensors", lambda path: path.write_bytes(bytes(range(256)) * 9), "not a safetensors file"),
        (
            "array.pth.tar",
            lambda path: torch.save({"encoder": {"module.pos_embed": np.zeros((1, 4, 8))}}, path),
            r"\(numpy\._core\.multiarray\._reconstruct\), which is refused: keep tensors",
        ),
        ("other.pth.tar", lambda path: torch.save({"encoder": {"weight": torch.zeros(3)}}, path), "hold an encoder"),
        ("other.safetensors", lambda path: save_file({"weight": torch.zeros(3)}, path), "does not hold an encoder"),
        ("other.npz", lambda path: np.savez(path, weight=np.zeros(3)), "is not a checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    tmp_path: Path,
    call: Call,
    name: str,
    make: Callable[[Path], object],
    said: str,
) -> None:
    make(tmp_path / name)
    with pytest.raises(BadInput, match=said):
        load_checkpoint(tmp_path / name)
    status, _, errors = call("convert", tmp_path / name, tmp_path / "out", "--to", "hf")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith(f"depthjepa: {tmp_path / name} ")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(layouts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no checkpoint"):
        load_checkpoint(tmp_path)
    for content, said in (("{}", "neither a model_type"), ("[1]", "keys and values"), ("{", "is not JSON")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BadInput, match=said):
            load_checkpoint(tmp_path)
    shutil.copy(layouts["hf"] / "config.json", tmp_path)
    with pytest.raises(BadInput, match=r"model\.safetensors is not there"):
        load_checkpoint(tmp_path)


def test_heads_that_no_layout_says_are_assumed_aloud_and_can_be_given(small: Path, tmp_path: Path, call: Call) -> None:
    note = "assumed: 3 attention heads (the layout does not say; model.heads=N if there are others)"
    status, said, _ = call("convert", small, tmp_path / "three.safetensors", "--to", "safetensors")
    assert (status, note in said.splitlines()) == (0, True)
    status, said, _ = call("convert", small, tmp_path / "two.safetensors", "--to", "safetensors", "model.heads=2")
    assert (status, "assumed" in said) == (0, False)
    images = pictures()
    two, three = (depthjepa.load_encoder(tmp_path / f"{name}.safetensors") for name in ("two", "three"))
    assert (two.blocks[0].attn.heads, three.blocks[0].attn.heads) == (2, 3)  # type: ignore[union-attr]
    expected = VisionTransformer(SMALL._replace(heads=2), PATCH, (4, 4))
    expected.load_state_dict(bare(fabricated()["target_encoder"]))
    close(two(images), expected(images).detach())
    assert (two(images) - three(images)).abs().max() > 1e-3
    assert load_checkpoint(tmp_path / "three.safetensors").assumed == ()  # a file of ours says it


@pytest.mark.parametrize("layout", ["reference", "safetensors"])
def test_a_width_that_tells_no_heads_asks_for_them_and_takes_them(tmp_path: Path, layout: str) -> None:
    shape = Shape(20, 1, 5, 80)
    tensors = drawn(encoder_shapes(shape), 0)
    file = tmp_path / f"odd{ENDINGS[layout]}"
    if layout == "reference":
        write(file, {"encoder": tensors})
    else:
        save_file(tensors, file)
    with pytest.raises(BadInput, match=r"how many attention heads its width 20 has: give model\.heads=N"):
        load_checkpoint(file)
    assert load_checkpoint(file, ["model.heads=5"]).config.model.shape == shape


@pytest.mark.parametrize("size", SHAPES)
def test_a_released_size_is_known_by_its_dimensions(size: Any) -> None:
    shape = SHAPES[size]
    with torch.device("meta"):
        tensors = {key: torch.empty(size) for key, size in encoder_shapes(shape, 14, 256).items()}
    model, image_size, assumed = describe(tensors, "released")
    assert (model.size, model.width, model.patch_size, image_size, assumed) == (size, None, 14, (224, 224), ())
    assert model.shape == shape
    model, _, assumed = describe(tensors, "released", heads=4)
    assert (model.shape, assumed) == (shape._replace(heads=4), ())


def test_a_width_of_64_a_head_is_assumed_aloud() -> None:
    with torch.device("meta"):
        tensors = {key: torch.empty(size) for key, size in encoder_shapes(Shape(128, 1, 2, 512), 8, 12).items()}
    model, image_size, assumed = describe(tensors, "unknown")
    assert (model.shape.heads, image_size) == (2, None)
    assert assumed == ("2 attention heads (the layout does not say; model.heads=N if there are others)",)


DRIVER = """
import json, sys
from depthjepa import cli
for line in json.loads(sys.argv[1]):
    sys.argv = ["depthjepa", *line]
    try:
        cli.main()
    except SystemExit as end:
        print("status", end.code, flush=True)
        print("status", end.code, file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_a_hub_id_is_read_from_the_cache_without_a_network(layouts: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(layouts["hf"], place / "snapshots" / commit)
    names = ["owner/name", "owner/unknown", "runs/nothing", "old--runs/run."]
    lines = [["convert", name, f"{number}.st", "--to", "safetensors"] for number, name in enumerate(names)]
    variables = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(lines)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | variables,
        check=False,
    )
    errors = done.stderr.split("\n")
    assert done.stdout.startswith("owner/name: layout hf, holds target encoder\n")
    assert errors[0] == "status 0", done.stderr
    assert differences(load_file(tmp_path / "0.st"), bare(fabricated()["target_encoder"])) == []
    for name, line, status in zip(names[1:], errors[1::2], errors[2::2], strict=False):
        assert line.startswith(f"depthjepa: there is no checkpoint {name} here")
        assert "a Hugging Face folder or hub id (facebook/ijepa_vith14_1k)" in line
        assert status == "status 2"
    assert len(errors) == 2 + 2 * len(names[1:]) and errors[-1] == ""
    assert [file.name for file in tmp_path.glob("*.st")] == ["0.st"]


def test_a_timm_name_is_read_from_the_cache_of_torch_hub(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(small, tmp_path / "hub" / "checkpoints" / "IN1K-vit.h.14-300e.pth.tar")
    name = "vit_huge_patch14_gap_224.in1k_ijepa"
    status, _, errors = call("convert", name, tmp_path / "out.safetensors", "--to", "safetensors")
    assert (status, errors) == (0, "")
    assert differences(load_file(tmp_path / "out.safetensors"), bare(fabricated()["target_encoder"])) == []
    for other in ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224", "vit_huge_patch14_gap_224"):
        status, _, errors = call("convert", other, tmp_path / "no", "--to", "timm")
        assert (status, errors.count("\n")) == (2, 1)
        assert f"{other} of timm is none of its I-JEPA models; those are " in errors
        assert name in errors


@pytest.mark.parametrize("name", ["runs/nothing", "nothing", "nothing.pth.tar", "runs/nothing.safetensors", "/nothing"])
def test_a_mistyped_path_is_told_that_there_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    status, _, errors = call("convert", name, tmp_path / "out", "--to", "hf")
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith(f"depthjepa: there is no checkpoint {name}: give a run folder, a checkpoint file")


def mapped_from(tensor: Tensor) -> str:
    """Path of the file that a tensor's memory is mapped from, empty for memory of its own."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = [*line.split(maxsplit=5), ""][:6]
        begin, end = (int(number, 16) for number in span.split("-"))
        if begin <= address < end:
            return path
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells where memory is mapped from")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_stay_in_their_file_and_an_encoder_is_built_from_them(layouts: dict[str, Path], layout: str) -> None:
    loaded = load_checkpoint(layouts[layout])
    file = layouts[layout] / "checkpoints" / "last.pt" if layout == "depthjepa" else stored(layouts[layout])
    joined = "attn.qkv" if layout == "hf" else "-"  # stored in three parts
    optimizer = loaded.optimizer or (loaded.reference or {}).get("opt", {})
    moments = [state["exp_avg"] for state in optimizer.get("state", {}).values()]
    assert bool(moments) is (layout in ("reference", "depthjepa"))
    for tensor in [value for key, value in loaded.model.items() if joined not in key] + moments:
        assert mapped_from(tensor) == str(file)
    encoder = loaded.encoder()
    for key, value in encoder.state_dict().items():
        assert value.data_ptr() == loaded.model[f"target_encoder.{key}"].data_ptr()
    assert mapped_from(torch.zeros(3)) != str(file)


@pytest.mark.parametrize("layout", [*LAYOUTS, "onnx"])
def test_nothing_is_written_over(small: Path, tmp_path: Path, call: Call, layout: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for name in ("file", "folder"):
        status, said, errors = call("convert", small, tmp_path / name, "--to", layout)
        assert (status, said) == (2, "")
        assert errors == f"depthjepa: {tmp_path / name} exists already: give a new path\n"
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "folder"]


@pytest.mark.parametrize("layout", ["reference", "safetensors", "hf", "timm", "depthjepa"])
def test_an_empty_folder_is_filled_or_refused(small: Path, tmp_path: Path, call: Call, layout: str) -> None:
    (tmp_path / "empty").mkdir()
    status, _, errors = call("convert", small, tmp_path / "empty", "--to", layout)
    if layout in ENDINGS:  # a file cannot stand where a folder is
        assert (status, errors.count("\n")) == (2, 1)
        assert "empty" in errors
        assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
    else:
        assert status == 0
        assert load_checkpoint(tmp_path / "empty").config.model.shape == SMALL


def test_a_file_is_recognised_whatever_its_name(small: Path, tmp_path: Path) -> None:
    """A target without the usual ending is written, so it is read as well."""
    for layout in ("reference", "safetensors"):
        convert(str(small), tmp_path / layout, layout)
        assert differences(encoder_of(tmp_path / layout), bare(fabricated()["target_encoder"])) == []


@pytest.mark.parametrize(("to", "near"), [("hff", "hf"), ("safetensor", "safetensors"), ("Timm", "timm")])
def test_an_unknown_layout_is_told_the_nearest(small: Path, tmp_path: Path, call: Call, to: str, near: str) -> None:
    status, _, errors = call("convert", small, tmp_path / "out", "--to", to)
    assert (status, errors.count("\n")) == (2, 1)
    assert f"there is no layout '{to}' (did you mean '{near}'?): choose from " in errors
    with pytest.raises(BadInput, match=f"did you mean '{near}'"):
        convert(str(small), tmp_path / "out", to)


def test_settings_are_for_other_layouts_and_are_checked(
    small: Path, layouts: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    status, _, errors = call("convert", layouts["depthjepa"], tmp_path / "out", "--to", "hf", "model.heads=2")
    assert (status, errors.count("\n")) == (2, 1)
    assert "model.heads=2 is for checkpoints of other layouts" in errors
    status, _, errors = call("convert", small, tmp_path / "out", "--to", "hf", "model.hedas=2")
    assert (status, errors.count("\n")) == (2, 1)
    assert "unknown key 'model.hedas' (did you mean 'model.heads'?)" in errors
    assert not (tmp_path / "out").exists()


def test_a_run_folder_made_from_another_layout_says_what_it_is(small: Path, tmp_path: Path) -> None:
    folder = written(small, tmp_path / "on", "depthjepa", "target", "data.root=photos", "train.epochs=4")
    config = build_config(RunFolder(folder).config())
    assert to_mapping(config) == to_mapping(load_checkpoint(folder).config)
    assert (config.name, config.data.root, config.train.epochs, config.masks.bias) == (
        "small",
        "photos",
        4,
        "reference",
    )


def test_a_predictor_with_more_outputs_than_the_reference_s_is_left_out(tmp_path: Path) -> None:
    run(write_flat(tmp_path / "flat", 8), tmp_path / "run", "train.steps=1", "loss.target_layers=[0.5,1]")
    said = convert(str(tmp_path / "run"), tmp_path / "out.pth.tar", "reference")
    assert any("left out" in line and "predictor" in line for line in said)
    assert load_checkpoint(tmp_path / "out.pth.tar", ["model.heads=2"]).part("predictor") == {}


def test_an_encoder_that_does_not_say_which_it_is_never_becomes_one_that_does(tmp_path: Path) -> None:
    torch.save(bare(fabricated()["encoder"]), tmp_path / "weights.pth")
    for layout in ("hf", "timm", "safetensors"):
        there = written(tmp_path / "weights.pth", tmp_path / layout, layout, "target", "model.heads=2")
        loaded = load_checkpoint(there)
        assert loaded.which("target") == loaded.which("context") == "single"
        assert "target" not in loaded.holds.replace("context encoders", "")
    config = json.loads((tmp_path / "hf-hf" / "config.json").read_text())
    assert "encoder" not in config["depthjepa"]


def test_what_is_assumed_is_a_warning_in_python(untrained: Path) -> None:
    with pytest.warns(UserWarning, match="assumed 3 attention heads"):
        depthjepa.load_encoder(write(untrained.parent / "wide.pth.tar", fabricated(shape=Shape(48, 2, 3, 96))))


def test_parameters_in_a_file_become_plain_tensors(tmp_path: Path) -> None:
    """As `dict(model.named_parameters())` is saved: the fixed positions must not become something to train."""
    tensors = {key: torch.nn.Parameter(value) for key, value in bare(fabricated()["encoder"]).items()}
    torch.save(tensors, tmp_path / "weights.pth")
    encoder = load_encoder(tmp_path / "weights.pth", settings=["model.heads=2"])
    assert "pos_embed" not in dict(encoder.named_parameters())
    assert not isinstance(encoder.pos_embed, torch.nn.Parameter)


@pytest.mark.parametrize(
    ("layout", "file", "content"),
    [
        ("hf", "config.json", {"num_hidden_layers": "two"}),
        ("hf", "preprocessor_config.json", {"image_mean": 0.5}),
        ("timm", "config.json", {"model_args": []}),
    ],
)
def test_json_that_its_library_would_not_write_is_one_message(
    layouts: dict[str, Path], tmp_path: Path, layout: str, file: str, content: dict[str, Any]
) -> None:
    folder = copied(layouts[layout], tmp_path / layout)
    change(folder / file, **content)
    with pytest.raises(BadInput, match=f"{file} is not as its library writes it"):
        load_checkpoint(folder)


def test_the_released_small_encoder_is_read_and_has_learned() -> None:
    """Its pooled features of images that it has never seen spend more dimensions than a random encoder's."""
    file = Path(__file__).parents[1] / "releases" / "pretrained-small.safetensors"
    saved = load_checkpoint(file)
    assert saved.config.model.heads == 4 and saved.config.data.size == (64, 64)
    assert file.stat().st_size < 6e6
    encoder, random = depthjepa.load_encoder(file), build_encoder(saved.config).eval()
    assert (encoder.width, encoder.patch_size) == (128, 8)
    images = render(np.arange(96), seed=5, size=(64, 64)).images / 255
    with torch.no_grad():
        ranks = [rank_me(each(each.normalise(images)).mean(1)) for each in (encoder, random)]
    assert ranks[0] > 2 * ranks[1]
