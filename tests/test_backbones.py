"""Networks of other libraries give what their own library gives, at two sizes, one of them not square.

Every test builds a small random network of a class, writes it as that class is published, and asks the library by
itself for the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthjepa.backbones.opening import load_encoder, open_backbone
from depthjepa.backbones.transformers import KINDS
from depthjepa.backbones.vit import OpenedCheckpoint
from depthjepa.faults import BadInput
from depthjepa.model.encoder import Encoder
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN, VisionTransformer

timm = pytest.importorskip("timm", reason="the extra `teachers` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `teachers` is not installed")

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def images_of(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))


def scattered(network: torch.nn.Module) -> torch.nn.Module:
    """The network with all numbers moved: initial ones (registers of 0, norms of 1) would hide what is left out."""
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and "running_var" not in name and "rope" not in name:
            value.add_(0.2 * torch.randn(value.shape, generator=draw))
    return network.eval()


def folder_of(root: Path, config: dict[str, Any], network: torch.nn.Module) -> Path:
    root.mkdir()
    (root / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, root / "model.safetensors")
    return root


@dataclass(frozen=True)
class Timm:
    architecture: str
    arguments: dict[str, Any]
    size: int
    other: tuple[int, int]
    prefix: int | None = None  # None: convolutional


VIT = {"embed_dim": 48, "depth": 5, "num_heads": 2, "img_size": 32, "patch_size": 8}
TIMM = {
    "class token": Timm("vit_tiny_patch16_224", VIT, 32, (24, 40), 1),
    "registers": Timm("vit_small_patch14_reg4_dinov2", VIT | {"num_heads": 4}, 32, (24, 40), 5),
    "layer scale": Timm("vit_small_patch14_dinov2", VIT, 32, (24, 40), 1),
    "no token": Timm("vit_base_patch16_siglip_gap_224", VIT, 32, (24, 40), 0),
    "rotary": Timm("eva02_tiny_patch14_224", VIT, 32, (24, 40), 1),
    "convnext": Timm("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}, 64, (64, 96)),
    "mobilenet": Timm("mobilenetv2_035", {"pad_type": "same"}, 64, (96, 64)),
    "resnet": Timm("resnet10t", {}, 64, (64, 96)),
}
LIBRARY_SIZES = {"dynamic_img_size": True}


@pytest.fixture(params=TIMM, scope="module")
def timm_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Timm, Path, Any]:
    case = TIMM[request.param]
    sizes = {} if case.prefix is None else LIBRARY_SIZES
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = scattered(timm.create_model(case.architecture, num_classes=0, **case.arguments, **sizes))
    config = {
        "architecture": case.architecture,
        "num_classes": 0,
        "model_args": case.arguments,
        "pretrained_cfg": {"input_size": [3, case.size, case.size], "mean": [0.4] * 3, "std": [0.3] * 3},
    }
    return case, folder_of(tmp_path_factory.mktemp("timm") / "small", config, network), network


@torch.no_grad()
def test_tokens_are_those_of_timm(timm_case: tuple[Timm, Path, Any]) -> None:
    case, folder, network = timm_case
    encoder = load_encoder(folder)
    assert isinstance(encoder, Encoder)
    for size in ((case.size, case.size), case.other):
        images = images_of(*size)
        if case.prefix is None:
            expected = network.forward_intermediates(images, intermediates_only=True)[-1].flatten(2).mT
        else:
            expected = network.forward_features(images)[:, case.prefix :]
        grid = size[0] // encoder.patch_size * (size[1] // encoder.patch_size)
        assert expected.shape == (2, grid, encoder.width)
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_layers_are_those_of_timm(timm_case: tuple[Timm, Path, Any]) -> None:
    """Blocks by hooks on them, then the final norm; stages by their own maps, averaged over the last one's cells."""
    case, folder, network = timm_case
    encoder, images = load_encoder(folder), images_of(*case.other)
    layers = [2, 0, -1]
    found = encoder.features(images, layers)
    if case.prefix is None:
        maps = network.forward_intermediates(images, intermediates_only=True)
        stride = [images.shape[2] // each.shape[2] for each in maps]
        pooled = [
            torch.nn.functional.avg_pool2d(each, encoder.patch_size // own)
            for each, own in zip(maps, stride, strict=True)
        ]
        expected = [pooled[layer].flatten(2).mT for layer in layers]
        assert encoder.depth == len(maps) and encoder.widths == tuple(each.shape[1] for each in maps)
    else:
        after = outputs_of(network.blocks, lambda: network.forward_features(images))
        expected = [network.norm(after[layer])[:, case.prefix :] for layer in layers]
        assert encoder.depth == 5 and set(encoder.widths) == {48}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def outputs_of(blocks: Any, run: Callable[[], Any]) -> list[Tensor]:
    """What each block gave while `run` ran."""
    seen: list[Tensor] = []

    def keep(block: Any, given: Any, found: Any) -> None:
        seen.append(found[0] if isinstance(found, tuple) else found)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_tokens_of_windows_are_those_of_timm(tmp_path: Path) -> None:
    """Swin: at the size that it was built for, and at another where the version of timm lets it."""
    arguments = {"depths": [2, 2], "embed_dim": 16, "num_heads": [2, 2], "img_size": 64, "window_size": 4}
    network = scattered(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **arguments))
    config = {
        "architecture": "swin_tiny_patch4_window7_224",
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 64, 64], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    encoder, images = load_encoder(folder_of(tmp_path / "swin", config, network)), images_of(64, 64)
    expected = network.forward_features(images).flatten(1, 2)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=0)
    try:
        free = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **arguments, **LIBRARY_SIZES).eval()
    except TypeError:
        with pytest.raises(BadInput, match="takes images of 64 x 64 px alone, not 48 x 80"):
            encoder(images_of(48, 80))
        return
    free.load_state_dict(network.state_dict(), strict=False)
    expected = free.forward_features(images_of(48, 80)).flatten(1, 2)
    torch.testing.assert_close(encoder(images_of(48, 80)), expected, atol=1e-5, rtol=0)


