"""The teachers: one row and one file each. `loading.TeacherKind` says what a file has to give."""

from __future__ import annotations

from depthjepa.kinds import Row, Table

TEACHERS = Table(
    what="teacher",
    member="TEACHER",
    rows=(
        Row("depth", "the depth files themselves, as latents", "guidance.teachers.ground_truth"),
        Row(
            "depthfm",
            "DepthFM: checkpoint (released as depthfm-v1.ckpt) and vae (of Stable Diffusion 1.5: a folder or hub id)",
            "guidance.teachers.depthfm.released",
        ),
        Row(
            "depthfm-tiny",
            "a compact network of DepthFM's kind that knows rendered streets; it comes with this package",
            "guidance.teachers.depthfm.tiny",
        ),
        Row(
            "huggingface",
            "checkpoint: a folder or hub id of a depth network, such as depth-anything/Depth-Anything-V2-Small-hf",
            "guidance.teachers.transformers_depth",
            also=("depthanything", "depth-anything", "depth_anything_v2", "dpt", "midas", "zoedepth", "transformers"),
        ),
        Row(
            "onnx",
            "checkpoint: an ONNX file of a depth network; what its output means stands beside it or in keys",
            "guidance.teachers.onnx_depth",
            also=("onnxruntime",),
        ),
    ),
)
