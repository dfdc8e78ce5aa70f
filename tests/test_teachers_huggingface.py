"""Depth networks of transformers as teachers: small random models of the real classes, saved and loaded back."""

import functools
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

import depthjepa
from depthjepa.config.reading import build_config
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.target import Teacher, fit_whitening, on_cells
from depthjepa.guidance.teachers.transformers_depth import load_huggingface
from depthjepa.method import build_teacher

transformers = pytest.importorskip("transformers", reason="these teachers need the extra `teachers`")

WIDTH, DEPTH = 24, 6
VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "initializer_range": 0.1,  # with the default a random network gives constants
}
BACKBONE = VIT | {"out_indices": [1, 2, 4, 6], "reshape_hidden_states": False}
NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "initializer_range": 0.2}
ANYTHING = NECK | {"reassemble_hidden_size": WIDTH, "head_hidden_size": 8}
BINS = {"n_bins": 8, "min_depth": 1e-3, "max_depth": 10.0}
# At the default temperature of 0.02 a random head turns rounding into 1e-3.
ZOE = {
    "min_temp": 10.0,
    "bottleneck_features": 8,
    "num_relative_features": 8,
    "bin_embedding_dim": 8,
    "num_attractors": [4, 2, 2, 1],
}
CLASSIFIER = {f"patch_transformer_{key}": 128 for key in ("hidden_size", "intermediate_size")}


def dinov2(kind="Dinov2Config", **changed):
    return getattr(transformers, kind)(**BACKBONE | {"image_size": 56, "patch_size": 14, "mlp_ratio": 2} | changed)


def beit():
    return transformers.BeitConfig(
        **BACKBONE, image_size=64, patch_size=16, intermediate_size=32, use_relative_position_bias=True
    )


def swin():
    sizes = {"embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2, "image_size": 64}
    return transformers.Swinv2Config(**sizes, initializer_range=0.1, out_indices=[1, 2, 3, 4])


def hybrid():
    stages = {"out_features": ["stage1", "stage2", "stage3"], "embedding_dynamic_padding": True}
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 32, 32, 32], "depths": [1, 1, 1], "num_groups": 4}
    bit = transformers.BitConfig(**stages, **sizes, global_padding="same", layer_type="bottleneck")
    neck = NECK | {"neck_hidden_sizes": [32, 32, 8, 8], "backbone_featmap_shape": [1, 32, 4, 4]}
    vit = VIT | {"intermediate_size": 32, "initializer_range": 0.2}
    return transformers.DPTConfig(
        **neck | vit, is_hybrid=True, backbone_config=bit, image_size=64, backbone_out_indices=[0, 1, 3, 5]
    )


def depth_pro():
    encoder = {"image_size": 32, "patch_size": 8, "num_hidden_layers": DEPTH, "out_indices": None}
    widths = {"intermediate_feature_dims": [8, 8], "scaled_images_feature_dims": [8, 8, 8], "fusion_hidden_size": 8}
    encoders = {f"{part}_model_config": dinov2(**encoder) for part in ("image", "patch", "fov")}
    return transformers.DepthProConfig(
        **widths, **encoders, patch_size=32, intermediate_hook_ids=[3, 1], use_fov_model=True, initializer_range=0.1
    )


def zoe(*bins):
    return transformers.ZoeDepthConfig(
        backbone_config=beit(),
        bin_configurations=list(bins),
        patch_transformer_num_attention_heads=2,
        num_patch_transformer_layers=4,
        **ZOE,
        **CLASSIFIER,
        **NECK | {"initializer_range": 0.3},
    )


CONFIGS = {
    "anything": lambda: transformers.DepthAnythingConfig(backbone_config=dinov2(), **ANYTHING),
    "anything-metric": lambda: transformers.DepthAnythingConfig(
        backbone_config=dinov2(), depth_estimation_type="metric", max_depth=20, **ANYTHING
    ),
    "dpt": lambda: transformers.DPTConfig(
        **NECK | VIT | {"initializer_range": 0.2},
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 3, 5],
    ),
    "dpt-hybrid": hybrid,
    "dpt-beit": lambda: transformers.DPTConfig(backbone_config=beit(), **NECK),
    "dpt-swin": lambda: transformers.DPTConfig(backbone_config=swin(), **NECK | {"neck_hidden_sizes": [4, 8, 16, 32]}),
    "dpt-dinov2": lambda: transformers.DPTConfig(backbone_config=dinov2(), **NECK),
    "zoe": lambda: zoe(BINS),
    "zoe-several": lambda: zoe(BINS | {"name": "nyu"}, BINS | {"name": "kitti", "max_depth": 80.0}),
    "depth-pro": depth_pro,
    "glpn": lambda: transformers.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 24],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
        initializer_range=0.2,
    ),
    "prompted": lambda: transformers.PromptDepthAnythingConfig(backbone_config=dinov2(), **ANYTHING),
}
DEPTHS = [name for name in CONFIGS if name != "prompted"]
FEATURES = [name for name in CONFIGS if name != "dpt-swin"]