def test_facts_of_a_timm_folder(timm_case: tuple[Timm, Path, Any]) -> None:
    case, folder, _ = timm_case
    opened = open_backbone(folder)
    assert opened.saved is None and opened.assumed == () and opened.which("target") == "single"
    assert opened.config.name == "small" and opened.config.data.size == (case.size, case.size)
    assert opened.config.model.mean == (0.4, 0.4, 0.4) and opened.config.model.deviation == (0.3, 0.3, 0.3)
    assert opened.encoder("single").patch_size == opened.config.model.patch_size
    assert not opened.encoder("single").training  # type: ignore[attr-defined]


def test_the_random_encoder_is_the_same_architecture_drawn_by_the_seed(timm_case: tuple[Timm, Path, Any]) -> None:
    case, folder, _ = timm_case
    opened, images = open_backbone(folder), images_of(*case.other)
    trained = opened.encoder("single")
    first, again = opened.random(opened.config), opened.random(opened.config)
    assert first is not None and again is not None
    torch.testing.assert_close(first(images), again(images))
    assert first(images).shape == trained(images).shape
    assert not torch.allclose(first(images), trained(images), atol=0.1)


def test_a_mobilenet_trained_on_imagenet(real_data: Path) -> None:
    """Its own classifier, fed from our tokens, gives timm's classes."""
    folder = real_data / "backbones" / "mobilenetv2_imagenet"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    encoder, network = load_encoder(folder), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert encoder.mean == (0.5, 0.5, 0.5) and encoder.patch_size == 32
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = encoder(encoder.normalise(images)).mT.reshape(2, 320, 7, 7)
        logits = network.forward_head(network.bn2(network.conv_head(maps)))
        torch.testing.assert_close(logits, network((images - 0.5) / 0.5), atol=1e-4, rtol=0)


HUGGINGFACE: dict[str, tuple[str, dict[str, Any], int]] = {  # class, what its configuration has beside SMALL, prefixes
    "dinov2": ("Dinov2", {"mlp_ratio": 2}, 1),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}, 4),
    "dinov3_vit": ("DINOv3ViT", {"num_register_tokens": 2}, 3),
    "deit": ("DeiT", {}, 2),
    "vit": ("ViT", {}, 1),
    "vit_mae": ("ViTMAE", {"mask_ratio": 0.75}, 1),
    "ijepa": ("IJepa", {"layer_norm_eps": 1e-12}, 0),
    "clip_vision_model": ("CLIPVision", {}, 1),
    "siglip_vision_model": ("SiglipVision", {}, 0),
}
SIZES = ((32, 32), (24, 40))


def test_every_kind_is_tested() -> None:
    assert {*HUGGINGFACE, "clip", "siglip"} == KINDS.keys()


