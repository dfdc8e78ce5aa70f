"""The memory that a run takes, found out before its first step; what cannot fit is refused.

The way forward of two small batches is watched, tensor by tensor, on the device and in the precision of the run:
networks, heads, attention and teacher count as they are. What lasts (this process, gradients, the optimiser's state,
images that are kept) comes on top. On a GPU it is the GPU's memory that counts, else the machine's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from depthjepa import distributed, runtime
from depthjepa.config.run_config import RunConfig
from depthjepa.cost import asks_network, example, size_of
from depthjepa.data.memory import kept_bytes
from depthjepa.data.samples import Batch, Source
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import Teacher
from depthjepa.masks import Masks, sample_masks
from depthjepa.model.jepa import JEPA
from depthjepa.model.supervised import Supervised

WATCHED = (2, 3)  # images of the batches that are watched
DRAWN = 256  # masks of a part, at most: the longest of them is what all are padded to
SLACK = 1.25  # of tensors that come and go: the heap has holes, and convolutions take room to work in
SURE = 0.9  # of the memory that is there: a batch that is advised fits when other things have grown a little
MOMENTS = 2  # of AdamW


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a process takes at its peak.

    `fixed` whatever the batch, `image` for each image of the part of a step that is computed at a time, `waiting` for
    each image that has been read and waits for its turn.
    """

    fixed: int
    image: int
    waiting: int

    def of(self, images: int, parts: int = 1, ahead: int = 0) -> int:
        """Bytes with steps of `parts` parts of so many images, while `ahead` further parts are read."""
        return self.fixed + images * (self.image + self.waiting * (parts + ahead))


def refuse_untried(config: RunConfig, ranks: distributed.Ranks, device: torch.device) -> None:
    """Raise `BadInput` where the images that `memory_need` tries would end this process."""
    there, about = runtime.memory_bytes(device, ranks), WATCHED[1] * activation_bytes(config)
    if about > there:
        height, width = config.data.size
        raise BadInput(
            f"steps on {WATCHED[1]} images of {height} x {width} px take about {size_of(about)} of memory, and there "
            f"are {size_of(there)} on this {device.type}: take a smaller model or a smaller data.image_size"
        )


