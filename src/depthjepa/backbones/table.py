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
            "vit",
            "a run folder (its newest checkpoint), a checkpoint of ours or of the I-JEPA code, a safetensors file, a "
            "Hugging Face folder or hub id, a timm folder or name",
            "backbones.vit",
        ),
    ),
)
