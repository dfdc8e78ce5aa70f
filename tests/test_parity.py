"""Against the numbers of the reference implementation (small random models, float32, CPU).

All of them lie outside the project; an excerpt in tests/reference (one image through the small model, rates of some
steps, entries of a position table) is checked everywhere.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from depthjepa import optim
from depthjepa.formats.reference import parameter_order
from depthjepa.grid import gather
from depthjepa.masks import Masks
from depthjepa.model.jepa import JEPA
from depthjepa.model.predictor import Predictor, PredictorConfig
from depthjepa.model.vit import Shape, VisionTransformer, sine_cosine

EXCERPT = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def reference(parity):
    return load_file(parity / "ijepa.safetensors"), json.loads((parity / "ijepa.json").read_text())


def part(tensors, prefix):
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    assert found, f"no tensor of {prefix}"
    return found


def small(encoder, blocks, heads, patch, grid, predictor):
    shape = Shape(encoder, blocks, heads, 4 * encoder)
    return JEPA(VisionTransformer(shape, patch, grid), Predictor(PredictorConfig(*predictor), shape, grid))


def build(tensors, facts, prefix):
    grid = (facts["image_size"] // facts["patch_size"],) * 2
    predictor = facts["predictor_depth"], facts["predictor_embed_dim"]
    jepa = small(facts["embed_dim"], facts["depth"], facts["num_heads"], facts["patch_size"], grid, predictor)
    jepa.context_encoder.load_state_dict(part(tensors, f"{prefix}.encoder."))
    target = "target" if prefix == "final" else "encoder"
    jepa.target_encoder.load_state_dict(part(tensors, f"{prefix}.{target}."))
    jepa.predictor.load_state_dict(part(tensors, f"{prefix}.predictor."))
    return jepa


def chosen(tokens, masks):
    return gather(tokens, masks.targets.flatten(1)).view(*masks.targets.shape, -1)


def masks_of(tensors, step):
    return Masks(tensors[f"context_mask.{step}"].long(), tensors[f"target_masks.{step}"].long().transpose(0, 1))


def test_encoder_predictor_targets_and_loss(reference):
    tensors, facts = reference
    jepa = build(tensors, facts, "init")
    images, masks = tensors["images"][0], masks_of(tensors, 0)
    with torch.no_grad():
        context = jepa.context_encoder(images, masks.context)
        torch.testing.assert_close(jepa.context_encoder(images), tensors["encoder_full"], atol=1e-5, rtol=0)
        torch.testing.assert_close(context, tensors["encoder_context"], atol=1e-5, rtol=0)
        # The reference stacks blocks before images.
        predicted = jepa.predictor(context, masks).targets.transpose(0, 1).flatten(0, 1)
        torch.testing.assert_close(predicted, tensors["predictor_out"], atol=1e-5, rtol=0)
        targets = chosen(jepa.targets(images), masks).transpose(0, 1).flatten(0, 1)
        torch.testing.assert_close(targets, tensors["targets"], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            jepa(images, masks).total, tensors["loss0"].squeeze(), atol=0, rtol=1e-5, check_dtype=False
        )


def test_twelve_steps(reference):
    tensors, facts = reference
    jepa = build(tensors, facts, "init")
    config = optim.OptimConfig()
    optimizer = optim.build_optimizer(jepa, config)
    warmup = facts["warmup_epochs"] * facts["iterations_per_epoch"]
    total = facts["epochs"] * facts["iterations_per_epoch"]
    for step in range(facts["steps"]):
        lr = optim.learning_rate(
            step + 1, start=config.start_lr, peak=config.lr, final=config.final_lr, warmup=warmup, steps=total
        )
        decay = optim.weight_decay(step + 1, start=config.weight_decay, final=config.final_weight_decay, steps=total)
        momentum = optim.momentum(step, start=config.momentum, final=config.final_momentum, steps=total)
        rates = {"lr": lr, "wd": decay, "ema": momentum}
        for name, value in rates.items():
            assert value == pytest.approx(float(tensors[f"trace.{name}"][step]), abs=1e-12), name
        optim.set_rates(optimizer, lr=lr, head_scale=1.0, decay=decay)
        optimizer.zero_grad()
        loss = jepa(tensors["images"][step], masks_of(tensors, step)).total
        assert float(loss.detach()) == pytest.approx(float(tensors["trace.loss"][step]), rel=1e-5)
        loss.backward()
        optimizer.step()
        jepa.after_step(momentum)
    final = build(tensors, facts, "final")
    for mine, theirs in zip(jepa.parameters(), final.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_sine_cosine_positions_and_released_schedules(parity):
    expected = load_file(parity / "embeddings_and_schedules.safetensors")
    for key, table in expected.items():
        if key.startswith("sincos"):
            _, width, side = key.split(".")
            torch.testing.assert_close(sine_cosine(int(width), (int(side),) * 2), table, atol=1e-6, rtol=0)
    iterations = 50
    for number, step in enumerate(range(1, 300 * iterations, 25)):
        lr = optim.learning_rate(
            step, start=2e-4, peak=1e-3, final=1e-6, warmup=40 * iterations, steps=300 * iterations
        )
        assert lr == pytest.approx(float(expected["in1k.lr"][number]), abs=1e-12)
        decay = optim.weight_decay(step, start=0.04, final=0.4, steps=300 * iterations)
        assert decay == pytest.approx(float(expected["in1k.wd"][number]), abs=1e-12)
        momentum = optim.momentum(step - 1, start=0.996, final=1.0, steps=300 * iterations)
        assert momentum == pytest.approx(float(expected["in1k.ema"][number]), abs=1e-12)


def test_one_image_through_the_small_model():
    tensors = load_file(EXCERPT / "one_image.safetensors")
    jepa = small(48, 3, 3, 8, (8, 8), (2, 24))
    for encoder in (jepa.context_encoder, jepa.target_encoder):
        encoder.load_state_dict(part(tensors, "encoder."))
    jepa.predictor.load_state_dict(part(tensors, "predictor."))
    images = tensors["images"]
    masks = Masks(tensors["context_mask"].long(), tensors["target_masks"].long().transpose(0, 1))
    with torch.no_grad():
        context = jepa.context_encoder(images, masks.context)
        found = {
            "encoder_full": jepa.context_encoder(images),
            "encoder_context": context,
            "predictor_out": jepa.predictor(context, masks).targets[0],
            "targets": chosen(jepa.targets(images), masks)[0],
        }
    for name, value in found.items():
        torch.testing.assert_close(value, tensors[name], atol=1e-5, rtol=0, msg=name)


def test_rates_and_positions_of_the_released_configuration():
    numbers = json.loads((EXCERPT / "numbers.json").read_text())
    rates, length = numbers["schedules"], 300 * numbers["schedules"]["iterations"]
    warmup = 40 * rates["iterations"]
    for number, step in enumerate(rates["steps"]):
        lr = optim.learning_rate(step, start=2e-4, peak=1e-3, final=1e-6, warmup=warmup, steps=length)
        assert lr == pytest.approx(rates["lr"][number], abs=1e-12)
        decay = optim.weight_decay(step, start=0.04, final=0.4, steps=length)
        assert decay == pytest.approx(rates["wd"][number], abs=1e-12)
        momentum = optim.momentum(step - 1, start=0.996, final=1.0, steps=length)
        assert momentum == pytest.approx(rates["ema"][number], abs=1e-12)
    table = numbers["positions"]
    own = sine_cosine(table["width"], (table["side"],) * 2)[table["patches"]][:, table["channels"]]
    torch.testing.assert_close(own, torch.tensor(table["values"]), atol=1e-6, rtol=0)


def test_groups_of_the_reference_s_optimiser(parity):
    """Which parameters are decayed, number for number: the mask token (three-dimensional) is, biases and norms not."""
    content = torch.load(parity / "reference-ijepa.pth.tar", weights_only=True)
    groups = content["opt"]["param_groups"]
    bare = {
        name: {key.removeprefix("module."): v for key, v in content[name].items()} for name in ("encoder", "predictor")
    }
    order = parameter_order(bare["encoder"], bare["predictor"])
    assert [len(group["params"]) for group in groups] == [len(names) for names in order]
    theirs = {name for group, names in zip(groups, order, strict=True) if not group.get("WD_exclude") for name in names}
    jepa = small(48, 3, 3, 8, (8, 8), (2, 24))
    ours = {
        name
        for group in optim.parameter_groups(jepa.named_parameters())
        if group["decayed"]
        for name, _ in group["params"]
    }
    assert "predictor.mask_token" in ours
    # The reference's positions are parameters that are never updated; ours are buffers.
    assert ours == theirs - {"context_encoder.pos_embed", "predictor.predictor_pos_embed"}
    shapes = dict(jepa.named_parameters())
    for number, name in enumerate(name for names in order for name in names):
        if number in content["opt"]["state"]:
            assert content["opt"]["state"][number]["exp_avg"].shape == shapes[name].shape
