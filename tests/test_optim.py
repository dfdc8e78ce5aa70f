"""Rates at their borders, parameter groups, and the update against a slow reference."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from depthjepa.config.reading import load_config
from depthjepa.method import build_method, build_teacher
from depthjepa.optim import (
    OptimConfig,
    build_optimizer,
    learning_rate,
    momentum,
    momentum_over,
    parameter_groups,
    rates,
    set_rates,
    weight_decay,
)

RATES = {"start": 1e-4, "peak": 1e-2, "final": 1e-5}


def model(*overrides: str):
    tiny = ["model.width=32", "model.depth=1", "model.heads=4", "predictor.width=16", "predictor.depth=1"]
    supervised = "train.objective=supervised" in overrides
    config = load_config("demo", [*(tiny[:3] if supervised else tiny), *overrides])
    return build_method(config, build_teacher(config, has_depth=True), classes=6)


def test_learning_rate_at_its_borders():
    rates = [learning_rate(step, **RATES, warmup=20, steps=100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4 + (1e-2 - 1e-4) / 20)
    assert rates[19] == pytest.approx(1e-2) and max(rates) == rates[19]
    assert rates[59] == pytest.approx((1e-2 + 1e-5) / 2)  # half way of the cosine
    assert rates[99] == pytest.approx(1e-5)
    changes = [after - before for before, after in pairwise(rates)]
    assert min(changes[:19]) == pytest.approx(max(changes[:19])) and min(changes[:19]) > 0  # the warm-up is a line
    assert max(changes[19:]) < 0


def test_learning_rate_without_warmup_and_with_nothing_else():
    assert learning_rate(1, **RATES, warmup=0, steps=1) == pytest.approx(1e-5)
    assert learning_rate(1, **RATES, warmup=1, steps=10) == pytest.approx(1e-2)
    assert learning_rate(10, **RATES, warmup=20, steps=10) == pytest.approx(1e-4 + (1e-2 - 1e-4) / 2)


@pytest.mark.parametrize(("start", "final"), [(0.04, 0.4), (0.4, 0.04), (0.05, 0.05)])
def test_weight_decay_goes_from_start_to_final_and_stays_between(start, final):
    values = [weight_decay(step, start=start, final=final, steps=100) for step in range(1, 101)]
    assert values[0] == pytest.approx(start, abs=1e-3 * abs(final - start)) and values[-1] == pytest.approx(final)
    assert values[49] == pytest.approx((start + final) / 2)
    assert all(min(start, final) <= value <= max(start, final) for value in values)
    assert values == sorted(values, reverse=final < start)


def test_momentum_grows_on_a_line_and_never_exceeds_one():
    values = [momentum(step, start=0.996, final=1.0, steps=50) for step in range(50)]
    assert values[0] == 0.996 and values[-1] == pytest.approx(1 - 0.004 / 50)
    assert values == sorted(values) and len(set(values)) == 50 and max(values) < 1
    assert momentum(25, start=0.996, final=1.0, steps=50) == pytest.approx(0.998)


@pytest.mark.parametrize("steps", [100, 10_000])
def test_an_average_over_shares_of_the_run_reaches_back_as_far_whatever_its_length(steps):
    values = [momentum_over(step, start=0.02, final=0.1, steps=steps) for step in range(steps + 1)]
    reaches = [1 / (1 - value) / steps for value in values]
    assert reaches[0] == pytest.approx(0.02) and reaches[-1] == pytest.approx(0.1)
    assert reaches[steps // 2] == pytest.approx(0.06) and values == sorted(values)


def test_an_average_over_less_than_a_step_is_none():
    assert momentum_over(0, start=0.0, final=0.1, steps=50) == 0
    assert momentum_over(0, start=0.01, final=0.1, steps=50) == 0
    assert momentum_over(49, start=0.0, final=0.0, steps=50) == 0


def test_learning_rates_scale_with_the_batch_where_it_is_asked_for():
    """Goyal et al. 2017: in proportion. The head's ratio, the decay and the average stay."""
    given = {"lr": 1e-3, "start_lr": 2e-4, "final_lr": 1e-6, "head_lr": 5e-3}
    length = {"steps": 100, "epoch_steps": 10}
    for step in (0, 9, 50, 99):
        plain = rates(OptimConfig(**given), step, **length, batch_size=64)
        small = rates(OptimConfig(**given, lr_batch=2048), step, **length, batch_size=64)
        assert small.pop("lr") == pytest.approx(plain.pop("lr") / 32) and small == plain


