"""Image sequences of ZED stereo cameras as an RGB-D folder, as the SDK's own sample exports them.

`left000000.png` and `depth000000.png` in one folder, the left photograph (with a fourth channel) and 16-bit depth of it
in millimetres: mode 4 of https://github.com/stereolabs/zed-sdk, `recording/export/svo/python/svo_export.py`. Mode 3
writes files of the same names with depth as a picture (`VIEW.DEPTH`), of which no metres can be told. Neither focal
length nor poses are in the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from depthjepa.data.config import MILLIMETRES
from depthjepa.data.images import DECODING_FAULTS, Split, fault_line
from depthjepa.data.prepare.recordings import (
    Recording,
    by_stem,
    folders_of,
    left_out,
    refuse_other_sizes,
    splits_of,
    whole_depth,
    write_recordings,
)
from depthjepa.data.prepare.writing import Prepared, link, save_png
from depthjepa.faults import BadInput

SOURCE = "https://github.com/stereolabs/zed-sdk (recording/export/svo)"
PHOTOGRAPH, DEPTH = "left", "depth"
# What is too near or too far is no number in the SDK, of which 16 bits may make their largest one.
RANGE = (0.001, 65.534)  # [m]
DRAWN = "export the recording again with --mode 4 (LEFT+DEPTH_16BIT)"


def prepare_zed(
    source: Path, out: Path, *, val: str | None = None, every: int = 1, focal_length: float | None = None
) -> Prepared:
    """Bring left photographs and depth of one number together; the values of the depth stay as they are.

    `source` is an exported sequence (`left000000.png`, `depth000000.png`, …), or a folder of several. `focal_length` is
    the left camera's [px] at the photographs' width, which the files do not say. `val` names the validation
    recordings, separated by commas, and every `every`-th frame is taken. An ID is `RECORDING/FRAME`.

    Raises `BadInput` for files that are missing, damaged or something else.
    """
    places = folders_of(
        source,
        lambda place: bool(_numbered(place, PHOTOGRAPH)),
        f"a ZED recording is a folder of left000000.png and depth000000.png, as the SDK's sample exports it with "
        f"--mode 4 ({SOURCE})",
    )
    splits = splits_of(list(places), val)
    remarks: list[str] = []
    recordings = [
        Recording(name=name, pairs=_pairs(name, place, splits[name], every, remarks), focal_length=focal_length)
        for name, place in places.items()
    ]
    return write_recordings(out, "zed", recordings, range=RANGE, remarks=remarks)


@dataclass(frozen=True, slots=True)
class _ZedPair:
    split: Split
    photograph: str
    from_photograph: Path
    from_depth: Path

    def write(self, photograph: Path, beside: Path) -> np.ndarray:
        """Link both, the photograph without its fourth channel; returns metres."""
        metres = whole_depth(self.from_depth, MILLIMETRES, DRAWN)
        refuse_other_sizes(self.from_photograph, self.from_depth, metres, SOURCE)
        try:
            with Image.open(self.from_photograph) as image:
                # That channel means nothing here, and would be read as transparency.
                pixels = np.array(image)[..., :3] if image.mode == "RGBA" else None
        except DECODING_FAULTS as fault:
            raise BadInput(f"{self.from_photograph}: {fault_line(fault)}: the file is damaged; {DRAWN}") from fault
        if pixels is None:
            link(self.from_photograph, photograph)
        else:
            save_png(photograph, pixels)
        link(self.from_depth, beside)
        return metres


def _numbered(place: Path, word: str) -> dict[str, Path]:
    """Files named `word` and a number, by the number."""
    found = by_stem(place, (".png",))
    return {
        stem.removeprefix(word): path
        for stem, path in found.items()
        if stem.startswith(word) and stem.removeprefix(word).isdecimal()
    }


def _pairs(name: str, place: Path, split: Split, every: int, remarks: list[str]) -> list[_ZedPair]:
    photographs, depths = _numbered(place, PHOTOGRAPH), _numbered(place, DEPTH)
    both = [number for number in photographs if number in depths]
    if not both:
        raise BadInput(f"{place} holds no depth beside its left photographs (depth000000.png, …): {DRAWN} ({SOURCE})")
    remarks += left_out(
        name, f"of {len(photographs)} photographs have no depth of their number", len(photographs) - len(both)
    )
    return [_ZedPair(split, f"{name}/{number}.png", photographs[number], depths[number]) for number in both[::every]]
