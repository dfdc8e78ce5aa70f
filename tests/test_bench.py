"""Operations are what a hand count says; the bench measures them against the machine's own rate."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from depthjepa import cli, cost, runtime
from depthjepa.commands import bench
from depthjepa.config.run_config import RunConfig
from depthjepa.masks import sample_masks
from depthjepa.method import build_teacher
from depthjepa.run import memory
from tiny_images import write_flat
from tiny_runs import GUIDED, SETTINGS, Call, tiny


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
        if config.guidance.read == "dense":  # the whole image once more, up to two thirds of the depth
            count += 2 * linear(batch * cells, pixels, width) + 3 * blocks(round(2 / 3 * depth), batch, cells, width)
    return count


@pytest.mark.parametrize("guidance", [(), GUIDED, (*GUIDED, "guidance.read=predicted")])
@pytest.mark.parametrize("bias", ["unbiased", "reference"])
def test_counted_operations_are_those_of_a_hand_count(guidance: tuple[str, ...], bias: str) -> None:
    shape = ("model.depth=3", "predictor.depth=2", "data.image_size=[96, 112]", f"masks.bias={bias}")
    config = tiny(Path("scenes"), *guidance, *shape)
    for batch in (1, 5):
        assert cost.step_flops(config, build_teacher(config, has_depth=True), batch) == pytest.approx(
            by_hand(config, batch), rel=0.01
        )


class Machine(TorchDispatchMode):
    """A machine of a known speed: its clock stands still but for matrix products, and every fifth is interrupted."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.now, self.products = rate, 0.0, list[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            left, right = args
            self.products.append(left.dtype)
            operations = 2 * left.shape[0] * left.shape[1] * right.shape[1]
            self.now += operations / self.rate * (10 if len(self.products) % 5 == 0 else 1)
        return func(*args, **(kwargs or {}))

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [3e9, 8e13])
def test_the_matmul_rate_is_the_machine_s(monkeypatch: pytest.MonkeyPatch, rate: float, dtype: torch.dtype) -> None:
    with Machine(rate) as machine:
        monkeypatch.setattr(runtime, "time", machine)
        found = runtime.matmul_rate(torch.device("cpu"), dtype, seconds=0.0, side=24)
    assert found == pytest.approx(rate) and set(machine.products) == {dtype}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h"), (36000.0, "10.0 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert cost.duration(seconds) == text


@pytest.mark.parametrize("world", [1, 2])
def test_the_estimate_is_by_operations_at_half_of_the_matmul_rate(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    config = tiny(Path("scenes"), "train.batch_size=32")
    operations = by_hand(config, 32)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 2 * operations)  # a step of one process takes a second
    line = cost.estimate(config, None, 80, world, torch.device("cpu"), 700 * 2**20)
    said = r"estimate: 80 steps of 32 images, (\S+) GFLOP each: about (\d+) s on this cpu, and 700 MiB of memory"
    told = re.fullmatch(said, line)
    assert told is not None
    assert float(told[1]) == pytest.approx(operations / 1e9, rel=0.02)
    assert float(told[2]) == pytest.approx(80 / world, abs=1)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "fp32"), (1.1, "fp32"), (2.0, "bf16")])
def test_precision_is_chosen_by_the_measured_rates(
    monkeypatch: pytest.MonkeyPatch, ratio: float, expected: str
) -> None:
    """A CPU without bf16 units multiplies slower in it; a little faster does not pay for the casts."""
    rates = {torch.float32: 1e11, torch.bfloat16: ratio * 1e11}
    sides: list[int] = []
    monkeypatch.setattr(runtime, "matmul_rate", lambda _, dtype, *, side, **__: sides.append(side) or rates[dtype])
    runtime.faster_precision.cache_clear()
    assert runtime.faster_precision(torch.device("cpu")) == expected
    runtime.faster_precision.cache_clear()
    assert max(sides) <= 512  # without bf16 instructions larger ones take minutes