def test_shares_take_the_place_of_the_momenta():
    found = rates(OptimConfig(average_over=(0.02, 0.1)), 0, steps=1000, epoch_steps=10, batch_size=64)
    assert found["momentum"] == pytest.approx(0.95)
    assert rates(OptimConfig(), 0, steps=1000, epoch_steps=10, batch_size=64)["momentum"] == 0.996


def test_stretched_schedules_are_the_beginning_of_longer_ones():
    """`optim.stretch` lays the schedules out over more steps than are taken: the rates end early."""
    plain = OptimConfig(lr=1e-2, start_lr=1e-4, final_lr=1e-5, warmup_steps=10, momentum=0.99)
    stretched = dataclasses.replace(plain, stretch=1.25)
    for step in (0, 5, 50, 99):
        found = rates(stretched, step, steps=100, epoch_steps=10, batch_size=64)
        assert found == rates(plain, step, steps=125, epoch_steps=10, batch_size=64)
    last = rates(stretched, 99, steps=100, epoch_steps=10, batch_size=64)
    progress = (100 - 10) / (125 - 10)
    assert last["lr"] == pytest.approx(1e-5 + (1e-2 - 1e-5) * 0.5 * (1 + math.cos(math.pi * progress)))
    assert last["momentum"] == pytest.approx(0.99 + 0.01 * 99 / 125)
    assert last["weight_decay"] < 0.4


def test_warmup_is_given_in_steps_in_epochs_or_as_a_tenth():
    assert OptimConfig(warmup_steps=7, warmup_epochs=3).warmup(100, 10) == 7
    assert OptimConfig(warmup_epochs=2.5).warmup(100, 10) == 25
    assert OptimConfig().warmup(100, 10) == 10 and OptimConfig().warmup(3, 10) == 1
    assert OptimConfig(warmup_steps=0).warmup(100, 10) == 0


@pytest.mark.parametrize(
    "overrides",
    [[], ["guidance.kind=none"], ["guidance.head=conv", "guidance.fill=learned", "guidance.read=predicted"]],
)
def test_every_trainable_parameter_stands_in_one_group(overrides):
    method = model(*overrides)
    groups = parameter_groups(method.named_parameters())
    grouped = [id(parameter) for group in groups for _, parameter in group["params"]]
    trainable = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == trainable
    assert not trainable & {id(parameter) for parameter in method.target_encoder.parameters()}


@pytest.mark.parametrize(
    "overrides",
    [["guidance.head=conv", "guidance.fill=learned", "guidance.read=predicted"], ["train.objective=supervised"]],
)
def test_what_is_decayed_and_what_follows_the_rate_of_the_head(overrides):
    method = model(*overrides)
    of = {
        id(parameter): (group["role"], group["decayed"])
        for group in parameter_groups(method.named_parameters())
        for _, parameter in group["params"]
    }
    norms = {
        id(parameter)
        for each in method.modules()
        if isinstance(each, torch.nn.LayerNorm)
        for parameter in each.parameters()
    }
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            role = "head" if name.startswith(("guide.", "head.")) else "encoder"
            assert of[id(parameter)] == (role, not name.endswith("bias") and id(parameter) not in norms), name


def test_the_mask_token_is_decayed():
    """Three-dimensional, so decayed, as in the released code."""
    method = model()
    decayed = [
        id(each)
        for group in parameter_groups(method.named_parameters())
        if group["decayed"]
        for _, each in group["params"]
    ]
    assert id(method.predictor.mask_token) in decayed