@pytest.fixture(params=HUGGINGFACE, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    name, more, _ = HUGGINGFACE[request.param]
    config = getattr(transformers, f"{name}Config")(**SMALL, **more)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = scattered(getattr(transformers, f"{name}Model")(config))
    folder = tmp_path_factory.mktemp("hf") / request.param
    network.save_pretrained(folder)
    return request.param, folder, network


def library(network: Any, model_type: str, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The library's last state, and what each block gave, by a call of its own; prefixes are still there."""
    asked: dict[str, Any] = {}
    if model_type not in ("dinov2", "dinov2_with_registers", "dinov3_vit"):  # which stretch without being asked
        asked["interpolate_pos_encoding"] = True
    if model_type == "vit_mae":
        network.config.mask_ratio = 0.0
        restored: list[Tensor] = []
        blocks = outputs_of(blocks_of(network), lambda: restored.append(network(images, **asked)))
        (found,) = restored
        order = found.ids_restore[..., None].expand(-1, -1, found.last_hidden_state.shape[-1])  # type: ignore[attr-defined]

        def sort(tokens: Tensor) -> Tensor:
            return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order)], 1)

        return sort(found.last_hidden_state), [sort(each) for each in blocks]  # type: ignore[attr-defined]
    results: list[Any] = []
    blocks = outputs_of(blocks_of(network), lambda: results.append(network(images, **asked)))
    return results[0].last_hidden_state, blocks


def blocks_of(network: Any) -> Any:
    """The list of blocks: the only one in these networks that is as long as their configuration says."""
    (found,) = (
        module
        for module in network.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == SMALL["num_hidden_layers"]
    )
    return found


def final_norm(network: Any) -> Any:
    wanted = ("layernorm", "norm", "post_layernorm")
    (found,) = (module for path, module in network.named_modules() if path.removeprefix("vision_model.") in wanted)
    return found


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_those_of_transformers(case: tuple[str, Path, Any], size: tuple[int, int]) -> None:
    model_type, folder, network = case
    prefix = HUGGINGFACE[model_type][2]
    images = images_of(*size)
    state, blocks = library(network, model_type, images)
    if model_type == "clip_vision_model":  # whose class norms the pooled token alone
        state = final_norm(network)(state)
    with pytest.warns(UserWarning, match="assumed ImageNet's normalisation"):
        encoder = load_encoder(folder)
    assert isinstance(encoder, Encoder) and not isinstance(encoder, VisionTransformer)
    assert (encoder.width, encoder.depth, encoder.patch_size) == (48, 5, 8)
    assert (encoder.mean, encoder.deviation) == (IMAGENET_MEAN, IMAGENET_DEVIATION)
    assert state.shape[1] - prefix == size[0] // 8 * (size[1] // 8)
    torch.testing.assert_close(encoder(images), state[:, prefix:], atol=1e-5, rtol=0)
    layers = [3, 0, -1]
    expected = [final_norm(network)(blocks[layer])[:, prefix:] for layer in layers]
    for one, other in zip(encoder.features(images, layers), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_random_encoder_of_transformers(case: tuple[str, Path, Any]) -> None:
    _, folder, _ = case
    opened, images = open_backbone(folder), images_of(24, 40)
    first, again = opened.random(opened.config), opened.random(opened.config)
    assert first is not None and again is not None
    torch.testing.assert_close(first(images), again(images))
    assert not torch.allclose(first(images), opened.encoder("single")(images), atol=0.1)


def test_a_damaged_folder_is_refused_with_what_is_missing(case: tuple[str, Path, Any], tmp_path: Path) -> None:
    _, folder, _ = case
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    gone = next(key for key in weights if "fc1" in key or "intermediate" in key or "up_proj" in key)
    save_file({key: value for key, value in weights.items() if key != gone}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"does not hold the .*Model that its config.json says: missing"):
        open_backbone(tmp_path)


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_the_vision_tower_is_taken_out_of_both(name: str, tmp_path: Path) -> None:
    text = {key: value for key, value in SMALL.items() if key not in ("image_size", "patch_size")} | {"vocab_size": 64}
    text |= {"max_position_embeddings": 8, "projection_size": 48, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=SMALL)
    network = scattered(getattr(transformers, f"{name}Model")(config))
    network.save_pretrained(tmp_path)
    opened, images = open_backbone(tmp_path), images_of(32, 32)
    assert "left out" in opened.found
    with torch.no_grad():
        state = network.vision_model(images).last_hidden_state
        if name == "CLIP":
            state = network.vision_model.post_layernorm(state)[:, 1:]
        torch.testing.assert_close(opened.encoder("single")(images), state, atol=1e-5, rtol=0)


def test_a_classifier_or_a_decoder_is_left_out(tmp_path: Path) -> None:
    network = scattered(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)))
    network.save_pretrained(tmp_path)
    opened, images = open_backbone(tmp_path), images_of(32, 32)
    assert opened.found == "ViTModel of transformers, left out classifier. (2)"
    with torch.no_grad():
        state = network.vit(images).last_hidden_state[:, 1:]
        torch.testing.assert_close(opened.encoder("single")(images), state, atol=1e-5, rtol=0)


