"""One pass of a frozen encoder over the images of a run's data, for all probes that read its tokens.

Nearest neighbours, the linear and the attentive probe, rank and spread are figures of the same tokens in the same
fixed views: encoding is what costs, so it is done once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from depthjepa import distributed, runtime
from depthjepa.config.run_config import RunConfig
from depthjepa.data.groups import Places, places_of
from depthjepa.data.images import Split
from depthjepa.data.loading import open_source, open_splits, source_name, view_batches
from depthjepa.data.order import Mixture, evenly
from depthjepa.data.samples import Batch, Chosen, Source, segment_classes
from depthjepa.evaluation.diagnostics import Diagnosis
from depthjepa.evaluation.features import Encode, Pooled, PooledParts, iterate_tokens
from depthjepa.evaluation.tokens import ComputedTokens, TokenKeeper, Tokens
from depthjepa.faults import BadInput
from depthjepa.grid import patchify
from depthjepa.guidance.teachers.taught import open_taught
from depthjepa.model.encoder import Encoder

RANDOM, RAW = "random encoder", "raw patches"  # rows that took no training
RAW_SIDE = 8  # pixels of a patch along each side that raw patches keep


@dataclass(frozen=True, slots=True)
class Features:
    """What an encoder says about one set of images: their means, all tokens (None: not asked for), and its figures.

    The diagnosis is of tokens that are layer-normalised as the targets of training are. Images that could not be read
    are left out; `numbers` are those of the others in their source.
    """

    pooled: Pooled
    numbers: Int64[Tensor, " images"]
    tokens: Tokens | None
    diagnosis: Diagnosis


def is_random(name: str) -> bool:
    """Whether a row is of an encoder at its initial weights: `random encoder`, or that of a named one of several."""
    return name == RANDOM or name.startswith(f"{RANDOM}, ")


def encode_with(encoder: Encoder, device: torch.device, precision: str = "fp32") -> Encode:
    """Turn an encoder into a function of RGB images in [0, 1]; tokens are float32 whatever it computes in."""
    encoder = encoder.to(device).eval()

    def encode(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        with runtime.precision(precision, device):
            tokens: Tensor = encoder(encoder.normalise(images.to(device)))
        return tokens.float()

    return encode


def raw_patches(patch_size: int, device: torch.device) -> Encode:
    """The baseline of dense probes: the pixels of each patch as its token, averaged to at most 8 x 8 of them."""
    side = min(patch_size, RAW_SIDE)

    def encode(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        size = images.shape[2] * side // patch_size, images.shape[3] * side // patch_size
        return patchify(F.adaptive_avg_pool2d(images.to(device), size), side)

    return encode


def encode_together(encode: Encode, ranks: distributed.Ranks) -> Encode:
    """Divide the images of every call over all processes, which call with the same ones; all get all tokens.

    Each process reads the images itself: reading at the same time takes no longer than one of them would.
    """

    def encode_share(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        own = ranks.share(len(images))
        # A process without a share encodes an image all the same, which tells the shape of tokens that it gets.
        tokens = encode(images[list(own) or [0]])[: len(own)]
        return distributed.join(tokens, len(images), ranks)

    return encode_share if ranks.world > 1 else encode


class Views:
    """The fixed views of a split of the run's data, anew on every call; `skipped` fills with what is unreadable."""

    def __init__(self, config: RunConfig, split: Split, source: Source | None = None) -> None:
        self.config = config
        self.source = open_source(config.data, split) if source is None else source
        self.limit = config.evaluation.train_images if split == "train" else config.evaluation.val_images
        self.skipped: dict[str, None] = {}
        self.label_maps = False

    def with_label_maps(self) -> Views:
        """The same views of the same source with their label maps, which others do not read."""
        found = copy.copy(self)
        found.label_maps = True
        return found

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    @property
    def numbers(self) -> Int64[np.ndarray, " images"]:
        """Those of the images in their source, whether or not they can be read."""
        return evenly(len(self), len(self.source))

    @property
    def used(self) -> int:
        """How many images could be read, once all were."""
        return len(self) - len(self.skipped)

    def __call__(self) -> Iterator[Batch]:
        """Read all images in order."""
        return self._read(self.source, self.limit)

    def of(self, source: Source) -> Iterator[Batch]:
        """Read the same images, in order, of a source that tells more of them."""
        return self._read(source, self.limit)

    def chosen(self, numbers: Int64[Tensor, " _"]) -> Iterator[Batch]:
        """Read the images with these numbers in the source, in this order."""
        return self._read(Chosen(self.source, numbers.numpy()), None)

    def _read(self, source: Source, limit: int | None) -> Iterator[Batch]:
        for batch in views(self.config, source, limit, label_maps=self.label_maps):
            self.skipped |= dict.fromkeys(batch.skipped)
            yield batch


