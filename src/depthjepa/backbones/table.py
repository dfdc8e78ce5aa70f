"""The families of backbones: one row and one file each. `opening.Family` says what a file has to give.

Rows are tried in their order; the last one takes what no other claims.
"""

from __future__ import annotations

from depthjepa.kinds import Row, Table

BACKBONES = Table(
    what="backbone family",
    member="FAMILY",
    rows=(
        Row(
            "timm",
            "timm:NAME or a timm folder (transformers and convolutional networks)",
            "backbones.timm",
        ),
        Row(
            "transformers",
            "a folder or hub id of transformers (DINOv2, DINOv3, ViT, MAE, I-JEPA, CLIP, SigLIP)",
            "backbones.transformers",
        ),
        Row(
            "onnx",
            "an ONNX file that gives features",
            "backbones.onnx",
        ),
        Row(
            "vit",
            "a run folder (its newest checkpoint), a checkpoint of ours or of the I-JEPA code, a safetensors file, "
            "I-JEPA as Hugging Face (folder or hub id) or timm (folder or name) have it",
            "backbones.vit",
        ),
    ),
)
