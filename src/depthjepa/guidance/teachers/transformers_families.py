"""The depth networks of `transformers`: what each class predicts, in which direction, and which images it takes.

A row's comment says where that is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from depthjepa.guidance import target
from depthjepa.guidance.target import Zoomed
from depthjepa.model.vit import IMAGENET_DEVIATION, IMAGENET_MEAN

Values = tuple[float, ...]

HALF: Values = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a class calls `predicted_depth`, and the unit of what we make of it."""

    predicted: Literal["larger = nearer", "larger = farther"]
    metric: bool
    unit: str  # of our latents
    zoomed: Zoomed = "unchanged"  # what a crop's zoom does to them


RELATIVE = Quantity("larger = nearer", False, "inverse depth of unknown scale and shift")
CANONICAL = Quantity("larger = nearer", True, f"inverse depth [1/m] {target.CANONICAL}", "multiplied")
DISTANCE = Quantity("larger = farther", True, "-log(depth / m)", "log added")


@dataclass(frozen=True, slots=True)
class Family:
    """What one kind of network takes and gives; functions read the model's configuration."""

    quantity: Quantity | None  # of `predicted_depth`; None: no depth from an image alone
    encoder: str  # the module whose hidden states are the features
    multiple: Callable[[Any], int]  # of an image's sides [px]
    fixed: Callable[[Any], int] | None = None  # the one side [px] that it takes
    square: bool = False  # whether it refuses other images; its encoder never does
    mean: Values = IMAGENET_MEAN  # where no image processor lies beside the model
    deviation: Values = IMAGENET_DEVIATION
    # Whether images go through one by one: because they decide together, or because one is a batch already.
    alone: bool = False


def _patch(config: Any) -> int:
    return int(config.patch_size)


def _coarsest(config: Any) -> int:
    """Pixels a cell of the coarsest map that a DPT neck fuses: between its multiples the maps do not line up."""
    own = config.backbone_config is None or getattr(config, "is_hybrid", False)
    vision = config if own else config.backbone_config
    if hasattr(vision, "depths"):  # an encoder that halves its grid after each stage
        return int(vision.patch_size * 2 ** (len(vision.depths) - 1))
    return int(round(vision.patch_size / min(1, *config.reassemble_factors)))


def _depth_pro_side(config: Any) -> int:
    return int(round(config.patch_size / min(config.scaled_images_ratios)))


FAMILIES = {
    # Inverse depth: the authors' answer to users of DepthAnything/Depth-Anything-V2 ("The model predicts inverse
    # depth"). ImageNet's normalisation, multiples of 14 and any aspect ratio: preprocessor_config.json of the released
    # models, which crop other sides silently.
    "depth_anything relative": Family(RELATIVE, "backbone", _patch),
    # Metres: the head is a sigmoid times `max_depth` (DepthAnythingConfig: 20 indoors, 80 outdoors), trained with
    # SiLog on metres (metric_depth/train.py of the same repository).
    "depth_anything metric": Family(DISTANCE, "backbone", _patch),
    # MiDaS 3.0: the authors' answer to users of isl-org/DPT ("The standard model is inverse depth up to unknown scale
    # and shift"). 0.5 is DPTImageProcessor's default. The neck takes the root of the number of tokens for both sides
    # (DPTReassembleStage.forward): square images only.
    "dpt vit": Family(RELATIVE, "dpt", _coarsest, square=True, mean=HALF, deviation=HALF),
    # MiDaS 3.0 hybrid, as above. DPTViTHybridEmbeddings.forward refuses any side but `image_size`.
    "dpt hybrid": Family(
        RELATIVE, "dpt", _coarsest, fixed=lambda config: int(config.image_size), mean=HALF, deviation=HALF
    ),
    # MiDaS 3.1 on BEiT or Swin V2 (Birkl et al. 2023, "MiDaS v3.1": the same loss on inverse depth).
    "dpt backbone": Family(RELATIVE, "backbone", _coarsest, mean=HALF, deviation=HALF),
    # facebook/dpt-dinov2-*-{nyu,kitti}: DINOv2's depth heads regress metres with the SigLoss.
    # Their preprocessor_config.json states ImageNet's normalisation for 0 to 255 (`do_rescale` false).
    "dpt dinov2": Family(DISTANCE, "backbone", _coarsest),
    # Metres: bins between `min_depth` and `max_depth`, scale-invariant log loss (Bhat et al. 2023, "ZoeDepth");
    # ZoeDepthImageProcessor: 0.5, any aspect ratio. The neck's coarsest map is that of BEiT at 32 px.
    "zoedepth one": Family(DISTANCE, "backbone", _coarsest, mean=HALF, deviation=HALF),
    # With several metric heads the images of a batch vote together for one of them
    # (ZoeDepthMultipleMetricDepthEstimationHeads.forward sums the logits over the batch).
    "zoedepth several": Family(DISTANCE, "backbone", _coarsest, mean=HALF, deviation=HALF, alone=True),
    # Canonical inverse depth, despite the name `predicted_depth`: DepthProImageProcessor.post_process_depth_estimation
    # scales it by width / focal length and then inverts it (Bochkovskii et al. 2024, "Depth Pro"). The processor
    # resizes to 1536 x 1536 whatever the aspect ratio, normalises with 0.5; one image is 35 patches.
    "depth_pro": Family(
        CANONICAL,
        "depth_pro.encoder.image_encoder.model",
        _depth_pro_side,
        fixed=_depth_pro_side,
        mean=HALF,
        deviation=HALF,
        alone=True,
    ),
    # Metres: the head is a sigmoid times `max_depth`, the loss SiLog (GLPNDepthEstimationHead, SiLogLoss);
    # GLPNImageProcessor rescales to [0, 1], does not normalise, and takes multiples of 32, its encoder's stride.
    "glpn": Family(
        DISTANCE,
        "glpn",
        lambda config: math.prod(config.strides),
        mean=(0.0, 0.0, 0.0),
        deviation=(1.0, 1.0, 1.0),
    ),
    # Its head answers in the range of the measured depth that prompts it; without one its authors trained nothing and
    # the output has neither unit nor a direction to rely on. The prompt enters after the encoder: features are sound.
    "prompt_depth_anything": Family(None, "backbone", _patch),
}
MODEL_TYPES = ("depth_anything", "depth_pro", "dpt", "glpn", "prompt_depth_anything", "zoedepth")


def family(config: Any) -> Family:
    """Return the row of `FAMILIES` for a configuration of one of `MODEL_TYPES`."""
    kind = config.model_type
    if kind == "depth_anything":
        kind += f" {config.depth_estimation_type}"
    elif kind == "zoedepth":
        kind += " one" if len(config.bin_configurations) == 1 else " several"
    elif kind == "dpt":
        if config.is_hybrid:
            kind += " hybrid"
        elif config.backbone_config is None:
            kind += " vit"
        else:
            kind += " dinov2" if config.backbone_config.model_type.startswith("dinov2") else " backbone"
    return FAMILIES[kind]
