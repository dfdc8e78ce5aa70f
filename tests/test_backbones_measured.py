"""Networks of other libraries as rows of what measures: the command line on folders that the tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import depthjepa
from depthjepa.backbones.opening import load_encoder
from depthjepa.evaluation import depth_readouts
from depthjepa.evaluation.gathering import RANDOM
from depthjepa.faults import BadInput
from tiny_images import write_classes, write_flat, write_pairs
from tiny_runs import Call, run

timm = pytest.importorskip("timm", reason="the extra `teachers` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `teachers` is not installed")

CONVOLUTIONAL = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
VIT = {"embed_dim": 24, "depth": 4, "num_heads": 2, "img_size": 64, "patch_size": 16}


def timm_folder(root: Path, architecture: str, arguments: dict[str, Any]) -> Path:
    root.mkdir()
    network = timm.create_model(architecture, num_classes=0, **arguments)
    stated = {"input_size": [3, 64, 64], "mean": [0.4] * 3, "std": [0.3] * 3}
    config = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "pretrained_cfg": stated}
    (root / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, root / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("backbones")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=64, patch_size=16
    )
    transformers.Dinov2Model(config).save_pretrained(place / "dino")
    return {
        "convolutional": timm_folder(place / "convolutional", "convnext_atto", CONVOLUTIONAL),
        "timm": timm_folder(place / "timm", "vit_tiny_patch16_224", VIT),
        "transformers": place / "dino",
    }


@pytest.fixture(params=["convolutional", "timm", "transformers"])
def backbone(request: pytest.FixtureRequest, backbones: dict[str, Path]) -> Path:
    return backbones[request.param]


def test_probe_knn(backbone: Path, tmp_path: Path, call: Call) -> None:
    data, out = write_classes(tmp_path / "classes"), tmp_path / "knn.json"
    status, _, said = call("probe", backbone, "knn", "--data", data, "--out", out, "evaluation.neighbours=3")
    assert status == 0, said
    assert f"{backbone}: " in said and " of t" in said.splitlines()[0] and "taken: single encoder" in said
    table = json.loads(out.read_text())
    assert [row["name"] for row in table["rows"]] == ["chance", RANDOM, backbone.name]
    assert "64 px" in table["protocol"] and "no random" not in table["protocol"]
    assert "step" not in table and "small" not in json.dumps(table)  # nothing of a shape that it does not have


def test_embed_patches(backbone: Path, tmp_path: Path, call: Call) -> None:
    """They are what the encoder gives, on the grid of its stride, at a size that is not its own."""
    images, out = write_flat(tmp_path / "flat", 3, 64), tmp_path / "patches.npz"
    status, _, said = call("embed", backbone, images, "--out", out, "--patches", "data.image_size=[32,96]")
    assert status == 0, said
    with np.load(out) as stored:
        found, grid = torch.from_numpy(stored["embeddings"]), tuple(stored["grid"])
    encoder = load_encoder(backbone)
    assert grid == (32 // encoder.patch_size, 96 // encoder.patch_size)
    assert found.shape == (3, grid[0] * grid[1], encoder.width)
    assert found.std(1).min() > 0


def test_diagnose(backbone: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "diagnose.json"
    data = write_classes(tmp_path / "classes")
    status, _, said = call("diagnose", backbone, "--data", data, "--out", out)
    assert status == 0, said
    table = json.loads(out.read_text())
    assert (table["task"], [row["name"] for row in table["rows"]]) == ("diagnose", [RANDOM, backbone.name])


@pytest.mark.parametrize("readout", ["ridge", "linear4", "dpt"])
def test_probe_depth(backbone: Path, readout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All readouts of depth, also of stages whose widths and strides differ."""
    monkeypatch.setattr(depth_readouts, "BINS", 16)
    settings = [f"evaluation.depth_readout={readout}"] + ["evaluation.depth_steps=4"] * (readout != "ridge")
    data = write_pairs(tmp_path / "pairs", 10, 4)
    table = depthjepa.probe(backbone, "depth", data=data, settings=settings, say=lambda _: None)
    assert [row["name"] for row in table["rows"]][-2:] == [RANDOM, backbone.name]
    assert all(np.isfinite(row["r2_within"]) for row in table["rows"][-2:])