def test_rates_reach_the_groups_they_are_meant_for():
    optimizer = build_optimizer(model(), OptimConfig(lr=1.0))
    set_rates(optimizer, lr=0.1, head_scale=5.0, decay=0.3)
    found = {
        (group["role"], group["decayed"]): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    assert found == {
        ("encoder", True): (0.1, 0.3),
        ("encoder", False): (0.1, 0.0),
        ("head", True): (0.5, 0.3),
        ("head", False): (0.5, 0.0),
    }


def parts(name: str) -> tuple[str, int | None]:
    """What a parameter belongs to, and the block of the encoder."""
    place, _, rest = name.partition(".")
    if place != "context_encoder":
        return place, None
    kind, _, number = rest.partition(".")
    return kind, int(number.partition(".")[0]) if kind == "blocks" else None


def test_the_rate_falls_from_block_to_block_below_the_final_norm():
    """Predictor, head and final norm learn at the full rate; the patch embedding stands below the first block."""
    groups = parameter_groups(model("model.depth=3").named_parameters(), layer_decay=0.5)
    scales = {parts(name): set() for group in groups for name, _ in group["params"]}
    for group in groups:
        for name, _ in group["params"]:
            scales[parts(name)].add(group["scale"])
    assert scales == {
        ("guide", None): {1.0},
        ("predictor", None): {1.0},  # its own blocks are not the encoder's
        ("norm", None): {1.0},
        ("blocks", 2): {0.5},
        ("blocks", 1): {0.25},
        ("blocks", 0): {0.125},
        ("patch_embed", None): {0.0625},
    }


@pytest.mark.parametrize("overrides", [[], ["guidance.kind=none"], ["train.objective=supervised"]])
def test_with_layer_decay_as_well_every_parameter_stands_in_one_group(overrides):
    method = model("model.depth=3", *overrides)
    groups = parameter_groups(method.named_parameters(), layer_decay=0.5)
    grouped = [name for group in groups for name, _ in group["params"]]
    trainable = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == trainable
    plain = {name: group for group in parameter_groups(method.named_parameters()) for name, _ in group["params"]}
    for group in groups:  # who is decayed, and whose rate it is, does not depend on the depth
        for name, _ in group["params"]:
            assert (group["role"], group["decayed"]) == (plain[name]["role"], plain[name]["decayed"])


@pytest.mark.parametrize(
    ("kind", "roles"), [("feature", ["encoder", "encoder", "head", "head"]), ("none", ["encoder"] * 2)]
)
def test_without_layer_decay_the_groups_are_the_usual_ones_in_their_order(kind, roles):
    method = model("model.depth=3", f"guidance.kind={kind}")
    groups = parameter_groups(method.named_parameters(), layer_decay=1.0)
    assert [(group["role"], group["decayed"], group["scale"]) for group in groups] == [
        (role, number % 2 == 1, 1.0) for number, role in enumerate(roles)
    ]
    # Within a group the parameters keep the model's order, which is what an optimiser's state is numbered by.
    names = [name for name, _ in method.named_parameters()]
    for group in groups:
        places = [names.index(name) for name, _ in group["params"]]
        assert places == sorted(places)


def test_each_block_moves_by_its_own_rate():
    """Adam's first step is the learning rate against the sign of each gradient; decay does not follow from it."""
    method = model("model.depth=3")
    optimizer = build_optimizer(method, OptimConfig(layer_decay=0.5))
    set_rates(optimizer, lr=1e-2, head_scale=3.0, decay=0.0)
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator).sign()
    optimizer.step()
    rates = {"guide": 3e-2, "predictor": 1e-2, "norm": 1e-2, "patch_embed": 1e-2 / 16}
    for name, parameter in method.named_parameters():
        place, block = parts(name)
        if parameter.requires_grad:
            rate = rates[place] if block is None else 1e-2 / 2 ** (3 - block)
            torch.testing.assert_close(parameter, before[name] - rate * parameter.grad, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(parameter, before[name])


def test_the_weight_decay_of_a_block_follows_its_rate():
    """AdamW multiplies the decay with the learning rate: a block that learns slower is decayed slower."""
    method = model("model.depth=3")
    optimizer = build_optimizer(method, OptimConfig(layer_decay=0.5))
    set_rates(optimizer, lr=1e-1, head_scale=1.0, decay=0.2)
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for number, scale in ((0, 0.125), (1, 0.25), (2, 0.5)):
        name = f"context_encoder.blocks.{number}.mlp.fc1.weight"
        torch.testing.assert_close(method.get_parameter(name), before[name] * (1 - 0.2 * 1e-1 * scale))
        bias = f"context_encoder.blocks.{number}.norm1.weight"
        assert torch.equal(method.get_parameter(bias), before[bias])


def test_adamw_steps_equal_a_slow_reference():
    """Loshchilov and Hutter 2019, algorithm 2: the decay is decoupled, moments are corrected for their start."""
    config = OptimConfig(betas=(0.8, 0.95), eps=1e-6)
    layer = torch.nn.Linear(3, 2).double()
    optimizer = build_optimizer(layer, config)
    values = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        lr = learning_rate(step, **RATES, warmup=2, steps=5)
        decay = weight_decay(step, start=0.1, final=0.5, steps=5)
        set_rates(optimizer, lr=lr, head_scale=1.0, decay=decay)
        for name, parameter in layer.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.clone()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            corrected = first[name] / (1 - 0.8**step), second[name] / (1 - 0.95**step)
            kept = values[name] * (1 - lr * decay * (name == "weight"))
            values[name] = kept - lr * corrected[0] / (corrected[1].sqrt() + 1e-6)
        optimizer.step()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.detach(), values[name], atol=1e-12, rtol=1e-10)


def test_a_frozen_parameter_is_never_touched():
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(layer, OptimConfig())
    assert [id(each) for group in optimizer.param_groups for each in group["params"]] == [id(layer.weight)]