# What `predicted_depth` says of depths [m]: their inverse up to scale and shift, their inverse up to a known scale,
# themselves.
INVERSE, CANONICAL, METRES = lambda metres: 3 / metres + 0.5, lambda metres: 0.8 / metres, lambda metres: metres
PREDICTED = {
    "anything": INVERSE,
    "anything-metric": METRES,
    "dpt": INVERSE,
    "dpt-hybrid": INVERSE,
    "dpt-beit": INVERSE,
    "dpt-swin": INVERSE,
    "dpt-dinov2": METRES,
    "zoe": METRES,
    "zoe-several": METRES,
    "depth-pro": CANONICAL,
    "glpn": METRES,
}
UNITS = {
    INVERSE: "inverse depth of unknown scale and shift",
    CANONICAL: "inverse depth [1/m] at a focal length of one image width",
    METRES: "-log(depth / m)",
}

# Sides [px] that each takes for 40 x 75 px, and the stride and width of its features two thirds deep.
SIDES = {
    "anything": (42, 84),
    "anything-metric": (42, 84),
    "dpt": (96, 96),
    "dpt-hybrid": (64, 64),
    "dpt-beit": (64, 96),
    "dpt-swin": (64, 96),
    "dpt-dinov2": (56, 84),
    "zoe": (64, 96),
    "zoe-several": (64, 96),
    "depth-pro": (128, 128),
    "glpn": (64, 96),
    "prompted": (42, 84),
}
FEATURE_SIDES = SIDES | {"dpt": (64, 96), "depth-pro": (32, 32)}
STRIDES = dict.fromkeys(CONFIGS, 16) | dict.fromkeys(("anything", "anything-metric", "dpt-dinov2", "prompted"), 14)
STRIDES |= {"depth-pro": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of saved models by their names, written when first asked for."""
    root = tmp_path_factory.mktemp("networks")

    def saved(name):
        if not (root / name).exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                network = transformers.AutoModelForDepthEstimation.from_config(CONFIGS[name]())
                raise_heads(network, name)
            network.save_pretrained(root / name)
        return root / name

    return saved


@pytest.fixture(scope="module")
def shared(folder):
    """Teachers that a test only asks, loaded once."""
    return functools.cache(lambda name, output="depth": load_huggingface(folder(name), output=output))


def raise_heads(network, name):
    """Keep the last ReLU of a random head from answering 0 everywhere."""
    if name.startswith("dpt"):
        network.head.head[4].bias.data.fill_(1.0)
    elif name == "anything":
        network.head.conv3.bias.data.fill_(1.0)


def images(count=2, height=40, width=75):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def batch_of(pictures):
    count = len(pictures)
    return Batch(torch.arange(count), pictures, None, torch.ones(count), torch.full((count,), -1))


def close(found, expected, share=1e-4):
    """Compare within a share of what the values vary, and within float32."""
    error = max(share * expected.std().item(), 2e-6 * expected.abs().max().item())
    assert expected.std() > 2 * error
    torch.testing.assert_close(found, expected, atol=error, rtol=0)


def seen_by(teacher):
    """What its network is given, one tensor a call."""
    seen = []
    teacher.network.register_forward_pre_hook(
        lambda _network, _arguments, named: seen.append(named["pixel_values"]), with_kwargs=True
    )
    return seen


# Depth.


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_has_one_channel_at_the_sides_that_the_network_takes(folder, shared, name):
    teacher = shared(name)
    assert isinstance(teacher, Teacher)
    described = teacher.describe()
    assert (described.channels, described.stride, described.unit) == (1, 1, UNITS[PREDICTED[name]])
    assert described.direction == "larger = nearer"
    assert not described.stochastic and not described.needs_depth
    assert described.name == json.loads((folder(name) / "config.json").read_text())["model_type"]
    found = teacher.latents(images())
    assert found.shape == (2, 1, *SIDES[name])
    assert found.isfinite().all()
    assert (found.std((2, 3)) > 1e-5).all()
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("name", DEPTHS)
def test_what_is_near_is_larger(folder, name, monkeypatch):
    """The upper half stands at 1 m, the lower at 4 m, said in the class's own unit."""
    teacher = load_huggingface(folder(name))
    metres = torch.full(SIDES[name], 4.0)
    metres[: len(metres) // 2] = 1.0

    def planted(pixel_values):
        return SimpleNamespace(predicted_depth=PREDICTED[name](metres).expand(len(pixel_values), -1, -1))

    monkeypatch.setattr(teacher.network, "forward", planted)
    found = teacher.latents(images())
    near, far = found.chunk(2, 2)
    assert near.min() > far.max()
    if PREDICTED[name] is METRES:
        torch.testing.assert_close((-found).exp(), metres.expand_as(found))


def test_depth_pro_agrees_with_its_own_processor_on_what_is_near(shared):
    """Its `predicted_depth` is no depth: only its processor's answer is."""
    teacher = shared("depth-pro")
    processor = transformers.DepthProImageProcessor()
    found = teacher.latents(images())
    output = SimpleNamespace(predicted_depth=found[:, 0], field_of_view=None)
    for answer, ours in zip(processor.post_process_depth_estimation(output), found[:, 0], strict=True):
        torch.testing.assert_close(1 / answer["predicted_depth"], ours.clamp(1e-4, 1e4))


@pytest.mark.parametrize(("name", "last"), [("anything-metric", "head.conv3"), ("glpn", "head.head.2")])
def test_the_metric_heads_answer_up_to_max_depth_in_metres(folder, name, last):
    teacher = load_huggingface(folder(name))
    layer = teacher.network.get_submodule(last)
    layer.bias.data.fill_(1e3)
    farthest = teacher.network.config.max_depth
    torch.testing.assert_close(teacher.latents(images()).exp(), torch.full((2, 1, *SIDES[name]), 1 / farthest))
    layer.bias.data.fill_(-1e3)
    # A distance of zero stays finite.
    torch.testing.assert_close(teacher.latents(images()).exp(), torch.full((2, 1, *SIDES[name]), 1e3))


@pytest.mark.parametrize("name", DEPTHS)
def test_an_image_has_the_same_depth_alone_and_in_a_batch(shared, name):
    teacher, pictures = shared(name), images(3)
    together = teacher.latents(pictures)
    for index in range(3):
        close(together[index : index + 1], teacher.latents(pictures[index : index + 1]))


def test_images_of_a_batch_do_not_vote_for_each_others_head(folder):
    """ZoeDepth's several heads are chosen by all images of a batch together; here two images disagree."""
    teacher = load_huggingface(folder("zoe-several"))
    pictures = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    with torch.no_grad():
        vote = torch.cat([teacher.network(pixel_values=each).domain_logits for each in (pictures * 2 - 1).split(1)])
        lead = vote[:, 0] - vote[:, 1]
        teacher.network.metric_head.mlp_classifier.linear2.bias[0] -= lead.mean()
        raw = -teacher.network(pixel_values=pictures * 2 - 1).predicted_depth.clamp(min=1e-3).log()
    together = teacher.latents(pictures)[:, 0]
    alone = torch.cat([teacher.latents(each)[:, 0] for each in pictures.split(1)])
    close(together, alone)
    assert (raw - alone).abs().max() > 1e-2  # the network itself does let them vote


@pytest.mark.parametrize("name", DEPTHS)
def test_crops_become_latents_on_the_grid(folder, name):
    """7 x 11 patches: 14 x 22 cells of 8 px; the crops' own size does not matter to the sides."""
    teacher = load_huggingface(folder(name))
    seen = seen_by(teacher)
    batch = batch_of(images(2, 98, 154))
    latents = teacher.batch_latents(batch, (14, 22))
    sides = teacher.sides(14 * 8, 22 * 8)
    assert {tuple(each.shape[-2:]) for each in seen} == {sides}
    assert latents.values.shape == (2, 1, *sides)
    gridded = on_cells(teacher, batch, (14, 22))
    assert gridded.values.shape == (2, 1, 14, 22)
    assert gridded.valid.all()
    resized = interpolate(batch.images, sides, mode="bilinear", antialias=True, align_corners=False)
    close(latents.values, teacher.latents(resized))


def test_sides_go_up_to_the_next_multiple(shared):
    anything, dpt = shared("anything"), shared("dpt")
    assert anything.sides(28, 29) == (28, 42)
    assert anything.sides(1, 1) == (14, 14)
    assert dpt.sides(64, 32) == (64, 64)
    assert dpt.sides(65, 32) == (96, 96)


def test_the_shorter_side_can_be_chosen(folder):
    teacher = load_huggingface(folder("anything"), side=30)
    assert teacher.batch_latents(batch_of(images()), (4, 8)).values.shape == (2, 1, 42, 70)
    features = load_huggingface(folder("anything"), side=30, output="features")
    assert features.batch_latents(batch_of(images()), (8, 4)).values.shape == (2, WIDTH, 5, 3)


@pytest.mark.parametrize(("name", "output"), [("anything", "depth"), ("glpn", "depth"), ("dpt", "features")])
def test_its_latents_are_whitened_like_any_teachers(shared, name, output):
    teacher = shared(name, output)
    batches = [batch_of(part) for part in images(6, 48, 64).split(3)]
    whitening, floor = fit_whitening(teacher, batches, (6, 8))
    assert whitening.mean.shape == (teacher.describe().channels, 6, 8)
    white = torch.cat([whitening.apply(on_cells(teacher, batch, (6, 8))).values for batch in batches])
    torch.testing.assert_close(white.mean(0), torch.zeros_like(white[0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.std((0, 2, 3), correction=0), torch.ones(white.shape[1]), atol=1e-2, rtol=0)
    assert 0.2 < floor < 1


# What the network is given.


PROCESSORS = {
    "released Depth Anything": ("anything", "DPTImageProcessor", {"image_mean": [0.485, 0.456, 0.406]}),
    "one number": ("dpt", "DPTImageProcessor", {"image_mean": [0.4] * 3, "image_std": [0.2] * 3}),
    "released DPT on DINOv2, from 0 to 255": (
        "dpt-dinov2",
        "DPTImageProcessor",
        {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
    ),
    "not normalised": ("glpn", "GLPNImageProcessor", {}),
    "its own factor": ("glpn", "GLPNImageProcessor", {"rescale_factor": 1 / 100}),
    "ZoeDepth": ("zoe", "ZoeDepthImageProcessor", {"do_pad": False}),
    "Depth Pro": ("depth-pro", "DepthProImageProcessor", {}),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_pixels_are_those_of_the_processor_beside_the_model(folder, tmp_path, case):
    name, kind, options = PROCESSORS[case]
    processor = getattr(transformers, kind)(**options)
    for file in folder(name).iterdir():
        (tmp_path / file.name).symlink_to(file)
    processor.save_pretrained(tmp_path)
    teacher = load_huggingface(tmp_path)
    seen = seen_by(teacher)
    pictures = (images(1, *teacher.sides(64, 64)) * 255).to(torch.uint8)
    teacher.latents(pictures / 255)
    expected = processor(images=list(pictures), do_resize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "white"),
    [
        ("anything", [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("dpt-dinov2", [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("dpt", [1.0] * 3),
        ("dpt-hybrid", [1.0] * 3),
        ("dpt-beit", [1.0] * 3),
        ("zoe", [1.0] * 3),
        ("depth-pro", [1.0] * 3),
        ("glpn", [1.0] * 3),
    ],
)
def test_without_a_processor_the_class_decides(folder, name, white):
    teacher = load_huggingface(folder(name))
    seen = seen_by(teacher)
    teacher.latents(torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.tensor(white))
    teacher.latents(torch.zeros(1, 3, 64, 64))
    assert (seen[-1].mean() == 0) == (name == "glpn")


def test_a_training_steps_bf16_does_not_reach_the_teacher(shared):
    teacher = shared("anything")
    expected = teacher.latents(images())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.latents(images()), expected)


# Features.


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_the_models_own_hidden_state_on_its_grid(folder, name):
    """Two thirds deep by default, and without class token; the encoder is all that is kept."""
    teacher = load_huggingface(folder(name), output="features")
    described, pyramid = teacher.describe(), name == "glpn"
    state = 2 if pyramid else 4  # GLPN has no state of the embedding: its third of four stages
    assert described.name.endswith(f" layer {state if pyramid else state - 1}")
    assert (described.channels, described.stride) == (16 if pyramid else WIDTH, STRIDES[name])
    assert described.direction == "undirected"
    seen = seen_by(teacher)
    found = teacher.latents(images())
    height, width = FEATURE_SIDES[name]
    assert found.shape == (2, described.channels, height // described.stride, width // described.stride)
    whole = transformers.AutoModelForDepthEstimation.from_pretrained(folder(name))
    assert sum(each.numel() for each in teacher.network.parameters()) < sum(each.numel() for each in whole.parameters())
    pixels = seen[0]
    with torch.no_grad():
        if name == "depth-pro":  # it halves twice what we gave its image encoder at once
            pixels = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
        if name == "dpt":  # the encoder takes what the neck refuses
            expected = whole.dpt(pixels, output_hidden_states=True).hidden_states[state]
        else:
            expected = whole(pixels, output_hidden_states=True).hidden_states[state]
    if not pyramid:
        expected = expected[:, 1:].reshape(2, *found.shape[-2:], WIDTH).permute(0, 3, 1, 2)
    close(found, expected)


def test_any_layer_can_be_chosen(folder):
    pictures = images()
    found = [load_huggingface(folder("anything"), output="features", layer=layer) for layer in (0, 5, -1, -6)]
    first, last, also_last, also_first = (teacher.latents(pictures) for teacher in found)
    assert torch.equal(last, also_last) and torch.equal(first, also_first)
    assert not torch.allclose(first, last)
    assert [teacher.describe().name for teacher in found[1:3]] == ["depth_anything layer 5"] * 2
    stage = load_huggingface(folder("glpn"), output="features", layer=0).describe()
    assert (stage.channels, stage.stride) == (8, 4)


def test_registers_are_left_out_too(tmp_path):
    backbone = dinov2("Dinov2WithRegistersConfig", num_register_tokens=4)
    config = transformers.DepthAnythingConfig(backbone_config=backbone, **ANYTHING)
    transformers.AutoModelForDepthEstimation.from_config(config).save_pretrained(tmp_path)
    teacher = load_huggingface(tmp_path, output="features", layer=3)
    seen = seen_by(teacher)
    found = teacher.latents(images())
    with torch.no_grad():
        state = teacher.network(pixel_values=seen[0], output_hidden_states=True).hidden_states[4]
    assert state.shape[1] == 1 + 4 + 3 * 6
    assert torch.equal(found.flatten(2).transpose(1, 2), state[:, 5:])


@pytest.mark.parametrize("name", ["anything", "glpn", "zoe-several", "depth-pro"])
def test_an_image_has_the_same_features_alone_and_in_a_batch(shared, name):
    teacher, pictures = shared(name, "features"), images(3)
    together = teacher.latents(pictures)
    assert together.isfinite().all()
    for index in range(3):
        close(together[index : index + 1], teacher.latents(pictures[index : index + 1]))


# Loading.


def test_it_is_frozen_and_leaves_the_random_state_alone(folder):
    before = torch.get_rng_state()
    teacher = load_huggingface(folder("glpn"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not teacher.network.training
    assert not any(each.requires_grad for each in teacher.network.parameters())
    assert teacher.to(torch.device("cpu")) is teacher


def test_half_weights_are_computed_in_float32(folder, tmp_path):
    network = transformers.AutoModelForDepthEstimation.from_pretrained(folder("anything"), dtype=torch.float16)
    network.save_pretrained(tmp_path)
    teacher = load_huggingface(tmp_path)
    assert {each.dtype for each in teacher.network.parameters()} == {torch.float32}
    close(teacher.latents(images()), load_huggingface(folder("anything")).latents(images()), 0.1)


def test_depth_pro_leaves_its_field_of_view_on_the_disk(folder):
    assert any(key.startswith("fov_model") for key in load_file(folder("depth-pro") / "model.safetensors"))
    assert load_huggingface(folder("depth-pro")).network.fov_model is None


def without(source, target, *parts):
    """A copy of a saved model that lacks the weights whose names contain one of the parts."""
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    kept = {key: each for key, each in weights.items() if not any(part in key for part in parts)}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


def test_weights_that_nothing_reads_may_be_missing(folder, tmp_path):
    """As they are in Intel/dpt-large: the first fusion has nothing to add."""
    bare = without(folder("dpt"), tmp_path / "bare", "fusion_stage.layers.0.residual_layer1")
    assert torch.equal(load_huggingface(bare).latents(images()), load_huggingface(folder("dpt")).latents(images()))


def test_features_need_the_encoders_weights_only(folder, tmp_path):
    bare = without(folder("dpt"), tmp_path / "bare", "neck", "head")
    with pytest.raises(
        BadInput, match=r"does not hold all of a dpt for depth: missing or misshapen head\.head\.0\.bias"
    ):
        load_huggingface(bare)
    found = load_huggingface(bare, output="features").latents(images())
    assert torch.equal(found, load_huggingface(folder("dpt"), output="features").latents(images()))
    less = without(folder("dpt"), tmp_path / "less", "dpt.encoder.layer.2")
    with pytest.raises(BadInput, match=r"missing or misshapen dpt\.encoder\.layer\.2\."):
        load_huggingface(less, output="features")


def test_networks_of_other_tasks_are_refused(tmp_path):
    sizes = VIT | {"image_size": 32, "patch_size": 16, "intermediate_size": 32}
    transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        BadInput, match=r"classifier holds a vit, which is no depth network .* depth_anything, depth_pro"
    ):
        load_huggingface(tmp_path / "classifier")
    transformers.DPTForSemanticSegmentation(CONFIGS["dpt"]()).save_pretrained(tmp_path / "segments")
    with pytest.raises(
        BadInput, match=r"segments does not hold all of a dpt for depth: missing or misshapen head\.head"
    ):
        load_huggingface(tmp_path / "segments")


def test_sources_that_are_none_are_refused(folder, tmp_path, monkeypatch):
    whole = folder("dpt")
    (tmp_path / "empty").mkdir()
    for name, text in {"broken": "{", "unknown": '{"model_type": "depth_everything"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((whole / "config.json").read_text())
    torch.save(load_file(whole / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source, said in {
        tmp_path / "empty": r"config\.json is not there: give a folder as transformers saves it",
        tmp_path / "broken": "broken cannot be loaded",
        tmp_path / "unknown": "unknown cannot be loaded: .*depth_everything",
        tmp_path / "pickled": "pickled cannot be loaded: .*safetensors",
        tmp_path / "absent": "there is no folder .*absent: give a folder",
        whole / "model.safetensors": r"model\.safetensors is a file: give a folder",
        "somebody/unheard-of": "no folder somebody/unheard-of, and the hub gave no network .*; give a folder",
    }.items():
        with pytest.raises(BadInput, match=said) as fault:
            load_huggingface(source)
        assert str(source) in str(fault.value)
        assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dpt", {"layer": 2}, "layer=2 is for output=features"),
        ("dpt", {"output": "features", "layer": 6}, r"layer=6 is not in .*: it has 6, give -6\.\.5"),
        ("dpt", {"output": "features", "layer": -7}, r"layer=-7 is not in"),
        ("glpn", {"output": "features", "layer": 4}, r"layer=4 is not in .*: it has 4, give -4\.\.3"),
        ("dpt-swin", {"output": "features"}, "is a swinv2, whose hidden states are on no single patch grid"),
        ("prompted", {}, "corrects measured depth .*: take output=features"),
        ("dpt", {"side": 0}, "side=0 is not possible"),
        ("depth-pro", {"side": 64}, "side=64 is not possible for .*depth-pro: it takes one size"),
        (
            "dpt-hybrid",
            {"side": 32, "output": "features"},
            "side=32 is not possible for .*dpt-hybrid: it takes one size",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(folder, name, options, said):
    with pytest.raises(BadInput, match=said):
        load_huggingface(folder(name), **options)


def test_an_unknown_output_is_refused_with_the_nearest(folder):
    unchecked = load_huggingface.__wrapped__  # the tests' types would refuse it first
    with pytest.raises(
        BadInput, match=r"output='dephts' is unknown .*\(did you mean 'depth'\?\): use depth or features"
    ):
        unchecked(folder("dpt"), output="dephts")


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    source = folder("dpt")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match=r"pip install 'depthjepa\[teachers\]'"):
        load_huggingface(source)


def test_it_is_loaded_by_its_name(folder):
    teacher = depthjepa.load_teacher("huggingface", checkpoint=folder(DEPTHS[0]), output="features", layer=1)
    assert teacher.describe().name.endswith("layer 1")
    with pytest.raises(BadInput, match="huggingface takes no 'steps': it has checkpoint, output, layer, side"):
        depthjepa.load_teacher("huggingface", checkpoint=folder(DEPTHS[0]), steps=4)


def test_a_run_names_it_by_its_folder(folder):
    guided = ["guidance.kind=feature", "guidance.teacher=huggingface"]
    config = build_config({}, [*guided, f"guidance.teacher_checkpoint={folder(DEPTHS[0])}"])
    assert build_teacher(config, has_depth=False).describe().channels == 1
    with pytest.raises(BadInput, match=r"needs guidance\.teacher_checkpoint: a folder or hub id"):
        build_teacher(build_config({}, guided), has_depth=False)
