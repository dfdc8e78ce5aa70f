"""The explorer of a page: point at a patch and see to which patches of all images its features are alike.

The page holds the tokens themselves, as bytes: each token is brought to unit length, so that the products of two are
their cosine, and rounded to 255 steps of its largest channel (an error of the cosine below 0.01). As many images are
kept as fit into `ROOM`, two at least: of large models patches are put together for that. Everything else happens in
the browser (explorer.js).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int8
from matplotlib import colormaps
from PIL import Image

from depthjepa.report.html import packaged, section, text
from depthjepa.report.sections import tokens_of
from depthjepa.runs import Arrays, Run, same_images

ROOM = 6_000_000  # bytes of all tokens of a page; base64 makes a third more of them
FEWEST, MOST = 2, 8  # images
SIMILARITY_MAP = "cividis"
DEPTH_SIDE = 96  # pixels of the longer side of the depth that is told
CENTIMETRES = 100.0


def explorer(runs: Sequence[Run]) -> str:
    """The section, one explorer for each set of equal images; empty where no run kept features."""
    groups = same_images(runs, "figures/features.npz", "tokens")
    parts = [_widget(group, number, ROOM // len(groups)) for number, group in enumerate(groups)]
    if not parts:
        return ""
    return section("Which patches are alike", [EXPLAINED, *parts, f"<script>{packaged('explorer.js')}</script>"])


EXPLAINED = (
    "<p>Point at a patch of any image: every map shows the cosine between its token and all other patches of all "
    "images, model beside model, on one scale. A ring marks the most similar patch of each other image. With the "
    "keyboard: Tab to an image, arrow keys move the point. <b>Had it failed:</b> a map that is bright everywhere is "
    "collapse; one that is bright at the same place of every image knows where a patch is and not what it shows.</p>"
)


def _widget(group: Sequence[tuple[Run, Arrays]], number: int, room: int) -> str:
    first = group[0][1]
    tokens, count = _fitting(tokens_of(group), room)
    images = first["images"][:count]
    content = {
        "images": [_picture(image) for image in images],
        "size": list(images.shape[1:3]),
        "depth": _depth(first.get("depth"), count),
        "models": [
            {
                "name": name,
                "grid": list(found.shape[1:3]),
                "width": found.shape[3],
                "tokens": _bytes(quantised(found[:count])),
            }
            for name, found in tokens.items()
        ],
        "colours": _colours(),
    }
    script = json.dumps(content).replace("<", "\\u003c")  # what begins or ends a script does so anywhere
    return (
        f'<div class="explorer" id="explorer-{number}"><p class="soft" role="status" aria-live="polite"></p>'
        f'<div class="scroll"></div><noscript>{text("The explorer needs JavaScript.")}</noscript>'
        f'<script type="application/json">{script}</script></div>'
    )


def _fitting(tokens: Mapping[str, np.ndarray], room: int) -> tuple[dict[str, np.ndarray], int]:
    """The tokens that a page has room for, and of how many images: where not even two fit, of patches twice as wide."""
    found = dict(tokens)
    while True:
        each = sum(int(np.prod(values.shape[1:])) for values in found.values())
        largest = max(found, key=lambda name: found[name][0].size)
        if FEWEST * each <= room or min(found[largest].shape[1:3]) < 2:
            break
        found[largest] = _halved(found[largest])
    held = min(len(values) for values in found.values())
    return found, min(held, max(FEWEST, min(MOST, room // max(1, each))))


def _halved(tokens: np.ndarray) -> np.ndarray:
    """Means of two by two patches; the last row and column of an odd number stand for two."""
    k, rows, cols, width = tokens.shape
    even = np.pad(tokens.astype(np.float32), ((0, 0), (0, rows % 2), (0, cols % 2), (0, 0)), mode="edge")
    found: np.ndarray = even.reshape(k, -(-rows // 2), 2, -(-cols // 2), 2, width).mean(axis=(2, 4))
    return found


def quantised(tokens: Float[np.ndarray, "k rows cols d"]) -> Int8[np.ndarray, "k rows cols d"]:
    """Tokens as bytes from -127 to 127, each to the scale of its own largest channel: the cosine does not need it."""
    values = tokens.astype(np.float32)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    return np.round(values / np.where(largest > 0, largest, 1) * 127).astype(np.int8)


def _bytes(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _picture(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _depth(depth: np.ndarray | None, count: int) -> dict[str, object] | None:
    """Depth of each image in whole centimetres, little-endian, 0 = not measured; None where none was kept."""
    if depth is None:
        return None
    step = max(1, -(-max(depth.shape[1:]) // DEPTH_SIDE))
    coarse = depth[:count, step // 2 :: step, step // 2 :: step].astype(np.float32)
    known = np.isfinite(coarse) & (coarse > 0)
    values = np.where(known, np.clip(np.round(coarse * CENTIMETRES), 1, 65535), 0).astype("<u2")
    return {"size": list(values.shape[1:]), "values": _bytes(values)}


def _colours() -> list[list[int]]:
    """256 colours of the similarities, from 0 to 1."""
    table = colormaps[SIMILARITY_MAP](np.linspace(0, 1, 256))[:, :3]
    return [[round(255 * float(part)) for part in colour] for colour in table]
