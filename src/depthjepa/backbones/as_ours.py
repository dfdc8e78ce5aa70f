"""A network of another library as an encoder of ours, so that a run can start from it."""

from __future__ import annotations

from dataclasses import replace

import torch

from depthjepa import runtime
from depthjepa.backbones.network import OpenedNetwork, Size
from depthjepa.faults import BadInput
from depthjepa.formats.weights import Contents, assemble, beginnings, describe, few
from depthjepa.model.encoder import Encoder

# Of the tokens' deviation: what rounding makes of two ways to compute the same in float32 is some 1e-6.
CLOSE = 1e-3
_TRIED = 2  # images
PUBLIC = "public"  # what a checkpoint says of its layout


def as_ours(opened: OpenedNetwork) -> Contents:
    """Its tensors under our names, after one look: on random images our encoder gives the library's tokens.

    Raises `BadInput` for a network that is no plain vision transformer, or computes otherwise than ours.
    """
    facts = opened.network.facts
    if opened.plain is None:
        raise BadInput(f"init.checkpoint={facts.name} holds {opened.found}: a run can start from a vision transformer")
    plain = opened.plain()
    weights, left_out = plain.renamed.weights, plain.renamed.left_out
    model, _, _ = describe(
        weights, facts.name, heads=plain.heads, eps=plain.eps, mean=facts.mean, deviation=facts.deviation
    )
    model = replace(model, layer_scale=plain.layer_scale)
    grid = facts.taken[0] // facts.patch_size, facts.taken[1] // facts.patch_size
    apart = tokens_apart(opened.encoder("single"), assemble(model, grid, weights, facts.name), facts.taken)
    if not apart < CLOSE:
        raise BadInput(
            f"init.checkpoint={facts.name} holds {opened.found}, which computes otherwise than our encoder: its tokens "
            f"differ by {apart:.2g} of their deviation"
        )
    parts = [opened.found.partition(", left out")[0]]
    if prefix := model.prefix_tokens:
        parts.append(f"{prefix} token{'s' * (prefix > 1)} before the patches")
    if plain.layer_scale is not None:
        parts.append("with layer scale")
    if left_out:
        parts.append(f"left out {few(list(left_out)) if len(left_out) <= 3 else beginnings(left_out)}")
    return Contents(
        facts.name, PUBLIC, ", ".join(parts), {"single": weights}, model, facts.taken, assumed=opened.assumed
    )


@torch.no_grad()
def tokens_apart(one: Encoder, other: Encoder, size: Size) -> float:
    """Largest difference of the tokens of two encoders on random images of a size, in the first one's deviations."""
    images = torch.randn(_TRIED, 3, *size, generator=torch.Generator().manual_seed(0))
    with runtime.precision("fp32", images.device):
        first, second = one(images), other(images)
    return float((first - second).abs().max() / first.std())
