"""A small network in an ONNX file: means over colours of pooled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def write_onnx(
    path: Path,
    outputs: Sequence[str] = ("depth",),
    sides: Sequence[Any] = ("h", "w"),
    batch: Any = "b",
    kind: int = 1,
    squeeze: bool = False,
    keeps: Sequence[int] | None = None,
) -> Path:
    """A file whose outputs have a stride of 2; `features` has three channels, the others one.

    `kind` is ONNX's number of what its images are of, and `keeps` the size that all outputs have, whatever comes in.
    """
    onnx = pytest.importorskip("onnx")
    make, floats = onnx.helper, kind != onnx.TensorProto.UINT8
    entry = "images" if floats else "floats"
    nodes = [make.make_node("AveragePool", [entry], ["pooled"], kernel_shape=[2, 2], strides=[2, 2])]
    if not floats:
        nodes.insert(0, make.make_node("Cast", ["images"], [entry], to=onnx.TensorProto.FLOAT))
    if keeps is not None:  # what a faulty export does: the size of its example
        nodes.append(make.make_node("Resize", ["pooled", "", "", "size"], ["kept"], mode="nearest"))
    source = "pooled" if keeps is None else "kept"
    for output in outputs:
        if output == "features":
            nodes.append(make.make_node("Identity", [source], [output]))
        else:
            nodes.append(make.make_node("ReduceMean", [source, "axes"], [output], keepdims=int(not squeeze)))
    values = [make.make_tensor_value_info("images", kind, [batch, 3, *sides])]
    answer = kind if floats else onnx.TensorProto.FLOAT
    given = [make.make_tensor_value_info(output, answer, None) for output in outputs]
    fixed = [make.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])]
    if keeps is not None:
        fixed.append(make.make_tensor("size", onnx.TensorProto.INT64, [4], list(keeps)))
    graph = make.make_graph(nodes, "net", values, given, fixed)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10), path)
    return path
