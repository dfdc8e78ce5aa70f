"""Measure the linear probe's logistic regression on planted features, and tell what ImageNet-1k would take.

Features are class centres of length sqrt(WIDTH) x SPREAD plus standard normal noise. What is measured is `linear` of
`depthjepa.evaluation.classification` as probes call it; an evaluation is one loss with its gradient over all images it
is fitted on. Seconds are the processor's, all threads together, so that other work on the machine does not count.
Fitting to fewer classes than ImageNet's is quicker: of its 1,000 one evaluation is measured, and the estimate takes the
number of evaluations to be that of the fits, and time and features to be proportional to images. Writes `--out`, JSON.

    OMP_NUM_THREADS=1 python tools/linear_cost.py --out results/linear-cost.json
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from depthjepa import runtime
from depthjepa.evaluation.classification import SCORES, WEIGHT_DECAYS, Standardiser, cross_entropies, linear
from depthjepa.evaluation.features import Pooled

IMAGENET, IMAGENET_CLASSES = 1_281_167, 1000
SPREAD = 0.25  # of the centres, per channel, beside noise of 1
JUDGED = 0.05  # test images, as a share of the training images


def planted(images: int, width: int, classes: int, seed: int) -> Pooled:
    """Features of `images` [images, width] around the centres of their classes, which are the same for every seed."""
    centres = SPREAD * torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=draw)
    return Pooled(torch.randn(images, width, generator=draw).add_(centres[labels]), labels, ())


def measure(images: int, width: int, classes: int) -> dict[str, Any]:
    """Fit as a probe does; seconds and evaluations of every fit, the last of them on all images."""
    train, test = planted(images, width, classes, 1), planted(int(JUDGED * images), width, classes, 2)
    started: list[float] = []
    fits: list[dict[str, float]] = []

    def begin(optimizer: Optimizer, *_: Any) -> None:
        started.append(time.process_time())

    def end(optimizer: Optimizer, *_: Any) -> None:
        seconds = time.process_time() - started[-1]
        weight: Tensor = optimizer.param_groups[0]["params"][0]
        evaluations = int(optimizer.state[weight]["func_evals"])
        fits.append({"evaluations": evaluations, "cpu_seconds": seconds})
        print(f"fit {len(fits)}: {evaluations} evaluations in {seconds:.1f} s", flush=True)

    hooks = register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)
    beginning = time.process_time()
    found = linear(train, test)
    whole = time.process_time() - beginning
    for hook in hooks:
        hook.remove()
    for fit, strength in zip(fits, (*WEIGHT_DECAYS[: len(fits) - 1], found.weight_decay), strict=True):
        fit["weight_decay"] = strength
    return {
        "images": images,
        "width": width,
        "classes": classes,
        "val_accuracy": found.val_accuracy,
        "weight_decay": found.weight_decay,
        "fits": fits,
        "evaluations": sum(fit["evaluations"] for fit in fits),
        "cpu_seconds_per_evaluation_of_all_images": fits[-1]["cpu_seconds"] / fits[-1]["evaluations"],
        "cpu_seconds": whole,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def evaluation_seconds(images: int, width: int, classes: int) -> float:
    """Processor seconds of one loss with its gradient, the fastest of three."""
    pooled = planted(images, width, classes, 1)
    features = Standardiser.of(pooled.values)(pooled.values)
    weight = torch.zeros(classes, width + 1, requires_grad=True)
    taken = []
    for _ in range(3):
        beginning = time.process_time()
        for loss in cross_entropies(weight, features, pooled.labels):
            torch.autograd.backward(loss)
        taken.append(time.process_time() - beginning)
    return min(taken)


def estimate(measured: dict[str, Any], seconds: float, images: int, classes: int) -> dict[str, float]:
    """The same for other images and classes, of which an evaluation of as many images as measured takes `seconds`."""
    factor = images / measured["images"]
    slower = seconds / measured["cpu_seconds_per_evaluation_of_all_images"]
    return {
        "images": images,
        "classes": classes,
        "cpu_hours": factor * slower * measured["cpu_seconds"] / 3600,
        "cpu_seconds_per_evaluation_of_all_images": factor * seconds,
        "features_bytes": 4.0 * images * measured["width"],
        "fit_bytes": 3 * 4.0 * images * measured["width"] + 4 * 4.0 * SCORES,
    }


def main(arguments: list[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=128_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    measured = measure(asked.images, asked.width, asked.classes)
    seconds = evaluation_seconds(asked.images, asked.width, IMAGENET_CLASSES)
    measured["cpu_seconds_per_evaluation_of_1000_classes"] = seconds
    estimated = estimate(measured, seconds, IMAGENET, IMAGENET_CLASSES)
    content = {"measured": measured, "estimated": estimated, **runtime.environment()}
    asked.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({key: value for key, value in content.items() if key != "fits"}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