PROCESSORS = [
    ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
    ({"image_mean": 0.5, "image_std": 0.25}, (0.5,) * 3, (0.25,) * 3),
    ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
    ({"do_rescale": False, "image_mean": [102.0] * 3, "image_std": [51.0] * 3}, (0.4,) * 3, (0.2,) * 3),
    ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, (0.5,) * 3, (0.5,) * 3),
]


@pytest.mark.parametrize(("stated", "mean", "deviation"), PROCESSORS)
def test_normalisation_is_that_of_the_processor(
    stated: dict[str, Any], mean: tuple[float, ...], deviation: tuple[float, ...], tmp_path: Path
) -> None:
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    opened = open_backbone(tmp_path)
    assert opened.assumed == ()
    assert opened.config.model.mean == pytest.approx(mean) and opened.config.model.deviation == pytest.approx(deviation)


def test_an_ijepa_that_computes_as_ours_stays_ours(tmp_path: Path) -> None:
    network = transformers.IJepaModel(transformers.IJepaConfig(**SMALL, layer_norm_eps=1e-6), add_pooling_layer=False)
    stored = {  # under the names that the files have
        key.replace("layers.", "encoder.layer.", 1) if key.startswith("layers.") else key: value
        for key, value in network.state_dict().items()
    }
    network.save_pretrained(tmp_path)
    assert stored
    assert isinstance(open_backbone(tmp_path), OpenedCheckpoint)


class Grid(torch.nn.Module):
    """A network with patches of 8 px whose tokens are told apart by their places."""

    def __init__(self, prefix: int | None, width: int = 6) -> None:
        super().__init__()
        self.embed, self.prefix = torch.nn.Conv2d(3, width, 8, stride=8), prefix

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.embed(images)
        if self.prefix is None:
            return maps
        tokens = maps.flatten(2).mT
        return tokens.mean(1), torch.cat([tokens.new_zeros(len(tokens), self.prefix, tokens.shape[2]), tokens], 1)


def exported(path: Path, network: torch.nn.Module, *, sizes: bool, batch: bool = True) -> Path:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    free: dict[int, Any] = {0: torch.export.Dim("batch")} if batch else {}
    free |= {2: 8 * torch.export.Dim("rows"), 3: 8 * torch.export.Dim("columns")} if sizes else {}
    torch.onnx.export(
        network.eval(),
        (images_of(32, 32),),
        path,
        input_names=["images"],
        dynamo=True,
        dynamic_shapes=(free,),
        external_data=False,
        verbose=False,
    )
    return path


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("prefix", "sizes", "batch"), [(None, True, True), (1, True, True), (4, False, True), (0, False, False)]
)
def test_tokens_are_those_of_an_onnx_file(prefix: int | None, sizes: bool, batch: bool, tmp_path: Path) -> None:
    network = Grid(prefix)
    opened = open_backbone(exported(tmp_path / "grid.onnx", network, sizes=sizes, batch=batch))
    encoder = opened.encoder("single")
    assert isinstance(encoder, Encoder) and (encoder.depth, encoder.width, encoder.patch_size) == (1, 6, 8)
    assert opened.random(opened.config) is None and opened.saved is None
    assert opened.config.data.size == ((224, 224) if sizes else (32, 32))
    assert opened.assumed[0].startswith("ImageNet's normalisation")
    for height, width, count in ((32, 32, 3), *(((24, 40, 2),) if sizes else ())):
        images = images_of(height, width, count)
        torch.testing.assert_close(encoder(images), network.embed(images).flatten(2).mT, atol=1e-5, rtol=0)
    if not sizes:
        with pytest.raises(BadInput, match="takes images of 32 x 32 px alone, not 24 x 40"):
            encoder(images_of(24, 40))


@pytest.fixture
def convolutional(tmp_path: Path) -> Iterator[Path]:
    case = TIMM["convnext"]
    network = timm.create_model(case.architecture, num_classes=0, **case.arguments)
    config = {"architecture": case.architecture, "num_classes": 0, "model_args": case.arguments, "pretrained_cfg": {}}
    yield folder_of(tmp_path / "convnext", config, network)


def test_sizes_that_the_stride_does_not_divide_are_refused_with_the_nearest(convolutional: Path) -> None:
    with pytest.raises(BadInput, match="32 px do not divide images of 100 x 64 px: the nearest size is 96 x 64"):
        load_encoder(convolutional)(images_of(100, 64))


