"""A network of another library as an encoder of ours, so that a run can start from it."""

from __future__ import annotations

import torch

from depthjepa import runtime
from depthjepa.backbones.network import OpenedNetwork
from depthjepa.faults import BadInput
from depthjepa.formats.weights import PREFIX, Contents, assemble, beginnings, few
from depthjepa.model.vit import ModelConfig

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
    prefix = weights[PREFIX].shape[1] if PREFIX in weights else 0
    red, green, blue = facts.mean
    model = ModelConfig(
        patch_size=facts.patch_size,
        width=facts.widths[-1],
        depth=len(facts.widths),
        heads=plain.heads,
        hidden=plain.hidden,
        prefix_tokens=prefix,
        layer_scale=plain.layer_scale,
        norm_eps=plain.eps,
        mean=(red, green, blue),
        deviation=(facts.deviation[0], facts.deviation[1], facts.deviation[2]),
    )
    grid = facts.taken[0] // facts.patch_size, facts.taken[1] // facts.patch_size
    encoder = assemble(model, grid, weights, facts.name)
    with torch.no_grad(), runtime.precision("fp32", torch.device("cpu")):
        images = torch.randn(_TRIED, 3, *facts.taken, generator=torch.Generator().manual_seed(0))
        theirs, ours = opened.encoder("single")(images), encoder(images)
    apart = float((ours - theirs).abs().max() / theirs.std())
    if not apart < CLOSE:
        raise BadInput(
            f"init.checkpoint={facts.name} holds {opened.found}, which computes otherwise than our encoder: its tokens "
            f"differ by {apart:.2g} of their deviation"
        )
    told = [opened.found.partition(", left out")[0]]
    if prefix:
        told.append(f"{prefix} token{'s' * (prefix > 1)} before the patches")
    if plain.layer_scale is not None:
        told.append("with layer scale")
    if left_out:
        told.append(f"left out {few(list(left_out)) if len(left_out) <= 3 else beginnings(left_out)}")
    return Contents(
        facts.name, PUBLIC, ", ".join(told), {"single": weights}, model, facts.taken, assumed=opened.assumed
    )