def test_the_sweep_of_linear_probes(backbone: Path, tmp_path: Path) -> None:
    settings = ["evaluation.linear_protocol=sweep", "evaluation.probe_epochs=2"]
    table = depthjepa.probe(
        backbone, "linear", data=write_classes(tmp_path / "classes"), settings=settings, say=lambda _: None
    )
    assert [row["name"] for row in table["rows"]] == ["chance", RANDOM, backbone.name]


@pytest.mark.slow
def test_features_are_drawn_beside_a_run(backbones: dict[str, Path], tmp_path: Path, call: Call) -> None:
    run(write_flat(tmp_path / "flat", 9, 56), tmp_path / "run", "train.steps=1", "data.image_size=64")
    out = tmp_path / "features.png"
    status, _, said = call(
        "show", "features", backbones["convolutional"], tmp_path / "run", backbones["timm"], "--out", out
    )
    assert (status, said) == (0, "") and out.stat().st_size > 0
    status, _, said = call("show", "features", backbones["timm"], "--out", out)
    assert status == 2 and "name a run of depthjepa beside" in said


REFUSALS = [
    (("probe", "timm", "decode", "--data", "pairs"), "decode takes a run of depthjepa, of which it reads more than"),
    (("diagnose", "timm", "--data", "pairs", "--gates"), "gates takes a run of depthjepa, of which it reads more than"),
    (("diagnose", "timm", "--data", "pairs", "--against", "run"), "--against takes a run of depthjepa"),
    (("predict", "timm", "pairs", "--out", "maps"), "predict takes a run of depthjepa"),
    (("probe", "timm", "depth", "--data", "pairs", "model.heads=3"), "model.heads=3 has no effect on"),
    (("probe", "timm", "depth", "--data", "pairs", "optim.lr=1"), "optim.* belongs to the checkpoint"),
    (
        ("probe", "timm", "depth", "--data", "pairs", "data.image_size=50"),
        "the nearest size that it divides is 48 x 48",
    ),
    (("convert", "timm", "there", "--to", "safetensors"), "class token"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSALS)
def test_what_a_network_of_another_library_cannot_do(
    arguments: tuple[str, ...], said: str, backbones: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    write_pairs(tmp_path / "pairs", 6, 3)
    places = {"timm": backbones["timm"], **{name: tmp_path / name for name in ("pairs", "maps", "there", "run")}}
    status, _, told = call(*(str(places.get(word, word)) for word in arguments))
    assert status == 2 and told.startswith("depthjepa: ") and said in told, told
    assert len(told.splitlines()) == 1


def test_an_onnx_file_has_no_random_row(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    network = torch.nn.Conv2d(3, 6, 8, stride=8).eval()
    torch.onnx.export(network, (torch.zeros(1, 3, 48, 48),), tmp_path / "maps.onnx", dynamo=True, verbose=False)
    said: list[str] = []
    table = depthjepa.probe(
        tmp_path / "maps.onnx", "depth", data=write_pairs(tmp_path / "pairs", 6, 3), say=said.append
    )
    names = [row["name"] for row in table["rows"]]
    assert names[-1] == "maps.onnx" and RANDOM not in names
    assert "no random encoder: nothing tells the initial weights" in table["protocol"]
    with (
        pytest.warns(UserWarning, match="assumed"),
        pytest.raises(BadInput, match=r"linear4 reads 4 layers, and maps\.onnx has 1"),
    ):
        depthjepa.probe(
            tmp_path / "maps.onnx", "depth", data=tmp_path / "pairs", settings=["evaluation.depth_readout=linear4"]
        )
