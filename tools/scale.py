"""The table of docs/scale.md: what to run on how many GPUs, the memory that it takes and the price of it.

    python tools/scale.py             print it
    python tools/scale.py --write     put it into docs/scale.md

Networks are built and operations counted on shapes alone, so the largest take seconds. Speeds come from steps that were
measured on one H100 (`results/bench-h100.json`): of the same configuration, or in proportion to operations at the
fraction of the matmul rate that a step of the same encoder reached.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from depthjepa import cost
from depthjepa.config.reading import load_config
from depthjepa.config.run_config import RunConfig
from depthjepa.method import build_method
from depthjepa.model.blocks import Block
from depthjepa.run import memory

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
MEASURED = {each["configuration"]: each for each in json.loads((ROOT / "results" / "bench-h100.json").read_text())}
PRICE = 2.5  # dollars for an hour of one H100: an assumption
WEIGHT = 4  # bytes of a weight, a gradient, each moment
PARTS = re.compile(r"(<!-- scale -->\n).*?(<!-- /scale -->)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One undertaking: how many images, how often, on what, by which command; whose measured step tells its speed."""

    what: str
    recipe: str
    images: float
    epochs: float
    gpus: int
    speed: str
    parallel: str = "ddp"
    recomputed: bool = False


BASE = "model.size=base train.batch_size=256"
LARGE = "model.size=large predictor.depth=12 train.batch_size=128"
HUGE = "model.size=huge model.patch_size=14 predictor.depth=12 train.batch_size=64"
GIANT = "model.size=giant model.patch_size=16 predictor.depth=16 train.batch_size=32"
ROWS = (
    Row("100,000 photographs, ViT-B/16", "photos-base", 100e3, 100, 1, BASE),
    Row("ImageNet-1k, ViT-B/16", "imagenet1k", 1.28e6, 300, 8, BASE),
    Row("ImageNet-1k, ViT-L/16", "ijepa-large16-in1k", 1.28e6, 600, 8, LARGE),
    Row("ImageNet-1k, ViT-H/14", "ijepa-huge14-in1k", 1.28e6, 300, 16, HUGE),
    Row("100 M images, ViT-H/14", "ijepa-huge14-in22k", 100e6, 4, 32, HUGE),
    Row("100 M images, ViT-g/16, sharded", "ijepa-giant16-in22k", 100e6, 4, 32, GIANT, "sharded", recomputed=True),
)
HEADS = ("what", "recipe", "GPUs x images", "memory of each [GB], at least, computed", "images/s of each",
         "passes", "GPU hours, computed", f"price at ${PRICE:g} an hour")  # fmt: skip


def table() -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * 3}{'--:|' * (len(HEADS) - 3)}"]
    return "\n".join([*lines, *map(line, ROWS)]) + "\n"


def line(row: Row) -> str:
    """One line of the table."""
    config = load_config(row.recipe, ["data.root=scenes"])
    train = replace(config.train, precision="bf16", parallel=row.parallel, checkpoint_blocks=row.recomputed)
    config = replace(config, train=train)
    share = config.train.batch_size // row.gpus
    speed, how = images_per_second(config, row.speed)
    hours = row.images * row.epochs / speed / 3600
    settings = " ".join(
        [f"`{row.recipe}`", *[f"`train.epochs={row.epochs:g}`"] * (config.train.epochs != row.epochs),
         *["`train.parallel=sharded`"] * (row.parallel == "sharded"),
         *["`train.checkpoint_blocks=true`"] * row.recomputed]
    )  # fmt: skip
    cells = [row.what, settings, f"{row.gpus} x {share}", f"{gigabytes(config, row.gpus):.0f}", f"{speed:,.0f}, {how}"]
    cells += [f"{row.epochs:g}", rounded(hours), f"${rounded(PRICE * hours)}"]
    return f"| {' | '.join(cells)} |"


def gigabytes(config: RunConfig, world: int) -> float:
    """Memory that a process takes: what lasts, and the images that it has of a step; or before that the whole networks.

    At least: autocast keeps more of an image than what is counted here, and communication has buffers of its own.
    """
    with torch.device("meta"):
        method = build_method(config, None, classes=0)
    every = WEIGHT * sum(each.numel() for each in method.parameters())
    trained = WEIGHT * sum(each.numel() for each in method.parameters() if each.requires_grad)
    share, copies, gathered = 1, 1 + memory.MOMENTS + (world > 1), 0
    if config.train.parallel == "sharded" and world > 1:
        blocks = [each for each in method.modules() if isinstance(each, Block)]
        of_blocks = [WEIGHT * sum(weight.numel() for weight in each.parameters()) for each in blocks]
        # What is in no block is gathered for the length of a step, with its gradient; of blocks two at a time.
        share, copies, gathered = world, 1 + memory.MOMENTS, 2 * (every - sum(of_blocks)) + 3 * max(of_blocks)
    images = memory.SLACK * memory.activation_bytes(config) * config.train.batch_size / world
    return max((every + copies * trained) / share + gathered + images, every) / 1e9


def images_per_second(config: RunConfig, measured: str) -> tuple[float, str]:
    """Images a second of one H100, and how that is known."""
    step = MEASURED[measured]
    size = step["batch_size"]
    of_measured, of_this = step["operations_per_step"] / size, cost.step_flops(config, None, 8) / 8
    speed = step["bf16"]["images_per_second"]
    if abs(of_this / of_measured - 1) < 0.05:
        return speed, "measured"
    return speed * of_measured / of_this, "computed"


def rounded(value: float) -> str:
    """Two digits: the figures are no better."""
    return f"{float(f'{value:.2g}'):,g}"


def main() -> None:
    """Print the table, or put it into the page."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="put it into docs/scale.md")
    if arguments.parse_args().write:
        PAGE.write_text(PARTS.sub(lambda found: f"{found[1]}{table()}{found[2]}", PAGE.read_text()))
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
