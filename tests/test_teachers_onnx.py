"""A depth network in an ONNX file: what its output means, the images it takes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput
from depthjepa.guidance.config import FeatureGuidance
from depthjepa.guidance.target import on_cells
from depthjepa.guidance.teachers.cache import made_of, open_cache
from depthjepa.guidance.teachers.loading import load_teacher
from depthjepa.guidance.teachers.onnx_depth import OnnxDepth, build, load_onnx
from depthjepa.logbook import RunFolder
from tiny_onnx import write_onnx
from tiny_runs import SETTINGS, Call

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DRIVING = Path(__file__).parents[2] / "shared/data/teachers/rt_monodepth_s_ms.onnx"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write_onnx` into a folder of the test, with notes beside it."""

    def written(*outputs: Any, name: str = "net.onnx", notes: dict[str, Any] | None = None, **changes: Any) -> Path:
        path = write_onnx(tmp_path / name, *outputs, **changes)
        if notes is not None:
            path.with_suffix(".json").write_text(json.dumps(notes))
        return path

    return written


def images(height: int = 64, width: int = 96, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def pooled(pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 2).mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("outputs", "given", "unit", "zoomed", "expected"),
    [
        (("depth",), {}, "depth of unknown scale and shift, negated", "unchanged", lambda x: -x),
        (("depth",), {"unit": "metres"}, "-log(depth / m)", "log added", lambda x: -x.log()),
        (("disparity",), {}, "inverse depth of unknown scale and shift", "unchanged", lambda x: x),
        (("disparity",), {"unit": "1/metres"}, "1/m", "multiplied", lambda x: x),
        (
            ("depth", "disparity"),
            {"output": "disparity"},
            "inverse depth of unknown scale and shift",
            "unchanged",
            None,
        ),
        (("predicted",), {"direction": "nearer"}, "inverse depth of unknown scale and shift", "unchanged", lambda x: x),
        (("other", "predicted"), {"output": "predicted", "direction": "farther"}, None, "unchanged", lambda x: -x),
        (("depth",), {"direction": "nearer"}, None, "unchanged", lambda x: x),  # who gives it knows better than a name
    ],
)
@pytest.mark.parametrize("squeeze", [False, True])
def test_latents_are_larger_where_things_are_nearer(
    write: Write, outputs: Any, given: Any, unit: Any, zoomed: str, expected: Any, squeeze: bool
) -> None:
    teacher = load_onnx(write(outputs, squeeze=squeeze), **given)
    told = teacher.describe()
    assert (told.channels, told.stride, told.direction, told.zoomed) == (1, 2, "larger = nearer", zoomed)
    assert unit is None or told.unit == unit
    pixels = images()
    torch.testing.assert_close(teacher.latents(pixels), (expected or (lambda x: x))(pooled(pixels)))


def test_features_have_no_direction_and_keep_their_grid(write: Write) -> None:
    teacher = load_teacher("onnx", checkpoint=write(("depth", "features")), output="features")
    assert (teacher.describe().channels, teacher.describe().direction, teacher.describe().unit) == (
        3, "undirected", "features",
    )  # fmt: skip
    pixels = images()
    torch.testing.assert_close(teacher.latents(pixels), torch.nn.functional.avg_pool2d(pixels, 2))


def test_what_stands_beside_the_file_holds_unless_a_key_says_otherwise(write: Write) -> None:
    said = {"output": "predicted", "direction": "farther", "unit": "metres", "mean": [0.5, 0.5, 0.5], "multiple": 14}
    said["deviation"] = [0.25, 0.25, 0.25]
    path = write(("predicted", "disparity"), notes=said)
    teacher = load_onnx(path)
    assert (teacher.given.unit, teacher.given.direction, teacher.multiple) == ("metres", "farther", 14)
    assert teacher.sides(100, 57) == (112, 70)
    pixels = images(56, 84) / 2 + 0.5
    torch.testing.assert_close(teacher.latents(pixels), -((pooled(pixels) - 0.5) / 0.25).clamp(min=1e-3).log())
    assert load_onnx(path, unit="relative", multiple=7).multiple == 7
    other = load_onnx(path, output="disparity")  # of which the notes say nothing
    assert (other.given.unit, other.given.direction) == ("relative", "nearer")


def test_a_network_sees_images_of_its_own_sides(write: Write) -> None:
    free, fixed = load_onnx(write()), load_onnx(write(sides=(64, 128), name="fixed.onnx"))
    assert free.sides(50, 96) == (64, 96) and fixed.sides(50, 96) == (64, 128)
    assert free.latents(images(50, 96)).shape == (2, 1, 32, 48)
    assert fixed.latents(images(50, 96)).shape == (2, 1, 32, 64)