def test_bench_writes_rates_and_fractions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rate is measured before and after: the larger one is the machine's.
    rates = {torch.float32: [1e9, 2e9], torch.bfloat16: [8e9, 5e9]}
    monkeypatch.setattr(runtime, "matmul_rate", lambda where, dtype, **_: rates[dtype].pop(0))
    monkeypatch.setattr(runtime, "faster_precision", lambda where: "bf16")
    seconds = {"fp32": 0.5, "bf16": 0.25}
    monkeypatch.setattr(bench, "step_seconds", lambda *given, compiled: (seconds[given[2]], 3.0))
    guidance = {"unguided": 0.2, "guided": 0.3, "teacher": 0.01}
    monkeypatch.setattr(
        bench,
        "seconds_in_turn",
        lambda works, _: [work() or [9.0, taken, taken] for work, taken in zip(works, guidance.values(), strict=True)],
    )
    file = tmp_path / "bench.json"
    settings = [*SETTINGS, *GUIDED, "masks.bias=unbiased", "data.scenes_train=16"]
    monkeypatch.setattr(sys, "argv", ["depthjepa", "bench", *settings, "--json", str(file)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    figures = json.loads(file.read_text())
    assert figures["batch_size"] == 8
    operations = by_hand(tiny(Path("scenes"), *settings), batch=8)
    assert figures["operations_per_step"] == pytest.approx(operations, rel=0.01)
    for name, rate in (("fp32", 2e9), ("bf16", 8e9)):
        assert figures[name] == {
            "matmul_rate": rate,
            "seconds_per_step": seconds[name],
            "seconds_of_first_step": 3.0,
            "images_per_second": pytest.approx(8 / seconds[name]),
            "fraction_of_matmul_rate": pytest.approx(operations / seconds[name] / rate, rel=0.01),
        }
    for key in ("loading_images_per_second", "mask_seconds_per_step", "peak_memory_bytes", "threads", "torch"):
        assert figures[key]
    assert figures["fastest"] == figures["auto"] == "bf16"
    assert sum(figures["costs"].values()) == pytest.approx(1) and figures["costs"][bench.PRODUCTS] > 0
    printed = capsys.readouterr().out
    assert "fastest: bf16; train.precision=auto takes bf16" in printed
    assert "of the matmul rate" in printed and "GFLOP a step" in printed
    assert {name: figures[f"{name}_seconds"] for name in guidance} == guidance
    told = "guidance: 1.500 times the unguided step; the teacher (in the loop) 10.0 ms, 0.050 of the unguided step"
    assert f"{told}; together 1.550" in printed


def test_costs_are_shares_of_the_operations_time() -> None:
    weight, few = torch.randn(700, 700), torch.randn(50, 50)

    def step() -> None:
        for _ in range(20):
            few.exp_().neg_().sigmoid_()
            torch.nn.functional.linear(weight, weight)

    found = bench.costs(step, torch.device("cpu"))
    assert next(iter(found)) == bench.PRODUCTS and found[bench.PRODUCTS] > 0.8
    assert {"exp", "neg", "sigmoid"} <= set(found) and sum(found.values()) == pytest.approx(1)
    assert not set(found) & bench.NAMES_OF_PRODUCTS  # PyTorch's names for them would say little


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that measures nothing but says what it was asked for."""
    monkeypatch.setattr(runtime, "matmul_rate", lambda where, dtype, **_: 1e9)
    monkeypatch.setattr(runtime, "faster_precision", lambda where: "fp32")
    monkeypatch.setattr(bench, "step_seconds", lambda *given, compiled: (0.5, 3.0))
    monkeypatch.setattr(bench, "costs", lambda step, where: {bench.PRODUCTS: 1.0})


@pytest.mark.parametrize("rooted", [False, True])
def test_bench_takes_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, rooted: bool) -> None:
    quick(monkeypatch)
    settings = [*SETTINGS, "guidance.kind=none", "data.workers=0", "masks.bias=unbiased"]
    if rooted:
        write_flat(tmp_path / "flat", 8)
        settings.append(f"data.root={tmp_path / 'flat'}")
    status, said, _ = call("bench", "photos", *settings, "--json", tmp_path / "bench.json")
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert status == 0 and figures["configuration"] == " ".join(["photos", *settings])
    assert figures["batch_size"] == 8 and "largest_batch" not in figures
    assert ("photos leaves data.root to be said: rendered street scenes take its place" in said) is not rooted


def test_a_recipe_that_there_is_not_is_refused(call: Call) -> None:
    status, _, said = call("bench", "photoz")
    assert status == 2 and "photos" in said


@pytest.mark.parametrize("free", [400, pytest.param(800, marks=pytest.mark.slow)])
def test_the_largest_batch_is_the_one_that_fits(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(runtime, "free_bytes", lambda where: free * 2**20)
    monkeypatch.setattr(runtime, "settle_cpu", lambda threads: None)
    # So large that what is left over between two batches is small, so small that a step takes a moment.
    settings = [*SETTINGS, "data.image_size=96", "model.depth=6", "masks.bias=unbiased", "data.scenes_train=16"]
    found = bench.bench(None, settings, largest=True)["largest_batch"]
    assert 0.85 * found["memory_bytes"] < found["told_bytes"] < memory.SURE * found["memory_bytes"]
    more = bench.bench(None, [*settings, "train.checkpoint_blocks=true"], largest=True)["largest_batch"]
    assert more["images"] > 2 * found["images"]


def test_a_gpu_s_batch_that_did_not_fit_after_all_is_tried_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def step(config: RunConfig, *_: object) -> Callable[[], None]:
        tried.append(config.train.batch_size)
        if config.train.batch_size > 80:
            raise torch.OutOfMemoryError("planted")
        return lambda: None

    monkeypatch.setattr(bench, "training_step", step)
    monkeypatch.setattr(memory, "largest_batch", lambda *_: 100)
    config = tiny(Path("scenes"), "data.scenes_train=16")
    found = bench.largest_batch_figures(config, None, "fp32", torch.device("cpu"))
    assert tried == [100, 90, 81, 72] and found["images"] == 72


def test_bf16_is_left_out_where_it_is_slower_and_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bf16 units a single product of large matrices takes minutes."""
    asked: list[str] = []
    monkeypatch.setattr(runtime, "faster_precision", lambda where: "fp32")
    monkeypatch.setattr(runtime, "matmul_rate", lambda where, dtype, **_: asked.append(str(dtype)) or 1e9)
    monkeypatch.setattr(bench, "step_seconds", lambda *given, compiled: (0.5, 3.0))
    for given, expected in (((), {"torch.float32"}), (("train.precision=bf16",), {"torch.float32", "torch.bfloat16"})):
        asked.clear()
        figures = bench.bench(None, [*SETTINGS, "masks.bias=unbiased", "data.scenes_train=16", *given])
        assert set(asked) == expected and ("bf16" in figures) is bool(given) and figures["auto"] == "fp32"


def test_works_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order, now = list[str](), [0.0]

    def work(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds * (10 if len(order) <= 2 else 1)  # the first turn warms up

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    times = bench.seconds_in_turn([lambda: work("a", 0.5), lambda: work("b", 2.0)], torch.device("cpu"))
    assert order == ["a", "b"] * (1 + bench.REPETITIONS)
    assert times == [[5.0] + [0.5] * bench.REPETITIONS, [20.0] + [2.0] * bench.REPETITIONS]


def test_the_seconds_of_a_step_are_the_median_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "seconds_in_turn", lambda works, where: [[9.0, 1.0, 4.0, 2.0]])
    assert bench.step_seconds(tiny(Path("scenes")), None, "fp32", torch.device("cpu")) == (2.0, 9.0)


def test_a_step_that_is_timed_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.nn.Module] = []
    honest = bench.build_method
    monkeypatch.setattr(bench, "build_method", lambda *given, **more: built.append(honest(*given, **more)) or built[0])
    step = bench.training_step(tiny(Path("scenes")), None, "fp32", torch.device("cpu"))
    before = {name: value.clone() for name, value in built[0].state_dict().items()}
    step()
    moved = {name.split(".")[0] for name, value in built[0].state_dict().items() if not value.equal(before[name])}
    assert moved == {"context_encoder", "target_encoder", "predictor"}
