"""A step of plain I-JEPA in three implementations: the released code, lightly's building blocks, and ours.

    python benchmarks/peers.py [--reference CHECKOUT] [--precision bf16] [--size small] [--batch 16] [--json FILE]

The same encoder, predictor, batch and masks (those of the released code: every image of a batch has as many tokens), on
random images; forward, backward, AdamW and moving average. Each implementation runs in a process of its own, one at a
time, turn by turn, so that what else the machine does falls on all of them. CHECKOUT is a clone of
facebookresearch/ijepa, whose licence forbids commercial use; `pip install lightly timm` for the second. What is not
there is left out, and said.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthjepa import cost, runtime
from depthjepa.commands.bench import training_step
from depthjepa.config.reading import build_config
from depthjepa.config.run_config import RunConfig

MOMENTUM = 0.996
Step = Callable[[], None]


def configuration(options: argparse.Namespace) -> RunConfig:
    """What all of them compute."""
    settings = [
        "masks.bias=reference",
        f"model.size={options.size}",
        f"model.patch_size={options.patch}",
        f"data.image_size={options.image}",
        f"train.batch_size={options.batch}",
        f"predictor.depth={options.depth}",
        "predictor.width=384",
        "train.steps=1",
    ]
    return build_config({"name": "peers"}, settings)


def ours(config: RunConfig, options: argparse.Namespace, device: torch.device) -> Step:
    """The step that `depthjepa train` makes."""
    return training_step(config, None, options.precision, device, compiled=options.compiled)


def reference(config: RunConfig, options: argparse.Namespace, device: torch.device) -> Step:
    """The released code's networks, and its step as its train.py has it."""
    sys.path.insert(0, options.reference)
    from src.masks.utils import apply_masks
    from src.models import vision_transformer as released
    from src.utils.tensors import repeat_interleave_batch

    encoder = getattr(released, f"vit_{options.size}")(img_size=[options.image], patch_size=options.patch)
    predictor = released.vit_predictor(
        num_patches=encoder.patch_embed.num_patches,
        embed_dim=encoder.embed_dim,
        predictor_embed_dim=config.predictor.width,
        depth=config.predictor.depth,
        num_heads=encoder.num_heads,
    )
    return _step(
        *(encoder, predictor, config, options, device),
        encode=lambda network, images, masks: network(images, masks),
        apply_masks=apply_masks,
        repeat=repeat_interleave_batch,
    )


def lightly(config: RunConfig, options: argparse.Namespace, device: torch.device) -> Step:
    """Networks as lightly puts I-JEPA together of timm's; the step is the released code's."""
    from lightly.models import utils
    from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    shape = config.model.shape
    vit = VisionTransformer(
        img_size=options.image,
        patch_size=options.patch,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        class_token=False,
        global_pool="",
        num_classes=0,
    )
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    predictor = IJEPAPredictorTIMM(
        num_patches=vit.patch_embed.num_patches,
        depth=config.predictor.depth,
        mlp_dim=shape.width,
        predictor_embed_dim=config.predictor.width,
        num_heads=shape.heads,
    )
    return _step(
        *(encoder, predictor, config, options, device),
        encode=lambda network, images, masks: network.encode(images, idx_keep=None if masks is None else masks[0]),
        apply_masks=utils.apply_masks,
        repeat=utils.repeat_interleave_batch,
    )


def _step(
    encoder: nn.Module,
    predictor: nn.Module,
    config: RunConfig,
    options: argparse.Namespace,
    device: torch.device,
    *,
    encode: Callable[[nn.Module, Tensor, list[Tensor] | None], Tensor],
    apply_masks: Callable[[Tensor, list[Tensor]], Tensor],
    repeat: Callable[..., Tensor],
) -> Step:
    """A step of networks that take masks as lists of patch numbers [b, k]: one of the context, one of each target."""
    encoder, predictor = encoder.to(device), predictor.to(device)
    target = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3)
    images, masks, _ = cost.example(config, None, config.train.batch_size, device)
    assert masks is not None and masks.valid is None
    seen, hidden = [masks.context], list(masks.targets.unbind(1))

    def step() -> None:
        optimizer.zero_grad()
        with runtime.precision(options.precision, device):
            with torch.no_grad():
                wanted = encode(target, images, None)
                wanted = F.layer_norm(wanted, (wanted.size(-1),))
                wanted = repeat(apply_masks(wanted, hidden), len(images), repeat=len(seen))
            loss = F.smooth_l1_loss(predictor(encode(encoder, images, seen), seen, hidden), wanted)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(target.parameters(), encoder.parameters(), strict=True):
                kept.mul_(MOMENTUM).add_(new, alpha=1 - MOMENTUM)

    return step