def fitted_views(config: RunConfig) -> Views:
    """What the readouts of a depth probe are fitted on: `evaluation.fit_on`, else the training images.

    Raises `BadInput` for data and caches that cannot serve.
    """
    asked = config.evaluation.fit_on
    if asked is None:
        return Views(config, "train")
    taught = (Path(asked) / "cache.json").is_file()
    source = open_taught(Path(asked), config.data) if taught else open_source(config.data.elsewhere(asked), "train")
    return Views(config, "train", source)


def judged_views(config: RunConfig) -> Views:
    """What a depth probe that was fitted on other data may be judged on: all images, training images too."""
    both = Mixture(list(open_splits(config.data).values()))
    both.name = both.sources[0].name  # one data set, not a mixture of two
    return Views(config, "val", both)


def places_in(train: Views, val: Views, *, elsewhere: bool = False) -> Places:
    """Where the images of both were taken; where what is fitted on is other data, no scene is shared."""
    places = places_of(train.source, train.numbers, val.source, val.numbers)
    if not elsewhere:
        return places
    fit_on, root = train.config.evaluation.fit_on, train.config.data.root
    if "," in source_name(root):
        raise BadInput(f"evaluation.fit_on={fit_on}: judge one data set at a time, not {root}")
    one, other = (np.zeros(len(views.source), dtype=np.int64) for views in (train, val))
    return replace(places, parts=(val.source.name,), train_part=one, val_part=other, train_group={})


def views(config: RunConfig, source: Source, limit: int | None, *, label_maps: bool = False) -> Iterator[Batch]:
    """Fixed views of a source: whole images where depth or the class of each pixel is known, else the central part."""
    return view_batches(
        source,
        config.data.size,
        view="whole" if source.has_depth or segment_classes(source) else "centre",
        label_maps=label_maps,
        batch_size=config.evaluation.batch_size,
        limit=limit,
        workers=config.data.workers,
    )


def features_of(
    config: RunConfig, encoder: Encoder, device: torch.device, *, tokens: bool = True
) -> tuple[Features, Features]:
    """Features of the training and of the validation images, from one pass; see `split_features`."""
    encode = encode_with(encoder, device, config.evaluation.precision)
    return split_features(encode, Views(config, "train"), Views(config, "val"), tokens=tokens)


def split_features(encode: Encode, train: Views, val: Views, *, tokens: bool = True) -> tuple[Features, Features]:
    """Features of two sets of views from one pass over each.

    Where the tokens of both take at most `KEPT_BYTES` (2 GiB: 87,000 images of 64 tokens of width 192) they are kept
    in half precision, else they are encoded anew whenever they are walked over.
    """
    images = len(train) + len(val) if tokens else 0
    return one_pass(encode, train, images), one_pass(encode, val, images)


def one_pass(encode: Encode, split: Views, sharing: int = 0) -> Features:
    """Encode every image once; `sharing` images (0: none) have to fit where tokens are to be kept."""
    pooled, diagnosis, index = PooledParts(), Diagnosis(), list[Tensor]()
    keeper = TokenKeeper(len(split), sharing) if sharing else None
    for batch, tokens in iterate_tokens(encode, split()):
        pooled.add(batch, tokens)
        diagnosis.add(F.layer_norm(tokens, tokens.shape[-1:]))
        index.append(batch.index)
        if keeper is not None:
            keeper.add(tokens)
    held: Tokens | None = None
    if keeper is not None:
        held = keeper.result() or ComputedTokens(encode, split.chosen, torch.cat(index))
    return Features(pooled.joined(), torch.cat(index), held, diagnosis)


def views_text(train: Views, val: Views, kind: str = "") -> str:
    """How many images were used and at which size, for the sentence that says what a table was computed on."""
    return (
        f"{train.used} training and {val.used} validation images{kind} at {size_text(train.config)}"
        f"{unreadable_text(train, val)}"
    )


def whole_views_text(train: Views, val: Views) -> str:
    """The same for what is judged by depth; metres of cameras that nobody described are called relative."""
    metric = train.source.knows_focal_length and val.source.knows_focal_length
    scale = (
        "" if metric else "; depth is relative: dataset.json gives no focal length, so metres hold for these cameras"
    )
    return f"{views_text(train, val, ', whole views')}{scale}"


def unreadable_text(*sets: Views) -> str:
    """How many images were left out, where any were."""
    count = sum(len(each.skipped) for each in sets)
    return f"; {count} unreadable left out" if count else ""


def size_text(config: RunConfig) -> str:
    """Image size for people, and the precision where it is not float32."""
    height, width = config.data.size
    size = f"{height} px" if height == width else f"{height} x {width} px"
    precision = runtime.settled(config.evaluation.precision, runtime.device(config.train.device))
    return size if precision == "fp32" else f"{size} in {precision}"
