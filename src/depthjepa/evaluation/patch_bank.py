"""The classes of a patch by the vote of the nearest training patches; nothing is trained.

After Hummingbird (Balazevic et al. 2023): the labels of the 30 training patches nearest by cosine, weighted by the
softmax of the similarity / 0.02. Where we differ: Hummingbird does not centre tokens; ours lose the bank's mean first,
as in our nearest neighbours of images, since what all patches share tells none from another. It has up to ten million
patches of augmented views, ours at most `BANK`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthjepa.data.samples import VOID
from depthjepa.evaluation.gradient_readouts import BATCH
from depthjepa.evaluation.segment_scores import LabelMap
from depthjepa.evaluation.tokens import Pairs
from depthjepa.grid import patchify
from depthjepa.progress import track
from depthjepa.runtime import uniforms

BANK = 100_000  # patches
NEIGHBOURS, TEMPERATURE = 30, 0.02
COMPARED = 2**24  # similarities that are held at once


@dataclass(frozen=True, slots=True)
class PatchBank:
    """Training patches: directions of their tokens from the mean of all, and the shares of classes in their pixels."""

    directions: Float[Tensor, "p d"]
    shares: Float[Tensor, "p c"]
    centre: Float[Tensor, " d"]

    def vote(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n c"]:
        """Shares of the classes by the nearest patches of the bank."""
        asked = F.normalize(tokens.flatten(0, 1) - self.centre, dim=1)
        parts = torch.split(asked, max(1, COMPARED // len(self.directions)))
        return torch.cat([self._vote(part) for part in parts]).view(*tokens.shape[:2], -1)

    def _vote(self, asked: Float[Tensor, "k d"]) -> Float[Tensor, "k c"]:
        near = (asked @ self.directions.T).topk(min(NEIGHBOURS, len(self.directions)))
        weights = (near.values / TEMPERATURE).softmax(1)
        return torch.einsum("kn,knc->kc", weights, self.shares[near.indices])


def patch_bank(pairs: Pairs, count: int, *, patch_size: int, classes: int, seed: int) -> PatchBank:
    """Draw patches that have a class from all images alike, at most `BANK`, at random places."""
    places = torch.arange(count)
    wanted = (places + 1) * BANK // count - places * BANK // count
    tokens_kept, shares_kept = list[Tensor](), list[Tensor]()
    parts = torch.split(places, BATCH)
    walk = zip(parts, pairs.parts(parts), strict=True)
    for part, (tokens, labels) in track(walk, "training patches", len(parts)):
        shares = class_shares(labels, patch_size, classes)
        drawn = torch.from_numpy(
            uniforms(tokens.shape[1], seed=seed, stream="segment bank", epoch=0, indices=part.numpy())
        ).to(tokens.device)
        drawn = torch.where(shares.sum(2) > 0, drawn, 2.0)  # wholly void ones come last
        rank = drawn.argsort(1).argsort(1)
        chosen = (rank < wanted[part].to(tokens.device)[:, None]) & (drawn < 2)
        tokens_kept.append(tokens[chosen])
        shares_kept.append(shares[chosen])
    found = torch.cat(tokens_kept)
    centre = found.mean(0)
    return PatchBank(F.normalize(found - centre, dim=1), torch.cat(shares_kept), centre)


def class_shares(labels: LabelMap, patch_size: int, classes: int) -> Float[Tensor, "b n c"]:
    """The share of each class in the pixels of each patch; what they lack of 1 is void."""
    pixels = patchify(labels, patch_size).long()
    b, n, area = pixels.shape
    pixels = torch.where(pixels == VOID, classes, pixels)
    patch = torch.arange(b * n, device=labels.device).view(b, n, 1)
    counts = torch.bincount((patch * (classes + 1) + pixels).flatten(), minlength=b * n * (classes + 1))
    return counts.view(b, n, classes + 1)[..., :classes].float() / area
