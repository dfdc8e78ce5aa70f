"""What a frozen encoder says about images: its tokens batch by batch, and their means.

Evaluation knows an encoder as a function only. `Encode` maps RGB images in [0, 1] to tokens in raster order;
normalisation, device and precision are the caller's business and sit inside the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput

ON_DEVICE = 2**32  # bytes of the means of one set: 2.8 million images of width 384

Encode = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b n d"]]


@dataclass(frozen=True, slots=True)
class OfBatch:
    """An encoder that reads more of a batch than its images, such as its masks."""

    read: Callable[[Batch], Float[Tensor, "b n d"]]


@dataclass(frozen=True, slots=True)
class Pooled:
    """One vector an image: the mean over its tokens, with the image's label (-1: unknown) and name.

    Means are float32 on the device that fits on them run on; labels are on the CPU.
    """

    values: Float[Tensor, "images d"]
    labels: Int64[Tensor, " images"]
    names: tuple[str, ...]


def tokens_of(encode: Encode | OfBatch, batch: Batch) -> Float[Tensor, "b n d"]:
    """Encode one batch without gradients, as float32; refuses tokens that are not finite."""
    with torch.no_grad():
        tokens = (encode.read(batch) if isinstance(encode, OfBatch) else encode(batch.images)).float()
    refuse_non_finite(tokens, batch.names or batch.index)
    return tokens


def refuse_non_finite(tokens: Float[Tensor, "b n d"], names: Sequence[str] | Int64[Tensor, " b"]) -> None:
    """Raise `BadInput` with the name, or the number, of the first image whose tokens are not finite."""
    finite = torch.isfinite(tokens).flatten(1).all(1)
    if not finite.all():
        place = int(finite.logical_not().nonzero()[0])
        which = f"number {int(names[place])}" if isinstance(names, Tensor) else names[place]
        raise BadInput(f"the encoder gives features that are not finite for image {which}")


def iterate_tokens(encode: Encode, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Float[Tensor, "b n d"]]]:
    """Encode batch by batch; one batch of tokens is held at a time."""
    for batch in batches:
        yield batch, tokens_of(encode, batch)


class PooledParts:
    """Averages each image's tokens, batch by batch.

    The means stay where the tokens are, and so does what is fitted to them, which takes up to three times their memory
    (`classification`). Means of more than `ON_DEVICE` bytes (4 GiB) go to the CPU, and the fits with them.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.bytes = 0
        self.labels: list[Tensor] = []
        self.names: list[str] = []

    def add(self, batch: Batch, tokens: Float[Tensor, "b n d"]) -> None:
        """Take one batch in."""
        means = tokens.mean(1)
        if self.bytes <= ON_DEVICE < self.bytes + means.nbytes:
            self.values = [each.cpu() for each in self.values]
        self.bytes += means.nbytes
        self.values.append(means if self.bytes <= ON_DEVICE else means.cpu())
        self.labels.append(batch.labels.cpu())
        self.names.extend(batch.names or (str(int(index)) for index in batch.index))

    def joined(self) -> Pooled:
        """All batches in one; raises `BadInput` where there were none."""
        if not self.values:
            raise BadInput("there are no images to encode")
        return Pooled(torch.cat(self.values), torch.cat(self.labels), tuple(self.names))


def pooled_features(encode: Encode, batches: Iterable[Batch]) -> Pooled:
    """Average each image's tokens (the protocol of the I-JEPA paper, appendix A.2)."""
    parts = PooledParts()
    for batch, tokens in iterate_tokens(encode, batches):
        parts.add(batch, tokens)
    return parts.joined()
