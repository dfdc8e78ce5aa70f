"""The DepthFM teacher: against the reference's numbers, and what holds for any checkpoint in its layout."""

import copy
import math
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

import depthjepa
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.target import Teacher, on_cells
from depthjepa.guidance.teachers.depthfm.layout import released_keys, unet_config
from depthjepa.guidance.teachers.depthfm.network import RescaledAttention, load_depthfm, sides
from tiny_images import write_flat
from tiny_runs import metrics, run, weights

diffusers = pytest.importorskip("diffusers", reason="the depthfm teacher needs the extra `teachers`")

RELEASED = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 1024,
    "legacy": False,
}
TINY = RELEASED | {
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 2,
    "context_dim": 12,
}


def released_unet(hparams, where="meta"):
    config = unet_config(hparams, Path("a.ckpt"))
    with torch.device(where):
        unet = diffusers.UNet2DConditionModel(**config)
    return unet, released_keys(unet, config)


@pytest.fixture(scope="module")
def content():
    """What a small random checkpoint holds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, keys = released_unet(TINY, "cpu")
        text = torch.randn(1, 5, TINY["context_dim"])
    weights = {keys[ours]: each.detach() for ours, each in unet.state_dict().items()}
    return {"noising_step": 400, "empty_text_embedding": text, "ldm_hparams": TINY, "state_dict": weights}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = diffusers.AutoencoderKL(
            down_block_types=down, up_block_types=up, block_out_channels=(8, 8, 8, 8), norm_num_groups=4
        )
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def load(tmp_path, content, vae):
    """Write the small checkpoint, changed, and load it."""

    def write_and_load(change=lambda content: None, **options):
        changed = copy.copy(content) | {"state_dict": dict(content["state_dict"])}
        changed["ldm_hparams"] = dict(content["ldm_hparams"])
        change(changed)
        torch.save(changed, tmp_path / "small.ckpt")
        return load_depthfm(tmp_path / "small.ckpt", vae, **options)

    return write_and_load


def images(count=3, height=32, width=48):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def batch_of(pictures, index=None):
    count = len(pictures)
    index = torch.arange(count) if index is None else torch.tensor(index)
    return Batch(index, pictures, None, torch.ones(count), torch.full((count,), -1))


def close(found, expected, error=1e-5):
    torch.testing.assert_close(found, expected, atol=error, rtol=0)


# Against the reference.


@pytest.mark.parametrize("attention", ["plain", "rescaled"])
def test_the_reference_numbers(parity, attention):
    expected = load_file(parity / "depthfm.safetensors")
    pictures = (expected["images"] + 1) / 2
    for steps in (1, 2, 4):
        teacher = load_depthfm(parity / "depthfm.ckpt", parity / "depthfm-vae", steps=steps, attention=attention)
        latents = teacher.latents(pictures, expected["noise"])
        close(latents, expected[f"{attention}.depth_latent.{steps}"], 1e-4)
        depth = teacher.decode(latents).flatten(1)
        low, high = depth.amin(1, keepdim=True), depth.amax(1, keepdim=True)
        close((depth - low) / (high - low), expected[f"{attention}.depth.{steps}"].flatten(1), 1e-4)
    clean = teacher.image_latents(pictures)
    close(clean, expected["image_latent"], 1e-4)
    assert teacher.signal == pytest.approx(float(expected["alpha_bar_400"]), abs=1e-12)
    source = teacher.source(clean, expected["noise"])
    close(source, expected["source"], 1e-4)
    close(teacher.velocity(source, clean, 0.5), expected[f"{attention}.velocity.t0.5"], 1e-4)


def test_the_released_size_and_its_names():
    unet, keys = released_unet(RELEASED)
    names = set(keys.values())
    assert len(names) == len(keys) == 686
    assert sum(each.numel() for each in unet.parameters()) == 865_922_244
    # Halvings follow two blocks each; the deepest level does not attend, so its doubling comes second, else third.
    assert {"input_blocks.3.0.op.weight", "input_blocks.11.0.out_layers.3.bias"} <= names
    assert {
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.proj_in.bias",
    } <= names
    assert not {name for name in names if name.startswith(("input_blocks.10.1", "output_blocks.11.2"))}


def test_heads_are_counted_for_each_level():
    assert unet_config(RELEASED, Path("a"))["attention_head_dim"] == (8, 8, 8, 8)
    by_width = RELEASED | {"num_heads": -1, "num_head_channels": 64}
    assert unet_config(by_width, Path("a"))["attention_head_dim"] == (5, 10, 20, 20)


def test_rescaled_attention_is_its_formula():
    torch.manual_seed(0)
    attention = diffusers.models.attention_processor.Attention(8, heads=2, dim_head=4).requires_grad_(False)
    tokens, text = torch.randn(2, 6, 8), torch.randn(2, 3, 8)

    def slow(context, scale):
        split = [part.unflatten(-1, (2, 4)) for part in (attention.to_q(tokens), attention.to_k(context))]
        weights = (torch.einsum("bqhd,bkhd->bhqk", *split) * scale).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, attention.to_v(context).unflatten(-1, (2, 4)))
        return attention.to_out[0](mixed.flatten(2))

    attention.set_processor(RescaledAttention())
    close(attention(tokens), slow(tokens, math.sqrt(math.log(6) / (math.log(24) * 4))), 1e-6)
    close(attention(tokens, text), slow(text, 1 / 2), 1e-6)


# The teacher.


def test_it_is_a_frozen_teacher(load):
    teacher = load()
    assert isinstance(teacher, Teacher)
    said = teacher.describe()
    assert (said.name, said.channels, said.stride, said.stochastic, said.needs_depth) == ("depthfm", 4, 8, True, False)
    for network in (teacher.unet, teacher.vae):
        assert not network.training
        assert not any(each.requires_grad for each in network.parameters())
    assert not teacher.latents(images().requires_grad_()).requires_grad
    assert not teacher.decode(torch.zeros(1, 4, 4, 6).requires_grad_()).requires_grad


def test_an_image_decides_its_latent_with_its_index(load):
    teacher = load()
    pictures, index = images(), torch.tensor([7, 0, 3])
    latents = teacher.latents(pictures, index=index)
    order = torch.tensor([2, 0, 1])
    close(teacher.latents(pictures[order], index=index[order]), latents[order])
    close(teacher.latents(pictures[1:2], index=index[1:2]), latents[1:2])
    twins = teacher.latents(pictures[:1].expand(2, -1, -1, -1), index=index[:2])
    assert (twins[0] - twins[1]).abs().max() > 0.1  # the noise differs
    assert (load(seed=1).latents(pictures, index=index) - latents).abs().max() > 0.1
    whole = teacher.latents(pictures)
    close(teacher.latents(pictures[2:]), whole[2:])
    close(teacher.latents(pictures, index=torch.zeros(3, dtype=torch.int64)), whole)


def test_an_ensemble_is_the_mean_of_its_members(load):
    one, two = load(), load(ensemble=2)
    index = torch.tensor([4, 2, 9])
    noises = [two.noise(index, (4, 6), member) for member in range(2)]
    assert not torch.equal(*noises)
    members = [one.latents(images(), noise) for noise in noises]
    close(two.latents(images(), index=index), (members[0] + members[1]) / 2)
    close(one.latents(images(), index=index), members[0])


def test_a_step_is_one_of_euler(load):
    teacher = load(steps=2)
    clean, noise = teacher.image_latents(images()), teacher.noise(torch.arange(3), (4, 6))
    start = teacher.source(clean, noise)
    middle = start + teacher.velocity(start, clean, 0.0) / 2
    close(teacher.latents(images(), noise), middle + teacher.velocity(middle, clean, 0.5) / 2)
    assert not torch.allclose(teacher.velocity(start, clean, 0.0), teacher.velocity(start, clean, 0.5), atol=1e-4)


def test_autocast_changes_nothing(load):
    teacher = load()
    latents = teacher.latents(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.latents(images()), latents)
        assert teacher.decode(latents).dtype == torch.float32
        assert torch.equal(
            teacher.batch_latents(batch_of(images(1, 64, 64)), (8, 8)).values, teacher.latents(images(1, 64, 64))
        )


def test_the_middle_block_is_read_at_time_zero(load):
    teacher = load()
    clean, noise = teacher.image_latents(images()), teacher.noise(torch.zeros(3, dtype=torch.int64), (4, 6))
    seen = []
    hook = teacher.unet.mid_block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    teacher.velocity(teacher.source(clean, noise), clean, 0.0)
    hook.remove()
    features = teacher.middle_block(images())
    assert features.shape == (3, 64, 2, 3)
    close(features, seen[0])
    assert not teacher.unet.mid_block._forward_hooks


@pytest.mark.parametrize(
    ("cells", "size"),
    [((2, 2), (64, 64)), ((14, 14), (128, 128)), ((28, 28), (256, 256)), ((32, 11), (256, 64)), ((12, 20), (128, 192))],
)
def test_a_cell_is_about_eight_pixels(cells, size):
    assert sides(cells) == size


@pytest.mark.parametrize(("crop", "cells", "size"), [((56, 56), (14, 14), 112), ((224, 160), (8, 8), 64)])
def test_batch_latents_are_those_of_the_resized_crop(load, crop, cells, size):
    teacher, crops, index = load(), images(2, *crop), [8, 5]
    found = teacher.batch_latents(batch_of(crops, index), cells)
    assert found.values.shape == found.valid.shape == (2, 4, size // 8, size // 8)
    assert found.valid.all()
    resized = interpolate(crops, (size, size), mode="bilinear", antialias=True, align_corners=False)
    close(found.values, teacher.latents(resized, index=torch.tensor(index)))


def test_features_of_the_middle_block_can_guide(load):
    teacher = load(output="features")
    said = teacher.describe()
    assert (said.channels, said.stride, said.unit) == (
        teacher.unet.config.block_out_channels[-1],
        16,
        "features of the middle block",
    )
    batch = batch_of(images(2, 64, 64), [3, 5])
    found = teacher.batch_latents(batch, (8, 8)).values
    close(found, teacher.middle_block(batch.images, index=batch.index))
    assert on_cells(teacher, batch, (8, 8)).values.shape == (2, said.channels, 8, 8)


def test_a_grid_of_any_size_gets_its_latents(load):
    gridded = on_cells(load(), batch_of(images(2, 56, 56)), (14, 14))
    assert gridded.values.shape == (2, 4, 14, 14)
    assert gridded.valid.all()


def test_noise_of_another_shape_is_refused(load):
    teacher = load()
    with pytest.raises(ValueError, match="noise must be"):
        teacher.source.__wrapped__(teacher, torch.zeros(2, 4, 4, 4), torch.zeros(1, 4, 4, 4))


def test_sides_are_refused_with_the_nearest(load):
    with pytest.raises(BadInput, match="multiples of 16, not 100x8: resize them to 96x16"):
        load().latents(images(1, 100, 8))


def test_loading_leaves_the_random_state_alone(load):
    before = torch.get_rng_state()
    load()
    assert torch.equal(torch.get_rng_state(), before)


# Files.


def as_array(content):
    content["empty_text_embedding"] = content["empty_text_embedding"].numpy()


def as_half(content):
    content["state_dict"] = {key: each.half() for key, each in content["state_dict"].items()}


def test_the_text_may_be_a_tensor_or_an_array(load, tmp_path, vae):
    expected = load().latents(images())
    assert torch.equal(load(as_array).latents(images()), expected)
    # NumPy 1 pickled arrays under another name.
    old = tmp_path / "numpy1.ckpt"
    with zipfile.ZipFile(tmp_path / "small.ckpt") as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in data
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, data)
    assert torch.equal(load_depthfm(old, vae).latents(images()), expected)


def test_half_weights_and_the_older_file_format_load(load, content, tmp_path, vae):
    teacher = load(as_half)
    assert {each.dtype for each in teacher.unet.parameters()} == {torch.float32}
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_depthfm(tmp_path / "old.ckpt", vae).latents(images()), load().latents(images()))


def without(key):
    return lambda content: content["state_dict"].pop(key)


def hparam(**values):
    return lambda content: content["ldm_hparams"].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("output_blocks.1.2.conv.bias"), "missing output_blocks.1.2.conv.bias$"),
        (lambda c: c["state_dict"].update(extra=torch.ones(1)), "left over extra$"),
        (lambda c: c["state_dict"].update({"out.2.bias": torch.ones(3)}), r"out.2.bias is \(3,\), expected \(4,\)"),
        (lambda c: c.pop("noising_step"), "lacks noising_step"),
        (lambda c: (c.pop("ldm_hparams"), c.pop("state_dict")), "lacks ldm_hparams, state_dict"),
        (lambda c: c.update(noising_step="400"), "noising_step is '400', expected a whole number"),
        (lambda c: c.update(empty_text_embedding=torch.ones(1, 5, 7)), r"\(1, 5, 7\), expected \(1, words, 12\)"),
        (lambda c: c.update(empty_text_embedding="a"), "empty_text_embedding is a str"),
        (lambda c: c.update(state_dict=[1]), "state_dict is not a mapping"),
        (lambda c: c.update(ldm_hparams=[1]), "ldm_hparams is a list"),
        (hparam(num_res_blocks="2"), "ldm_hparams.num_res_blocks is '2'"),
        (hparam(channel_mult=None), "ldm_hparams.channel_mult is None"),
        (hparam(in_channels=4), "ldm_hparams.in_channels is 4, but DepthFM has 8"),
        (hparam(use_spatial_transformer=False), "use_spatial_transformer"),
        (hparam(num_res_blocks=2), "missing input_blocks.2.0.emb_layers.1.bias.* and 135 more; left over"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(load, change, said):
    with pytest.raises(BadInput, match=said) as fault:
        load(change)
    assert "small.ckpt" in str(fault.value)


class Unsafe:
    def __reduce__(self):
        return os.getcwd, ()


def test_files_that_cannot_be_read_are_refused(load, tmp_path, vae):
    load()
    whole = (tmp_path / "small.ckpt").read_bytes()
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"state_dict": Unsafe()}, tmp_path / "unsafe.ckpt")
    (tmp_path / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "short.ckpt").write_bytes(whole[:40])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("weights")
    for name, said in {
        "list": "it holds a list",
        "unsafe": r"would run code when it is read \(posix\.getcwd\)",
        "truncated": "is truncated",
        "short": "is truncated",
        "empty": "is empty",
        "text": "is a text file",
        "absent": "there is no file",
    }.items():
        with pytest.raises(BadInput, match=said) as fault:
            load_depthfm(tmp_path / f"{name}.ckpt", vae)
        assert f"{name}.ckpt" in str(fault.value)


def test_options_that_make_no_sense_are_refused(load):
    with pytest.raises(BadInput, match="steps=0"):
        load(steps=0)
    with pytest.raises(BadInput, match="ensemble=0"):
        load(ensemble=0)


def test_the_autoencoder_may_lie_in_a_pipeline(load, content, tmp_path, vae):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(vae)
    expected = load().latents(images())
    assert torch.equal(load_depthfm(tmp_path / "small.ckpt", tmp_path / "pipeline").latents(images()), expected)


def test_autoencoders_that_do_not_serve_are_refused(load, tmp_path, vae, monkeypatch):
    load()
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")
    (tmp_path / "bare").mkdir()
    (tmp_path / "holes").mkdir()
    (tmp_path / "holes" / "config.json").write_text((vae / "config.json").read_text())
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "config.json").write_text((vae / "config.json").read_text())
    del weights["encoder.conv_in.bias"]
    save_file(weights, tmp_path / "holes" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "shallow")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place, said in {
        tmp_path / "bare": "config.json is not there",
        tmp_path / "holes": "missing encoder.conv_in.bias",
        tmp_path / "nothing": "cannot be loaded",
        tmp_path / "shallow": "has 4 channels and stride 1, but DepthFM's has 4 and 8",
        tmp_path / "absent": "there is no folder .*absent: give",
        "somebody/unheard-of": "no folder somebody/unheard-of, and the hub gave no autoencoder",
    }.items():
        with pytest.raises(BadInput, match=said):
            load_depthfm(tmp_path / "small.ckpt", place)


def test_without_diffusers_the_extra_is_named(load, monkeypatch):
    load()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BadInput, match=r"pip install 'depthjepa\[teachers\]'"):
        load()


@pytest.mark.slow
def test_a_run_on_plain_photographs_is_guided_by_it(parity, tmp_path):
    """No depth file anywhere: latents are whitened, a constant's loss is known, the gradient reaches the encoder."""
    root = write_flat(tmp_path / "photographs", 8)
    length = ("train.steps=3", "optim.lr=1e-3")
    guided = ("guidance.kind=feature", "guidance.teacher=depthfm")
    files = (
        f"guidance.teacher_checkpoint={parity / 'depthfm.ckpt'}",
        f"guidance.teacher_vae={parity / 'depthfm-vae'}",
    )
    summary = run(root, tmp_path / "guided", *guided, *files, *length)
    run(root, tmp_path / "twin", *length)
    first = metrics(tmp_path / "guided")[0]
    assert first["loss_depth"] == pytest.approx(summary["depth_floor"], rel=0.1)  # a head that knows nothing yet
    assert first["loss_jepa"] == metrics(tmp_path / "twin")[0]["loss_jepa"]
    content, twin = weights(tmp_path / "guided"), weights(tmp_path / "twin")
    assert content["whitening"]["mean"].shape == (4, 12, 12)
    assert not any(
        torch.equal(content["model"][key], twin["model"][key])
        for key in twin["model"]
        if key.startswith("context_encoder.blocks.")
    )
    with pytest.raises(BadInput, match=r"needs guidance\.teacher_checkpoint .* and guidance\.teacher_vae"):
        run(root, tmp_path / "other", *guided, *length)
    assert not (tmp_path / "other").exists()


def test_it_is_loaded_by_its_name(parity):
    files = {"checkpoint": parity / "depthfm.ckpt", "vae": parity / "depthfm-vae"}
    teacher = depthjepa.load_teacher("depthfm", **files, steps=1)
    assert teacher.describe().channels == 4
    assert teacher.latents(torch.rand(1, 3, 64, 96)).shape == (1, 4, 8, 12)
    with pytest.raises(BadInput, match=r"no teacher network 'depthfn' \(did you mean 'depthfm'\?\)"):
        depthjepa.load_teacher("depthfn", **files)
    with pytest.raises(BadInput, match=r"the teacher depthfm needs vae: .* and vae"):
        depthjepa.load_teacher("depthfm", checkpoint=files["checkpoint"])
    with pytest.raises(BadInput, match=r"the teacher depthfm takes no 'layer'.*: it has checkpoint, vae, steps"):
        depthjepa.load_teacher("depthfm", **files, layer=2)