def test_a_batch_of_any_size_goes_through_a_file_of_a_fixed_one(write: Write) -> None:
    free, fixed = load_onnx(write()), load_onnx(write(batch=2, name="two.onnx"))
    torch.testing.assert_close(fixed.latents(images(count=5)), free.latents(images(count=5)))


def test_half_precision_goes_in_as_the_file_takes_it(write: Write) -> None:
    half = load_onnx(write(kind=onnx.TensorProto.FLOAT16))
    found = half.latents(images())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, -pooled(images()), atol=1e-3, rtol=0)


def test_cells_that_are_no_number_do_not_count(write: Write) -> None:
    teacher = load_onnx(write())
    batch = batch_of(images(32, 32))
    batch.images[0, :, :4, :4] = torch.nan
    latents = teacher.batch_latents(batch, (4, 4))
    assert not latents.valid[0, 0, 0, 0] and latents.valid[1].all() and latents.values.isfinite().all()


def test_what_a_network_leaves_out_is_no_depth_on_other_cells(write: Write) -> None:
    """An infinite depth of the sky: not 0, which as the logarithm of metres is one metre."""
    teacher = load_onnx(write(), unit="metres")
    batch = batch_of(images(32, 32))
    batch.images[0, :, :16] = torch.inf
    fine, coarse = on_cells(teacher, batch, (16, 16)), on_cells(teacher, batch, (4, 4))
    for found in (fine, coarse):
        rows = found.values.shape[-2]
        assert not found.valid[0, 0, : rows // 2].any() and found.valid[0, 0, rows // 2 :].all()
        assert found.valid[1].all() and found.values.isfinite().all()
    below = -F.adaptive_avg_pool2d(pooled(batch.images[:1, :, 16:]).log(), (2, 4))[0, 0]
    assert (coarse.values[0, 0, 2:] - below).abs().max() < 0.2 < below.abs().min()


def batch_of(pixels: torch.Tensor) -> Batch:
    count = len(pixels)
    return Batch(torch.arange(count), pixels, None, torch.ones(count), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(
    ("made", "given", "message"),
    [
        ({"outputs": ("predicted",)}, {}, r"what a larger number of the output 'predicted' .* is not told: give "
         r"guidance.teacher_direction=nearer"),
        ({"outputs": ("depth", "disparity")}, {"output": "disparty"}, r"no output 'disparty' \(did you mean "
         r"'disparity'\?\): name one of depth, disparity"),
        ({"outputs": ("one", "other")}, {}, "has no output 'depth': name one of one, other"),
        ({}, {"unit": "1/metres"}, r"cannot be farther in 1/metres: farther may be relative or metres"),
        ({"outputs": ("features",)}, {"output": "features", "direction": "nearer"}, "several channels are features"),
        ({"keeps": (1, 3, 40, 40)}, {}, r"gives depth \[1, 1, 40, 40\] for images of 128 x 192 px: its output does not "
         r"follow its input. Export it at fixed sides"),
        ({"kind": onnx.TensorProto.UINT8}, {}, "takes images of tensor.uint8."),
        ({"notes": {"direction": "near"}}, {}, r"net.json: direction='near': should be .*it may hold output"),
        ({"notes": {"unitt": "metres"}}, {}, r"net.json: unknown key 'unitt' \(did you mean 'unit'\?\)"),
        ({}, {"deviation": (1.0, 0.0, 1.0)}, "cannot be divided by 0"),
    ],
)  # fmt: skip
def test_what_is_not_told_or_not_possible_is_refused(write: Write, made: Any, given: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_onnx(write(**made), **given)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no file .*net\.onnx"):
        load_onnx(tmp_path / "net.onnx")
    with pytest.raises(BadInput, match=r"is no ONNX file: give a file NAME\.onnx"):
        load_onnx(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"none")
    with pytest.raises(BadInput, match="is no ONNX file that onnxruntime reads"):
        load_onnx(tmp_path / "net.onnx")
    with pytest.raises(BadInput, match=r"needs guidance\.teacher_checkpoint"):
        build(FeatureGuidance(teacher="onnx"))


def test_a_cache_remembers_file_notes_and_keys(write: Write) -> None:
    path = write(("depth", "disparity"))
    plain = made_of(FeatureGuidance(teacher="onnx", teacher_checkpoint=str(path)))
    keyed = made_of(FeatureGuidance(teacher="onnx", teacher_checkpoint=str(path), teacher_unit="metres"))
    path.with_suffix(".json").write_text('{"unit": "metres"}')
    noted = made_of(FeatureGuidance(teacher="onnx", teacher_checkpoint=str(path)))
    assert plain != keyed and plain != noted and keyed != noted


# real networks


@pytest.mark.skipif(not DRIVING.is_file(), reason="the driving network is not beside the project")
def test_a_driving_network_gives_what_its_file_gives() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(DRIVING), providers=["CPUExecutionProvider"])
    pixels = images(64, 192)
    names = ("disparity", "depth", "features")
    disparity, depth, features = (torch.from_numpy(each) for each in session.run(names, {"images": pixels.numpy()}))
    load: Callable[..., OnnxDepth] = lambda **given: load_onnx(DRIVING, **given)  # noqa: E731
    torch.testing.assert_close(load(output="disparity").latents(pixels), disparity)
    torch.testing.assert_close(load(unit="metres").latents(pixels), -depth.log())
    torch.testing.assert_close(load(output="features").latents(pixels), features)
    assert load(output="features").describe().channels == 192 and load(output="features").describe().stride == 16


@pytest.mark.slow
def test_depth_anything_as_onnx_says_what_it_says_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxscript")
    from depthjepa.guidance.teachers.transformers_depth import load_huggingface

    config = transformers.DepthAnythingConfig(
        backbone_config={
            "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
            "patch_size": 14, "image_size": 56,
            "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False, "initializer_range": 0.2,
        },
        neck_hidden_sizes=[8, 16, 16, 16], reassemble_hidden_size=32, fusion_hidden_size=8, head_hidden_size=8,
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.DepthAnythingForDepthEstimation(config).eval()
    network.save_pretrained(tmp_path / "folder")
    reference = load_huggingface(tmp_path / "folder")

    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> Any:
            return self.network(pixel_values=pixels).predicted_depth

    program = torch.onnx.export(
        Alone().eval(), (torch.rand(2, 3, 56, 84),), dynamo=True, verbose=False, input_names=["images"],
        output_names=["predicted"], dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "network.onnx")
    mean, deviation = (tuple(each.flatten().tolist()) for each in (reference.mean, reference.deviation))
    (tmp_path / "network.json").write_text(json.dumps({"direction": "nearer", "mean": mean, "deviation": deviation}))
    teacher, pixels = load_onnx(tmp_path / "network.onnx"), images(56, 84, count=3)
    expected = reference.latents(pixels)
    spread = expected.std()
    assert spread > 1e-3  # a constant would agree with anything
    assert np.abs((teacher.latents(pixels) - expected).numpy()).max() < 1e-3 * spread


@pytest.mark.skipif(not DRIVING.is_file(), reason="the driving network is not beside the project")
def test_a_driving_network_teaches_photographs_of_several_cameras(tmp_path: Path, call: Call) -> None:
    """By the command line, through a cache in which each image stands in its own proportions."""
    frames = sorted(DRIVING.parents[1].joinpath("driving_frames").glob("*.jpg"))
    (tmp_path / "frames").mkdir()
    for frame in (*frames[:5], *frames[-4:]):  # 240 x 320 and 187 x 621 px
        (tmp_path / "frames" / frame.name).symlink_to(frame)
    keys = (f"guidance.teacher_checkpoint={DRIVING}", "guidance.teacher_unit=metres")
    asked = (*keys, "guidance.teacher_size=long:320")
    status, said, error = call(
        "teach", "--data", tmp_path / "frames", "--out", tmp_path / "latents", "--teacher", "onnx", *asked
    )
    assert status == 0, error
    assert "crops cut from the cache, against the teacher's own latents" in said
    latents = open_cache(tmp_path / "latents")
    assert latents.facts.shape == (1, 30, 40) and latents.facts.teacher["zoomed"] == "log added"
    metres = np.exp(-latents.part(0).astype(np.float32)[:, 0])
    assert metres[:, 24:].mean() < 15 < metres[:, :6].mean()  # the road before the car is near, the sky is not
    run = (
        "train", "photos", f"data.root={tmp_path / 'frames'}", "--out", tmp_path / "run", "guidance.kind=feature",
        "guidance.teacher=onnx", *asked, f"guidance.cache={tmp_path / 'latents'}", *SETTINGS,
        "train.epochs=null", "train.steps=2",
    )  # fmt: skip
    status, said, error = call(*run)
    assert status == 0, error
    assert np.isfinite(RunFolder(tmp_path / "run").metrics()[-1]["loss_depth"])