PEERS = {"reference": reference, "lightly": lightly, "ours": ours}


def absent(name: str, options: argparse.Namespace) -> str:
    """Why an implementation cannot be measured; empty where it can."""
    if name == "reference" and options.reference is None:
        return "give --reference CHECKOUT"
    if name == "reference" and not Path(options.reference, "src", "models", "vision_transformer.py").is_file():
        return f"{options.reference} is no checkout of facebookresearch/ijepa"
    needs = ("lightly", "timm") if name == "lightly" else ()
    if missing := [package for package in needs if importlib.util.find_spec(package) is None]:
        return f"pip install {' '.join(missing)}"
    return ""


def serve(name: str, options: argparse.Namespace, talk: Connection) -> None:
    """In a process of its own: make some steps whenever asked, and tell the seconds of each."""
    runtime.settle_cpu(options.threads)
    device = runtime.device(options.device)
    step = PEERS[name](configuration(options), options, device)
    for _ in range(2):
        step()
    runtime.synchronise(device)
    talk.send(runtime.matmul_rate(device, torch.bfloat16 if options.precision == "bf16" else torch.float32))
    while (steps := talk.recv()) is not None:
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            step()
            runtime.synchronise(device)
            times.append(time.perf_counter() - begin)
        talk.send(times)
    talk.send(runtime.peak_memory_bytes(device))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step of each implementation that is there, and how many times as long as ours it takes."""
    config = configuration(options)
    operations = cost.step_flops(config, None, config.train.batch_size)
    figures: dict[str, Any] = {
        "configuration": " ".join(f"{key}={value}" for key, value in sorted(vars(options).items()) if key != "json"),
        "operations_per_step": operations,
        **runtime.environment(),
    }
    context, running = multiprocessing.get_context("spawn"), {}
    for name in PEERS:
        if why := absent(name, options):
            print(f"{name}: left out, {why}")
            continue
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(name, options, there), daemon=True)
        process.start()
        there.close()
        running[name] = process, here, here.recv()  # its first steps, alone on the machine
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.turns):
        for name, (_, talk, _) in running.items():
            talk.send(options.steps)
            times[name] += talk.recv()
    for name, (process, talk, rate) in running.items():
        talk.send(None)
        seconds = statistics.median(times[name])
        figures[name] = {
            "seconds_per_step": seconds,
            "images_per_second": config.train.batch_size / seconds,
            "matmul_rate": rate,
            "fraction_of_matmul_rate": operations / seconds / rate,
            "peak_memory_bytes": talk.recv(),
        }
        process.join()
    own = figures["ours"]["seconds_per_step"]
    for name in running:
        found = figures[name]
        found["times_ours"] = found["seconds_per_step"] / own
        print(
            f"{name}: {found['seconds_per_step']:.3f} s a step, {found['times_ours']:.2f} times ours, "
            f"{found['images_per_second']:.1f} images/s, {found['fraction_of_matmul_rate']:.2f} of the matmul rate, "
            f"peak memory {cost.size_of(found['peak_memory_bytes'])}"
        )
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", metavar="CHECKOUT", help="a clone of facebookresearch/ijepa")
    parser.add_argument("--size", default="small", choices=("tiny", "small", "base", "large", "huge"))
    parser.add_argument("--patch", type=int, default=16, help="side of a patch [px]")
    parser.add_argument("--image", type=int, default=224, help="side of the images [px]")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    parser.add_argument("--depth", type=int, default=6, help="blocks of the predictor, 384 wide")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compiled", action="store_true", help="ours with compiled blocks")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each turn")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    figures = measure(options)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