def test_a_size_of_training_that_the_stride_does_not_divide_is_rounded_and_told(convolutional: Path) -> None:
    config = json.loads((convolutional / "config.json").read_text())
    config["pretrained_cfg"] = {"input_size": [3, 240, 240], "mean": [0.5] * 3, "std": [0.5] * 3}
    (convolutional / "config.json").write_text(json.dumps(config))
    opened = open_backbone(convolutional)
    assert opened.config.data.size == (256, 256)
    assert opened.assumed == ("images of 256 x 256 px (trained at 240 x 240; its stride is 32)",)


def test_a_network_that_takes_one_size_alone_says_so(tmp_path: Path) -> None:
    arguments = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 64}
    network = timm.create_model("vit_relpos_small_patch16_224", num_classes=0, **arguments)
    config = {
        "architecture": "vit_relpos_small_patch16_224",
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 64, 64], "fixed_input_size": True},
    }
    encoder = load_encoder(folder_of(tmp_path / "relative", config, network))
    assert encoder(images_of(64, 64)).shape == (2, 16, 16)
    with pytest.raises(BadInput, match="takes images of 64 x 64 px alone, not 128 x 64"):
        encoder(images_of(128, 64))


def test_a_network_without_a_grid_is_refused(tmp_path: Path) -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    file = exported(tmp_path / "flat.onnx", flat, sizes=False)
    with pytest.raises(BadInput, match=r"gives .* \[1, 10\] for images of 32 x 32 px, and no grid of features"):
        open_backbone(file)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "timm:vit_tny_patch16_224",
            r"no architecture 'vit_tny_patch16_224' \(did you mean 'vit_tiny_patch16_224'\?\)",
        ),
        ("timm:vit_tiny_patch16_224.nobody", "those of vit_tiny_patch16_224 are vit_tiny_patch16_224.augreg_in21k,"),
        ("timm:test_nothing", "has no architecture 'test_nothing'"),
        ("gone.onnx", "there is no file gone.onnx"),
    ],
)
def test_names_that_nothing_has_are_refused(source: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        open_backbone(source)


def test_a_name_of_timm_without_network_names_a_folder_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BadInput, match=r"the weights of timm:vit_tiny_patch16_224 cannot be fetched .*give a timm folder"
    ):
        open_backbone("timm:vit_tiny_patch16_224")


def test_a_hub_id_and_a_name_are_fetched_once(convolutional: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`huggingface_hub` is asked for the repository that each is published in; what lies there is read by its kind."""
    asked: list[str] = []

    def fetched(name: str, **_: Any) -> str:
        asked.append(name)
        return str(convolutional)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    images = images_of(64, 64)
    expected = load_encoder(convolutional)(images)
    for source, repository, name in (
        ("somebody/tiny-convnext", "somebody/tiny-convnext", "tiny-convnext"),
        ("timm:convnext_atto.d2_in1k", "timm/convnext_atto.d2_in1k", "convnext_atto.d2_in1k"),
    ):
        for _ in range(2):
            opened = open_backbone(source)
            assert opened.config.name == name
            torch.testing.assert_close(opened.encoder("single")(images), expected)
        assert asked == [repository]
        asked.clear()


def test_a_hub_id_without_network_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="there is no checkpoint nobody/nothing here, and no hub gave a model"):
        open_backbone("nobody/nothing")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "dinov4"}, r"'dinov4' \(did you mean 'dinov2'\?\), which nothing here reads"),
        ({"model_type": "bert"}, "those that are read are dinov2, dinov2_with_registers,"),
        ({"architecture": "vit_tny_patch16_224"}, r"did you mean 'vit_tiny_patch16_224'"),
        ({"architecture": "convnext_atto", "num_classes": 0}, "timm cannot build .* with its weights"),
    ],
)
def test_folders_that_nobody_reads_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=said):
        open_backbone(tmp_path)


def test_weights_that_do_not_fit_are_refused(convolutional: Path) -> None:
    config = json.loads((convolutional / "config.json").read_text())
    config["model_args"]["dims"] = [8, 16, 24, 40]
    (convolutional / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"timm cannot build .*convnext with its weights: .*size mismatch"):
        open_backbone(convolutional)


def test_a_shape_is_not_to_be_set(convolutional: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.heads=3 has no effect on .*convnext"):
        load_encoder(convolutional, settings=["model.heads=3"])
    with pytest.raises(BadInput, match=r"layers .* are not all in -4\.\.3"):
        load_encoder(convolutional).features(images_of(32, 32), [4])
