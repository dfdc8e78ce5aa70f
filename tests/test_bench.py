"""Operations are what a hand count says; the bench measures them against the machine's own rate."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from depthjepa import cli, cost
from depthjepa.commands import bench
from depthjepa.config import RunConfig
from depthjepa.masks import sample_masks
from depthjepa.method import build_method, build_teacher
from tiny_runs import GUIDED, SETTINGS, tiny


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """A product of [tokens, inputs] and [inputs, outputs]: two operations a multiply-add."""
    return 2 * tokens * inputs * outputs


def blocks(depth: int, sequences: int, length: int, width: int) -> int:
    """Transformer blocks: qkv, projection, two layers four times as wide, and the two products of attention."""
    tokens = sequences * length
    layers = linear(tokens, width, 3 * width) + linear(tokens, width, width) + 2 * linear(tokens, width, 4 * width)
    return depth * (layers + 2 * sequences * linear(length, width, length))


def by_hand(config: RunConfig, batch: int) -> int:
    """Products of one step; the backward pass of a product is two of its size, one where the input needs none."""
    masks = sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=np.arange(batch), batch_index=0)
    context, (targets, hidden) = masks.context.shape[1], masks.targets.shape[1:]
    cells, pixels = config.grid[0] * config.grid[1], 3 * config.model.patch_size**2
    width, depth = config.model.width or 0, config.model.depth or 0
    narrow = config.predictor.width
    count = linear(batch * cells, pixels, width) + blocks(depth, batch, cells, width)  # target encoder, no gradient
    count += 2 * linear(batch * context, pixels, width) + 3 * blocks(depth, batch, context, width)
    count += 3 * linear(batch * context, width, narrow)
    count += 3 * blocks(config.predictor.depth, batch * targets, context + hidden, narrow)
    count += 3 * linear(batch * targets * hidden, narrow, width)
    if config.guidance.kind == "feature":
        count += 3 * linear(batch * cells, width, 4 * 2 * 2)  # four channels of 2 x 2 cells a patch
    return count


@pytest.mark.parametrize("guidance", [(), GUIDED])
@pytest.mark.parametrize("bias", ["unbiased", "reference"])
def test_counted_operations_are_those_of_a_hand_count(guidance: tuple[str, ...], bias: str) -> None:
    shape = ("model.depth=3", "predictor.depth=2", "data.image_size=[96, 112]", f"masks.bias={bias}")
    config = tiny(Path("scenes"), *guidance, *shape)
    for batch in (1, 5):
        assert cost.step_flops(config, build_teacher(config, has_depth=True), batch) == pytest.approx(
            by_hand(config, batch), rel=0.01
        )


def test_the_matmul_rate_is_one_that_a_processor_can_have() -> None:
    rate = cost.matmul_rate(torch.device("cpu"), torch.float32, seconds=0.02, side=512)
    assert 1e9 < rate < 1e14


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h"), (36000.0, "10.0 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert cost.duration(seconds) == text


def test_the_estimate_grows_with_the_steps_and_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(Path("scenes"), "train.batch_size=32")
    method, cpu = build_method(config, None, classes=0), torch.device("cpu")
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e9)
    seconds = 2 * cost.step_flops(config, None, 8) / 8 * 32 / 1e9
    line = cost.estimate(config, method, None, 1000, 1, cpu)
    assert line.startswith("estimate: 1000 steps of 32 images, ")
    assert f"about {cost.duration(1000 * seconds)} on this cpu" in line
    assert cost.memory_bytes(config, method, 64) > cost.memory_bytes(config, method, 32)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "fp32"), (1.1, "fp32"), (2.0, "bf16")])
def test_precision_is_chosen_by_the_measured_rates(
    monkeypatch: pytest.MonkeyPatch, ratio: float, expected: str
) -> None:
    """A CPU without bf16 units multiplies slower in it; a little faster does not pay for the casts."""
    rates = {torch.float32: 1e11, torch.bfloat16: ratio * 1e11}
    sides: list[int] = []
    monkeypatch.setattr(cost, "matmul_rate", lambda _, dtype, *, side, **__: sides.append(side) or rates[dtype])
    assert cost.faster_precision(torch.device("cpu")) == expected
    assert max(sides) <= 512  # without bf16 instructions larger ones take minutes


def test_bench_writes_rates_and_fractions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "matmul_rate", functools.partial(cost.matmul_rate, seconds=0.02, side=256))
    monkeypatch.setattr(bench, "REPETITIONS", 2)
    file = tmp_path / "bench.json"
    settings = [*SETTINGS, *GUIDED, "masks.bias=unbiased", "data.scenes_train=16"]
    monkeypatch.setattr(sys, "argv", ["depthjepa", "bench", *settings, "--json", str(file)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    figures = json.loads(file.read_text())
    assert figures["batch_size"] == 8
    assert figures["operations_per_step"] > 0
    for name in ("fp32", "bf16"):
        measured = figures[name]
        assert measured["fraction_of_matmul_rate"] > 0
        assert measured["images_per_second"] == pytest.approx(8 / measured["seconds_per_step"])
        given = figures["operations_per_step"] / measured["seconds_per_step"] / measured["matmul_rate"]
        assert measured["fraction_of_matmul_rate"] == pytest.approx(given)
    for key in ("loading_images_per_second", "mask_seconds_per_step", "peak_memory_bytes", "threads", "torch"):
        assert figures[key]
    assert figures["fastest"] == min(("fp32", "bf16"), key=lambda name: figures[name]["seconds_per_step"])
    assert figures["auto"] in ("fp32", "bf16")
    printed = capsys.readouterr().out
    assert f"fastest: {figures['fastest']}; train.precision=auto takes {figures['auto']}" in printed
    assert "of the matmul rate" in printed and "GFLOP a step" in printed
    step, guided, taught = (figures[f"{name}_seconds"] for name in ("unguided", "guided", "teacher"))
    assert 0 < taught < step and guided > 0
    assert f"guidance: {guided / step:.3f} times the unguided step; the teacher (in the loop) " in printed


def test_works_are_timed_in_turn() -> None:
    order: list[str] = []
    times = bench.seconds_in_turn([lambda: order.append("a"), lambda: order.append("b")], torch.device("cpu"))
    assert order == ["a", "b"] * (1 + bench.REPETITIONS)
    assert [len(each) for each in times] == [1 + bench.REPETITIONS] * 2
