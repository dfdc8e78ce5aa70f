"""Speed against this machine's own limits: the matmul rate measured in the same process.

A step is everything that training does: forward and backward passes, optimiser, moving average; the teacher's
latents are given. The fraction is (operations of the step / seconds) / matmul rate, operations as in `cost`. The ways
to compute it are measured one after the other, compiled ones where there is a GPU or `train.compile` asks for them.
What guidance costs is measured against the unguided twin, turn by turn, and so is the teacher, in the loop or cached.
Where the time of a step goes is asked of PyTorch's profiler, in the fastest precision, without compilation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from depthjepa import cost, optim, runtime
from depthjepa.config.reading import build_config, load_config
from depthjepa.config.run_config import RunConfig, to_mapping
from depthjepa.data.loading import TrainingBatches, open_source
from depthjepa.distributed import Ranks
from depthjepa.guidance.build import asked_directly
from depthjepa.guidance.config import NoGuidance
from depthjepa.guidance.target import Teacher, fit_whitening, on_cells
from depthjepa.masks import sample_masks
from depthjepa.method import build_method, build_teacher, compile_blocks, parameter_count
from depthjepa.run import memory

# ViT-S/16 at 224 px, batch 16, predictor 6 deep and 384 wide, masks of the reference.
DEFAULTS: dict[str, Any] = {
    "name": "bench",
    "data": {"image_size": 224, "scenes_train": 64},
    "masks": {"bias": "reference"},
    "model": {"size": "small", "patch_size": 16},
    "train": {"batch_size": 16, "steps": 1},
}
WITHOUT_DATA = ("data.root=scenes", "data.scenes_train=64")  # for recipes that leave their data to be said
REPETITIONS = 5
PRODUCTS = "matrix products"
# What PyTorch calls them: on a GPU, on a CPU, by way of oneDNN.
NAMES_OF_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mkldnn_linear", "mkldnn::_linear_pointwise"}
COSTS = 3  # that are printed
LESS = 0.9  # of a batch that did not fit, tried next


def bench(recipe: str | None = None, overrides: Sequence[str] = (), *, largest: bool = False) -> dict[str, Any]:
    """Measure and print.

    `recipe`: a shipped one or a YAML file; None: ViT-S/16 at 224 px, batch 16. `overrides` change the configuration
    (`train.batch_size=64`, `guidance.kind=feature`, …). `largest`: also find the largest batch that fits.

    Raises:
        BadInput: of the recipe, the settings or the data; one image does not fit into the memory that is free.
    """
    config = build_config(DEFAULTS, overrides) if recipe is None else load_config(recipe, overrides)
    if not config.data.root:
        config = load_config(recipe or "", [*overrides, *WITHOUT_DATA])
        print(f"{recipe} leaves data.root to be said: rendered street scenes take its place")
    runtime.settle_cpu(config.train.threads)
    device = runtime.device(config.train.device)
    size = config.train.batch_size
    teacher = build_teacher(config, has_depth=open_source(config.data, "train").has_depth)
    operations = cost.step_flops(config, teacher, size)
    figures: dict[str, Any] = {
        "configuration": " ".join([*([] if recipe is None else [recipe]), *overrides]) or "defaults",
        "image_size": list(config.data.size),
        "batch_size": size,
        "parameters": parameter_count(build_method(config, teacher, classes=0)),
        "operations_per_step": operations,
        "operations_are": "forward and backward with target encoder, 2 per multiply-add, explicit attention",
        **runtime.environment(),
    }
    print(f"{config.model.size}/{config.model.patch_size} at {config.data.size}, batch {size}, on {device}")
    print(f"{operations / 1e9:.1f} GFLOP a step; {figures['threads']} threads; torch {torch.__version__}")
    figures |= ways_figures(config, teacher, operations, device)
    precision = figures["fastest"].partition(",")[0]
    figures["costs"] = costs(training_step(config, teacher, precision, device), device)
    most = ", ".join(f"{name} {share:.0%}" for name, share in list(figures["costs"].items())[:COSTS])
    print(f"costs: {most} of the time that PyTorch's operations take ({precision}, not compiled)")
    if teacher is not None and config.train.objective == "jepa":
        figures |= guidance_figures(config, teacher, precision, device)
        print(guidance_line(config, figures))
    figures |= loading_figures(config)
    figures["mask_seconds_per_step"] = mask_seconds(config)
    figures["peak_memory_bytes"] = runtime.peak_memory_bytes(device)
    print(
        f"masks: {1e3 * figures['mask_seconds_per_step']:.2f} ms a step; decode and crop: "
        f"{figures['loading_images_per_second']:.0f} images/s; "
        f"peak memory {figures['peak_memory_bytes'] / 2**20:.0f} MiB"
    )
    if largest:
        figures["largest_batch"] = largest_batch_figures(config, teacher, precision, device)
        found = figures["largest_batch"]
        print(
            f"largest batch: train.batch_size={found['images']}, {found['images_per_second']:.1f} images/s in "
            f"{precision}; peak memory {cost.size_of(found['peak_memory_bytes'])} of "
            f"{cost.size_of(found['memory_bytes'])} ({cost.size_of(found['told_bytes'])} were expected)"
        )
    return figures


def ways_figures(config: RunConfig, teacher: Teacher | None, operations: int, device: torch.device) -> dict[str, Any]:
    """Figures of each way to compute a step, by its name, and which is the `fastest`; a line is printed for each."""
    figures: dict[str, Any] = {"auto": runtime.faster_precision(device)}
    ways = {"fp32": ("fp32", False), "bf16": ("bf16", False)}
    if figures["auto"] == "fp32" and config.train.precision != "bf16":
        del ways["bf16"]  # without bf16 units a step may take minutes
        print("bf16: left out, this machine does not multiply faster in it (train.precision=bf16 measures it)")
    if config.train.compile or device.type == "cuda":
        ways["bf16, compiled"] = ("bf16", True)
    for name, (precision, compiled) in ways.items():
        found = figures[name] = way_figures(config, teacher, operations, precision, device, compiled=compiled)
        print(
            f"{name}: {found['images_per_second']:7.1f} images/s, {found['seconds_per_step']:.3f} s a step (the first "
            f"{found['seconds_of_first_step']:.1f} s), {found['fraction_of_matmul_rate']:.2f} of the matmul rate "
            f"({found['matmul_rate'] / 1e9:.0f} GFLOP/s)"
        )
    figures["fastest"] = min(ways, key=lambda name: figures[name]["seconds_per_step"])
    print(f"fastest: {figures['fastest']}; train.precision=auto takes {figures['auto']}")
    return figures


def way_figures(
    config: RunConfig, teacher: Teacher | None, operations: int, precision: str, device: torch.device, *, compiled: bool
) -> dict[str, float]:
    """Seconds of a step computed one way, and the fraction of the matmul rate that its operations come to."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # The rate is taken before and after: machines are noisy, and the larger one is the limit.
    before = runtime.matmul_rate(device, dtype)
    seconds, wait = step_seconds(config, teacher, precision, device, compiled=compiled)
    rate = max(before, runtime.matmul_rate(device, dtype))
    return {
        "matmul_rate": rate,
        "seconds_per_step": seconds,
        "seconds_of_first_step": wait,
        "images_per_second": config.train.batch_size / seconds,
        "fraction_of_matmul_rate": operations / seconds / rate,
    }


