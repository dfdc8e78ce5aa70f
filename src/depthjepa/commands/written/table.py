"""The layouts that `convert` writes: one row and one file each. `layout.WrittenLayout` says what a file has to give."""

from __future__ import annotations

from depthjepa.kinds import Row, Table

WRITTEN = Table(
    what="layout",
    member="LAYOUT",
    rows=(
        Row(
            "depthjepa", "a run folder, which train --resume goes on with", "commands.written.run_folder", also=("run",)
        ),
        Row("checkpoint", "the checkpoint of a run in one file", "commands.written.one_file"),
        Row("reference", "what the I-JEPA code reads (.pth.tar)", "commands.written.reference"),
        Row("hf", "one encoder as a folder of transformers", "commands.written.hf"),
        Row("timm", "one encoder as a folder of timm", "commands.written.timm"),
        Row("onnx", "one encoder as a file that onnxruntime runs", "commands.written.onnx"),
        Row("safetensors", "one encoder as a file of weights", "commands.written.safetensors"),
    ),
)