def refuse_too_large(config: RunConfig, need: Need, ranks: distributed.Ranks, device: torch.device) -> int:
    """The bytes that each process of a run takes at its peak.

    Raises `BadInput` where that is more than there is, with the largest batch that would fit.
    """
    there = runtime.memory_bytes(device, ranks)
    parts, ahead = config.train.accumulate, 2 * config.data.workers
    taken = need.of(config.train.batch_size // (parts * ranks.world), parts, ahead)
    if taken <= there:
        return taken
    most = largest_batch(config, need, there, ranks, device)
    lighter = "" if config.train.checkpoint_blocks else "; train.checkpoint_blocks=true lets more images fit"
    raise BadInput(
        f"train.batch_size={config.train.batch_size} takes {size_of(taken)} of memory, and there are {size_of(there)} "
        f"on this {device.type}: the largest that fits is about train.batch_size={most}{lighter}"
    )


def largest_batch(config: RunConfig, need: Need, there: int, ranks: distributed.Ranks, device: torch.device) -> int:
    """The most images of a step that surely fit into so many bytes; raises `BadInput` where one image does not."""
    parts, ahead = config.train.accumulate, 2 * config.data.workers
    one = need.of(1, parts, ahead)
    if one > SURE * there:
        raise BadInput(
            f"a step on one image takes {size_of(one)} of memory, and there are {size_of(there)} on this "
            f"{device.type}: take a smaller model or a smaller data.image_size"
        )
    return int((SURE * there - need.fixed) / (one - need.fixed)) * parts * ranks.world


def memory_need(
    config: RunConfig,
    method: JEPA | Supervised,
    teacher: Teacher | None,
    source: Source,
    ranks: distributed.Ranks,
    device: torch.device,
) -> Need:
    """What a process of a run takes at its peak; the method is whole yet, and as before afterwards.

    Raises `BadInput` where two small batches are too much by far.
    """
    refuse_untried(config, ranks, device)
    small, large = (watched(config, method, teacher, images, device) for images in WATCHED)
    image = (large - small) // (WATCHED[1] - WATCHED[0])
    if config.train.checkpoint_blocks:  # the way back, which is not watched, has more than the way forward
        image = max(image, int(SLACK * activation_bytes(config)))
    weights = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    held = runtime.held_bytes(device)
    if sharded := ranks.world > 1 and config.train.parallel == "sharded":
        held -= sum(parameter.nbytes for parameter in method.parameters()) * (ranks.world - 1) // ranks.world
        weights //= ranks.world
    # A gradient for each weight, and where several processes exchange them another copy.
    copies = 1 + (ranks.world > 1 and not sharded) + MOMENTS
    fixed = held + max(0, small - WATCHED[0] * image) + copies * weights
    if device.type == "cuda":
        return Need(fixed, image, 0)  # what is read and waits does so in the machine's memory
    height, width = config.data.size
    waiting = 4 * (3 + source.has_depth) * height * width
    return Need(fixed + kept_bytes(source, config.data.memory_gib), image, waiting)


def activation_bytes(config: RunConfig) -> int:
    """About what the way back needs of one image, by arithmetic: 34 bytes for each token, layer and width.

    Korthikanti et al. 2022, equation 1, at 16 bits (twice that at 32): the encoder's visible tokens, the predictor's
    sequences, a dense pass. Of blocks that are computed again, their tokens are kept, and one block has the rest.
    """
    sequences, longer = _sequences(config), 1 if config.train.precision == "bf16" else 2
    whole = sum(depth * numbers for depth, numbers in sequences)
    if config.train.checkpoint_blocks:
        return longer * (2 * whole + 34 * max(numbers for _, numbers in sequences))
    return longer * 34 * whole


def _sequences(config: RunConfig) -> list[tuple[int, int]]:
    """Blocks that an image goes through with gradient, and the numbers that it has there: tokens times width."""
    shape, cells = config.model.shape, config.grid[0] * config.grid[1]
    if config.train.objective != "jepa":
        return [(shape.depth, shape.width * cells)]
    masks = _first(config, 1)
    if config.predictor.blocks == "together":
        masks = masks.joined(cells)
    seen, blocks, hidden = masks.context.shape[1], *masks.targets.shape[1:]
    predicted = config.predictor.width * blocks * (seen + hidden)
    found = [(shape.depth, shape.width * seen), (config.predictor.depth, predicted)]
    if isinstance(config.guidance, FeatureGuidance) and config.guidance.read in ("dense", "both"):
        found.append((round(config.guidance.layer_share * shape.depth), shape.width * cells))
    return found


def watched(
    config: RunConfig, method: JEPA | Supervised, teacher: Teacher | None, images: int, device: torch.device
) -> int:
    """Peak bytes of the tensors that the losses of few random images make, with those kept for the way back."""
    pixels, masks, target = example(config, teacher, images, device)
    if masks is not None:
        masks = _first(config, images).to(device)
    buffers = {name: buffer.clone() for name, buffer in method.named_buffers()}

    def forward() -> None:
        with runtime.precision(config.train.precision, device):
            if teacher is not None and asks_network(config, teacher):
                with torch.no_grad():
                    teacher.batch_latents(_batch(pixels.sigmoid()), config.target_cells)
            method(pixels, masks, target)

    peak = int(SLACK * peak_bytes(forward))
    for name, buffer in method.named_buffers():
        buffer.copy_(buffers[name])
    return peak


def _first(config: RunConfig, images: int) -> Masks:
    """Masks of the first images of a part of a step, as long as that part's are."""
    indices = np.arange(min(DRAWN, max(images, config.train.batch_size // config.train.accumulate)))
    masks = sample_masks(config.masks, config.grid, seed=0, epoch=0, indices=indices, batch_index=0)
    valid = None if masks.valid is None else masks.valid[:images]
    return Masks(masks.context[:images], masks.targets[:images], valid)


def _batch(images: Tensor) -> Batch:
    index = torch.arange(len(images), device=images.device)
    return Batch(index=index, images=images, depth=None, zoom=torch.ones_like(images[:, 0, 0, 0]), labels=index)


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that the tensors which a piece of work makes take at a time; those that it is given do not count."""
    watch = _Watch()
    with watch:
        work()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Adds the bytes of every new storage, and takes them off when it is gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}  # bytes by address
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(tensor) for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (address := _address(tensor)) not in given and address not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[address] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, address)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, address: int) -> None:
        self.now -= self.alive.pop(address)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