def costs(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Shares of a step's time by operation, the largest first; matrix products are one."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of the profiler, which complains where there is no GPU
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    step()
    with profile(activities=activities) as profiler:
        step()
        runtime.synchronise(device)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type.name != "CPU":  # a kernel, whose time its operation has as well
            continue
        name = event.key.removeprefix("aten::").removesuffix("_")
        name = PRODUCTS if name in NAMES_OF_PRODUCTS else name
        taken = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        times[name] = times.get(name, 0.0) + taken
    total = sum(times.values()) or 1.0
    return {name: taken / total for name, taken in sorted(times.items(), key=lambda each: -each[1]) if taken}


def largest_batch_figures(
    config: RunConfig, teacher: Teacher | None, precision: str, device: torch.device
) -> dict[str, Any]:
    """The largest batch that fits into the memory that is free in one part, by arithmetic, tried with two steps.

    On a GPU a smaller one is tried where it did not fit after all. (Of a CPU's memory the system takes back what it
    wants by ending the process: there the arithmetic has to be right.)
    """
    config = build_config(to_mapping(config), [f"train.precision={precision}", "train.accumulate=1"])
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of what was measured before
    method = build_method(config, teacher, classes=0).to(device)
    need = memory.memory_need(config, method, teacher, open_source(config.data, "train"), Ranks(), device)
    del method
    there = runtime.free_bytes(device) + runtime.held_bytes(device)
    images = memory.largest_batch(config, need, there, Ranks(), device)
    while True:
        tried = replace(config, train=replace(config.train, batch_size=images))
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            times = seconds_in_turn([training_step(tried, teacher, precision, device)], device, turns=1)[0]
        except torch.OutOfMemoryError:
            images = int(LESS * images)
        else:
            return {
                "images": images,
                "images_per_second": images / times[-1],
                "told_bytes": need.of(images, ahead=2 * config.data.workers),
                "peak_memory_bytes": runtime.peak_memory_bytes(device),
                "memory_bytes": there,
            }


def step_seconds(
    config: RunConfig, teacher: Teacher | None, precision: str, device: torch.device, *, compiled: bool = False
) -> tuple[float, float]:
    """Median seconds of a training step on given images, masks and latents; and those of the first one."""
    times = seconds_in_turn([training_step(config, teacher, precision, device, compiled=compiled)], device)[0]
    return float(np.median(times[1:])), times[0]


def training_step(
    config: RunConfig, teacher: Teacher | None, precision: str, device: torch.device, *, compiled: bool = False
) -> Callable[[], None]:
    """Return a function that makes one training step on given images, masks and latents."""
    method = build_method(config, teacher, classes=0).to(device)
    if compiled:
        compile_blocks(method)
    optimizer = optim.build_optimizer(method, config.optim)
    images, masks, latents = cost.example(config, teacher, config.train.batch_size, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with runtime.precision(precision, device):
            loss = method(images, masks, latents).total
        loss.backward()
        optimizer.step()
        method.after_step(0.996)

    return step


def seconds_in_turn(
    works: Sequence[Callable[[], object]], device: torch.device, turns: int = REPETITIONS
) -> list[list[float]]:
    """Seconds of each of some works, all of them once, then all of them again, and so on; the first turn warms up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(1 + turns):
        for work, taken in zip(works, times, strict=True):
            runtime.synchronise(device)
            begin = time.perf_counter()
            work()
            runtime.synchronise(device)
            taken.append(time.perf_counter() - begin)
    return times


def guidance_figures(config: RunConfig, teacher: Teacher, precision: str, device: torch.device) -> dict[str, float]:
    """Seconds of an unguided step, of a guided one on given latents, and of the teacher's latents of a batch."""
    unguided = replace(config, guidance=NoGuidance())
    batches = TrainingBatches(
        source=open_source(config.data, "train"),
        data=config.data,
        masks=None,
        grid=config.grid,
        seed=0,
        batch_size=config.train.batch_size,
        steps=1,
    )
    teacher, batch = teacher.to(device), next(iter(batches)).to(device)
    whitening, _ = fit_whitening(teacher, [batch], config.target_cells)

    @torch.no_grad()
    def taught() -> None:
        whitening.apply(on_cells(teacher, batch, config.target_cells))

    works = [
        training_step(unguided, None, precision, device),
        training_step(config, teacher, precision, device),
        taught,
    ]
    names = ("unguided_seconds", "guided_seconds", "teacher_seconds")
    found = seconds_in_turn(works, device)
    return {name: float(np.median(times[1:])) for name, times in zip(names, found, strict=True)}


def guidance_line(config: RunConfig, figures: Mapping[str, Any]) -> str:
    """What guidance and its teacher cost, in words."""
    step, guided, taught = (figures[f"{name}_seconds"] for name in ("unguided", "guided", "teacher"))
    how = "cached" if config.guidance != asked_directly(config.guidance, control=True) else "in the loop"
    return (
        f"guidance: {guided / step:.3f} times the unguided step; the teacher ({how}) {1e3 * taught:.1f} ms, "
        f"{taught / step:.3f} of the unguided step; together {(guided + taught) / step:.3f}"
    )


def mask_seconds(config: RunConfig) -> float:
    """Median seconds to draw the masks of one step."""
    times = []
    for epoch in range(21):
        begin = time.perf_counter()
        indices = np.arange(config.train.batch_size)
        sample_masks(config.masks, config.grid, seed=0, epoch=epoch, indices=indices, batch_index=0)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


def loading_figures(config: RunConfig) -> dict[str, float]:
    """Images a second that the loader gives (decoding, crops, masks) with `data.workers` workers."""
    source = open_source(config.data, "train")
    for index in range(min(len(source), 64) if source.keeps_samples else 0):  # rendering is not what is measured
        source.sample(index)
    size = min(config.train.batch_size, 64)
    batches = TrainingBatches(
        source=source,
        data=config.data,
        masks=config.masks,
        grid=config.grid,
        seed=0,
        batch_size=size,
        steps=9,
    )
    times, begin = [], time.perf_counter()
    for _ in batches:
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    return {"loading_images_per_second": size / float(np.median(times[1:]))}
