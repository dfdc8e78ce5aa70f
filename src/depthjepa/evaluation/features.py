"""What a frozen encoder says about images: its tokens batch by batch, and their means.

Evaluation knows an encoder as a function only. `Encode` maps RGB images in [0, 1] to tokens in raster order;
normalisation, device and precision are the caller's business and sit inside the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput

Encode = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b n d"]]


@dataclass(frozen=True, slots=True)
class Pooled:
    """One vector an image: the mean over its tokens, with the image's label (-1: unknown) and name."""

    values: Float[Tensor, "images d"]
    labels: Int64[Tensor, " images"]
    names: tuple[str, ...]


def tokens_of(encode: Encode, batch: Batch) -> Float[Tensor, "b n d"]:
    """Encode one batch without gradients, as float32; refuses tokens that are not finite."""
    with torch.no_grad():
        tokens = encode(batch.images).float()
    finite = torch.isfinite(tokens).flatten(1).all(1)
    if not finite.all():
        place = int(finite.logical_not().nonzero()[0])
        which = batch.names[place] if batch.names else f"number {int(batch.index[place])}"
        raise BadInput(f"the encoder gives features that are not finite for image {which}")
    return tokens


def iterate_tokens(encode: Encode, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Float[Tensor, "b n d"]]]:
    """Encode batch by batch; one batch of tokens is held at a time."""
    for batch in batches:
        yield batch, tokens_of(encode, batch)


def pooled_features(encode: Encode, batches: Iterable[Batch]) -> Pooled:
    """Average each image's tokens (the protocol of the I-JEPA paper, appendix A.2); held on the CPU."""
    values: list[Tensor] = []
    labels: list[Tensor] = []
    names: list[str] = []
    for batch, tokens in iterate_tokens(encode, batches):
        values.append(tokens.mean(1).cpu())
        labels.append(batch.labels.cpu())
        names.extend(batch.names or (str(int(index)) for index in batch.index))
    if not values:
        raise BadInput("there are no images to encode")
    return Pooled(torch.cat(values), torch.cat(labels), tuple(names))
